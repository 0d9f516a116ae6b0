//! Clients that misbehave, and bulk data.

mod common;

use common::*;
use sempre_route::Mode;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_gets_an_error_and_does_no_harm() {
    let pair = pair();
    let routed = Routed::start(Mode::ReadWrite, table(1, Some(pair.old.target())));
    for (garbage, answer) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "invalid length of startup packet"),
        (b"\0\0\0\0\0\0\0\0", "invalid length of startup packet"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff", "invalid length of startup packet"),
        (b"\0\0\0\x09\0\x02\0\0x", "unsupported frontend protocol 2.0"),
        (b"\0\0\0\x0c\0\x03\0\0user", "invalid startup packet layout"),
    ] {
        let mut client = TcpStream::connect(routed.address).await.unwrap();
        client.write_all(garbage).await.unwrap();
        let said = all(&mut client).await;
        assert!(said.starts_with('E') && said.contains(answer), "{said}");
    }
    assert_eq!(routed.stats().malformed, 5);
    // A TLS handshake that is none: PostgreSQL 15 does not take it, and says so itself.
    let mut client = TcpStream::connect(routed.address).await.unwrap();
    client.write_all(&[0x16, 3, 1, 0, 5, 1, 2, 3, 4, 5]).await.unwrap();
    all(&mut client).await;
    // Garbage after the start-up message is the server's business, and broken lengths are no
    // reason to inject anything.
    let mut client = TcpStream::connect(routed.address).await.unwrap();
    client.write_all(&startup()).await.unwrap();
    client.write_all(&[0xff; 64]).await.unwrap();
    assert!(all(&mut client).await.contains("invalid frontend message type"));
    // Gone before, in and after the first packet.
    for length in [0, 3, 4, 20, startup().len()] {
        let mut client = TcpStream::connect(routed.address).await.unwrap();
        client.write_all(&startup()[..length]).await.unwrap();
    }
    until("all gone", || routed.stats().open == 0).await;
    let (client, _connection) = connect(&routed.plain()).await.unwrap();
    assert_eq!(server_of(&client).await, "old");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_closed_its_side_still_gets_its_answer() {
    let pair = pair();
    let routed = Routed::start(Mode::ReadWrite, table(1, Some(pair.old.target())));
    let mut client = TcpStream::connect(routed.address).await.unwrap();
    client.write_all(&startup()).await.unwrap();
    client.write_all(&query("select pg_sleep(0.1), 'the ' || 'answer'")).await.unwrap();
    client.shutdown().await.unwrap();
    let said = all(&mut client).await;
    assert!(said.contains("the answer") && !said.contains("FATAL"), "{said}");
    until("gone", || routed.stats().open == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_data_arrives_whole_and_a_client_that_does_not_read_stops_the_server() {
    let pair = pair();
    let routed = Routed::start(Mode::ReadWrite, table(1, Some(pair.old.target())));
    // 100 MB, twice: all of it; then a client that stops reading.
    let rows = "select repeat('x', 100000) from generate_series(1, 1000)";
    let sql = format!("select sum(length(repeat)) from ({rows}) as t");
    let direct = stdout(&psql(&routed.plain(), &sql).await);
    let copied = psql(&routed.plain(), &format!("copy ({rows}) to stdout")).await;
    assert_eq!(stdout(&copied).len() as u64, direct.parse::<u64>().unwrap() + 999);
    let mut client = TcpStream::connect(routed.address).await.unwrap();
    client.write_all(&startup()).await.unwrap();
    client.write_all(&query(rows)).await.unwrap();
    let mut before = 0;
    // Until nothing moves any more: the kernel's buffers are full, and nobody else's grow.
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = std::mem::replace(&mut before, routed.stats().bytes_to_client);
        if now == before && now > 0 {
            break;
        }
    }
    // Cut in the middle of a message: nothing is injected into it.
    routed.change(|table| *table = common::table(2, None));
    until("cut", || routed.stats().cut == 1).await;
    let mut out = Vec::new();
    client.read_to_end(&mut out).await.unwrap();
    assert!(out.len() < 100_000_000);
    assert!(!out.windows(5).any(|window| window == b"FATAL"));
}
