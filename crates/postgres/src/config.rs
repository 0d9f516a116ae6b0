//! Writes the server's configuration.

use crate::{
    DataDir, Encryption, Instance, Result, Settings, encryption,
    files::{remove_file, write_atomically},
    hba,
    parameters::{FLOORED, check_parameter, is_managed},
};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// What writing the configuration changed. A running server needs a reload when anything did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// `sempre.conf`.
    pub config: bool,
    /// `pg_hba.conf`.
    pub hba: bool,
    /// The password file of replication.
    pub passwords: bool,
    /// Managed parameters somebody had set with `ALTER SYSTEM`, which were removed.
    pub removed: Vec<String>,
}

impl Changed {
    /// Did anything change?
    pub fn any(&self) -> bool {
        self.config || self.hba || self.passwords || !self.removed.is_empty()
    }
}

impl Instance {
    /// Writes the server's configuration: `sempre.conf` (the user's own `postgresql.conf`
    /// first, ours after it), `pg_hba.conf`, and the password file of replication. Managed
    /// parameters are taken out of `postgresql.auto.conf`, which PostgreSQL reads last.
    ///
    /// Each file is replaced whole; what is on disk when this returns lasts. A running server
    /// takes it over at [`crate::Session::reload`].
    ///
    /// Order matters for fencing: the password file goes first, so that no receiver can start
    /// with an upstream that is no longer wanted.
    pub async fn write_config(&self, settings: &Settings) -> Result<Changed> {
        for (name, value) in &settings.parameters {
            check_parameter(name, value)?;
        }
        self.prepare_dirs()?;
        self.check_key(settings.encryption)?;
        let passwords = settings.upstream.as_ref().map(|u| u.pass_lines()).unwrap_or_default();
        let passwords = write_atomically(&self.pass_file(), &passwords)?;

        let floors = match self.inspect() {
            DataDir::Present(control) => control.floors,
            _ => BTreeMap::new(),
        };
        let ident = self.ident_file()?;
        let base = self.user_file(&self.base.config_file, "postgresql.conf");
        let config = settings.render(self, base.as_deref(), &ident, &floors);
        let hba = hba::render(self.client_lines(settings)?.as_deref(), settings.encryption);
        let hba = write_atomically(&self.hba_file(), &hba)?;
        let config = write_atomically(&self.config_file(), &config)?;
        let removed = self.clean_auto_conf(settings.encryption)?;
        Ok(Changed { config, hba, passwords, removed })
    }

    /// The user's own file: the named one, or that of the data directory if it is there.
    fn user_file(&self, named: &Option<PathBuf>, name: &str) -> Option<PathBuf> {
        let own = self.layout.data_dir.join(name);
        named.clone().or_else(|| own.exists().then_some(own))
    }

    /// PostgreSQL insists on the file it is told of, so there is always one.
    fn ident_file(&self) -> Result<PathBuf> {
        let empty = self.layout.config_dir.join("pg_ident.conf");
        match self.user_file(&self.base.ident_file, "pg_ident.conf").filter(|f| f.exists()) {
            Some(file) => Ok(file),
            None => write_atomically(&empty, "").map(|_| empty),
        }
    }

    fn client_lines(&self, settings: &Settings) -> Result<Option<String>> {
        if !settings.admitted {
            return Ok(None);
        }
        if !settings.hba.is_empty() {
            return Ok(Some(settings.hba.join("\n")));
        }
        let file = self.user_file(&self.base.hba_file, "pg_hba.conf");
        let lines = match &file {
            Some(file) => fs::read_to_string(file).map_err(crate::Error::io("read", file))?,
            None => hba::DEFAULT_CLIENT_LINES.to_owned(),
        };
        let folder = file.as_deref().and_then(Path::parent).unwrap_or(&self.layout.data_dir);
        Ok(Some(hba::absolute_includes(&lines, folder)))
    }

    /// Takes managed parameters out of `postgresql.auto.conf`.
    fn clean_auto_conf(&self, encryption: Encryption) -> Result<Vec<String>> {
        let file = self.layout.data_dir.join("postgresql.auto.conf");
        let Ok(text) = fs::read_to_string(&file) else { return Ok(Vec::new()) };
        let (kept, removed) = split_auto_conf(&text, encryption);
        if !removed.is_empty() {
            tracing::warn!(
                parameters = removed.join(", "),
                "removed parameters that sempre manages from postgresql.auto.conf"
            );
            write_atomically(&file, &kept)?;
        }
        Ok(removed)
    }

    /// Forgets the upstream's password at once: a walreceiver that starts from now on cannot
    /// reach it, whatever configuration the server has read so far.
    pub fn forget_upstream(&self) -> Result<()> {
        write_atomically(&self.pass_file(), "").map(|_| ())
    }

    pub(crate) fn knows_an_upstream(&self) -> bool {
        fs::metadata(self.pass_file()).is_ok_and(|m| m.len() > 0)
    }

    pub(crate) fn forget_tool_passwords(&self) {
        // Private to us anyway; the next use writes it anew.
        let _ = remove_file(&self.tool_pass_file());
    }
}

/// The lines that may stay, and the names of those that may not.
fn split_auto_conf(text: &str, encryption: Encryption) -> (String, Vec<String>) {
    let mut kept = String::with_capacity(text.len());
    let mut removed = Vec::new();
    for line in text.lines() {
        let end = line.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(line.len());
        let name = line[..end].to_ascii_lowercase();
        let encrypts = matches!(encryption, Encryption::Mutual | Encryption::ServerOnly)
            && encryption::PARAMETERS.contains(&name.as_str());
        if is_managed(&name) || FLOORED.contains(&name.as_str()) || encrypts {
            removed.push(name);
        } else {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    (kept, removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_managed_lines_leave_auto_conf() {
        let text =
            "# Do not edit\nwork_mem = '8MB'\nprimary_conninfo = 'host=x'\nwal_level='minimal'\n";
        let (kept, removed) = split_auto_conf(text, Encryption::Off);
        assert_eq!(kept, "# Do not edit\nwork_mem = '8MB'\n");
        assert_eq!(removed, ["primary_conninfo", "wal_level"]);
        for (encryption, left) in [(Encryption::Own, 1), (Encryption::Mutual, 0)] {
            assert_eq!(split_auto_conf("ssl_ca_file = 'x'\n", encryption).0.lines().count(), left);
        }
    }
}
