//! Password verifiers by a query, as a role that may read them.

use crate::{Credentials, Table, Target, connect};
use sempre_model::MemberId;
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, task::AbortHandle, time::timeout};
use tokio_postgres::{Client, Config, NoTls, types::ToSql};

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
    /// Kept open: a log-in should not cost two. All log-ins ask over the same one, at the same time:
    /// on a bad network an answer takes long, and a queue would outlast every client's patience.
    kept: Place,
    /// Held by the one that connects.
    connecting: tokio::sync::Mutex<()>,
}

type Place = Mutex<Option<Arc<Kept>>>;

fn lock(place: &Place) -> MutexGuard<'_, Option<Arc<Kept>>> {
    // Nothing panics half-way in here, so a poisoned lock still guards consistent data.
    place.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Kept {
    member: MemberId,
    /// The address it is connected by.
    host: String,
    client: Client,
    driver: AbortHandle,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A question. If it is dropped without an answer, its connection is not used again.
struct Question<'a> {
    place: &'a Place,
    kept: Arc<Kept>,
    answered: bool,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        let mut place = lock(self.place);
        if !self.answered && place.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, &self.kept)) {
            *place = None;
        }
    }
}

impl QueryCredentials {
    /// Asks as `user`, in database `postgres`.
    pub fn new(table: watch::Receiver<Arc<Table>>, user: String, password: String) -> Self {
        let (kept, connecting) = Default::default();
        Self { table, user, password, kept, connecting }
    }

    /// Who can be asked, best first.
    fn targets(&self) -> Vec<Target> {
        let table = self.table.borrow();
        let standbys = table.standbys.iter().map(|standby| &standby.target);
        table.primary.iter().chain(standbys).cloned().collect()
    }

    async fn ask(&self, target: &Target, user: &str) -> Result<Option<String>, String> {
        loop {
            let kept = self.connection(target).await?;
            let mut question = Question { place: &self.kept, kept, answered: false };
            let client = &question.kept.client;
            let asked: [&(dyn ToSql + Sync); 1] = [&user];
            let found = tokio::select! {
                biased;
                found = client.query_one(QUERY, &asked) => found,
                // The address is dead from here, and another one is not: no use to wait.
                () = self.dies(&question.kept.host) => continue,
                () = self.leaves(&target.member) => return Err("it is out of reach".into()),
            };
            let found = found.and_then(|row| row.try_get(0)).map_err(|error| words(&error))?;
            question.answered = true;
            return Ok(found);
        }
    }

    /// Ends when the address is dead from here.
    async fn dies(&self, host: &String) {
        let mut table = self.table.clone();
        if table.wait_for(|table| table.dead_hosts.contains(host)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Ends when clients are led to this member no more.
    async fn leaves(&self, member: &MemberId) {
        let mut table = self.table.clone();
        let left = |table: &Arc<Table>| {
            let standbys = table.standbys.iter().map(|standby| &standby.target);
            !table.primary.iter().chain(standbys).any(|target| target.member == *member)
        };
        if table.wait_for(left).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The one that is kept, or a new one.
    async fn connection(&self, target: &Target) -> Result<Arc<Kept>, String> {
        let usable = || {
            let kept = lock(&self.kept).clone();
            kept.filter(|kept| kept.member == target.member && !kept.client.is_closed())
        };
        if let Some(kept) = usable() {
            return Ok(kept);
        }
        let _alone = self.connecting.lock().await;
        if let Some(kept) = usable() {
            return Ok(kept);
        }
        let kept = timeout(CONNECT_WITHIN, self.connect(target)).await;
        let kept = Arc::new(kept.map_err(|_| "it does not let us in".to_owned())??);
        *lock(&self.kept) = Some(kept.clone());
        Ok(kept)
    }

    async fn connect(&self, target: &Target) -> Result<Kept, String> {
        let (stream, host) = connect::to_target(target).await?;
        let mut config = Config::new();
        config.user(&self.user).password(&self.password).dbname("postgres");
        config.application_name("sempre routing");
        let (client, connection) =
            config.connect_raw(stream, NoTls).await.map_err(|error| words(&error))?;
        let driver = tokio::spawn(async move { drop(connection.await) }).abort_handle();
        Ok(Kept { member: target.member.clone(), host: host.to_owned(), client, driver })
    }
}

fn words(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |db| db.to_string())
}

#[async_trait::async_trait]
impl Credentials for QueryCredentials {
    async fn verifier(&self, user: &str) -> Result<Option<String>, String> {
        let mut why = String::from("there is no database to ask");
        let mut asked = Vec::new();
        // Looked up anew each time: the primary may be another one by now.
        while let Some(target) = self.targets().into_iter().find(|t| !asked.contains(&t.member)) {
            asked.push(target.member.clone());
            match timeout(ANSWER_WITHIN, self.ask(&target, user)).await {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(error)) => why = format!("{}: {error}", target.member),
                Err(_) => why = format!("{} does not answer", target.member),
            }
        }
        Err(why)
    }
}
