//! What routing needs to know of users' passwords: read from this member's own database, which has
//! them all, be it primary or standby; from the primary where there is no database or it is not up.

use crate::executor::Executor;
use anyhow::{Context, Result, bail};
use sempre_model::{MemberId, MemberKind};
use sempre_postgres::Session;
use sempre_route::{Credentials, Target};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Mutex, watch},
    time::timeout,
};

/// A database that has not said it by then is passed over.
const LOOK_UP_WITHIN: Duration = Duration::from_secs(2);

/// Looks verifiers up in databases of the cluster.
pub struct DatabaseCredentials {
    executor: Arc<Executor>,
    kind: MemberKind,
    table: watch::Receiver<Arc<sempre_route::Table>>,
    /// Kept open: a log-in should not cost two.
    local: Mutex<Option<Session>>,
    remote: Mutex<Option<(MemberId, Session)>>,
}

impl DatabaseCredentials {
    /// For the routers of one member.
    pub fn new(
        executor: Arc<Executor>,
        kind: MemberKind,
        table: watch::Receiver<Arc<sempre_route::Table>>,
    ) -> Self {
        Self { executor, kind, table, local: Mutex::default(), remote: Mutex::default() }
    }

    async fn here(&self, user: &str) -> Result<Option<String>> {
        if self.kind != MemberKind::Data {
            bail!("this member has no database");
        }
        let mut kept = self.local.lock().await;
        if kept.is_none() {
            *kept = Some(self.executor.session().await?);
        }
        let session = kept.as_ref().context("no session")?;
        let found = session.password_verifier(user).await;
        if found.is_err() {
            *kept = None;
        }
        Ok(found?)
    }

    async fn at_the_primary(&self, user: &str) -> Result<Option<String>> {
        let Target { member, hosts, .. } =
            self.table.borrow().primary.clone().context("there is no primary")?;
        let mut kept = self.remote.lock().await;
        if kept.as_ref().is_none_or(|(known, _)| *known != member) {
            *kept = Some((member.clone(), self.executor.session_at(&member, hosts).await?));
        }
        let (_, session) = kept.as_ref().context("no session")?;
        let found = session.password_verifier(user).await;
        if found.is_err() {
            *kept = None;
        }
        Ok(found?)
    }
}

#[async_trait::async_trait]
impl Credentials for DatabaseCredentials {
    async fn verifier(&self, user: &str) -> Result<Option<String>, String> {
        let here = match timeout(LOOK_UP_WITHIN, self.here(user)).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "the database does not answer".into(),
        };
        match timeout(LOOK_UP_WITHIN, self.at_the_primary(user)).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => Err(format!("here: {here}; at the primary: {error:#}")),
            Err(_) => Err(format!("here: {here}; at the primary: no answer")),
        }
    }
}
