//! Makes a new cluster.

use crate::{
    DataDir, Error, Instance, Result, command, files, hba,
    roles::{DATABASE, statements},
};
use sempre_model::record::Secrets;
use std::{path::Path, time::Duration};

/// How long `initdb` and the single-user server after it may take on a slow disk.
const INIT_LIMIT: Duration = Duration::from_secs(300);

impl Instance {
    /// Makes a new cluster: checksums, UTF-8, locale `C.UTF-8` where there is one, superuser
    /// `postgres`, and sempre's two roles. It grows beside the data directory and is renamed
    /// into place when it is complete and on disk.
    pub async fn init_db(&self, secrets: &Secrets) -> Result<()> {
        let data_dir = &self.layout.data_dir;
        refuse_root()?;
        match self.inspect() {
            DataDir::Missing | DataDir::Empty => {}
            other => {
                let why = match other {
                    DataDir::Foreign(foreign) => foreign.to_string(),
                    _ => "there is a cluster in it already".to_owned(),
                };
                return Err(Error::DataDir {
                    doing: "make a new cluster in",
                    data_dir: data_dir.clone(),
                    why,
                });
            }
        }
        let work = self.init_dir();
        command::end_strays(&work).await?;
        files::remove_tree(&work)?;
        if let Some(parent) = work.parent() {
            files::private_dir(parent)?;
        }
        let made = self.init_in(&work, secrets).await;
        if made.is_err() {
            let _ = files::remove_tree(&work);
        }
        made?;
        put_in_place(&work, data_dir)
    }

    async fn init_in(&self, work: &Path, secrets: &Secrets) -> Result<()> {
        let mut initdb = command::command(&self.installation.program("initdb"));
        initdb.arg("-D").arg(work).args([
            "--username=postgres",
            "--encoding=UTF8",
            "--data-checksums",
            "--auth-local=peer",
            "--auth-host=scram-sha-256",
            "--lc-messages=C",
            "--no-instructions",
            locale_argument().await,
        ]);
        command::run(initdb, "", INIT_LIMIT).await?;

        // Single-user mode: no socket, no port, nobody else. One statement a line.
        let mut single = command::command(&self.installation.program("postgres"));
        single.arg("--single").arg("-D").arg(work).args(["-c", "exit_on_error=on"]);
        // A statement that fails must not be logged with the verifier in it.
        single.args(["-c", "log_min_error_statement=panic", DATABASE]);
        let input: String = statements(secrets, false).iter().map(|s| format!("{s};\n")).collect();
        command::run(single, &input, INIT_LIMIT).await?;
        files::write_atomically(&work.join("pg_hba.conf"), hba::DEFAULT_CLIENT_LINES)?;
        files::sync_dir(work)
    }
}

/// `C.UTF-8` sorts like `C`, and knows letters beyond ASCII.
async fn locale_argument() -> &'static str {
    let mut locale = tokio::process::Command::new("locale");
    let listed = locale.arg("-a").output().await;
    let listed = listed.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
    let has = |name: &str| {
        listed.as_ref().is_ok_and(|text| text.lines().any(|l| l.eq_ignore_ascii_case(name)))
    };
    if has("C.UTF-8") || has("C.utf8") { "--locale=C.UTF-8" } else { "--no-locale" }
}

/// Renames a complete directory over one that is missing or empty.
pub(crate) fn put_in_place(work: &Path, data_dir: &Path) -> Result<()> {
    std::fs::rename(work, data_dir).map_err(|e| match e.raw_os_error() {
        Some(code) if code == nix::libc::EBUSY || code == nix::libc::EXDEV => Error::DataDir {
            doing: "put the new data in place as",
            data_dir: data_dir.to_owned(),
            why: "it is a mount point; use a folder below it as the data directory".into(),
        },
        _ => Error::io("put the new data in place as", data_dir)(e),
    })?;
    files::sync_parent(data_dir)
}

pub(crate) fn refuse_root() -> Result<()> {
    if nix::unistd::geteuid().is_root() { Err(Error::Root) } else { Ok(()) }
}
