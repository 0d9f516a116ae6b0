//! One PostgreSQL server of a member: where its files are and how it is started.

use crate::{Encryption, Installation, Result, files};
use sempre_model::ids::MemberId;
use std::path::PathBuf;

/// The longest path of a Unix socket the kernel takes, bytes.
const SOCKET_PATH_MAX: usize = 107;

/// Where the files of an instance are.
///
/// What sempre writes about the server (`config_dir`) is outside the data directory, because
/// a fresh copy or a rewind replaces all that is in there with another member's files.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Layout {
    /// PostgreSQL's data directory. Copies are made beside it, so its parent must be writable,
    /// and it must not be a mount point itself.
    pub data_dir: PathBuf,
    /// sempre's configuration of the server: `sempre.conf`, `pg_hba.conf`, password files.
    pub config_dir: PathBuf,
    /// Holds the private Unix socket. Nobody else may look into it (0700).
    pub run_dir: PathBuf,
    /// Gets what a rewind would discard.
    pub salvage_dir: PathBuf,
    /// The server's standard error, written by the guard.
    pub log_file: PathBuf,
    /// `member.pem`, the member's key and certificate, and `ca.pem`, the certificate of the
    /// cluster's authority. Kept by the agent; the server and libpq use them as they are.
    pub tls_dir: PathBuf,
}

/// The user's own configuration files, where they are not in the data directory
/// (Debian: `/etc/postgresql/15/main/`).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Base {
    /// `postgresql.conf`; without: the one in the data directory, if there is one.
    pub config_file: Option<PathBuf>,
    /// `pg_hba.conf`; without: the one in the data directory, if there is one.
    pub hba_file: Option<PathBuf>,
    /// `pg_ident.conf`; without: the one in the data directory, if there is one.
    pub ident_file: Option<PathBuf>,
}

/// One PostgreSQL server of a member.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Instance {
    /// Its programs.
    pub installation: Installation,
    /// Its files.
    pub layout: Layout,
    /// The user's own configuration files.
    pub base: Base,
    /// Its TCP port.
    pub port: u16,
    /// Addresses it listens on; none: only Unix sockets.
    pub listen_addresses: Vec<String>,
    /// Further folders for its Unix socket (Debian: `/var/run/postgresql`).
    pub socket_dirs: Vec<PathBuf>,
    /// Whose it is. Its `cluster_name`, and its `application_name` towards an upstream.
    pub me: MemberId,
}

/// How the server is started.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StartCommand {
    /// The program, an absolute path.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Environment, in addition to (and instead of the same names in) the starter's own.
    pub env: Vec<(String, String)>,
}

/// A server to stream, clone or rewind from.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Upstream {
    /// Whose it is.
    pub member: MemberId,
    /// Its addresses, the preferred one first.
    pub hosts: Vec<String>,
    /// Its port, the same on all of them.
    pub port: u16,
    /// Password of role `sempre_replication`.
    pub password: String,
    /// How its server is known, and what it asks for.
    pub encryption: Encryption,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Upstream({} at {}:{})", self.member, self.hosts.join(","), self.port)
    }
}

impl Instance {
    /// The configuration file the server is started with.
    pub fn config_file(&self) -> PathBuf {
        self.layout.config_dir.join("sempre.conf")
    }

    /// The `pg_hba.conf` the server uses.
    pub fn hba_file(&self) -> PathBuf {
        self.layout.config_dir.join("pg_hba.conf")
    }

    /// The password file replication uses. It names the present upstream only, so that not even
    /// a server that has not read its new configuration yet can go back to another one.
    pub fn pass_file(&self) -> PathBuf {
        self.layout.config_dir.join("pgpass")
    }

    /// The password file of copying and rewinding.
    pub(crate) fn tool_pass_file(&self) -> PathBuf {
        self.layout.config_dir.join("pgpass.tool")
    }

    /// Says that a rewind began and did not end. Outside the data directory, because the rewind
    /// itself would remove it there.
    pub(crate) fn rewind_marker(&self) -> PathBuf {
        self.layout.config_dir.join("rewind-unfinished")
    }

    /// Where `initdb` works until the new data directory is complete.
    pub(crate) fn init_dir(&self) -> PathBuf {
        files::beside(&self.layout.data_dir, ".sempre-init")
    }

    /// Where a copy is made until it is complete.
    pub(crate) fn clone_dir(&self) -> PathBuf {
        files::beside(&self.layout.data_dir, ".sempre-clone")
    }

    /// How the server is started. Write its configuration first.
    pub fn start_command(&self) -> StartCommand {
        StartCommand {
            program: self.installation.program("postgres"),
            args: vec![
                "-D".into(),
                self.layout.data_dir.to_string_lossy().into_owned(),
                "-c".into(),
                format!("config_file={}", self.config_file().display()),
            ],
            env: vec![
                ("LC_ALL".into(), "C".into()),
                // Backends are the kernel's choice when memory runs out, not the postmaster: the
                // guard may have lowered the score of all below it.
                ("PG_OOM_ADJUST_FILE".into(), "/proc/self/oom_score_adj".into()),
                ("PG_OOM_ADJUST_VALUE".into(), "0".into()),
            ],
        }
    }

    /// Makes sempre's own folders of this instance.
    pub fn prepare_dirs(&self) -> Result<()> {
        let socket = self.layout.run_dir.join(format!(".s.PGSQL.{}", self.port));
        if socket.as_os_str().len() > SOCKET_PATH_MAX {
            return Err(crate::Error::DataDir {
                doing: "use the socket folder of",
                data_dir: self.layout.data_dir.clone(),
                why: format!(
                    "{} is longer than the {SOCKET_PATH_MAX} bytes a Unix socket may have; use a shorter folder",
                    socket.display()
                ),
            });
        }
        files::private_dir(&self.layout.config_dir)?;
        files::private_dir(&self.layout.run_dir)?;
        files::private_dir(&self.layout.salvage_dir)
    }

    /// Makes the server start as a standby, or not: `standby.signal` there or gone, and
    /// `recovery.signal` (which would end in a new timeline by itself) gone. On disk when this
    /// returns.
    pub fn prepare_role(&self, standby: bool) -> Result<()> {
        let data = &self.layout.data_dir;
        files::remove_file(&data.join("recovery.signal"))?;
        let signal = data.join("standby.signal");
        if standby {
            files::write_atomically(&signal, "")?;
            // An empty file that was there already may not be on disk yet.
            files::sync_dir(data)
        } else {
            files::remove_file(&signal).map(|_| ())
        }
    }

    /// Is it to start as a standby?
    pub fn is_standby_prepared(&self) -> bool {
        self.layout.data_dir.join("standby.signal").exists()
    }
}

impl Upstream {
    /// A connection string for PostgreSQL's own programs and for `primary_conninfo`, without the
    /// password.
    ///
    /// `sempre.upstream` is a placeholder parameter nobody reads on the other side: it makes
    /// `pg_stat_wal_receiver` say from which member this one streams.
    pub(crate) fn conninfo(
        &self,
        instance: &Instance,
        application_name: &str,
        pass_file: &std::path::Path,
        database: Option<&str>,
    ) -> String {
        let hosts = self.hosts.join(",");
        let ports = vec![self.port.to_string(); self.hosts.len().max(1)].join(",");
        let upstream = format!("-c sempre.upstream={}", self.member);
        let pass_file = pass_file.to_string_lossy();
        let mut parts = vec![
            ("host", hosts.as_str()),
            ("port", ports.as_str()),
            ("user", crate::REPLICATION_ROLE),
            ("passfile", &pass_file),
            ("application_name", application_name),
            ("gssencmode", "disable"),
            // 2 s is libpq's least.
            ("connect_timeout", "2"),
            ("keepalives_idle", "2"),
            ("keepalives_interval", "1"),
            ("keepalives_count", "3"),
            ("tcp_user_timeout", "5000"),
            ("options", upstream.as_str()),
        ];
        let encryption = instance.encryption_words(self.encryption);
        parts.extend(encryption.iter().map(|(key, value)| (*key, value.as_str())));
        if let Some(database) = database {
            parts.push(("dbname", database));
        }
        parts
            .into_iter()
            .map(|(key, value)| format!("{key}={}", quote_conninfo(value)))
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// The password file's lines for this upstream.
    pub(crate) fn pass_lines(&self) -> String {
        let escape = |text: &str| text.replace('\\', "\\\\").replace(':', "\\:");
        let line = |host: &String| {
            format!(
                "{}:{}:*:{}:{}\n",
                escape(host),
                self.port,
                crate::REPLICATION_ROLE,
                escape(&self.password)
            )
        };
        self.hosts.iter().map(line).collect()
    }
}

/// A value of a connection string.
fn quote_conninfo(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn instance() -> Instance {
        let at = |name: &str| PathBuf::from("/x").join(name);
        Instance {
            installation: Installation { bin_dir: at("bin"), major: 15 },
            layout: Layout {
                data_dir: at("data"),
                config_dir: at("config"),
                run_dir: at("run"),
                salvage_dir: at("salvage"),
                log_file: at("log"),
                tls_dir: at("tls"),
            },
            base: Base::default(),
            port: 5432,
            listen_addresses: Vec::new(),
            socket_dirs: Vec::new(),
            me: MemberId::new("a").unwrap(),
        }
    }

    #[test]
    fn a_connection_string_names_every_address_and_no_password() {
        let upstream = Upstream {
            member: MemberId::new("b").unwrap(),
            hosts: vec!["10.0.0.2".into(), "fd00::2".into()],
            port: 5432,
            password: "se:cret".into(),
            encryption: Encryption::Mutual,
        };
        let instance = instance();
        let text = upstream.conninfo(&instance, "a", Path::new("/x/pg'pass"), None);
        assert!(text.contains("host='10.0.0.2,fd00::2' port='5432,5432'"), "{text}");
        assert!(text.contains(r"passfile='/x/pg\'pass'"), "{text}");
        assert!(!text.contains("cret"), "{text}");
        for word in
            ["sslmode='verify-ca'", "channel_binding='require'", "sslrootcert='/x/tls/ca.pem'"]
        {
            assert!(text.contains(word), "{text}");
        }
        assert_eq!(
            upstream.pass_lines(),
            "10.0.0.2:5432:*:sempre_replication:se\\:cret\n\
             fd00\\:\\:2:5432:*:sempre_replication:se\\:cret\n"
        );
    }
}
