//! SHOW: tables about the pools, under PgBouncer's names.

use super::Answer;
use crate::{
    ADMIN_DATABASE, PoolSettings,
    proxy::{
        Proxy,
        pool::{ClientState, PoolInfo, ServerInfo},
    },
};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

type Row = Vec<Option<String>>;

macro_rules! row {
    ($($value:expr),* $(,)?) => { vec![$(Some($value.to_string())),*] };
}

const POOLS: &[&str] = &[
    "database",
    "user",
    "cl_active",
    "cl_waiting",
    "cl_active_cancel_req",
    "cl_waiting_cancel_req",
    "sv_active",
    "sv_active_cancel",
    "sv_being_canceled",
    "sv_idle",
    "sv_used",
    "sv_tested",
    "sv_login",
    "maxwait",
    "maxwait_us",
    "pool_mode",
];
/// Of clients and of servers.
const SOCKETS: &[&str] = &[
    "type",
    "user",
    "database",
    "state",
    "addr",
    "port",
    "local_addr",
    "local_port",
    "connect_time",
    "ptr",
    "link",
    "remote_pid",
    "tls",
    "application_name",
    "member",
];
const STATS: &[&str] = &[
    "database",
    "total_xact_count",
    "total_query_count",
    "total_received",
    "total_sent",
    "total_xact_time",
    "total_query_time",
    "total_wait_time",
    "total_split_count",
];
const DATABASES: &[&str] = &[
    "name",
    "host",
    "port",
    "database",
    "force_user",
    "pool_size",
    "min_pool_size",
    "reserve_pool",
    "pool_mode",
    "max_connections",
    "current_connections",
    "paused",
    "disabled",
];
const CONFIG: &[&str] = &["key", "value", "default", "changeable"];
const HELP: &[&str] = &[
    "SHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|STATS|VERSION",
    "PAUSE [database]",
    "RESUME [database]",
    "RECONNECT [database]",
    "RELOAD",
];

/// None: there is no such table.
pub(super) fn show(proxy: &Proxy, what: &str) -> Option<Answer> {
    let (columns, rows): (&'static [&'static str], Vec<Row>) = match what {
        "pools" => (POOLS, pools(proxy)),
        "clients" => (SOCKETS, clients(proxy)),
        "servers" => (SOCKETS, servers(proxy)),
        "stats" => (STATS, stats(proxy)),
        "databases" => (DATABASES, databases(proxy)),
        "config" => (CONFIG, config(proxy)),
        "version" => (&["version"], vec![row![concat!("sempre ", env!("CARGO_PKG_VERSION"))]]),
        "help" => (&["command"], HELP.iter().map(|line| row![line]).collect()),
        _ => return None,
    };
    Some(Answer::Rows { columns, rows })
}

fn pools(proxy: &Proxy) -> Vec<Row> {
    let mode = proxy.settings.pool.mode.as_str();
    let row = |pool: PoolInfo| {
        row![
            pool.database,
            pool.user,
            // As PgBouncer counts: those that want nothing are active too.
            pool.clients_active + pool.clients_idle,
            pool.clients_waiting,
            0,
            0,
            pool.servers_active,
            0,
            0,
            pool.servers_idle,
            0,
            0,
            0,
            pool.max_wait_us / 1_000_000,
            pool.max_wait_us % 1_000_000,
            mode,
        ]
    };
    proxy.pools.infos().into_iter().map(row).collect()
}

fn clients(proxy: &Proxy) -> Vec<Row> {
    let servers: BTreeMap<_, _> =
        all_servers(proxy).into_iter().map(|server| (server.number, server)).collect();
    let row = |client: &std::sync::Arc<crate::proxy::pool::ClientInfo>| {
        let server = servers.get(&client.server.load(std::sync::atomic::Ordering::Relaxed));
        let state = match client.state() {
            ClientState::Active => "active",
            ClientState::Waiting => "waiting",
            ClientState::Idle => "idle",
        };
        row![
            "C",
            text(&client.user),
            text(&client.database),
            state,
            address(client.address),
            port(client.address),
            address(client.local),
            port(client.local),
            moment(client.connected),
            pointer(client.number),
            server.map(|server| pointer(server.number)).unwrap_or_default(),
            0,
            if client.tls { "on" } else { "" },
            text(&client.application_name),
            server.map(|server| server.member.clone()).unwrap_or_default(),
        ]
    };
    proxy.pools.clients().iter().map(row).collect()
}

fn servers(proxy: &Proxy) -> Vec<Row> {
    let clients: BTreeMap<_, _> =
        proxy.pools.clients().into_iter().map(|client| (client.number, client)).collect();
    let row = |server: &std::sync::Arc<crate::proxy::pool::ServerInfo>| {
        let client = clients.get(&server.client());
        row![
            "S",
            text(&server.user),
            text(&server.database),
            if server.client() == 0 { "idle" } else { "active" },
            address(server.address),
            port(server.address),
            address(server.local),
            port(server.local),
            moment(server.connected),
            pointer(server.number),
            client.map(|client| pointer(client.number)).unwrap_or_default(),
            server.process,
            if server.tls { "on" } else { "" },
            client.map(|client| text(&client.application_name)).unwrap_or_default(),
            server.member,
        ]
    };
    all_servers(proxy).iter().map(row).collect()
}

/// Those to standbys included.
fn all_servers(proxy: &Proxy) -> Vec<std::sync::Arc<ServerInfo>> {
    proxy.all_pools().flat_map(|pools| pools.servers()).collect()
}

/// By database.
fn sums(proxy: &Proxy) -> BTreeMap<String, PoolInfo> {
    let mut sums: BTreeMap<String, PoolInfo> = BTreeMap::new();
    for pool in proxy.pools.infos() {
        let sum = sums.entry(pool.database.clone()).or_default();
        sum.transactions += pool.transactions;
        sum.queries += pool.queries;
        sum.received_bytes += pool.received_bytes;
        sum.sent_bytes += pool.sent_bytes;
        sum.transaction_us += pool.transaction_us;
        sum.query_us += pool.query_us;
        sum.wait_us += pool.wait_us;
        sum.split_transactions += pool.split_transactions;
        sum.servers_active += pool.servers_active;
        sum.servers_idle += pool.servers_idle;
    }
    sums
}

fn stats(proxy: &Proxy) -> Vec<Row> {
    let row = |(database, sum): (String, PoolInfo)| {
        row![
            database,
            sum.transactions,
            sum.queries,
            sum.received_bytes,
            sum.sent_bytes,
            sum.transaction_us,
            sum.query_us,
            sum.wait_us,
            sum.split_transactions,
        ]
    };
    sums(proxy).into_iter().map(row).collect()
}

fn databases(proxy: &Proxy) -> Vec<Row> {
    let settings = &proxy.settings.pool;
    let table = proxy.shared.table.borrow().clone();
    let (host, at) = match &table.primary {
        Some(primary) => (primary.hosts.first().cloned(), Some(primary.port.to_string())),
        None => (None, None),
    };
    let paused = proxy.pools.paused.borrow().clone();
    let row = |(name, sum): (String, PoolInfo)| {
        let is_paused = u8::from(paused.is(name.as_bytes()));
        let mut row = row![name];
        row.extend([host.clone(), at.clone(), Some(name), None]);
        row.extend(row![
            settings.size,
            0,
            0,
            settings.mode.as_str(),
            0,
            sum.servers_active + sum.servers_idle,
            is_paused,
            0,
        ]);
        row
    };
    let mut rows: Vec<_> = sums(proxy).into_iter().map(row).collect();
    let mut own = row![ADMIN_DATABASE];
    own.extend([None, None, Some(ADMIN_DATABASE.to_owned()), None]);
    own.extend(row![0, 0, 0, "statement", 0, 0, 0, 0]);
    rows.push(own);
    rows
}

fn config(proxy: &Proxy) -> Vec<Row> {
    let entries = |settings: &PoolSettings| {
        let seconds = |ms: u64| (ms as f64 / 1_000.0).to_string();
        [
            ("pool_mode", settings.mode.as_str().to_owned()),
            ("default_pool_size", settings.size.to_string()),
            ("query_wait_timeout", seconds(settings.query_wait_timeout_ms)),
            ("server_idle_timeout", seconds(settings.server_idle_timeout_ms)),
            ("server_lifetime", seconds(settings.server_lifetime_ms)),
            ("server_reset_query", settings.server_reset.clone()),
            ("max_prepared_statements", settings.max_prepared_statements.to_string()),
        ]
    };
    let limits = proxy.shared.table.borrow().limits.clone();
    let (now, default) = (entries(&proxy.settings.pool), entries(&PoolSettings::default()));
    let mut rows: Vec<Row> = now
        .into_iter()
        .zip(default)
        .map(|((key, value), (_, default))| row![key, value, default, "no"])
        .collect();
    let held = crate::Limits::default();
    let (split, off) = (&proxy.settings.split, crate::SplitSettings::default());
    rows.push(row!["split", split.split.as_str(), off.split.as_str(), "no"]);
    rows.push(row!["read_your_writes", split.read_your_writes, off.read_your_writes, "no"]);
    let (limit, usual) = (split.read_your_writes_timeout_ms, off.read_your_writes_timeout_ms);
    rows.push(row!["read_your_writes_timeout_ms", limit, usual, "no"]);
    rows.push(row!["admin_users", proxy.settings.admin_users.join(","), "", "no"]);
    rows.push(row!["route_hold_max", limits.hold_max, held.hold_max, "yes"]);
    rows.push(row!["route_hold_timeout_ms", limits.hold_timeout_ms, held.hold_timeout_ms, "yes"]);
    rows
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn address(of: Option<SocketAddr>) -> String {
    of.map(|of| of.ip().to_string()).unwrap_or_default()
}

fn port(of: Option<SocketAddr>) -> u16 {
    of.map_or(0, |of| of.port())
}

fn pointer(number: u64) -> String {
    format!("0x{number:x}")
}

/// A moment of the clock, in UTC.
fn moment(at: SystemTime) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March: the odd day is the last one. 400 of them have 146,097 days.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute) = (second / 3_600, second / 60 % 60);
    format!("{year:04}-{month:02}-{date:02} {hour:02}:{minute:02}:{:02} UTC", second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_dates() {
        for (seconds, want) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(moment(UNIX_EPOCH + Duration::from_secs(seconds)), want);
        }
    }
}
