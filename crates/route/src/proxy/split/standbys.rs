//! The standbys that serve the read-only transactions of a read-write port: which one, and a
//! connection to it. They have pools of their own.

use super::begin::Begin;
use crate::{
    Mode, ProxySettings,
    choose::{Candidate, follows},
    hold::{Hold, Shared},
    proxy::{
        Proxy,
        attach::with_server,
        auth::Secret,
        cancel::Cancels,
        link::{Answerer, Link, LoggedIn, NoLink, log_in},
        pool::PoolKey,
        startup::Begun,
        talk::Talk,
    },
};
use sempre_model::Lsn;
use sempre_wire::pg::{Side, write};
use std::{sync::Arc, time::Duration};
use tokio::time::{self, Instant};

/// How long a standby may take to let a session in; the client waits, and the primary is there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a standby may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two questions how far a standby is.
const ASK_EVERY: Duration = Duration::from_millis(5);

const QUESTION: &[u8] = b"select pg_catalog.pg_last_wal_replay_lsn(), \
    pg_catalog.current_setting('default_transaction_isolation')";

/// See the module.
pub(crate) struct Standbys {
    /// What serves their connections: a read-only proxy that does not listen.
    pub proxy: Proxy,
}

/// What a standby says of itself.
pub(super) struct Answer {
    /// None: it has never replayed anything.
    pub replayed: Option<Lsn>,
    /// Its default isolation level is SERIALIZABLE.
    pub serializable: bool,
}

impl Standbys {
    pub fn new(shared: &Shared, settings: &ProxySettings, cancels: &Arc<Cancels>) -> Self {
        let shared = Arc::new(Shared {
            mode: Mode::ReadOnly,
            table: shared.table.clone(),
            gate: shared.gate.clone(),
            sessions: shared.sessions.clone(),
            counters: shared.counters.clone(),
            closing: shared.closing.clone(),
        });
        Self { proxy: Proxy::of_standbys(shared, settings.clone(), cancels.clone()) }
    }

    /// Whom the next transaction may be led to, best first.
    pub fn candidates(&self) -> Vec<Candidate> {
        let Shared { sessions, table, mode, .. } = &*self.proxy.shared;
        let table = table.borrow().clone();
        let mut candidates = sessions.candidates(&table, *mode);
        // With a primary at hand nobody waits for one that may be gone.
        let fits = |c: &Candidate| follows(&table, c) && !sessions.has_failed(&c.target.member);
        candidates.retain(fits);
        candidates
    }

    /// A connection: an idle one, or a new one.
    pub async fn connect(
        &self,
        candidate: &Candidate,
        key: &PoolKey,
        begun: &Begun,
        secret: &Secret,
    ) -> Result<Link, String> {
        let pools = &self.proxy.pools;
        // Nobody waits for a place here: the primary has one.
        let place = pools.try_enter(key).ok_or("all connections to standbys are in use")?;
        let member = &candidate.target.member;
        if let Some(mut link) = pools.take_of(key, member) {
            link.place = Some(place);
            return Ok(link);
        }
        pools.make_room(key);
        let connected = time::timeout(CONNECT_TIMEOUT, async {
            let led = Hold::new(&self.proxy.shared).attempt(candidate).await?;
            let logged_in = with_server(led, async |led| {
                log_in(led, &self.proxy, key, begun, Answerer::Us(secret)).await
            });
            match logged_in.await {
                Ok(LoggedIn { link, .. }) => Ok(link),
                Err(NoLink::NotYet(why)) => Err(why),
                Err(NoLink::Error(error)) => Err(error.message.to_string()),
                Err(NoLink::Refused(_) | NoLink::ClientGone) => Err("it refuses".into()),
            }
        });
        let connected = connected.await.unwrap_or_else(|_| Err("it is too slow".into()));
        let mut link = connected.inspect_err(|_| self.proxy.shared.sessions.failed(member))?;
        link.place = Some(place);
        Ok(link)
    }
}

/// Asks a standby how far it is.
async fn ask(link: &mut Link) -> Option<Answer> {
    let mut question = Vec::new();
    write::parse(&mut question, b"", QUESTION, &[]);
    write::bind(&mut question, b"", b"", &[]);
    write::execute(&mut question, b"", 0);
    write::sync(&mut question);
    let mut talk = Talk::new(&mut link.stream, Side::Backend, std::mem::take(&mut link.kept));
    let answers = time::timeout(ANSWER_TIMEOUT, talk.ask(&question, 1)).await.ok()?.ok()?;
    link.kept = talk.rest();
    for (name, value) in answers.parameters {
        link.reported(&name, &value);
    }
    let [replayed, isolation] = answers.rows.first()?.as_slice() else { return None };
    Some(Answer {
        replayed: replayed.as_ref().and_then(|text| text.parse().ok()),
        serializable: isolation.as_deref() == Some("serializable"),
    })
}

/// Why a standby is not used.
pub(super) enum Unfit {
    /// It does not answer: it is of no use to anybody.
    Broken,
    /// It is fine, but not for this transaction.
    NotNow(&'static str),
}

/// Waits until a standby has replayed `needed`. True: it had to be waited for.
pub(super) async fn catch_up(
    link: &mut Link,
    needed: Option<Lsn>,
    deadline: Instant,
) -> Result<(Answer, bool), Unfit> {
    let mut waited = false;
    loop {
        let answer = ask(link).await.ok_or(Unfit::Broken)?;
        if needed.is_none() || answer.replayed >= needed {
            return Ok((answer, waited));
        }
        if Instant::now() >= deadline {
            return Err(Unfit::NotNow("it has not replayed what the session has written"));
        }
        waited = true;
        time::sleep(ASK_EVERY).await;
    }
}

/// A standby cannot run SERIALIZABLE transactions. `own`: the session's own default level.
pub(super) fn is_serializable(begin: Begin, own: Option<&[u8]>, answer: &Answer) -> bool {
    let default = || own.map_or(answer.serializable, |level| level == b"serializable");
    begin.serializable.unwrap_or_else(default)
}
