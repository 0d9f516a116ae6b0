//! Sessions outlive their server connection: real servers, psql and tokio-postgres.

mod common;

use common::*;
use sempre_route::Mode;
use tokio_postgres::{Client, Error, error::SqlState};

fn code(error: &Error) -> &SqlState {
    error.code().unwrap_or_else(|| panic!("{error:?}"))
}

async fn run(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_work_as_without_it() {
    let pair = pair();
    let routed = Routed::proxy(table(1, Some(pair.old.target())));
    for sslmode in ["disable", "prefer"] {
        let out = psql(&dsn(routed.address, sslmode), "select 1; select 'two'").await;
        assert_eq!(stdout(&out), "1\ntwo");
    }
    let out = psql(&routed.plain(), "select * from no_such_table").await;
    assert!(stderr(&out).contains("does not exist"));
    let (client, _connection) = connect(&routed.plain()).await.unwrap();
    let row = client.query_one("select $1::int + 1, $2::text", &[&41, &"x"]).await.unwrap();
    assert_eq!((row.get::<_, i32>(0), row.get::<_, &str>(1)), (42, "x"));
    // Pipelined, with an error in the middle.
    let one = client.query_one("select 1", &[]);
    let bad = client.query_one("select 1 / $1::int", &[&0]);
    let two = client.query_one("select 2", &[]);
    let (one, bad, two) = tokio::join!(one, bad, two);
    assert_eq!((one.unwrap().get::<_, i32>(0), two.unwrap().get::<_, i32>(0)), (1, 2));
    assert_eq!(code(&bad.unwrap_err()), &SqlState::DIVISION_BY_ZERO);
    // COPY, both ways.
    run(&client, "create temp table copied (a int, b text)").await;
    let sink = client.copy_in("copy copied from stdin").await.unwrap();
    let mut sink = std::pin::pin!(sink);
    use futures_util::{SinkExt, StreamExt};
    for line in 0..5_000 {
        let line = bytes::Bytes::from(format!("{line}\tline {line}\n"));
        sink.send(line).await.unwrap();
    }
    assert_eq!(sink.finish().await.unwrap(), 5_000);
    let out = client.copy_out("copy copied to stdout").await.unwrap();
    let lines: Vec<_> = out.collect().await;
    assert_eq!(lines.len(), 5_000);
    assert_eq!(simple(&client, "select count(*) from copied").await, "5000");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_session_goes_on_with_its_state() {
    let pair = pair();
    let routed = Routed::proxy(table(1, Some(pair.old.target())));
    for server in [&pair.old, &pair.new] {
        let (direct, _connection) =
            connect(&dsn(([127, 0, 0, 1], server.port).into(), "disable")).await.unwrap();
        let _ = direct.batch_execute("create role carried_role").await;
    }
    let (client, mut connection) =
        tokio_postgres::connect(&routed.plain(), tokio_postgres::NoTls).await.unwrap();
    let (notified_in, mut notified) = tokio::sync::mpsc::channel(8);
    tokio::spawn(async move {
        while let Some(message) =
            std::future::poll_fn(|context| connection.poll_message(context)).await
        {
            if let Ok(tokio_postgres::AsyncMessage::Notification(it)) = message {
                notified_in.send(it.payload().to_owned()).await.unwrap();
            }
        }
    });
    run(&client, "set statement_timeout = '77s'; set my.own = 'it''s mine'").await;
    run(&client, "select set_config('work_mem', '7MB', false)").await;
    run(&client, "begin; set lock_timeout = 3; rollback; begin; set lock_timeout = 5; commit")
        .await;
    run(&client, "listen \"A channel\"").await;
    run(&client, "prepare by_sql(int) as select $1 + 1").await;
    run(&client, "set role carried_role").await;
    let by_protocol = client.prepare("select $1::int * 2, current_user::text").await.unwrap();
    assert_eq!(server_of(&client).await, "old");

    moves_to(&routed, &pair.new);
    assert_eq!(server_of(&client).await, "new");
    for (name, value) in [
        ("statement_timeout", "77s"),
        ("my.own", "it's mine"),
        ("work_mem", "7MB"),
        ("lock_timeout", "5ms"),
    ] {
        assert_eq!(simple(&client, &format!("show {name}")).await, value);
    }
    assert_eq!(simple(&client, "execute by_sql(1)").await, "2");
    let row = client.query_one(&by_protocol, &[&21]).await.unwrap();
    assert_eq!((row.get::<_, i32>(0), row.get::<_, &str>(1)), (42, "carried_role"));
    run(&client, "notify \"A channel\", 'heard'").await;
    assert_eq!(notified.recv().await.as_deref(), Some("heard"));
    // A session that is silent, and listens, is carried too.
    moves_to(&routed, &pair.old);
    let (other, _connection) =
        connect(&dsn(([127, 0, 0, 1], pair.old.port).into(), "disable")).await.unwrap();
    let listens = "select count(*) from pg_stat_activity where query like 'listen \"A chan%' \
                   or query like '%set_config%' and state = 'idle'";
    let start = std::time::Instant::now();
    let payload = loop {
        run(&other, "notify \"A channel\", 'silent'").await;
        match tokio::time::timeout(std::time::Duration::from_millis(50), notified.recv()).await {
            Ok(payload) => break payload,
            Err(_) => assert!(start.elapsed() < PATIENCE, "{}", simple(&other, listens).await),
        }
    };
    assert_eq!(payload.as_deref(), Some("silent"));
    assert_eq!(routed.stats().total, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_in_flight_gets_40001_and_rollback_works() {
    let pair = pair();
    let routed = Routed::proxy(table(1, Some(pair.old.target())));
    let (client, _connection) = connect(&routed.plain()).await.unwrap();
    let mut at = [&pair.new, &pair.old].into_iter().cycle();
    let mut moves = || {
        let server = at.next().unwrap();
        moves_to(&routed, server);
        server
    };
    // Idle in the block; then simple, extended, and the end itself.
    for first in ["select 1", "commit"] {
        run(&client, "begin").await;
        let server = moves();
        let error = client.batch_execute(first).await.unwrap_err();
        assert_eq!(code(&error), &SqlState::T_R_SERIALIZATION_FAILURE, "{first}");
        // As in a real block that failed: PostgreSQL itself says so.
        if first != "commit" {
            let error = client.batch_execute("select 1").await.unwrap_err();
            assert_eq!(code(&error), &SqlState::IN_FAILED_SQL_TRANSACTION);
        }
        run(&client, "rollback").await;
        assert_eq!(server_of(&client).await, server.name);
    }
    run(&client, "begin").await;
    moves();
    let error = client.query("select $1::int", &[&1]).await.unwrap_err();
    assert_eq!(code(&error), &SqlState::T_R_SERIALIZATION_FAILURE);
    // COMMIT of a failed block is a rollback.
    run(&client, "commit").await;
    assert_eq!(simple(&client, "select 1").await, "1");
    // What it wants has happened.
    run(&client, "begin").await;
    moves();
    run(&client, "rollback").await;
    // Busy in the block.
    for extended in [false, true] {
        run(&client, "begin").await;
        let server = if routed.stats().cut.is_multiple_of(2) { &pair.old } else { &pair.new };
        let sql = "select pg_sleep(611)";
        let running = async {
            match extended {
                true => client.execute(sql, &[]).await.map(|_| ()),
                false => client.batch_execute(sql).await,
            }
        };
        let cut = async {
            until_running(server, sql).await;
            moves();
        };
        let (error, ()) = tokio::join!(running, cut);
        let error = error.unwrap_err();
        assert_eq!(code(&error), &SqlState::T_R_SERIALIZATION_FAILURE, "{error:?}");
        run(&client, "rollback").await;
        assert_eq!(simple(&client, "select 1").await, "1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_outside_a_transaction_is_unknown_unless_it_was_certainly_rolled_back() {
    let pair = pair();
    let routed = Routed::proxy(table(1, Some(pair.old.target())));
    let (client, _connection) = connect(&routed.plain()).await.unwrap();
    let sql = "select pg_sleep(612)";
    let cut = async {
        until_running(&pair.old, sql).await;
        moves_to(&routed, &pair.new);
    };
    let (error, ()) = tokio::join!(client.batch_execute(sql), cut);
    assert_eq!(code(&error.unwrap_err()), &SqlState::from_code("08007"));
    assert_eq!(server_of(&client).await, "new");
    // The server itself says that it ends the session before it has answered.
    let sql = "select pg_sleep(613)";
    let kill = async {
        until_running(&pair.new, sql).await;
        let (direct, _connection) =
            connect(&dsn(([127, 0, 0, 1], pair.new.port).into(), "disable")).await.unwrap();
        let kill =
            format!("select pg_terminate_backend(pid) from pg_stat_activity where query = '{sql}'");
        run(&direct, &kill).await;
    };
    let (error, ()) = tokio::join!(client.batch_execute(sql), kill);
    assert_eq!(code(&error.unwrap_err()), &SqlState::T_R_SERIALIZATION_FAILURE);
    assert_eq!(server_of(&client).await, "new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_carried_ends_the_session_and_is_named() {
    let pair = pair();
    let routed = Routed::proxy(table(1, Some(pair.old.target())));
    for (sql, named) in [
        ("create temp table precious (a int)", "the temporary table \"precious\""),
        ("select pg_advisory_lock(7)", "an advisory lock of the session"),
        ("begin; declare c cursor with hold for select 1; commit", "the held cursor \"c\""),
        ("prepare a as select 1; select 2", "the prepared statement \"a\""),
    ] {
        let (client, connection) = connect(&routed.plain()).await.unwrap();
        run(&client, sql).await;
        moves_to(&routed, if routed.stats().cut.is_multiple_of(2) { &pair.new } else { &pair.old });
        let error = connection.await.unwrap().unwrap_err();
        let error = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error:?}"));
        assert_eq!(error.code(), &SqlState::ADMIN_SHUTDOWN);
        assert!(error.detail().unwrap().contains(named), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancel_requests_reach_the_query_they_are_for() {
    let pair = pair();
    let routed = Routed::proxy(table(1, Some(pair.old.target())));
    let (client, _connection) = connect(&routed.plain()).await.unwrap();
    let (other, _other_connection) = connect(&routed.plain()).await.unwrap();
    let cancel = client.cancel_token();
    moves_to(&routed, &pair.new);
    let running = tokio::spawn(async move { client.simple_query("select pg_sleep(614)").await });
    let other = tokio::spawn(async move { other.simple_query("select pg_sleep(615)").await });
    until_running(&pair.new, "select pg_sleep(615)").await;
    while !running.is_finished() {
        cancel.cancel_query(tokio_postgres::NoTls).await.unwrap();
    }
    let error = running.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED));
    assert!(!other.is_finished());
    other.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_sessions_move_to_another_standby() {
    let pair = pair();
    let mut start = table(1, None);
    start.standbys = vec![standby(&pair.old, 0)];
    let style = sempre_route::Style::Proxy(Default::default());
    let routed = Routed::start_in(style, Mode::ReadOnly, start);
    let (client, _connection) = connect(&routed.plain()).await.unwrap();
    assert_eq!(server_of(&client).await, "old");
    routed.change(|table| {
        table.lost.push(table.standbys[0].target.member.clone());
        table.standbys = vec![standby(&pair.new, 0)];
    });
    // A statement that is on its way when the server is lost gets an error.
    until("the session has lost it", || routed.stats().cut > 0).await;
    assert_eq!(server_of(&client).await, "new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_gets_an_error_and_a_router_that_stops_says_so() {
    use tokio::io::AsyncWriteExt;
    let pair = pair();
    let routed = Routed::proxy(table(1, Some(pair.old.target())));
    for (garbage, answer) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "invalid length of startup packet"),
        (b"\0\0\0\x09\0\x02\0\0x", "unsupported frontend protocol 2.0"),
        (b"\0\0\0\x0c\0\x03\0\0user", "invalid startup packet layout"),
        (b"\0\0\0\x09\0\x03\0\0\0", "no PostgreSQL user name specified"),
    ] {
        let mut client = tokio::net::TcpStream::connect(routed.address).await.unwrap();
        client.write_all(garbage).await.unwrap();
        let said = all(&mut client).await;
        assert!(said.starts_with('E') && said.contains(answer), "{said}");
    }
    for (garbage, answer) in [
        (&[0xff; 64][..], "invalid frontend message type"),
        // PostgreSQL ends such a connection without a word.
        (b"S\xff\xff\xff\xff", ""),
        (b"B\0\0\0\x05x", ""),
        (b"Q\0\0\0\x04", ""),
        (b"p\0\0\0\x04", "invalid frontend message type"),
    ] {
        let mut client = tokio::net::TcpStream::connect(routed.address).await.unwrap();
        client.write_all(&startup()).await.unwrap();
        client.write_all(garbage).await.unwrap();
        client.shutdown().await.unwrap();
        assert!(all(&mut client).await.contains(answer), "{answer}");
    }
    // A client that closed its side still gets its answer.
    let mut client = tokio::net::TcpStream::connect(routed.address).await.unwrap();
    client.write_all(&startup()).await.unwrap();
    client.write_all(&query("select pg_sleep(0.1), 'the ' || 'answer'")).await.unwrap();
    client.shutdown().await.unwrap();
    assert!(all(&mut client).await.contains("the answer"));
    until("all gone", || routed.stats().open == 0).await;
    let (client, connection) = connect(&routed.plain()).await.unwrap();
    assert_eq!(server_of(&client).await, "old");
    routed.router.shutdown().await;
    assert_eq!(code(&connection.await.unwrap().unwrap_err()), &SqlState::ADMIN_SHUTDOWN);
}
