//! The role and the database that the demo's clients use.

use crate::fail::Fail;
use rand::RngExt;
use sempre_agent::Config;
use std::{net::SocketAddr, time::Duration};
use tokio::time::Instant;
use tokio_postgres::NoTls;

/// Characters of a password that need no escaping in a DSN.
const ALPHABET: &[u8] = b"abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789";
/// Its length: more than 130 bits.
const LENGTH: usize = 24;
/// Between two attempts to get through.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// The role, and its database.
const NAME: &str = "demo";
/// The role by which routing reads password verifiers.
const READER: &str = "demo_routing";

/// How clients log in.
pub struct Login {
    password: String,
    reader: String,
}

impl Login {
    /// With random passwords.
    pub fn new() -> Self {
        let mut random = rand::rng();
        let mut password = || {
            (0..LENGTH)
                .map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())]))
                .collect()
        };
        Self { password: password(), reader: password() }
    }

    /// As whom routing reads password verifiers: role and password.
    pub fn reader(&self) -> (String, String) {
        (READER.into(), self.reader.clone())
    }

    /// The DSN of an address.
    pub fn dsn(&self, address: SocketAddr) -> String {
        format!("postgresql://{NAME}:{}@{address}/{NAME}", self.password)
    }
}

/// Who may log in: this machine only, with a password.
pub fn hba() -> Vec<String> {
    [
        "local all all peer",
        "host all all 127.0.0.0/8 scram-sha-256",
        "host replication all 127.0.0.0/8 scram-sha-256",
    ]
    .map(String::from)
    .into()
}

/// Makes the role and its database, through the member's private socket.
pub async fn make(config: &Config, admin: &str, login: &Login) -> Result<(), Fail> {
    let failed = |error: tokio_postgres::Error| {
        let why = error.as_db_error().map_or_else(|| error.to_string(), |db| db.to_string());
        Fail::new("the demo's role was not made", why, "")
    };
    let (client, connection) = tokio_postgres::Config::new()
        .host_path(config.dir.join("run"))
        .port(config.ports.database)
        .user("sempre")
        .password(admin)
        .dbname("postgres")
        .connect(NoTls)
        .await
        .map_err(failed)?;
    let connection = tokio::spawn(connection);
    for statement in [
        format!("CREATE ROLE {NAME} LOGIN PASSWORD '{}'", login.password),
        // To see replication, and what others do.
        format!("GRANT pg_monitor TO {NAME}"),
        format!("CREATE ROLE {READER} LOGIN PASSWORD '{}'", login.reader),
        format!("GRANT SELECT ON pg_catalog.pg_authid TO {READER}"),
        format!("CREATE DATABASE {NAME} OWNER {NAME}"),
    ] {
        client.batch_execute(&statement).await.map_err(failed)?;
    }
    drop(client);
    let _ = connection.await;
    Ok(())
}

/// Waits until a client gets through to this address.
pub async fn reach(login: &Login, address: SocketAddr, within: Duration) -> Result<(), Fail> {
    let failed = |why: String| Fail::new(format!("no client gets through {address}"), why, "");
    let config: tokio_postgres::Config = login
        .dsn(address)
        .parse()
        .map_err(|error: tokio_postgres::Error| failed(error.to_string()))?;
    let until = Instant::now() + within;
    loop {
        match config.connect(NoTls).await {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > until => return Err(failed(error.to_string())),
            // On a standby the role may not be replayed yet.
            Err(_) => tokio::time::sleep(RETRY_PAUSE).await,
        }
    }
}
