//! The member's config file: one TOML file, under 15 lines for the common case. Everything that
//! concerns the whole cluster is policy, in the record, not here.

use sempre_backup::serve::Rule;
use sempre_model::{
    Member, MemberId, MemberKind, NodeId, Path as NetPath, Tags, member::Ports, policy::nearest,
};
use sempre_route::{PoolSettings, Split, SplitSettings};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Paths a member may have: more networks than this is a mistake in the file.
const ADDRESSES_MAX: usize = 8;

/// The file as written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The member's name.
    pub name: MemberId,
    /// All state of the member lives below.
    pub dir: PathBuf,
    /// Its addresses, one a network, in the same order at every member.
    pub addresses: Vec<String>,
    /// The system user the member runs as when started as root.
    #[serde(default = "default_user")]
    pub user: String,
    /// `data` or `witness`.
    #[serde(default)]
    pub kind: MemberKind,
    /// Its failure domain.
    #[serde(default)]
    pub zone: Option<String>,
    /// Its ports.
    #[serde(default)]
    pub ports: Ports,
    /// Wishes about it.
    #[serde(default)]
    pub tags: Tags,
    /// About PostgreSQL.
    #[serde(default)]
    pub postgres: Postgres,
    /// About routing.
    #[serde(default)]
    pub route: Route,
    /// About REST.
    #[serde(default)]
    pub rest: Rest,
    /// About drills.
    #[serde(default)]
    pub drill: Drill,
    /// Folders in which the cluster may keep repositories.
    #[serde(default)]
    pub repository: Vec<Rule>,
}

/// The `[drill]` table. Programs that run here are named here, not in the record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Drill {
    /// Commands of the shell that look at a restored database, after `pg_amcheck`.
    pub checks: Vec<String>,
}

/// The `[postgres]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Postgres {
    /// Where its programs are; found by itself when absent.
    pub bin_dir: Option<PathBuf>,
    /// The data directory; `<dir>/data` when absent.
    pub data_dir: Option<PathBuf>,
    /// The `postgresql.conf` the server had before it was adopted, if it is not in the data
    /// directory (Debian keeps it in /etc).
    pub config_file: Option<PathBuf>,
    /// Its `pg_hba.conf`, likewise.
    pub hba_file: Option<PathBuf>,
}

/// The `[route]` table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Route {
    /// Listen for routed clients on this member.
    pub enabled: bool,
    /// What becomes of a client's session when the primary changes.
    pub style: RouteStyle,
    /// A certificate (with its chain, PEM) for clients that encrypt; they are then always offered
    /// it. Without, they get the member's where the policy's `client_tls` says so; or, where the
    /// databases have one of the administrator's, that one, and such sessions are not carried.
    pub cert_file: Option<PathBuf>,
    /// Its private key, PEM.
    pub key_file: Option<PathBuf>,
    /// Refuse clients that do not encrypt.
    pub require_tls: bool,
    /// Who signs certificates that clients may show (PEM); with it, methods `cert` and options
    /// `clientcert` in `pg_hba.conf` count for routed clients too.
    pub client_ca_file: Option<PathBuf>,
    /// Who signed the databases' certificates, where those are the administrator's (PEM).
    pub database_ca_file: Option<PathBuf>,
    /// Who may use the admin database `sempre`; nobody: there is none.
    pub admin_users: Vec<String>,
    /// How server connections are shared.
    pub pool: PoolSettings,
    /// Find out, too, what became of single statements that write, when their answer is lost. Each
    /// takes one more exchange with the server.
    pub resolve_autocommit: bool,
    /// Which transactions of the read-write port standbys serve.
    pub split: Split,
    /// They serve them only once they have replayed what the session has committed.
    pub read_your_writes: bool,
    /// How long they are waited for, ms; then the primary serves them.
    pub read_your_writes_timeout_ms: u64,
}

impl Route {
    /// How the work of the read-write port is split.
    pub fn splitting(&self) -> SplitSettings {
        SplitSettings {
            split: self.split,
            read_your_writes: self.read_your_writes,
            read_your_writes_timeout_ms: self.read_your_writes_timeout_ms,
        }
    }
}

/// How routing treats the sessions of its clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteStyle {
    /// It speaks the protocol on both sides and carries sessions to the next primary.
    #[default]
    Carry,
    /// It passes bytes, and closes sessions on a primary that is lost.
    Pass,
}

/// The `[rest]` table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rest {
    /// Whether REST is encrypted.
    pub tls: RestTls,
    /// A certificate (with its chain, PEM) to show instead of the member's.
    pub cert_file: Option<PathBuf>,
    /// Its private key, PEM.
    pub key_file: Option<PathBuf>,
    /// Who signed such certificates, at this and other members: commands trust it too.
    pub ca_file: Option<PathBuf>,
}

/// Whether REST is encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestTls {
    /// No: everything is in clear, the token of commands too.
    Off,
    /// Both are spoken on the same port. From another machine, what changes something must be
    /// encrypted.
    #[default]
    On,
    /// From another machine, everything must be encrypted.
    Required,
}

impl Default for Route {
    fn default() -> Self {
        let usual = SplitSettings::default();
        Self {
            enabled: true,
            style: RouteStyle::Carry,
            cert_file: None,
            key_file: None,
            require_tls: false,
            client_ca_file: None,
            database_ca_file: None,
            admin_users: Vec::new(),
            pool: PoolSettings::default(),
            resolve_autocommit: false,
            split: usual.split,
            read_your_writes: usual.read_your_writes,
            read_your_writes_timeout_ms: usual.read_your_writes_timeout_ms,
        }
    }
}

fn default_user() -> String {
    "postgres".into()
}

/// Why a config file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not there, or not readable.
    #[error("cannot read the config file {path}: {source}; name another with --config")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, or a key or value that does not fit.
    #[error("config file {path}: {what}")]
    Invalid {
        /// Which.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
}

/// Every key that may stand in the file, for naming the nearest one to a mistyped one.
const KEYS: [&str; 56] = [
    "name",
    "dir",
    "addresses",
    "user",
    "kind",
    "zone",
    "ports",
    "tags",
    "postgres",
    "route",
    "style",
    "require_tls",
    "client_ca_file",
    "database_ca_file",
    "admin_users",
    "resolve_autocommit",
    "split",
    "read_your_writes",
    "read_your_writes_timeout_ms",
    "pool",
    "mode",
    "size",
    "query_wait_timeout_ms",
    "server_idle_timeout_ms",
    "server_lifetime_ms",
    "server_reset",
    "max_prepared_statements",
    "database",
    "read_write",
    "read_only",
    "rest",
    "peer",
    "never_primary",
    "priority",
    "no_sync",
    "no_route",
    "replicate_from",
    "clone_from",
    "bin_dir",
    "data_dir",
    "config_file",
    "hba_file",
    "enabled",
    "tls",
    "cert_file",
    "key_file",
    "ca_file",
    "data",
    "witness",
    "drill",
    "checks",
    "repository",
    "folder",
    "window_days",
    "quota_bytes",
    "confirm_clock",
];

/// Folders of the member that are no place for a database.
const OWN_FOLDERS: [&str; 6] = ["tls", "record", "run", "log", "salvage", "postgres"];

impl Config {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|what| ConfigError::Invalid { path: path.to_owned(), what })
    }

    /// Checks the text of a file; the error says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Config = toml::from_str(text).map_err(|e| explain(&e))?;
        if config.addresses.is_empty() || config.addresses.len() > ADDRESSES_MAX {
            return Err(format!(
                "`addresses` must name 1 to {ADDRESSES_MAX} addresses of this member, one a network"
            ));
        }
        if let Some(bad) = config
            .addresses
            .iter()
            .find(|a| a.is_empty() || a.contains([' ', ',', '\'', '[']) || has_port(a))
        {
            return Err(format!(
                "`{bad}` is not an address; give an IP address or a host name, without a port"
            ));
        }
        if !config.dir.is_absolute() {
            return Err(format!("`dir` ({}) must be an absolute path", config.dir.display()));
        }
        let ports = config.ports;
        let mut all = [ports.database, ports.read_write, ports.read_only, ports.rest, ports.peer];
        all.sort_unstable();
        if all.windows(2).any(|w| w[0] == w[1]) || all[0] == 0 {
            return Err("`[ports]`: the five ports must be different and not 0".into());
        }
        if config.tags.replicate_from.as_ref() == Some(&config.name) {
            return Err("`replicate_from` names this member itself".into());
        }
        for (index, address) in config.addresses.iter().enumerate() {
            if config.addresses[..index].contains(address) {
                return Err(format!(
                    "`addresses` names {address} twice; give one address a network"
                ));
            }
        }
        config.check_paths()?;
        let (rest, route) = (&config.rest, &config.route);
        for (table, cert, key) in [
            ("rest", &rest.cert_file, &rest.key_file),
            ("route", &route.cert_file, &route.key_file),
        ] {
            if cert.is_some() != key.is_some() {
                return Err(format!("`[{table}]`: `cert_file` and `key_file` go together"));
            }
        }
        config.check_witness()?;
        config.check_repositories()?;
        Ok(config)
    }

    /// The data directory must not lie where sempre keeps its own files.
    fn check_paths(&self) -> Result<(), String> {
        let named = [
            ("bin_dir", &self.postgres.bin_dir),
            ("data_dir", &self.postgres.data_dir),
            ("config_file", &self.postgres.config_file),
            ("hba_file", &self.postgres.hba_file),
            ("cert_file", &self.rest.cert_file),
            ("key_file", &self.rest.key_file),
            ("ca_file", &self.rest.ca_file),
            ("cert_file", &self.route.cert_file),
            ("key_file", &self.route.key_file),
            ("client_ca_file", &self.route.client_ca_file),
            ("database_ca_file", &self.route.database_ca_file),
        ];
        for (key, path) in named {
            if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
                return Err(format!("`{key}` ({}) must be an absolute path", path.display()));
            }
        }
        let Some(data) = &self.postgres.data_dir else { return Ok(()) };
        let shown = data.display();
        if self.dir.starts_with(data) {
            return Err(format!(
                "`dir` ({}) lies in `data_dir` ({shown}); keep them apart",
                self.dir.display()
            ));
        }
        match OWN_FOLDERS.iter().find(|own| data.starts_with(self.dir.join(own))) {
            Some(own) => Err(format!("`data_dir` ({shown}) lies in sempre's own folder `{own}`")),
            None => Ok(()),
        }
    }

    /// Each folder is served by one rule, and is none of the member's own.
    fn check_repositories(&self) -> Result<(), String> {
        for (index, rule) in self.repository.iter().enumerate() {
            rule.check().map_err(|why| format!("`[[repository]]`: {why}"))?;
            let shown = rule.folder.display();
            if rule.window_days.is_some() && self.kind != MemberKind::Witness {
                return Err(format!(
                    "`[[repository]]` {shown}: `window_days` would promise what it cannot keep, for whoever has this member's database can run programs here; keep such a folder on a witness"
                ));
            }
            let overlap =
                |other: &Path| other.starts_with(&rule.folder) || rule.folder.starts_with(other);
            if self.repository[..index].iter().any(|other| overlap(&other.folder)) {
                return Err(format!("`[[repository]]`: {shown} is in another one, or named twice"));
            }
            if overlap(&self.dir) || self.postgres.data_dir.as_ref().is_some_and(|d| overlap(d)) {
                return Err(format!(
                    "`[[repository]]`: {shown} and the member's own folder must be apart"
                ));
            }
        }
        Ok(())
    }

    /// A witness has no database, so nothing about one can be meant.
    fn check_witness(&self) -> Result<(), String> {
        if self.kind != MemberKind::Witness {
            return Ok(());
        }
        let Tags {
            never_primary: _,
            priority,
            no_sync,
            no_route,
            replicate_from,
            clone_from,
            spare,
        } = &self.tags;
        let set = [
            ("`[postgres]`", self.postgres != Postgres::default()),
            ("`priority`", *priority != 0),
            ("`no_sync`", *no_sync),
            ("`no_route`", *no_route),
            ("`replicate_from`", replicate_from.is_some()),
            ("`clone_from`", *clone_from),
            ("`spare`", *spare),
        ];
        match set.iter().find(|(_, is_set)| *is_set) {
            Some((key, _)) => Err(format!(
                "{key} is set, and `kind` is `witness`: a witness has no database; take one of both out"
            )),
            None => Ok(()),
        }
    }

    /// The member as it goes into the record.
    pub fn member(&self, node: NodeId) -> Member {
        Member {
            name: self.name.clone(),
            node,
            kind: self.kind,
            paths: self.addresses.iter().map(|a| NetPath { host: a.clone() }).collect(),
            ports: self.ports,
            zone: self.zone.clone(),
            tags: self.tags.clone(),
            own_certificate: false,
        }
    }
}

/// A colon stands in an IPv6 address, or before a port.
fn has_port(address: &str) -> bool {
    address.contains(':') && address.parse::<std::net::Ipv6Addr>().is_err()
}

/// toml's message, and the nearest known key to an unknown one.
fn explain(error: &toml::de::Error) -> String {
    let message = error.message();
    let hint = message
        .strip_prefix("unknown field `")
        .and_then(|rest| rest.split('`').next())
        .and_then(|key| nearest(key, KEYS))
        .map(|key| format!("; did you mean `{key}`?"))
        .unwrap_or_default();
    // serde speaks of Rust's types.
    let text = error.to_string().replace("expected u16", "expected a port, 1 to 65535");
    let text = text.replace("expected i32", "expected a whole number, at most 9 digits");
    format!("{}{hint}", text.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMON: &str = r#"
name = "db1"
dir = "/var/lib/sempre"
addresses = ["10.0.0.1", "10.1.0.1"]
"#;

    #[test]
    fn the_common_case_is_short() {
        let config = Config::parse(COMMON).unwrap();
        assert_eq!(config.user, "postgres");
        assert_eq!(config.ports.rest, 8008);
        assert_eq!(config.member(3).paths.len(), 2);
    }

    #[test]
    fn folders_are_served_by_rules() {
        let rule =
            "[[repository]]\nfolder = \"/srv/a\"\nwindow_days = 30\nquota_bytes = 1_000_000\n";
        let witness = format!("kind = \"witness\"\n{COMMON}");
        let two = format!("{witness}\n{rule}[[repository]]\nfolder = \"/srv/b\"");
        let config = Config::parse(&two).unwrap();
        assert_eq!((config.repository.len(), config.repository[0].window_days), (2, Some(30)));
        for (text, word) in [
            (rule.replace("30", "0"), "from 1 to"),
            (rule.replace("30", "-1"), "window_days"),
            (rule.replace("/srv", "srv"), "absolute"),
            (rule.replace("window_days", "window_day"), "did you mean `window_days`?"),
            (rule.replace("/srv/a", "/var/lib/sempre/x"), "must be apart"),
            (rule.replace("/srv/a", "/var"), "must be apart"),
            (format!("{rule}{}", rule.replace("/srv/a", "/srv/a/b")), "named twice"),
        ] {
            let error = Config::parse(&format!("{witness}\n{text}")).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        // Whoever has the database has the machine's files.
        let error = Config::parse(&format!("{COMMON}\n{rule}")).unwrap_err();
        assert!(error.contains("on a witness"), "{error}");
        Config::parse(&format!("{COMMON}\n{}", rule.replace("window_days", "#"))).unwrap();
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            (format!("{COMMON}\nadresses = []"), "did you mean `addresses`?"),
            (format!("{COMMON}\n[ports]\nrest = 5432"), "must be different"),
            (format!("{COMMON}\n[tags]\nreplicate_from = \"db1\""), "this member itself"),
            (format!("{COMMON}\n[rest]\ntls = \"maybe\""), "`off`, `on`, `required`"),
            (format!("{COMMON}\n[rest]\ncert_file = \"/x\""), "go together"),
            (format!("{COMMON}\n[route]\nkey_file = \"/x\""), "go together"),
            (format!("{COMMON}\n[route.pool]\nmod = \"session\""), "did you mean `mode`?"),
            (format!("{COMMON}\n[rest]\ncert = \"/x\""), "did you mean `cert_file`?"),
            (COMMON.replace("/var", "var"), "absolute"),
            (COMMON.replace("db1", "DB 1"), "is not a member name"),
            (COMMON.replace("10.0.0.1", "10.0.0.1 x"), "not an address"),
        ] {
            let error = Config::parse(&text).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
