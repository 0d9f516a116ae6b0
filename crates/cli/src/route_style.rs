//! How `sempre route run` treats its clients, by what was typed.

use crate::{
    arguments::{RouteHow, RoutePool, RouteSplit, RouteStyle},
    fail::Fail,
};
use sempre_net::{https_client_by, https_server_with};
use sempre_route::{
    ALPN, ClientTls, Credentials, PoolMode, PoolSettings, ProxySettings, QueryCredentials,
    ServerTls, Split, SplitSettings, Style, Table,
};
use std::{fs, path::Path, sync::Arc};
use tokio::sync::watch;

/// How sessions are treated.
pub enum Sessions {
    /// They end with the primary.
    Pass,
    /// They are carried to the next one.
    Carry {
        /// As whom password verifiers are read: role and password; without, only sessions that
        /// need no password are carried.
        reader: Option<(String, String)>,
        /// All else.
        settings: Box<ProxySettings>,
    },
}

impl Sessions {
    /// They are carried, and all is as by default.
    pub fn carried(reader: Option<(String, String)>) -> Self {
        Sessions::Carry { reader, settings: Box::default() }
    }

    /// As routers take it. Verifiers are read from whom the table names.
    pub fn style(self, table: &watch::Receiver<Arc<Table>>) -> Style {
        match self {
            Sessions::Pass => Style::Pass,
            Sessions::Carry { reader, settings } => {
                let credentials = reader.map(|(user, password)| -> Arc<dyn Credentials> {
                    Arc::new(QueryCredentials::new(table.clone(), user, password))
                });
                Style::Proxy(ProxySettings { credentials, ..*settings })
            }
        }
    }
}

/// What was typed, with the files it names.
pub fn sessions(how: &RouteHow) -> Result<Sessions, Fail> {
    if how.style == RouteStyle::Pass {
        nothing_for_carrying(how)?;
        return Ok(Sessions::Pass);
    }
    let (client_tls, server_tls) = match client_tls(how)? {
        None => (None, ServerTls::Off),
        tls => (tls, server_tls(how)?),
    };
    let settings = ProxySettings {
        client_tls,
        server_tls,
        pool: pool(how),
        split: split(how),
        resolve_autocommit: how.resolve_autocommit,
        admin_users: how.admin_user.clone(),
        ..ProxySettings::default()
    };
    Ok(Sessions::Carry { reader: reader(how)?, settings: Box::new(settings) })
}

/// Bytes that just pass are nobody's to share or to encrypt.
fn nothing_for_carrying(how: &RouteHow) -> Result<(), Fail> {
    let typed = [
        ("--auth-user", how.auth_user.is_some()),
        ("--pool-mode", how.pool_mode.is_some()),
        ("--pool-size", how.pool_size.is_some()),
        ("--admin-user", !how.admin_user.is_empty()),
        ("--split", how.split.is_some()),
        ("--resolve-autocommit", how.resolve_autocommit),
        ("--cert", how.cert.is_some()),
    ];
    match typed.iter().find(|(_, typed)| *typed) {
        None => Ok(()),
        Some((flag, _)) => Err(Fail::usage(
            format!("{flag} has no use with --style pass"),
            "bytes pass as they are there, encrypted or not, each client on a connection of its own",
            "Leave one of both away.",
        )),
    }
}

fn pool(how: &RouteHow) -> PoolSettings {
    let default = PoolSettings::default();
    PoolSettings {
        mode: match how.pool_mode {
            None => default.mode,
            Some(RoutePool::Session) => PoolMode::Session,
            Some(RoutePool::Transaction) => PoolMode::Transaction,
        },
        size: how.pool_size.unwrap_or(default.size),
        ..default
    }
}

fn split(how: &RouteHow) -> SplitSettings {
    let default = SplitSettings::default();
    SplitSettings {
        split: match how.split {
            None => default.split,
            Some(RouteSplit::Off) => Split::Off,
            Some(RouteSplit::ReadOnly) => Split::ReadOnly,
        },
        read_your_writes: how.read_your_writes.unwrap_or(default.read_your_writes),
        read_your_writes_timeout_ms: how
            .read_your_writes_timeout_ms
            .unwrap_or(default.read_your_writes_timeout_ms),
    }
}

/// A file that was named as `flag`; `next` says what to name.
fn read(flag: &str, file: &Path, next: &str) -> Result<String, Fail> {
    fs::read_to_string(file).map_err(|error| unusable(flag, file, &error, next))
}

fn unusable(flag: &str, file: &Path, why: &dyn std::error::Error, next: &str) -> Fail {
    Fail::usage(format!("{flag} {} cannot be used", file.display()), why.to_string(), next)
}

/// As whom password verifiers are read.
fn reader(how: &RouteHow) -> Result<Option<(String, String)>, Fail> {
    let (Some(user), Some(file)) = (&how.auth_user, &how.auth_password_file) else {
        return Ok(None);
    };
    let next = "Name a file that holds the password of --auth-user, and nothing else.";
    let text = read("--auth-password-file", file, next)?;
    Ok(Some((user.clone(), text.trim_end_matches(['\r', '\n']).to_owned())))
}

/// Without a certificate nothing is decrypted here.
fn client_tls(how: &RouteHow) -> Result<Option<ClientTls>, Fail> {
    let (Some(cert), Some(key)) = (&how.cert, &how.key) else { return Ok(None) };
    let next = "Name the certificate with its chain as --cert, and its unencrypted key as --key, both PEM.";
    // Each by itself first: the message names the flag.
    read("--cert", cert, next)?;
    read("--key", key, next)?;
    let mut config =
        https_server_with(cert, key).map_err(|error| unusable("--cert", cert, &error, next))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Some(ClientTls { config: Arc::new(config), always: true, required: how.require_tls }))
}

/// A client that encrypts is encrypted all the way, so the servers' certificates are checked.
fn server_tls(how: &RouteHow) -> Result<ServerTls, Fail> {
    let next = "Name a copy of `tls/ca.pem` from a member's folder, or, where the databases have certificates of your own, who signed them.";
    let (flag, file) = match (&how.database_ca, &how.ca) {
        (Some(file), _) => ("--database-ca", file),
        (None, Some(file)) => ("--ca", file),
        (None, None) => {
            return Err(Fail::usage(
                "--cert needs --ca or --database-ca",
                "clients that encrypt are led on encrypted, and the databases' certificates have to be checked",
                next,
            ));
        }
    };
    let mut config = https_client_by(&read(flag, file, next)?)
        .map_err(|error| unusable(flag, file, &error, next))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(ServerTls::AsClient(Arc::new(config)))
}
