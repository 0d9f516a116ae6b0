//! What anybody can do to the port.

mod common;

use common::{Cluster, PATIENCE, until};
use sempre_net::ServerError;
use std::sync::atomic::Ordering;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

#[tokio::test]
async fn garbage_and_silence_do_no_harm() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.member("a"), cluster.member("b"));
    let _b = b.listen(&[0, 1]).await;
    let peers = a.peers(&[&b]);

    // Garbage of several kinds; each connection is closed on it.
    let mut state = 12_345_u32;
    let mut noise = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let random: Vec<u8> = (0..10_000).map(|_| noise()).collect();
    let client_hello_cut = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec();
    let huge_record = b"\x16\x03\x03\xff\xff".repeat(2000);
    let http = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec();
    let h2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    for garbage in [random, huge_record, http, h2, vec![0; 100_000]] {
        let mut stream = TcpStream::connect(b.address(0)).await.unwrap();
        // It may be closed before all is written.
        let _ = stream.write_all(&garbage).await;
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "the connection was left open");
        assert_eq!(peers.call(b.name(), "echo", "x".into(), PATIENCE).await.unwrap(), "x");
    }

    // Connections that say nothing, or dribble: members get in all the while, and they are closed.
    let mut idle = Vec::new();
    for index in 0..100 {
        let mut stream = TcpStream::connect(b.address(index % 2)).await.unwrap();
        if index % 3 == 0 {
            // Beyond the bound it is closed at once.
            let _ = stream.write_all(&client_hello_cut).await;
        }
        idle.push(stream);
    }
    let fresh = a.peers(&[&b]);
    for path in [0, 1] {
        fresh.call_on(b.name(), path, "echo", "x".into(), PATIENCE).await.unwrap();
    }
    for mut stream in idle {
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "a silent connection was kept");
    }
}

#[tokio::test]
async fn a_flood_from_one_address_does_not_shut_members_out() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.member("a"), cluster.member("b"));
    let _b = b.listen(&[0, 1]).await;
    let mut flood = Vec::new();
    for _ in 0..500 {
        flood.push(TcpStream::connect(b.address(0)).await.unwrap());
    }
    // From another address, on the same path.
    let peers = a.peers(&[&b]);
    peers.call_on(b.name(), 0, "echo", "x".into(), PATIENCE).await.unwrap();
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let cluster = Cluster::new();
    let a = cluster.member("a");
    let _taken = std::net::TcpListener::bind(a.address(1)).unwrap();
    let error = a.try_listen(vec![a.address(0), a.address(1)]).await.err().unwrap();
    assert!(matches!(error, ServerError::InUse { address } if address == a.address(1)));
    assert!(error.to_string().contains(&a.member.ports.peer.to_string()), "{error}");
}

#[tokio::test]
async fn an_address_that_is_not_there_yet_does_not_hold_up_the_others() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.member("a"), cluster.member("b"));
    // Reserved for documentation: no machine has it.
    let missing = format!("192.0.2.1:{}", b.member.ports.peer).parse().unwrap();
    let server = b.try_listen(vec![missing, b.address(1)]).await.unwrap();
    assert_eq!(server.local_addresses(), [b.address(1)]);
    a.peers(&[&b]).call(b.name(), "echo", "x".into(), PATIENCE).await.unwrap();
    server.shutdown().await;
}

#[tokio::test]
async fn a_caller_cannot_pile_up_work() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.member("a"), cluster.member("b"));
    let _b = b.listen(&[0, 1]).await;
    let peers = a.peers(&[&b]);
    let brief = std::time::Duration::from_millis(300);
    // Each gives up soon, and is still worked on.
    let many = (0..300).map(|_| peers.call_on(b.name(), 0, "wait", "".into(), brief));
    let all = futures_util::future::join_all(many).await;
    assert!(all.iter().all(Result::is_err));
    assert!(b.answers.calls.load(Ordering::SeqCst) <= 256);
    b.answers.go_on.notify_waiters();
    until("the work to be done", || {
        b.answers.go_on.notify_waiters();
        b.answers.finished.load(Ordering::SeqCst) == b.answers.calls.load(Ordering::SeqCst)
    })
    .await;
    peers.call(b.name(), "echo", "x".into(), PATIENCE).await.unwrap();
}
