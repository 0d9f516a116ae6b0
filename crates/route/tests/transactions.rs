//! Transaction pooling: a server connection for a transaction, prepared statements on any of them.

mod common;

use common::*;
use sempre_route::{Mode, PoolMode, PoolSettings, ProxySettings, Style};
use sempre_wire::pg::write;
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tokio_postgres::{Client, error::SqlState};

const PID: &str = "select pg_backend_pid()";

fn pooled(pair: &Pair, size: usize) -> Routed {
    let pool = PoolSettings {
        mode: PoolMode::Transaction,
        size,
        max_prepared_statements: 3,
        ..PoolSettings::default()
    };
    let settings = ProxySettings { pool, ..ProxySettings::default() };
    let style = Style::Proxy(settings);
    Routed::start_in(style, Mode::ReadWrite, table(1, Some(pair.old.target())))
}

async fn client(routed: &Routed) -> Client {
    connect(&routed.plain()).await.unwrap().0
}

fn in_use(routed: &Routed) -> u64 {
    routed.router.pools().iter().map(|pool| pool.servers_active).sum()
}

async fn until_free(routed: &Routed) {
    until("no connection is in use", || in_use(routed) == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_share_one_connection_and_transactions_keep_it() {
    let pair = pair();
    let routed = pooled(&pair, 1);
    let (one, two) = (client(&routed).await, client(&routed).await);
    let pid = simple(&one, PID).await;
    assert_eq!(simple(&two, PID).await, pid);
    one.batch_execute("begin").await.unwrap();
    let waits = tokio::spawn(async move { simple(&two, PID).await });
    let waiting = || routed.router.pools()[0].clients_waiting == 1;
    until("it waits", waiting).await;
    assert_eq!(simple(&one, "select 1").await, "1");
    one.batch_execute("rollback").await.unwrap();
    assert_eq!(waits.await.unwrap(), pid);
    // As many at once as there are.
    let clients = (0..20).map(|number: i32| {
        let routed = &routed;
        async move {
            let client = client(routed).await;
            for turn in 0..20 {
                let row = client.query_one("select $1::int + $2::int", &[&number, &turn]).await;
                assert_eq!(row.unwrap().get::<_, i32>(0), number + turn);
            }
        }
    });
    futures_util::future::join_all(clients).await;
    until_free(&routed).await;
    let info = routed.router.pools().remove(0);
    // A client that leaves without waiting for its last answer takes the connection with it.
    assert!(info.transactions >= 400 && info.servers_idle <= 1, "{info:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepared_statements_work_on_any_connection() {
    let pair = pair();
    let routed = pooled(&pair, 2);
    let clients = [client(&routed).await, client(&routed).await, client(&routed).await];
    // More than a connection keeps; the same names of different clients mean different things.
    let mut prepared = Vec::new();
    for (number, client) in clients.iter().enumerate() {
        let mut own = Vec::new();
        for turn in 0..5 {
            let sql = format!("select $1::int + {}", 10 * number + turn);
            own.push(client.prepare(&sql).await.unwrap());
        }
        prepared.push(own);
    }
    for round in 0..4 {
        // The other connection is busy or idle in turns.
        if round % 2 == 0 {
            clients[0].batch_execute("begin").await.unwrap();
        }
        for (number, (client, own)) in clients.iter().zip(&prepared).enumerate().rev() {
            for (turn, statement) in own.iter().enumerate() {
                let row = client.query_one(statement, &[&round]).await.unwrap();
                assert_eq!(row.get::<_, i32>(0), (10 * number + turn) as i32 + round);
            }
        }
        if round % 2 == 0 {
            clients[0].batch_execute("commit").await.unwrap();
        }
    }
    let kept = "select count(*) from pg_prepared_statements where name like 'sempre\\_p%'";
    assert_eq!(simple(&clients[0], kept).await, "3");
    // An error in the middle of a pipeline; a statement that has become wrong.
    let bad = clients[0].prepare("select 1 / $1::int").await.unwrap();
    let (good, failed, also) = tokio::join!(
        clients[0].query_one(&prepared[0][0], &[&1]),
        clients[0].query_one(&bad, &[&0]),
        clients[0].query_one(&prepared[0][1], &[&1]),
    );
    assert_eq!(failed.unwrap_err().code(), Some(&SqlState::DIVISION_BY_ZERO));
    assert_eq!((good.unwrap().get::<_, i32>(0), also.unwrap().get::<_, i32>(0)), (1, 2));
    clients[0].batch_execute("create table gone_soon (a int)").await.unwrap();
    let gone = clients[0].prepare("select count(*) from gone_soon").await.unwrap();
    clients[0].query_one(&gone, &[]).await.unwrap();
    clients[0].batch_execute("drop table gone_soon").await.unwrap();
    for statement in &prepared[0] {
        clients[0].query_one(statement, &[&1]).await.unwrap();
    }
    for _ in 0..2 {
        let error = clients[0].query_one(&gone, &[]).await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::UNDEFINED_TABLE), "{error:?}");
    }
    for forget in ["deallocate all", "discard all"] {
        clients[1].batch_execute(forget).await.unwrap();
        let again = clients[1].prepare("select $1::int + 10").await.unwrap();
        assert_eq!(clients[1].query_one(&again, &[&5]).await.unwrap().get::<_, i32>(0), 15);
        let other = clients[2].query_one(&prepared[2][0], &[&5]).await.unwrap();
        assert_eq!(other.get::<_, i32>(0), 25);
    }
    // On another server, and with more text than is kept.
    clients[2].batch_execute("begin").await.unwrap();
    moves_to(&routed, &pair.new);
    clients[2].batch_execute("rollback").await.unwrap();
    assert_eq!(server_of(&clients[0]).await, "new");
    let other = clients[2].query_one(&prepared[2][0], &[&5]).await.unwrap();
    assert_eq!(other.get::<_, i32>(0), 25);
    let long = format!("select $1::text || length('{}')::text", "x".repeat(20_000));
    let long = clients[2].prepare(&long).await.unwrap();
    let row = clients[2].query_one(&long, &[&"y".repeat(30_000)]).await.unwrap();
    assert!(row.get::<_, &str>(0).ends_with("y20000"));
    // It has its connection for itself from now on; the others share what is left.
    until("the others have left", || in_use(&routed) == 1).await;
    clients[1].query_one("select $1::text", &[&"z".repeat(30_000)]).await.unwrap();
    drop(clients);
    until_free(&routed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_state_keeps_its_connection_and_nobody_else_finds_it() {
    let pair = pair();
    let routed = pooled(&pair, 2);
    let (one, two) = (client(&routed).await, client(&routed).await);
    for (sql, undo) in [
        ("set work_mem = '7MB'", "reset work_mem"),
        ("listen c", "unlisten c"),
        ("select pg_advisory_lock(71)", "select pg_advisory_unlock(71)"),
        ("prepare p as select 1", "deallocate p"),
        ("create temp table t (a int)", "drop table pg_temp.t"),
        ("set role pg_monitor", "reset role"),
    ] {
        one.batch_execute(sql).await.unwrap();
        assert_eq!(in_use(&routed), 1, "{sql}");
        let pid = simple(&one, PID).await;
        for _ in 0..3 {
            assert!(simple(&two, PID).await != pid, "{sql}");
        }
        assert_eq!(simple(&one, PID).await, pid, "{sql}");
        one.batch_execute(undo).await.unwrap();
        until_free(&routed).await;
    }
    // Of the transaction alone.
    one.batch_execute("begin; set local work_mem = '7MB'; commit").await.unwrap();
    until_free(&routed).await;
    assert_eq!(simple(&two, "show work_mem").await, "4MB");
    // It leaves with state: nobody inherits it.
    one.batch_execute("set work_mem = '7MB'").await.unwrap();
    drop(one);
    until_free(&routed).await;
    let (three, four) = (client(&routed).await, client(&routed).await);
    three.batch_execute("begin").await.unwrap();
    for client in [&three, &four] {
        assert_eq!(simple(client, "show work_mem").await, "4MB");
    }
    // Names of applications are their own.
    let named = format!("{} application_name=mine", routed.plain());
    let (named, _connection) = connect(&named).await.unwrap();
    assert_eq!(simple(&named, "show application_name").await, "mine");
    assert_eq!(simple(&four, "show application_name").await, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_request_reaches_its_own_query_only() {
    let pair = pair();
    let routed = pooled(&pair, 1);
    let (one, two) = (client(&routed).await, client(&routed).await);
    simple(&one, PID).await;
    let (cancel, idle) = (two.cancel_token(), one.cancel_token());
    let sql = "select pg_sleep(621)";
    let running = tokio::spawn(async move { two.simple_query(sql).await });
    until_running(&pair.old, sql).await;
    idle.cancel_query(tokio_postgres::NoTls).await.unwrap();
    assert!(!running.is_finished());
    while !running.is_finished() {
        cancel.cancel_query(tokio_postgres::NoTls).await.unwrap();
    }
    assert_eq!(running.await.unwrap().unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));
    assert_eq!(simple(&one, "select 1").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_sent_at_once_with_what_it_waits_for_does_not_stand_still() {
    let pair = pair();
    let routed = pooled(&pair, 1);
    let mut client = TcpStream::connect(routed.address).await.unwrap();
    let mut bytes = startup();
    write::query(&mut bytes, b"begin");
    write::parse(&mut bytes, b"one", b"select 'seen ' || 1", &[]);
    write::sync(&mut bytes);
    write::bind(&mut bytes, b"", b"one", &[]);
    write::execute(&mut bytes, b"", 0);
    write::sync(&mut bytes);
    write::query(&mut bytes, b"commit");
    write::terminate(&mut bytes);
    client.write_all(&bytes).await.unwrap();
    let answer = all(&mut client).await;
    assert!(answer.contains("seen 1") && answer.contains("COMMIT"), "{answer}");
}
