//! A carried client that never reads stops the server, and costs no memory. Alone in its program:
//! it measures it.

mod common;

use common::*;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// What routing's memory may grow by while a server has 100 MB to say, bytes.
const GROWTH_MAX: usize = 16 << 20;

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_stays_flat_and_nothing_is_put_into_a_row() {
    let pair = pair();
    for sql in [
        "select repeat('x', 100000) from generate_series(1, 1000)",
        "copy (select repeat('x', 100000) from generate_series(1, 1000)) to stdout",
        "select repeat('x', 100000000)",
    ] {
        let routed = Routed::proxy(table(1, Some(pair.old.target())));
        let mut client = TcpStream::connect(routed.address).await.unwrap();
        client.write_all(&startup()).await.unwrap();
        let before = resident_bytes();
        client.write_all(&query(sql)).await.unwrap();
        // Until nothing moves any more: the kernel's buffers are full.
        let (mut seen, mut still) = (0, 0);
        while still < 5 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = routed.stats().bytes_to_client;
            still = if now == seen && now > 100_000 { still + 1 } else { 0 };
            seen = now;
        }
        let growth = resident_bytes().saturating_sub(before);
        assert!(growth < GROWTH_MAX, "{sql}: {growth} bytes");
        // The primary is lost: inside a message nothing can be said.
        moves_to(&routed, &pair.new);
        // Between two messages the session goes on; this one has heard enough.
        client.shutdown().await.unwrap();
        let mut out = Vec::new();
        let read = tokio::time::timeout(PATIENCE, client.read_to_end(&mut out)).await;
        let _ = read.expect("the session ends");
        assert!(out.len() < 100_000_000, "{sql}");
        if sql.starts_with("select repeat('x', 100000000)") {
            assert!(!out.windows(5).any(|window| window == b"ERROR" || window == b"FATAL"));
        }
    }
}
