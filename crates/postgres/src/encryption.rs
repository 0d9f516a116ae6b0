//! Encryption between members: what a server shows, what it asks of others, and how they know it.
//!
//! The member's own key and certificate are used where they are (`member.pem`, one file, so that
//! they are replaced together), for both directions. Passwords stay: fencing a standby is taking
//! its password away ([`Instance::forget_upstream`]), which no certificate could do. They are sent
//! by SCRAM bound to the TLS channel, so nobody in between can use one, whatever certificate the
//! server shows.

use crate::{Instance, Result, command, files};
use std::{fs, path::PathBuf, time::Duration};

/// How a server and the members that connect to it know each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Encryption {
    /// Nothing is set: the server's own files say. For a server that no other member reaches.
    #[default]
    Off,
    /// The server shows its member's certificate, and other members have to show theirs.
    Mutual,
    /// The server shows its member's certificate. What clients may show is the administrator's
    /// (`ssl_ca_file` in the record), so members show nothing.
    ServerOnly,
    /// The server shows a certificate of the administrator's. Members do not know its authority;
    /// the channel-bound password proves the server.
    Own,
}

impl Encryption {
    /// Do members connect by TLS only?
    pub(crate) fn is_on(self) -> bool {
        self != Encryption::Off
    }
}

/// Parameters that say what the server shows and asks for. In `postgresql.auto.conf` they would win
/// over us.
pub(crate) const PARAMETERS: [&str; 4] = ["ssl", "ssl_cert_file", "ssl_key_file", "ssl_ca_file"];

/// How long a `postgres` that only reads its configuration may take.
const READ_LIMIT: Duration = Duration::from_secs(10);

impl Instance {
    /// The member's key and certificate.
    pub fn member_pem(&self) -> PathBuf {
        self.layout.tls_dir.join("member.pem")
    }

    /// The certificate of the cluster's authority.
    pub fn ca_pem(&self) -> PathBuf {
        self.layout.tls_dir.join("ca.pem")
    }

    /// Never there: libpq would look for a file in the home directory where none is named.
    pub(crate) fn no_file(&self) -> PathBuf {
        self.layout.config_dir.join("none.pem")
    }

    /// The lines of the configuration file. The record's parameters may follow and win.
    pub(crate) fn encryption_lines(&self, encryption: Encryption) -> Vec<(&'static str, String)> {
        let member = self.member_pem().to_string_lossy().into_owned();
        let mut lines = Vec::new();
        if encryption.is_on() {
            lines.push(("ssl", "on".to_owned()));
        }
        if matches!(encryption, Encryption::Mutual | Encryption::ServerOnly) {
            lines.push(("ssl_cert_file", member.clone()));
            lines.push(("ssl_key_file", member));
            // A key with a passphrase is another one's.
            lines.push(("ssl_passphrase_command", String::new()));
        }
        if encryption == Encryption::Mutual {
            lines.push(("ssl_ca_file", self.ca_pem().to_string_lossy().into_owned()));
        }
        lines
    }

    /// What a connection string says of encryption.
    pub(crate) fn encryption_words(&self, encryption: Encryption) -> Vec<(&'static str, String)> {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let (mode, root, own) = match encryption {
            Encryption::Off => return vec![("sslmode", "prefer".into())],
            Encryption::Mutual => ("verify-ca", self.ca_pem(), self.member_pem()),
            Encryption::ServerOnly => ("verify-ca", self.ca_pem(), self.no_file()),
            Encryption::Own => ("require", self.no_file(), self.no_file()),
        };
        vec![
            ("sslmode", mode.into()),
            ("sslrootcert", text(root)),
            ("sslcert", text(own.clone())),
            ("sslkey", text(own)),
            ("sslcrl", text(self.no_file())),
            ("channel_binding", "require".into()),
        ]
    }

    /// Does the server's own configuration turn TLS on? Then its certificate is the
    /// administrator's, and stays.
    pub async fn own_certificate(&self) -> Result<bool> {
        let data = &self.layout.data_dir;
        let named = self.base.config_file.clone();
        let base = named.unwrap_or_else(|| data.join("postgresql.conf"));
        let auto = fs::read_to_string(data.join("postgresql.auto.conf")).unwrap_or_default();
        if names(&auto).any(|name| name == "ssl_cert_file") {
            return Ok(true);
        }
        let text = fs::read_to_string(&base).unwrap_or_default();
        // Most files do not, and asking the server's program takes a moment.
        let may = |name: String| name == "ssl" || name.starts_with("include");
        if !data.join("PG_VERSION").exists() || !names(&text).chain(names(&auto)).any(may) {
            return Ok(false);
        }
        let mut asked = command::command(&self.installation.program("postgres"));
        asked.arg("-D").arg(data).arg("-c");
        asked.arg(format!("config_file={}", base.display())).args(["-C", "ssl"]);
        let output = command::run(asked, "", READ_LIMIT).await?;
        Ok(String::from_utf8_lossy(&output.stdout).trim() == "on")
    }

    /// Makes sure that PostgreSQL will take the key: it must be private.
    pub(crate) fn check_key(&self, encryption: Encryption) -> Result<()> {
        match encryption {
            Encryption::Mutual | Encryption::ServerOnly => files::make_private(&self.member_pem()),
            Encryption::Off | Encryption::Own => Ok(()),
        }
    }
}

/// The parameters a configuration file sets, in lower case.
fn names(text: &str) -> impl Iterator<Item = String> + '_ {
    text.lines().filter_map(|line| {
        let line = line.trim_start();
        let end = line.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(line.len());
        let name = line[..end].to_ascii_lowercase();
        (!name.is_empty() && !name.starts_with('#')).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_file_are_read() {
        let text = "# ssl = on\n  SSL=on\nssl_cert_file 'x'\n\ninclude_dir 'conf.d' # c\n";
        assert_eq!(names(text).collect::<Vec<_>>(), ["ssl", "ssl_cert_file", "include_dir"]);
    }
}
