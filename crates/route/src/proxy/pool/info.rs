//! Who is there, and what was done: for the admin database and for metrics.

use super::{Pool, Pools, lock};
use crate::sessions::Cut;
use std::{
    net::SocketAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

/// What a pool has done.
#[derive(Default)]
pub(crate) struct Counts {
    pub transactions: AtomicU64,
    pub queries: AtomicU64,
    pub received: AtomicU64,
    pub sent: AtomicU64,
    pub transaction_us: AtomicU64,
    pub query_us: AtomicU64,
    pub wait_us: AtomicU64,
    pub split: AtomicU64,
}

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientState {
    /// It has no server connection, and needs none.
    Idle = 0,
    /// It has one.
    Active = 1,
    /// It needs one.
    Waiting = 2,
}

/// A client that is logged in.
pub(crate) struct ClientInfo {
    pub number: u64,
    pub user: Vec<u8>,
    pub database: Vec<u8>,
    pub application_name: Vec<u8>,
    pub address: Option<SocketAddr>,
    pub local: Option<SocketAddr>,
    pub tls: bool,
    pub connected: SystemTime,
    state: AtomicU8,
    /// Of the server connection that it has.
    pub server: AtomicU64,
}

impl ClientInfo {
    pub fn state(&self) -> ClientState {
        match self.state.load(Relaxed) {
            0 => ClientState::Idle,
            1 => ClientState::Active,
            _ => ClientState::Waiting,
        }
    }

    pub fn is(&self, state: ClientState) {
        self.state.store(state as u8, Relaxed);
        if state != ClientState::Active {
            self.server.store(0, Relaxed);
        }
    }
}

/// A client's entry; gone when dropped.
pub(crate) struct ClientEntry {
    pub info: Arc<ClientInfo>,
    pools: Weak<Pools>,
}

impl Drop for ClientEntry {
    fn drop(&mut self) {
        if let Some(pools) = self.pools.upgrade() {
            lock(&pools.clients).remove(&self.info.number);
        }
    }
}

/// A server connection.
pub(crate) struct ServerInfo {
    pub number: u64,
    pub user: Vec<u8>,
    pub database: Vec<u8>,
    pub member: String,
    pub address: Option<SocketAddr>,
    pub local: Option<SocketAddr>,
    pub process: u32,
    pub tls: bool,
    pub connected: SystemTime,
    cut: Arc<Cut>,
    /// The client that has it; 0: none.
    client: AtomicU64,
}

impl ServerInfo {
    pub fn idle(&self) {
        self.client.store(0, Relaxed);
        self.cut.stay();
    }

    pub fn used_by(&self, client: u64) {
        self.client.store(client, Relaxed);
    }

    /// It is wanted back.
    pub fn leave(&self) {
        self.cut.leave();
    }

    pub fn client(&self) -> u64 {
        self.client.load(Relaxed)
    }
}

/// A server connection's entry; gone when dropped.
pub(crate) struct ServerEntry {
    info: Arc<ServerInfo>,
    pools: Weak<Pools>,
}

impl std::ops::Deref for ServerEntry {
    type Target = ServerInfo;

    fn deref(&self) -> &ServerInfo {
        &self.info
    }
}

impl Drop for ServerEntry {
    fn drop(&mut self) {
        if let Some(pools) = self.pools.upgrade() {
            lock(&pools.servers).remove(&self.info.number);
        }
    }
}

/// What is to be known of a new server connection.
pub(crate) struct NewServer {
    pub user: Vec<u8>,
    pub database: Vec<u8>,
    pub member: String,
    pub address: Option<SocketAddr>,
    pub local: Option<SocketAddr>,
    pub process: u32,
    pub tls: bool,
    pub cut: Arc<Cut>,
}

/// What is to be known of a new client.
pub(crate) struct NewClient {
    pub user: Vec<u8>,
    pub database: Vec<u8>,
    pub application_name: Vec<u8>,
    pub address: Option<SocketAddr>,
    pub local: Option<SocketAddr>,
    pub tls: bool,
}

impl Pools {
    pub fn new_server(self: &Arc<Self>, new: NewServer) -> ServerEntry {
        let NewServer { user, database, member, address, local, process, tls, cut } = new;
        let info = Arc::new(ServerInfo {
            number: self.number(),
            user,
            database,
            member,
            address,
            local,
            process,
            tls,
            connected: SystemTime::now(),
            cut,
            client: AtomicU64::new(0),
        });
        lock(&self.servers).insert(info.number, info.clone());
        ServerEntry { info, pools: Arc::downgrade(self) }
    }

    pub fn new_client(self: &Arc<Self>, new: NewClient) -> ClientEntry {
        let NewClient { user, database, application_name, address, local, tls } = new;
        let info = Arc::new(ClientInfo {
            number: self.number(),
            user,
            database,
            application_name,
            address,
            local,
            tls,
            connected: SystemTime::now(),
            state: AtomicU8::new(ClientState::Idle as u8),
            server: AtomicU64::new(0),
        });
        lock(&self.clients).insert(info.number, info.clone());
        ClientEntry { info, pools: Arc::downgrade(self) }
    }

    pub fn clients(&self) -> Vec<Arc<ClientInfo>> {
        lock(&self.clients).values().cloned().collect()
    }

    pub fn servers(&self) -> Vec<Arc<ServerInfo>> {
        lock(&self.servers).values().cloned().collect()
    }
}

/// A pool at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PoolInfo {
    /// The database's name.
    pub database: String,
    /// The user's name.
    pub user: String,
    /// Clients that have a server connection (`cl_active`).
    pub clients_active: u64,
    /// Clients that need one (`cl_waiting`).
    pub clients_waiting: u64,
    /// Clients that have none and need none.
    pub clients_idle: u64,
    /// Server connections that a client has (`sv_active`).
    pub servers_active: u64,
    /// Server connections that nobody has (`sv_idle`).
    pub servers_idle: u64,
    /// How long the first in the queue has waited, us (`maxwait`, `maxwait_us`).
    pub max_wait_us: u64,
    /// Transactions, a statement outside a block being one (`total_xact_count`).
    pub transactions: u64,
    /// Queries: simple ones, and cycles of extended ones (`total_query_count`).
    pub queries: u64,
    /// Bytes from clients (`total_received`).
    pub received_bytes: u64,
    /// Bytes to clients (`total_sent`).
    pub sent_bytes: u64,
    /// Time in transactions, us (`total_xact_time`).
    pub transaction_us: u64,
    /// Time in queries, us (`total_query_time`).
    pub query_us: u64,
    /// Time that clients waited for a server connection, us (`total_wait_time`).
    pub wait_us: u64,
    /// Transactions that standbys served (read/write split).
    #[serde(default)]
    pub split_transactions: u64,
}

impl PoolInfo {
    /// Under the names that pgbouncer_exporter gives them; labels are `database` and `user`. (The
    /// `pgbouncer_stats_` ones have only `database` there: sums of what is here.)
    pub fn metrics(&self) -> [(&'static str, f64); 12] {
        let seconds = |us: u64| us as f64 / 1e6;
        [
            (
                "pgbouncer_pools_client_active_connections",
                (self.clients_active + self.clients_idle) as f64,
            ),
            ("pgbouncer_pools_client_waiting_connections", self.clients_waiting as f64),
            ("pgbouncer_pools_server_active_connections", self.servers_active as f64),
            ("pgbouncer_pools_server_idle_connections", self.servers_idle as f64),
            ("pgbouncer_pools_client_maxwait_seconds", seconds(self.max_wait_us)),
            ("pgbouncer_stats_sql_transactions_pooled_total", self.transactions as f64),
            ("pgbouncer_stats_queries_pooled_total", self.queries as f64),
            ("pgbouncer_stats_received_bytes_total", self.received_bytes as f64),
            ("pgbouncer_stats_sent_bytes_total", self.sent_bytes as f64),
            ("pgbouncer_stats_server_in_transaction_seconds_total", seconds(self.transaction_us)),
            ("pgbouncer_stats_queries_duration_seconds_total", seconds(self.query_us)),
            ("pgbouncer_stats_client_wait_seconds_total", seconds(self.wait_us)),
        ]
    }
}

impl Pools {
    /// Every pool that is or was of use.
    pub fn infos(&self) -> Vec<PoolInfo> {
        let clients = self.clients();
        let info = |pool: &Arc<Pool>| {
            let of = |state: ClientState| {
                let its = clients.iter().filter(|client| {
                    client.state() == state
                        && client.user == pool.user
                        && client.database == pool.database
                });
                its.count() as u64
            };
            let (_, longest): (usize, Duration) = pool.waiting();
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let counts = &pool.counts;
            PoolInfo {
                database: text(&pool.database),
                user: text(&pool.user),
                clients_active: of(ClientState::Active),
                clients_waiting: of(ClientState::Waiting),
                clients_idle: of(ClientState::Idle),
                servers_active: pool.in_use() as u64,
                servers_idle: pool.idle() as u64,
                max_wait_us: longest.as_micros() as u64,
                transactions: counts.transactions.load(Relaxed),
                queries: counts.queries.load(Relaxed),
                received_bytes: counts.received.load(Relaxed),
                sent_bytes: counts.sent.load(Relaxed),
                transaction_us: counts.transaction_us.load(Relaxed),
                query_us: counts.query_us.load(Relaxed),
                wait_us: counts.wait_us.load(Relaxed),
                split_transactions: counts.split.load(Relaxed),
            }
        };
        let known = |pool: &Arc<Pool>| {
            pool.in_use() > 0 || pool.idle() > 0 || !lock(&pool.let_in).is_empty()
        };
        self.all().iter().filter(|pool| known(pool)).map(info).collect()
    }
}

/// Measures the queries and transactions of one client.
#[derive(Default)]
pub(crate) struct Meter {
    /// When the transaction began.
    transaction: Option<Instant>,
    /// When the query was sent.
    query: Option<Instant>,
}

impl Meter {
    /// A message goes to the server.
    pub fn sent(&mut self) {
        if self.query.is_none() {
            let now = Instant::now();
            self.query = Some(now);
            self.transaction.get_or_insert(now);
        }
    }

    /// ReadyForQuery; `idle`: outside a transaction.
    pub fn ready(&mut self, counts: &Counts, idle: bool) {
        let now = Instant::now();
        let add = |counter: &AtomicU64, since: Instant| {
            counter.fetch_add((now - since).as_micros() as u64, Relaxed);
        };
        counts.queries.fetch_add(1, Relaxed);
        if let Some(since) = self.query.take() {
            add(&counts.query_us, since);
        }
        if idle {
            counts.transactions.fetch_add(1, Relaxed);
            if let Some(since) = self.transaction.take() {
                add(&counts.transaction_us, since);
            }
        }
    }

    /// The server is lost, and with it what was under way.
    pub fn forget(&mut self) {
        *self = Self::default();
    }
}
