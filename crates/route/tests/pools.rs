//! Clients share server connections: real servers, psql and tokio-postgres.

mod common;

use common::*;
use sempre_route::{Mode, PoolSettings, ProxySettings, Style};
use tokio_postgres::Client;

const PID: &str = "select pg_backend_pid()";

fn pooled(pair: &Pair, pool: PoolSettings) -> Routed {
    let settings = ProxySettings { pool, ..ProxySettings::default() };
    let style = Style::Proxy(settings);
    Routed::start_in(style, Mode::ReadWrite, table(1, Some(pair.old.target())))
}

/// Server connections that nobody uses.
fn idle(routed: &Routed) -> u64 {
    routed.router.pools().iter().map(|pool| pool.servers_idle).sum()
}

fn in_use(routed: &Routed) -> u64 {
    routed.router.pools().iter().map(|pool| pool.servers_active).sum()
}

async fn leaves(routed: &Routed, client: Client) {
    let before = idle(routed);
    drop(client);
    until("its connection is idle", || idle(routed) == before + 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_after_another_they_use_the_same_connection_and_find_it_as_new() {
    let pair = pair();
    let routed = pooled(&pair, PoolSettings::default());
    let (client, _connection) = connect(&routed.plain()).await.unwrap();
    let pid = simple(&client, PID).await;
    let all = "set work_mem = '7MB'; create temp table t (a int); prepare p as select 1; listen c";
    client.batch_execute(all).await.unwrap();
    leaves(&routed, client).await;

    let named = format!("{} application_name=other", routed.plain());
    let (client, _connection) = connect(&named).await.unwrap();
    assert_eq!(idle(&routed), 1, "it is welcomed without a server connection");
    assert_eq!(simple(&client, PID).await, pid);
    assert_eq!((idle(&routed), in_use(&routed)), (0, 1));
    assert_eq!(simple(&client, "show application_name").await, "other");
    assert_eq!(simple(&client, "show work_mem").await, "4MB");
    let left = "select (select count(*) from pg_prepared_statements where name = 'p') + \
                (select count(*) from pg_listening_channels()) + \
                (select count(*) from pg_class where relname = 't' and relpersistence = 't')";
    assert_eq!(simple(&client, left).await, "0");
    leaves(&routed, client).await;
    // Other parameters are another connection.
    let options = format!("{} options='-c work_mem=3MB'", routed.plain());
    assert_eq!(stdout(&psql(&options, "show work_mem").await), "3MB");
    let other = stdout(&psql(&options, PID).await);
    assert!(other != pid, "{other}");
    // One that left in the middle of a transaction takes its connection with it.
    until("both are idle", || idle(&routed) == 2).await;
    let (client, _connection) = connect(&routed.plain()).await.unwrap();
    client.batch_execute("begin").await.unwrap();
    drop(client);
    until("it is closed", || idle(&routed) == 1 && in_use(&routed) == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_than_fit_and_who_waits_too_long_is_told() {
    let pair = pair();
    let pool = PoolSettings { size: 1, query_wait_timeout_ms: 60_000, ..PoolSettings::default() };
    let routed = pooled(&pair, pool);
    let (first, _connection) = connect(&routed.plain()).await.unwrap();
    let pid = simple(&first, PID).await;
    let (second, _connection) = connect(&routed.plain()).await.unwrap();
    let waits = tokio::spawn(async move { simple(&second, PID).await });
    let waiting = || routed.router.pools()[0].clients_waiting == 1;
    until("it waits", waiting).await;
    assert_eq!(in_use(&routed), 1);
    drop(first);
    assert_eq!(waits.await.unwrap(), pid);
    // Of another kind: the idle one makes room.
    until("it is idle", || idle(&routed) == 1).await;
    let options = format!("{} options='-c work_mem=3MB'", routed.plain());
    assert!(stdout(&psql(&options, PID).await) != pid);

    let pool = PoolSettings { size: 1, query_wait_timeout_ms: 50, ..PoolSettings::default() };
    let routed = pooled(&pair, pool);
    let (first, _connection) = connect(&routed.plain()).await.unwrap();
    simple(&first, PID).await;
    let said = stderr(&psql(&routed.plain(), PID).await);
    assert!(said.contains("FATAL:  query_wait_timeout"), "{said}");
    simple(&first, PID).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_make_room_on_a_server_that_is_full() {
    let pair = pair();
    let routed = pooled(&pair, PoolSettings::default());
    let role = "drop role if exists few; create role few login connection limit 1";
    direct(&pair.old).await.batch_execute(role).await.unwrap();
    let dsn = routed.plain().replace("user=postgres", "user=few");
    let pid = stdout(&psql(&dsn, PID).await);
    until("it is idle", || idle(&routed) == 1).await;
    let other = format!("{dsn} options='-c work_mem=3MB'");
    assert!(stdout(&psql(&other, PID).await) != pid);
    // In use, it makes none.
    let (_holds, _connection) = connect(&dsn).await.unwrap();
    until("it has one", || in_use(&routed) == 1 && idle(&routed) == 0).await;
    let said = stderr(&psql(&other.replace("3MB", "2MB"), PID).await);
    assert!(said.contains("too many connections for role"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_leave_a_primary_that_hands_over_and_clients_come_in_meanwhile() {
    let pair = pair();
    let routed = pooled(&pair, PoolSettings::default());
    let (client, _connection) = connect(&routed.plain()).await.unwrap();
    assert_eq!(server_of(&client).await, "old");
    leaves(&routed, client).await;
    routed.change(|table| table.draining = true);
    until("it is closed", || idle(&routed) == 0).await;
    let (client, _connection) = connect(&routed.plain()).await.unwrap();
    let waits = tokio::spawn(async move { server_of(&client).await });
    until("it is held", || routed.stats().held == 1).await;
    routed.change(|table| {
        let generation = table.generation.next();
        (table.generation, table.cut_below, table.draining) = (generation, generation, false);
        table.primary = Some(pair.new.target());
    });
    assert_eq!(waits.await.unwrap(), "new");
    until("it is idle", || idle(&routed) == 1).await;
    // A server that ends the connection ends nobody's session.
    let sql = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
               where backend_type = 'client backend' and pid <> pg_backend_pid()";
    direct(&pair.new).await.batch_execute(sql).await.unwrap();
    until("it is closed", || idle(&routed) == 0).await;
    assert_eq!(stdout(&psql(&routed.plain(), "show cluster_name").await), "new");
}
