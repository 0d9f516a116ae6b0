//! Before a switchover, sessions log in to the standby that takes over: real servers, and a real
//! promotion.

#[path = "common/cluster.rs"]
mod cluster;
mod common;

use cluster::Cluster;
use common::*;
use futures_util::{StreamExt, stream::poll_fn};
use sempre_route::{PoolMode, PoolSettings, ProxySettings, Target};
use std::sync::atomic::Ordering::SeqCst;
use tokio_postgres::{AsyncMessage, Client, NoTls};

const PID: &str = "select pg_backend_pid()";
/// Connections of clients to a server, but for the one that asks.
const OTHERS: &str = "select count(*) from pg_stat_activity where pid <> pg_backend_pid() \
                      and backend_type = 'client backend'";

fn in_mode(mode: PoolMode) -> ProxySettings {
    let pool = PoolSettings { mode, ..PoolSettings::default() };
    ProxySettings { pool, ..ProxySettings::default() }
}

async fn sessions(cluster: &Cluster, count: usize) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let client = connect(&cluster.routed.plain()).await.unwrap().0;
        // Who has asked for nothing yet has no server connection.
        client.batch_execute("select 1").await.unwrap();
        clients.push(client);
    }
    clients
}

/// A switchover was asked for; ends when everybody is warmed up.
async fn warm_up(cluster: &Cluster) {
    let routed = &cluster.routed;
    let mut warmed = routed.router.warmed().unwrap();
    routed.change(|table| table.warm = Some(cluster.standby.target()));
    let done = warmed.wait_for(|warmed| warmed.as_ref().is_some_and(|m| m.as_str() == "second"));
    tokio::time::timeout(PATIENCE, done).await.expect("it ends").unwrap();
}

/// The primary hands over to the standby, as an agent does it.
async fn hand_over(cluster: &Cluster) {
    cluster.routed.change(|table| {
        table.draining = true;
        table.primary = None;
    });
    let gone = OTHERS.to_owned();
    until_answers(&direct(&cluster.primary).await, &gone, "0").await;
    cluster.primary.signal("-INT");
    cluster.promote().await;
    serves(cluster, cluster.standby.target());
}

fn serves(cluster: &Cluster, target: Target) {
    cluster.routed.change(|table| {
        let generation = table.generation.next();
        (table.generation, table.cut_below) = (generation, generation);
        (table.draining, table.warm) = (false, None);
        table.primary = Some(target);
    });
}

/// The processes that clients have on the standby.
async fn there(cluster: &Cluster) -> Vec<String> {
    let sql = OTHERS.replace("count(*)", "string_agg(pid::text, ' ')");
    let pids = simple(&direct(&cluster.standby).await, &sql).await;
    pids.split_whitespace().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_go_on_with_the_connections_they_warmed_up() {
    let cluster = Cluster::start(ProxySettings::default()).await;
    let clients = sessions(&cluster, 6).await;
    let (listens, mut connection) =
        tokio_postgres::connect(&cluster.routed.plain(), NoTls).await.unwrap();
    let mut messages = poll_fn(move |context| connection.poll_message(context)).boxed();
    let heard = tokio::spawn(async move {
        while let Some(message) = messages.next().await {
            if let Ok(AsyncMessage::Notification(notification)) = message {
                return notification.payload().to_owned();
            }
        }
        String::new()
    });
    listens.batch_execute("listen news; set app.who = 'ann'").await.unwrap();
    let mut prepared = Vec::new();
    for (number, client) in clients.iter().enumerate() {
        let memory = 5 + number;
        client.batch_execute(&format!("set work_mem = '{memory}MB'")).await.unwrap();
        client.batch_execute("prepare p as insert into t values ($1)").await.unwrap();
        prepared.push(client.prepare("insert into t values ($1 + 1)").await.unwrap());
    }
    // A standby has no serializable transactions: its settings come afterwards.
    clients[5].batch_execute("set default_transaction_isolation = serializable").await.unwrap();

    warm_up(&cluster).await;
    assert_eq!(cluster.routed.stats().warm_made, 7);
    let warm = there(&cluster).await;
    assert_eq!(warm.len(), 7);
    for client in &clients {
        client.batch_execute("execute p(0)").await.unwrap();
    }

    hand_over(&cluster).await;
    for (number, client) in clients.iter().enumerate() {
        let row = client.execute(&prepared[number], &[&(number as i32)]).await.unwrap();
        assert_eq!(row, 1);
        assert_eq!(server_of(client).await, "second");
        assert_eq!(simple(client, "show work_mem").await, format!("{}MB", 5 + number));
        client.batch_execute("execute p(100)").await.unwrap();
        assert!(warm.contains(&simple(client, PID).await), "it is the warm one");
        assert_eq!(simple(client, "show transaction_read_only").await, "off");
    }
    let level = "show default_transaction_isolation";
    assert_eq!(simple(&clients[5], level).await, "serializable");
    assert_eq!(simple(&clients[4], level).await, "read committed");
    assert_eq!(simple(&listens, "show app.who").await, "ann");
    clients[0].batch_execute("notify news, 'hello'").await.unwrap();
    assert_eq!(heard.await.unwrap(), "hello");
    assert_eq!(simple(&clients[0], "select count(*) from t").await, "18");
    assert_eq!(cluster.routed.stats().warm_used, 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changed_since_is_made_up_for_and_a_dead_one_is_replaced() {
    let cluster = Cluster::start(ProxySettings::default()).await;
    let mut clients = sessions(&cluster, 4).await;
    for client in &clients {
        client.batch_execute("set work_mem = '5MB'").await.unwrap();
        client.batch_execute("prepare p as select 1").await.unwrap();
    }
    let old = clients[0].prepare("select 'old'").await.unwrap();
    let kept = clients[0].prepare("select 'kept'").await.unwrap();
    warm_up(&cluster).await;
    let warm = there(&cluster).await;
    assert_eq!(warm.len(), 4);

    // Other statements of the protocol; other settings; nothing any more; a dead connection.
    drop(old);
    let new = clients[0].prepare("select 'new'").await.unwrap();
    clients[1].batch_execute("set work_mem = '6MB'; set app.who = 'ann'").await.unwrap();
    clients[1].batch_execute("deallocate p").await.unwrap();
    clients[1].batch_execute("prepare p as select 2").await.unwrap();
    clients[2].batch_execute("discard all").await.unwrap();
    clients[2].batch_execute("set application_name = 'third'").await.unwrap();
    let last = clients.pop().unwrap();
    last.batch_execute("set application_name = 'last'").await.unwrap();

    let dies = format!("select pg_terminate_backend({})", warm[3]);
    direct(&cluster.standby).await.batch_execute(&dies).await.unwrap();
    hand_over(&cluster).await;

    let mut used = Vec::new();
    for client in clients.iter().chain([&last]) {
        client.batch_execute("insert into t values (1)").await.unwrap();
        used.push(simple(client, PID).await);
    }
    assert_eq!(used.iter().filter(|pid| warm.contains(pid)).count(), 3);
    assert!(!used.contains(&warm[3]));
    assert_eq!(cluster.routed.stats().warm_used, 3);
    let text = async |statement| clients[0].query_one(statement, &[]).await.unwrap();
    assert_eq!(text(&kept).await.get::<_, &str>(0), "kept");
    assert_eq!(text(&new).await.get::<_, &str>(0), "new");
    let names = "select count(*) from pg_prepared_statements where not from_sql";
    assert_eq!(simple(&clients[0], names).await, "2");
    assert_eq!(simple(&clients[0], "execute p").await, "1");
    assert_eq!(simple(&clients[1], "show work_mem").await, "6MB");
    assert_eq!(simple(&clients[1], "show app.who").await, "ann");
    assert_eq!(simple(&clients[1], "execute p").await, "2");
    assert_eq!(simple(&clients[2], "show work_mem").await, "4MB");
    assert_eq!(simple(&clients[2], "show application_name").await, "third");
    let left = "select count(*) from pg_prepared_statements where from_sql";
    assert_eq!(simple(&clients[2], left).await, "0");
    assert_eq!(simple(&last, "show work_mem").await, "5MB");
    assert_eq!(simple(&last, "show application_name").await, "last");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_are_closed_when_the_switchover_is_cancelled_or_goes_elsewhere() {
    let cluster = Cluster::start(ProxySettings::default()).await;
    let third = tokio::task::spawn_blocking(|| Server::new("third")).await.unwrap();
    direct(&third).await.batch_execute("create table t (a int)").await.unwrap();
    let clients = sessions(&cluster, 3).await;
    let standby = direct(&cluster.standby).await;
    warm_up(&cluster).await;
    until_answers(&standby, OTHERS, "3").await;
    cluster.routed.change(|table| table.warm = None);
    until_answers(&standby, OTHERS, "0").await;
    for client in &clients {
        assert_eq!(server_of(client).await, "first");
    }
    // Again; and then somebody else takes over.
    warm_up(&cluster).await;
    until_answers(&standby, OTHERS, "3").await;
    cluster.routed.change(|table| (table.draining, table.primary) = (true, None));
    serves(&cluster, third.target());
    for client in &clients {
        client.batch_execute("insert into t values (1)").await.unwrap();
        assert_eq!(server_of(client).await, "third");
    }
    until_answers(&standby, OTHERS, "0").await;
    assert_eq!(cluster.routed.stats().warm_used, 0);
    assert_eq!(simple(&standby, "select count(*) from t").await, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn none_is_used_before_its_server_confirms_that_it_is_the_primary() {
    let cluster = Cluster::start(ProxySettings::default()).await;
    let client = sessions(&cluster, 1).await.remove(0);
    warm_up(&cluster).await;
    cluster.routed.verifier.0.store(false, SeqCst);
    hand_over(&cluster).await;
    let before = cluster.routed.stats().unverified;
    let writes = tokio::spawn(async move {
        client.batch_execute("insert into t values (1)").await.unwrap();
        client
    });
    until("it was asked twice", || cluster.routed.stats().unverified >= before + 2).await;
    let standby = direct(&cluster.standby).await;
    assert_eq!(simple(&standby, "select count(*) from t").await, "0");
    assert!(!writes.is_finished());
    cluster.routed.verifier.0.store(true, SeqCst);
    let client = writes.await.unwrap();
    assert_eq!(cluster.routed.stats().warm_used, 1);
    assert_eq!(simple(&client, "select count(*) from t").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_is_behind_or_full_is_not_waited_for() {
    let cluster = Cluster::start(ProxySettings::default()).await;
    let clients = sessions(&cluster, 3).await;
    let standby = direct(&cluster.standby).await;
    standby.batch_execute("select pg_wal_replay_pause()").await.unwrap();
    until_answers(&standby, "select pg_get_wal_replay_pause_state()", "paused").await;
    clients[0].batch_execute("alter role postgres set work_mem = '9MB'").await.unwrap();
    warm_up(&cluster).await;
    assert_eq!(cluster.routed.stats().warm_made, 0, "it would not know the role's settings");
    cluster.routed.change(|table| table.warm = None);
    standby.batch_execute("select pg_wal_replay_resume()").await.unwrap();
    cluster.caught_up().await;
    // What cannot log in is not tried for ever, and its session is carried as before.
    let role = "create role single login connection limit 3; grant all on t to single";
    clients[0].batch_execute(role).await.unwrap();
    cluster.caught_up().await;
    let dsn = cluster.routed.plain().replace("user=postgres", "user=single");
    let mut held = Vec::new();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], cluster.standby.port));
    for _ in 0..3 {
        let dsn = common::dsn(address, "disable").replace("user=postgres", "user=single");
        held.push(connect(&dsn).await.unwrap().0);
    }
    let single = connect(&dsn).await.unwrap().0;
    single.batch_execute("select 1").await.unwrap();
    warm_up(&cluster).await;
    assert_eq!(cluster.routed.stats().warm_made, 3);
    drop(held);
    hand_over(&cluster).await;
    for client in clients.iter().chain([&single]) {
        client.batch_execute("insert into t values (1)").await.unwrap();
    }
    assert_eq!(cluster.routed.stats().warm_used, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pools_that_are_shared_are_warmed_up_as_far_as_they_are_in_use() {
    let cluster = Cluster::start(in_mode(PoolMode::Transaction)).await;
    let clients = sessions(&cluster, 8).await;
    // Two are in the middle of a transaction, one keeps its own; the others need none.
    for client in &clients[..2] {
        client.batch_execute("begin; insert into t values (1)").await.unwrap();
    }
    clients[2].batch_execute("set work_mem = '5MB'").await.unwrap();
    warm_up(&cluster).await;
    assert_eq!(cluster.routed.stats().warm_made, 3);
    let warm = there(&cluster).await;
    for client in &clients[..2] {
        client.batch_execute("commit").await.unwrap();
    }
    hand_over(&cluster).await;
    let insert = |client: Client| async move {
        client.batch_execute("insert into t values (1)").await.unwrap();
        (simple(&client, "show work_mem").await, simple(&client, PID).await)
    };
    let mut own = 0;
    for client in clients {
        let (memory, pid) = insert(client).await;
        assert!(warm.contains(&pid) || memory == "4MB");
        own += usize::from(memory == "5MB");
    }
    assert_eq!(own, 1);
    let stats = cluster.routed.stats();
    assert!((2..=3).contains(&stats.warm_used), "{stats:?}");
}
