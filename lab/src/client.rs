//! A connection as an application opens one.

use anyhow::{Context, Result};
use std::{net::SocketAddr, time::Duration};
use tokio::{task::JoinHandle, time::timeout};
use tokio_postgres::{Client, Config, NoTls};

/// How long a connection may take to be ready for queries, as in many drivers and pools.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where and as whom to connect.
#[derive(Clone, Debug)]
pub struct Target {
    /// A database or what leads to one.
    pub address: SocketAddr,
    /// Role.
    pub user: String,
    /// Its password.
    pub password: String,
    /// Database.
    pub database: String,
}

/// An open connection. Dropping it closes it.
#[derive(Debug)]
pub struct Session {
    /// To ask with.
    pub client: Client,
    driver: JoinHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Target {
    /// Opens a connection from the namespace of the calling task.
    pub async fn connect(&self, application: &str, deadline: Duration) -> Result<Session> {
        let mut config = Config::new();
        config
            .host(self.address.ip().to_string())
            .port(self.address.port())
            .user(&self.user)
            .password(&self.password)
            .dbname(&self.database)
            .application_name(application)
            .connect_timeout(deadline)
            .tcp_user_timeout(Duration::from_secs(5))
            .keepalives_idle(Duration::from_secs(2))
            .keepalives_interval(Duration::from_secs(1))
            .keepalives_retries(3);
        let (client, connection) = timeout(deadline, config.connect(NoTls))
            .await
            .with_context(|| format!("{} did not let us in within {deadline:?}", self.address))?
            .with_context(|| format!("no connection to {}", self.address))?;
        // Its error comes to each waiting query as well.
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Session { client, driver })
    }
}

/// The first line of an error with all its causes.
pub fn one_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    text.lines().next().unwrap_or_default().chars().take(160).collect()
}
