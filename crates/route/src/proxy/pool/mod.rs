//! Server connections that clients share.
//!
//! A [`Pool`] is what one user has to one database. Whoever uses a connection of it has a
//! [`Place`] in it; there are as many as the pool may have connections. A connection that nobody
//! uses is idle and has none. So a client with a place can always have a connection: an idle one
//! that fits, or a new one, for which the oldest idle one goes if there are too many.
//!
//! A connection fits if it was begun with the same parameters, is in contact with a server that
//! the table still leads to, and nothing is under way on it. What a client changed is undone by
//! `server_reset` before it is idle.
//!
//! # Known gaps
//!
//! - Who may log in is decided by the servers, and remembered for [`LET_IN_FOR`]: a line of
//!   `pg_hba.conf`, or a role's right to log in, that is taken away works for clients without a
//!   password after that time at the latest. Passwords themselves are checked each time.

mod enter;
mod info;
mod let_in;
mod place;
mod reset;

pub use info::PoolInfo;
pub(crate) use info::{
    ClientEntry, ClientInfo, ClientState, Meter, NewClient, NewServer, ServerEntry, ServerInfo,
};
pub(crate) use let_in::Asked;
pub(crate) use place::Place;

use super::{link::Link, prepared::Registry, startup::Begun, warm::Made};
use crate::{Mode, PoolSettings, Role, hold::Shared};
use let_in::LetIn;
use sempre_model::MemberId;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, ReadBuf},
    sync::{Notify, Semaphore, watch},
    time::Instant,
};

/// How long a server's decision to let somebody in is remembered.
const LET_IN_FOR: Duration = Duration::from_secs(60);
/// Pools before those are forgotten that nobody uses: user names are a client's to invent.
const POOLS_MAX: usize = 1_000;
/// Sets of start-up parameters of one pool whose log-ins are remembered.
const VARIANTS_MAX: usize = 64;
/// How long a server may take to notice that a connection is closed, and to count it no more.
const SERVER_NOTICES: Duration = Duration::from_secs(2);
/// How often idle connections are looked at.
const TIDY_EVERY: Duration = Duration::from_secs(1);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics half-way in here, so a poisoned lock still guards consistent data.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who waits for RESUME.
#[derive(Clone, Debug, Default)]
pub(crate) struct Paused {
    pub all: bool,
    pub databases: BTreeSet<Vec<u8>>,
}

impl Paused {
    pub fn is(&self, database: &[u8]) -> bool {
        self.all || self.databases.contains(database)
    }
}

/// All pools of a router.
pub(crate) struct Pools {
    pub settings: PoolSettings,
    shared: Arc<Shared>,
    pools: Mutex<HashMap<Name, Arc<Pool>>>,
    pub paused: watch::Sender<Paused>,
    next: AtomicU64,
    clients: Mutex<BTreeMap<u64, Arc<ClientInfo>>>,
    servers: Mutex<BTreeMap<u64, Arc<ServerInfo>>>,
    /// Somebody gave a place back (for PAUSE).
    pub left: Notify,
    pub statements: Registry,
    /// When idle connections were closed to make room on a server.
    closed_idle: Mutex<Option<Instant>>,
}

/// User and database.
type Name = (Vec<u8>, Vec<u8>);

/// See the module.
pub(crate) struct Pool {
    pub user: Vec<u8>,
    pub database: Vec<u8>,
    places: Arc<Semaphore>,
    in_use: AtomicUsize,
    /// The most recently used last.
    idle: Mutex<Vec<Idle>>,
    /// Warm ones, for whoever needs one first (transaction pooling).
    warm: Mutex<Vec<Made>>,
    let_in: Mutex<HashMap<Arc<[u8]>, LetIn>>,
    /// Who waits for a place, since when.
    waiting: Mutex<BTreeMap<u64, Instant>>,
    /// Connections of earlier epochs are not used again (RECONNECT).
    epoch: AtomicU64,
    pub counts: info::Counts,
}

struct Idle {
    link: Link,
    since: Instant,
}

/// Which connections fit a client.
#[derive(Clone)]
pub(crate) struct PoolKey {
    pub pool: Arc<Pool>,
    /// Its start-up parameters, but for user, database and `application_name`.
    pub variant: Arc<[u8]>,
}

impl Pools {
    /// `first`: the number of the first client or connection.
    pub fn new(settings: PoolSettings, shared: Arc<Shared>, first: u64) -> Self {
        Self {
            settings,
            shared,
            pools: Mutex::default(),
            paused: watch::Sender::default(),
            next: AtomicU64::new(first),
            clients: Mutex::default(),
            servers: Mutex::default(),
            left: Notify::new(),
            statements: Registry::default(),
            closed_idle: Mutex::default(),
        }
    }

    /// The pool of a client.
    pub fn key(&self, begun: &Begun) -> PoolKey {
        let name: Name = (begun.user().to_vec(), begun.database().to_vec());
        let mut pools = lock(&self.pools);
        if pools.len() >= POOLS_MAX && !pools.contains_key(&name) {
            pools.retain(|_, pool| Arc::strong_count(pool) > 1 || !lock(&pool.idle).is_empty());
        }
        let pool = pools.entry(name).or_insert_with_key(|(user, database)| {
            let size = match self.settings.size {
                0 => Semaphore::MAX_PERMITS,
                size => size.min(Semaphore::MAX_PERMITS),
            };
            Arc::new(Pool {
                user: user.clone(),
                database: database.clone(),
                places: Arc::new(Semaphore::new(size)),
                in_use: AtomicUsize::new(0),
                idle: Mutex::default(),
                warm: Mutex::default(),
                let_in: Mutex::default(),
                waiting: Mutex::default(),
                epoch: AtomicU64::new(0),
                counts: info::Counts::default(),
            })
        });
        PoolKey { pool: pool.clone(), variant: begun.variant().into() }
    }

    /// An idle connection that fits. None: the client, which has a place, needs a new one.
    pub fn take(&self, key: &PoolKey) -> Option<Link> {
        let mut idle = lock(&key.pool.idle);
        if self.shared.mode == Mode::ReadWrite {
            return self.find(key, &mut idle, |_| true);
        }
        // Readers are spread, whatever connections there are. Only where none may be added any one
        // of them is better than to close it for another.
        let table = self.shared.table.borrow().clone();
        let candidates = self.shared.sessions.next_candidates(&table, self.shared.mode);
        let size = self.settings.size;
        let full = size > 0 && idle.len() + key.pool.in_use() > size;
        let considered = if full { candidates.len() } else { 1 };
        let link = candidates.iter().take(considered).find_map(|candidate| {
            self.find(key, &mut idle, |link| link.member == candidate.target.member)
        })?;
        self.shared.sessions.use_turn();
        link.ticket.rests(false);
        Some(link)
    }

    /// The same to one standby.
    pub fn take_of(&self, key: &PoolKey, member: &MemberId) -> Option<Link> {
        let link = self.find(key, &mut lock(&key.pool.idle), |link| link.member == *member)?;
        link.ticket.rests(false);
        Some(link)
    }

    /// The most recently used of the idle connections that fit.
    fn find(
        &self,
        key: &PoolKey,
        idle: &mut Vec<Idle>,
        fits: impl Fn(&Link) -> bool,
    ) -> Option<Link> {
        let mut at = idle.len();
        while at > 0 {
            at -= 1;
            let link = &idle[at].link;
            if link.variant != key.variant || !fits(link) || !self.is_led_to(link) {
                continue;
            }
            let mut link = idle.remove(at).link;
            if self.is_usable(&key.pool, &mut link) {
                return Some(link);
            }
            at = at.min(idle.len());
        }
        None
    }

    /// Makes room for a new connection of somebody with a place.
    pub fn make_room(&self, key: &PoolKey) {
        let size = self.settings.size;
        let mut idle = lock(&key.pool.idle);
        while size > 0 && !idle.is_empty() && idle.len() + key.pool.in_use() > size {
            goodbye(idle.remove(0).link);
        }
    }

    /// Gives back a connection on which nothing is under way and that nothing was left on.
    pub fn put(&self, key: &PoolKey, mut link: Link) {
        let place = link.place.take();
        if self.is_usable(&key.pool, &mut link) {
            let mut idle = lock(&key.pool.idle);
            // Under the lock, so that `close` does not miss it.
            if link.epoch == key.pool.epoch() {
                link.info.idle();
                if self.shared.mode == Mode::ReadOnly {
                    link.ticket.rests(true);
                }
                idle.push(Idle { link, since: Instant::now() });
            }
        } else {
            goodbye(link);
        }
        drop(place);
        self.left.notify_waiters();
    }

    /// Keeps a connection that was warmed up for any client of the pool.
    pub fn put_warm(&self, key: &PoolKey, made: Made) {
        lock(&key.pool.warm).push(made);
    }

    /// One that was warmed up.
    pub fn take_warm(&self, key: &PoolKey) -> Option<Made> {
        let mut warm = lock(&key.pool.warm);
        let at = warm.iter().position(|made| made.link.variant == key.variant)?;
        Some(warm.swap_remove(at))
    }

    /// Does the table still lead there?
    fn is_led_to(&self, link: &Link) -> bool {
        let table = self.shared.table.borrow();
        let stands = || {
            let fits = |s: &crate::Standby| {
                s.target.member == link.member && s.lag_bytes <= table.limits.max_lag_bytes
            };
            self.shared.mode == Mode::ReadOnly
                && table.standbys.iter().any(fits)
                && !table.lost.contains(&link.member)
        };
        let primary = || {
            table.primary.as_ref().is_some_and(|primary| primary.member == link.member)
                && table.generation == link.generation
                && !table.primary_stopped
                && !table.draining
        };
        match link.role {
            Role::Primary => primary(),
            Role::Standby => stands(),
            Role::Warm => false,
        }
    }

    /// Is it worth keeping: alive, not cut, not too old?
    fn is_usable(&self, pool: &Pool, link: &mut Link) -> bool {
        let lifetime = self.settings.server_lifetime_ms;
        let old = lifetime > 0 && link.born.elapsed() >= Duration::from_millis(lifetime);
        let cut = link.ticket.cut.reason().is_some() || link.ticket.cut.is_draining();
        !old && !cut && link.epoch == pool.epoch() && is_silent(link)
    }

    /// Closes what nobody should get any more.
    pub fn tidy(&self) {
        let limit = Duration::from_millis(self.settings.server_idle_timeout_ms);
        let pools: Vec<_> = lock(&self.pools).values().cloned().collect();
        for pool in pools {
            lock(&pool.warm).retain_mut(Made::is_there);
            let mut idle = lock(&pool.idle);
            let all = std::mem::take(&mut *idle);
            for mut one in all {
                let idles = !limit.is_zero() && one.since.elapsed() >= limit;
                if !idles && self.is_usable(&pool, &mut one.link) {
                    idle.push(one);
                } else {
                    goodbye(one.link);
                }
            }
        }
    }

    /// Closes all idle connections. True: there were some, now or a moment ago.
    pub fn close_idle(&self) -> bool {
        let mut closed = false;
        for pool in self.all() {
            for idle in std::mem::take(&mut *lock(&pool.idle)) {
                goodbye(idle.link);
                closed = true;
            }
        }
        let mut last = lock(&self.closed_idle);
        if closed {
            *last = Some(Instant::now());
        }
        last.is_some_and(|last| last.elapsed() < SERVER_NOTICES)
    }

    /// Nobody gets a connection again that there is now, to one database or all.
    pub fn reconnect(&self, database: Option<&[u8]>) {
        for pool in self.all() {
            if database.is_none_or(|name| name == pool.database) {
                pool.epoch.fetch_add(1, Relaxed);
            }
        }
        self.tidy();
    }

    /// Tidies up from time to time.
    pub async fn keep(self: Arc<Self>) {
        let mut every = tokio::time::interval(TIDY_EVERY);
        loop {
            every.tick().await;
            self.tidy();
        }
    }

    /// The pools that there are, by name.
    pub fn all(&self) -> Vec<Arc<Pool>> {
        let mut all: Vec<_> = lock(&self.pools).values().cloned().collect();
        all.sort_by(|a, b| (&a.database, &a.user).cmp(&(&b.database, &b.user)));
        all
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }
}

impl Pool {
    /// The number of the connections that are made now.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Relaxed)
    }

    pub fn in_use(&self) -> usize {
        self.in_use.load(Relaxed)
    }

    /// Connections that nobody uses.
    pub fn idle(&self) -> usize {
        lock(&self.idle).len()
    }

    /// Clients that wait for a place, and for how long the first of them.
    pub fn waiting(&self) -> (usize, Duration) {
        let waiting = lock(&self.waiting);
        let longest = waiting.values().next().map_or(Duration::ZERO, Instant::elapsed);
        (waiting.len(), longest)
    }
}

/// An idle server says nothing. One that does is going down, or is gone.
pub(crate) fn is_silent(link: &mut Link) -> bool {
    let mut byte = [0];
    let mut buffer = ReadBuf::new(&mut byte);
    let mut context = Context::from_waker(Waker::noop());
    let stream = std::pin::Pin::new(&mut link.stream);
    matches!(stream.poll_read(&mut context, &mut buffer), Poll::Pending)
}

/// Is the server of a connection that is parked still there? It may say something: there are
/// notifications.
pub(crate) fn is_there(link: &mut Link) -> bool {
    let mut byte = [0];
    let mut buffer = ReadBuf::new(&mut byte);
    let mut context = Context::from_waker(Waker::noop());
    let stream = std::pin::Pin::new(&mut link.stream);
    match stream.poll_read(&mut context, &mut buffer) {
        Poll::Pending => true,
        Poll::Ready(Err(_)) => false,
        Poll::Ready(Ok(())) => {
            link.kept.extend_from_slice(buffer.filled());
            // An error that nobody asked for is the last thing that is said.
            buffer.filled().first().is_some_and(|tag| *tag != b'E')
        }
    }
}

/// Closes a connection politely.
pub(crate) fn goodbye(link: Link) {
    let mut goodbye = Vec::new();
    sempre_wire::pg::write::terminate(&mut goodbye);
    if let super::stream::Stream::Plain(stream) = &link.stream {
        // Closing says the same, only less politely.
        let _ = stream.try_write(&goodbye);
    }
}
