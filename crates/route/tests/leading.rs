//! Clients are held, verified, led and cut: real servers, psql and tokio-postgres.

mod common;

use common::*;
use sempre_route::{Limits, Mode};
use std::sync::{Arc, atomic::Ordering::SeqCst};
use tokio_postgres::error::SqlState;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_held_until_there_is_a_primary() {
    let pair = pair();
    let routed = Routed::start(Mode::ReadWrite, table(1, None));
    let dsn = routed.plain();
    let client = tokio::spawn(async move { psql(&dsn, "show cluster_name").await });
    until("held", || routed.stats().held == 1).await;
    routed.change(|table| table.primary = Some(pair.old.target()));
    assert_eq!(stdout(&client.await.unwrap()), "old");
    until("gone", || routed.stats().open == 0).await;
    let stats = routed.stats();
    assert_eq!((stats.held, stats.led, stats.total, stats.refused), (0, 1, 1, 0));
    assert!(stats.bytes_to_client > 0 && stats.bytes_to_server > 0, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_does_not_confirm_gets_nobody() {
    let pair = pair();
    let routed = Routed::start(Mode::ReadWrite, table(1, Some(pair.old.target())));
    routed.verifier.0.store(false, SeqCst);
    let dsn = routed.plain();
    let client = tokio::spawn(async move { psql(&dsn, "show cluster_name").await });
    until("asked and held", || routed.stats().unverified > 1 && routed.stats().held == 1).await;
    assert_eq!(routed.stats().led, 0);
    routed.verifier.0.store(true, SeqCst);
    assert_eq!(stdout(&client.await.unwrap()), "old");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_client_that_goes_away_gives_its_place_back() {
    let routed = Routed::start(Mode::ReadWrite, table(1, None));
    let dsn = routed.plain();
    let client = tokio::spawn(async move { connect(&dsn).await.map(|_| ()) });
    until("held", || routed.stats().held == 1).await;
    client.abort();
    until("gone", || routed.stats().open == 0 && routed.stats().held == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_cuts_sessions_with_a_fatal_message_and_no_news_does_not() {
    let pair = pair();
    let routed = Routed::start(Mode::ReadWrite, table(1, Some(pair.old.target())));
    let (client, connection) = connect(&routed.plain()).await.unwrap();
    assert_eq!(server_of(&client).await, "old");

    // The primary is not named for a moment, and its agent does not answer: the session goes on.
    routed.verifier.0.store(false, SeqCst);
    routed.change(|table| table.primary = None);
    assert_eq!(server_of(&client).await, "old");
    routed.verifier.0.store(true, SeqCst);

    // Another generation: cut, while a statement is running too.
    let (busy, _busy_connection) = {
        routed.change(|table| table.primary = Some(pair.old.target()));
        connect(&routed.plain()).await.unwrap()
    };
    let running = tokio::spawn(async move { busy.simple_query("select pg_sleep(603)").await });
    until_running(&pair.old, "select pg_sleep(603)").await;
    routed.change(|table| *table = common::table(2, None));
    let error = connection.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::ADMIN_SHUTDOWN), "{error:?}");
    let error = error.as_db_error().unwrap();
    assert_eq!(error.message(), "terminating connection because the primary has changed");
    assert!(error.detail().unwrap().contains("Generation 2"), "{error:?}");
    assert!(running.await.unwrap().is_err());
    assert_eq!(routed.stats().cut, 2);

    let dsn = routed.plain();
    let next = tokio::spawn(async move { psql(&dsn, "show cluster_name").await });
    until("held", || routed.stats().held == 1).await;
    routed.change(|table| table.primary = Some(pair.new.target()));
    let next = next.await.unwrap();
    assert_eq!(stdout(&next), "new", "{next:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psql_shows_why_it_was_cut() {
    let pair = pair();
    let routed = Routed::start(Mode::ReadWrite, table(1, Some(pair.old.target())));
    let dsn = routed.plain();
    let client = tokio::spawn(async move { psql(&dsn, "select pg_sleep(601)").await });
    until_running(&pair.old, "select pg_sleep(601)").await;
    routed.change(|table| table.primary_stopped = true);
    let said = stderr(&client.await.unwrap());
    assert!(said.contains("FATAL:  terminating connection because the primary stopped"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limits_of_holding_are_a_clear_error() {
    let mut table = table(1, None);
    table.limits = Limits { hold_max: 0, ..Limits::default() };
    let full = Routed::start(Mode::ReadWrite, table.clone());
    table.limits = Limits { hold_timeout_ms: 60, ..Limits::default() };
    let late = Routed::start(Mode::ReadWrite, table);
    for (routed, limit) in [(&full, "route_hold_max"), (&late, "route_hold_timeout_ms")] {
        // The default of libpq, and without TLS: the whole error is shown.
        for sslmode in ["prefer", "allow", "disable"] {
            let said = stderr(&psql(&dsn(routed.address, sslmode), "select 1").await);
            assert!(said.contains("FATAL:  no primary is available"), "{sslmode}: {said}");
            assert!(said.contains("a standby is being promoted; "), "{sslmode}: {said}");
            assert!(said.contains(limit), "{sslmode}: {said}");
            assert!(said.contains("HINT:  Try again later"), "{sslmode}: {said}");
        }
        // A client that insists on TLS cannot be told: nobody is there to prove who says it.
        let said = stderr(&psql(&dsn(routed.address, "require"), "select 1").await);
        assert!(said.contains("does not support SSL"), "{said}");
        let error = connect(&routed.plain()).await.map(|_| ()).unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::CANNOT_CONNECT_NOW));
        assert!(routed.stats().refused >= 4 && routed.stats().held == 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_offered_only_where_the_table_says_so() {
    let pair = pair();
    let mut table = table(1, Some(pair.old.target()));
    table.limits.client_tls = false;
    let routed = Routed::start(Mode::ReadWrite, table);
    let sql = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    for sslmode in ["prefer", "disable"] {
        assert_eq!(stdout(&psql(&dsn(routed.address, sslmode), sql).await), "f", "{sslmode}");
    }
    let said = stderr(&psql(&dsn(routed.address, "require"), sql).await);
    assert!(said.contains("server does not support SSL"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_passes_through() {
    let pair = pair();
    let routed = Routed::start(Mode::ReadWrite, table(1, Some(pair.old.target())));
    let sql = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    for (sslmode, ssl) in [("require", "t"), ("prefer", "t"), ("disable", "f")] {
        assert_eq!(stdout(&psql(&dsn(routed.address, sslmode), sql).await), ssl, "{sslmode}");
    }
    // Cut: nothing is injected into the encrypted stream.
    let dsn = dsn(routed.address, "require");
    let client = tokio::spawn(async move { psql(&dsn, "select pg_sleep(602)").await });
    until_running(&pair.old, "select pg_sleep(602)").await;
    routed.change(|table| *table = common::table(2, None));
    let said = stderr(&client.await.unwrap());
    assert!(!said.contains("FATAL") && !said.contains("invalid"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_requests_arrive() {
    let pair = pair();
    let mut table = table(1, Some(pair.old.target()));
    table.standbys = vec![standby(&pair.new, 0)];
    for mode in [Mode::ReadWrite, Mode::ReadOnly] {
        let routed = Routed::start(mode, table.clone());
        let (client, _connection) = connect(&routed.plain()).await.unwrap();
        let cancel = client.cancel_token();
        let running =
            tokio::spawn(async move { client.simple_query("select pg_sleep(600)").await });
        // A cancel that comes before the query is running does nothing, so repeat it.
        while !running.is_finished() {
            cancel.cancel_query(tokio_postgres::NoTls).await.unwrap();
        }
        let error = running.await.unwrap().unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED), "{mode:?}");
        until("counted", || routed.stats().cancels > 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_clients_are_spread_over_standbys() {
    let pair = pair();
    let mut start = table(1, None);
    start.standbys = vec![standby(&pair.old, 0), standby(&pair.new, 0)];
    let routed = Routed::start(Mode::ReadOnly, start);
    let mut sessions = Vec::new();
    let mut on_old = 0;
    for _ in 0..6 {
        let (client, connection) = connect(&routed.plain()).await.unwrap();
        on_old += usize::from(server_of(&client).await == "old");
        sessions.push((client, connection));
    }
    assert_eq!(on_old, 3);
    // One lags too much: no new session, but those it has go on.
    routed.change(|table| table.standbys[0].lag_bytes = u64::MAX);
    let (client, _connection) = connect(&routed.plain()).await.unwrap();
    assert_eq!(server_of(&client).await, "new");
    assert!(sessions.iter().all(|(client, _)| !client.is_closed()));
    // It is promoted: its read-only sessions end, the others stay.
    routed.change(|table| {
        table.generation = table.generation.next();
        table.primary = Some(pair.old.target());
        table.standbys.remove(0);
    });
    until("cut", || sessions.iter().filter(|(client, _)| client.is_closed()).count() == 3).await;
    assert_eq!(routed.stats().cut, 3);
    assert_eq!(server_of(&client).await, "new");
    // No standby is left: the primary, if that is allowed.
    routed.change(|table| table.standbys.clear());
    let (client, _connection) = connect(&routed.plain()).await.unwrap();
    assert_eq!(server_of(&client).await, "old");
    routed.change(|table| {
        table.limits.read_only_fallback = false;
        table.limits.hold_timeout_ms = 0;
    });
    let error = connect(&routed.plain()).await.map(|_| ()).unwrap_err();
    assert_eq!(error.as_db_error().unwrap().message(), "no standby is available");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_crashes_is_reported_and_waited_for() {
    let server = Arc::new(Server::new("crash"));
    let routed = Routed::start(Mode::ReadWrite, table(1, Some(server.target())));
    let (client, connection) = connect(&routed.plain()).await.unwrap();
    assert_eq!(server_of(&client).await, "crash");
    // A backend that is killed takes all others with it, and recovery follows: those that are
    // told "terminating" are told so by the server itself; the table does not change at all.
    let (killer, killer_connection) = connect(&routed.plain()).await.unwrap();
    let pid = simple(&killer, "select pg_backend_pid()").await;
    let kill = std::process::Command::new("kill").args(["-KILL", &pid]).status();
    assert!(kill.unwrap().success());
    let error = killer_connection.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::CRASH_SHUTDOWN), "{error:?}");
    let message = error.as_db_error().unwrap().message();
    assert_eq!(message, "terminating connection because the server closed it unexpectedly");
    let error = connection.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::CRASH_SHUTDOWN), "{error:?}");
    // A new client is not told "the database system is in recovery mode": it waits.
    assert_eq!(stdout(&psql(&routed.plain(), "show cluster_name").await), "crash");
    // Down altogether, and up again.
    server.signal("-QUIT");
    let dsn = routed.plain();
    let client = tokio::spawn(async move { psql(&dsn, "show cluster_name").await });
    until("held", || routed.stats().held == 1).await;
    let starting = server.clone();
    tokio::task::spawn_blocking(move || starting.start()).await.unwrap();
    assert_eq!(stdout(&client.await.unwrap()), "crash");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_that_stops_says_so() {
    let pair = pair();
    let routed = Routed::start(Mode::ReadWrite, table(1, Some(pair.old.target())));
    let (client, connection) = connect(&routed.plain()).await.unwrap();
    assert_eq!(server_of(&client).await, "old");
    routed.router.shutdown().await;
    let error = connection.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::ADMIN_SHUTDOWN), "{error:?}");
    assert!(tokio::net::TcpStream::connect(routed.address).await.is_err());
}
