//! The admin database, with psql.

mod common;

use common::*;
use sempre_route::{ADMIN_DATABASE, Mode, PoolMode, PoolSettings, ProxySettings, Style};

fn with_admin(pair: &Pair, mode: PoolMode) -> Routed {
    let settings = ProxySettings {
        pool: PoolSettings { mode, ..PoolSettings::default() },
        admin_users: vec!["postgres".into()],
        ..ProxySettings::default()
    };
    let style = Style::Proxy(settings);
    Routed::start_in(style, Mode::ReadWrite, table(1, Some(pair.old.target())))
}

async fn admin(routed: &Routed, sql: &str) -> String {
    let dsn = routed.plain().replace("dbname=postgres", &format!("dbname={ADMIN_DATABASE}"));
    stdout(&psql(&dsn, sql).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql_shows_what_there_is() {
    let pair = pair();
    let routed = with_admin(&pair, PoolMode::Session);
    let (client, _connection) = connect(&routed.plain()).await.unwrap();
    let pid = simple(&client, "select pg_backend_pid()").await;
    let (waits, _connection) = connect(&routed.plain()).await.unwrap();
    assert_eq!(
        admin(&routed, "show pools").await,
        "postgres|postgres|2|0|0|0|1|0|0|0|0|0|0|0|0|session"
    );
    let servers = admin(&routed, "SHOW SERVERS;").await;
    assert!(servers.starts_with("S|postgres|postgres|active|127.0.0.1|"), "{servers}");
    assert!(servers.contains(&format!("|{pid}|")) && servers.ends_with("|old"), "{servers}");
    let clients = admin(&routed, "show clients").await;
    assert_eq!((clients.matches("|active|").count(), clients.matches("|idle|").count()), (1, 1));
    let stats = admin(&routed, "show stats").await;
    assert!(stats.starts_with("postgres|1|1|"), "{stats}");
    let databases = admin(&routed, "show databases").await;
    assert!(databases.contains(&format!("postgres|127.0.0.1|{}|", pair.old.port)), "{databases}");
    let config = admin(&routed, "show config").await;
    assert!(config.contains("server_reset_query|DISCARD ALL|DISCARD ALL|no"), "{config}");
    assert!(admin(&routed, "show version").await.starts_with("sempre "));
    assert!(admin(&routed, "show help; show version").await.contains("PAUSE"));
    let dsn = routed.plain().replace("dbname=postgres", "dbname=sempre");
    assert!(stderr(&psql(&dsn, "drop table t").await).contains("there is no command"));
    let (extended, _connection) = connect(&dsn).await.unwrap();
    let error = extended.query("show pools", &[]).await.unwrap_err();
    let message = error.as_db_error().map_or("", |error| error.message());
    assert!(message.contains("simple queries only"), "{error:?}");
    extended.simple_query("show pools").await.unwrap();
    // Only who is named. (Nobody: there is no such database.)
    client.batch_execute("drop role if exists stranger; create role stranger login").await.unwrap();
    let refused = stderr(&psql(&dsn.replace("user=postgres", "user=stranger"), "show pools").await);
    assert!(refused.contains("may not use the admin database"), "{refused}");
    let none = Routed::proxy(table(1, Some(pair.old.target())));
    let dsn = none.plain().replace("dbname=postgres", "dbname=sempre");
    assert!(stderr(&psql(&dsn, "show pools").await).contains("does not exist"));
    drop(waits);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pause_waits_for_transactions_and_sessions_go_on_after_resume() {
    let pair = pair();
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        let routed = with_admin(&pair, mode);
        let (idle, _connection) = connect(&routed.plain()).await.unwrap();
        idle.batch_execute("set work_mem = '7MB'").await.unwrap();
        let (busy, _connection) = connect(&routed.plain()).await.unwrap();
        busy.batch_execute("begin").await.unwrap();
        let in_use = || routed.router.pools().iter().map(|p| p.servers_active).sum::<u64>();
        assert_eq!(in_use(), 2);
        let paused = admin(&routed, "pause");
        let rest = async {
            until("the idle one has left", || in_use() == 1).await;
            busy.batch_execute("select 1").await.unwrap();
            busy.batch_execute("commit").await.unwrap();
        };
        tokio::join!(paused, rest);
        assert_eq!(in_use(), 0);
        assert!(admin(&routed, "show databases").await.contains("|1|0\n"));
        let waits = tokio::spawn(async move { simple(&idle, "show work_mem").await });
        until("it waits", || routed.router.pools()[0].clients_waiting == 1).await;
        admin(&routed, "resume").await;
        assert_eq!(waits.await.unwrap(), "7MB");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reconnect_changes_the_connections_of_sessions_that_go_on() {
    let pair = pair();
    let routed = with_admin(&pair, PoolMode::Session);
    let (client, _connection) = connect(&routed.plain()).await.unwrap();
    client.batch_execute("set work_mem = '7MB'").await.unwrap();
    let pid = simple(&client, "select pg_backend_pid()").await;
    admin(&routed, "reconnect other").await;
    assert_eq!(simple(&client, "select pg_backend_pid()").await, pid);
    admin(&routed, "reconnect postgres; reload").await;
    assert!(simple(&client, "select pg_backend_pid()").await != pid);
    assert_eq!(simple(&client, "show work_mem").await, "7MB");
    // What cannot be carried stays where it is.
    client.batch_execute("create temp table precious (a int)").await.unwrap();
    let pid = simple(&client, "select pg_backend_pid()").await;
    admin(&routed, "reconnect").await;
    assert_eq!(simple(&client, "select pg_backend_pid()").await, pid);
}
