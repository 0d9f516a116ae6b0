//! Password verifiers by a query, as a role that may read them.

use crate::{Credentials, Table, Target};
use sempre_model::MemberId;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Mutex, watch},
    task::AbortHandle,
    time::timeout,
};
use tokio_postgres::{Client, Config, NoTls};

/// A database that has not answered by then is passed over.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// The same of a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
const QUERY: &str = "SELECT (SELECT rolpassword FROM pg_catalog.pg_authid WHERE rolname = $1 \
     AND rolcanlogin AND (rolvaliduntil IS NULL OR rolvaliduntil > now()))";

/// Asks the primary, or a standby while there is none. The role needs no more than
/// `GRANT SELECT ON pg_authid`; its connection is not encrypted.
pub struct QueryCredentials {
    table: watch::Receiver<Arc<Table>>,
    user: String,
    password: String,
    /// Kept open: a log-in should not cost two.
    kept: Mutex<Option<Kept>>,
}

struct Kept {
    member: MemberId,
    client: Client,
    driver: AbortHandle,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl QueryCredentials {
    /// Asks as `user`, in database `postgres`.
    pub fn new(table: watch::Receiver<Arc<Table>>, user: String, password: String) -> Self {
        Self { table, user, password, kept: Mutex::default() }
    }

    /// Who can be asked, best first.
    fn targets(&self) -> Vec<Target> {
        let table = self.table.borrow();
        let standbys = table.standbys.iter().map(|standby| &standby.target);
        table.primary.iter().chain(standbys).cloned().collect()
    }

    async fn ask(&self, target: &Target, user: &str) -> Result<Option<String>, String> {
        let mut place = self.kept.lock().await;
        // Taken out: one that did not answer in time is not used again.
        let kept = match place.take() {
            Some(kept) if kept.member == target.member && !kept.client.is_closed() => kept,
            _ => self.connect(target).await?,
        };
        let found = kept.client.query_one(QUERY, &[&user]).await.and_then(|row| row.try_get(0));
        let found = found.map_err(|error| words(&error))?;
        *place = Some(kept);
        Ok(found)
    }

    async fn connect(&self, target: &Target) -> Result<Kept, String> {
        let mut config = Config::new();
        for host in &target.hosts {
            config.host(host);
        }
        config.port(target.port).user(&self.user).password(&self.password).dbname("postgres");
        config.application_name("sempre routing").connect_timeout(CONNECT_WITHIN);
        let (client, connection) = config.connect(NoTls).await.map_err(|error| words(&error))?;
        let driver = tokio::spawn(async move { drop(connection.await) }).abort_handle();
        Ok(Kept { member: target.member.clone(), client, driver })
    }
}

fn words(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |db| db.to_string())
}

#[async_trait::async_trait]
impl Credentials for QueryCredentials {
    async fn verifier(&self, user: &str) -> Result<Option<String>, String> {
        let mut why = String::from("there is no database to ask");
        for target in self.targets() {
            match timeout(ANSWER_WITHIN, self.ask(&target, user)).await {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(error)) => why = format!("{}: {error}", target.member),
                Err(_) => why = format!("{} does not answer", target.member),
            }
        }
        Err(why)
    }
}
