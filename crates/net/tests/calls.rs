//! Calls over one or two paths, good and bad ones.

mod common;

use bytes::Bytes;
use common::{Cluster, PATIENCE, id, until};
use sempre_net::{BODY_MAX, CallError, RpcError};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const SHORT: Duration = Duration::from_millis(400);

#[tokio::test]
async fn members_call_each_other() {
    let cluster = Cluster::new();
    // The names that are hardest on certificates.
    let (a, b) = (cluster.member("a-0_"), cluster.member("b-"));
    let (_a, _b) = (a.listen(&[0, 1]).await, b.listen(&[0, 1]).await);
    let (from_a, from_b) = (a.peers(&[&a, &b]), b.peers(&[&a, &b]));

    let who = from_a.call(b.name(), "who", Bytes::new(), PATIENCE).await.unwrap();
    assert_eq!(who, "a-0_");
    let who = from_b.call(a.name(), "who", Bytes::new(), PATIENCE).await.unwrap();
    assert_eq!(who, "b-");

    for path in [0, 1] {
        from_a.call_on(b.name(), path, "echo", "x".into(), PATIENCE).await.unwrap();
    }
    for state in from_a.paths(b.name()) {
        assert!(state.connected && state.last_heard.is_some() && state.last_error.is_none());
        assert!(state.rtt_us.is_some_and(|us| us < 10_000_000), "{state:?}");
    }
    // Itself, nobody, and no such path.
    let error = from_a.call(a.name(), "who", Bytes::new(), PATIENCE).await.unwrap_err();
    assert!(matches!(error, CallError::UnknownMember(_)), "{error}");
    let error = from_a.call_on(b.name(), 2, "who", Bytes::new(), PATIENCE).await.unwrap_err();
    assert!(matches!(error, CallError::UnknownPath { path: 2, .. }), "{error}");
    assert!(from_a.paths(&id("nobody")).is_empty());
}

#[tokio::test]
async fn errors_are_answers() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.member("a"), cluster.member("b"));
    let _b = b.listen(&[0, 1]).await;
    let peers = a.peers(&[&b]);
    let ask = async |method: &str, body: Bytes| {
        let error = peers.call(b.name(), method, body, PATIENCE).await.unwrap_err();
        error.answered().cloned().unwrap_or_else(|| panic!("{error}"))
    };
    assert_eq!(ask("nonsense", Bytes::new()).await, RpcError::UnknownMethod("nonsense".into()));
    assert!(matches!(ask("a b", Bytes::new()).await, RpcError::BadRequest(_)));
    assert!(matches!(ask("", Bytes::new()).await, RpcError::BadRequest(_)));
    assert!(matches!(ask("panic", Bytes::new()).await, RpcError::Failed(_)));
    assert!(matches!(ask("huge", Bytes::new()).await, RpcError::TooLarge(_)));
    let oversized = vec![0; BODY_MAX + 1].into();
    assert!(matches!(ask("echo", oversized).await, RpcError::TooLarge(_)));
    // The largest there may be, there and back.
    let largest = Bytes::from(vec![7; BODY_MAX]);
    let back = peers.call(b.name(), "echo", largest.clone(), PATIENCE).await.unwrap();
    assert_eq!(back.len(), largest.len());
    assert_eq!(back, largest);
}

#[tokio::test]
async fn a_refused_path_does_not_matter() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.member("a"), cluster.member("b"));
    let _b = b.listen(&[1]).await;
    let peers = a.peers(&[&b]);
    assert_eq!(peers.call(b.name(), "echo", "x".into(), PATIENCE).await.unwrap(), "x");
    let error = peers.call_on(b.name(), 0, "echo", "x".into(), PATIENCE).await.unwrap_err();
    assert!(error.to_string().contains(&b.address(0).to_string()), "{error}");
    let states = peers.paths(b.name());
    assert!(!states[0].connected && states[0].last_error.is_some() && states[0].failures > 0);
    assert!(states[1].connected && states[1].last_heard.is_some());
}

#[tokio::test]
async fn a_silent_path_does_not_matter() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.member("a"), cluster.member("b"));
    // Accepts (the kernel does), and never answers.
    let _silent = TcpListener::bind(b.address(0)).await.unwrap();
    let _b = b.listen(&[1]).await;
    let peers = a.peers(&[&b]);
    for _ in 0..5 {
        assert_eq!(peers.call(b.name(), "echo", "x".into(), PATIENCE).await.unwrap(), "x");
    }
    assert!(peers.paths(b.name())[0].last_heard.is_none());
    // Many callers of the silent path share one attempt, and none holds up the other path.
    let stuck = (0..20).map(|_| peers.call_on(b.name(), 0, "echo", "x".into(), SHORT));
    let stuck = futures_util::future::join_all(stuck);
    let working = peers.call_on(b.name(), 1, "echo", "y".into(), PATIENCE);
    let (stuck, working) = tokio::join!(stuck, working);
    assert_eq!(working.unwrap(), "y");
    assert!(stuck.iter().all(Result::is_err));
}

#[tokio::test]
async fn all_paths_gone_says_so_of_each() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.member("a"), cluster.member("b"));
    let peers = a.peers(&[&b]);
    let error = peers.call(b.name(), "echo", "x".into(), PATIENCE).await.unwrap_err();
    let CallError::Unreachable { tried, sent, .. } = &error else { panic!("{error}") };
    assert_eq!(tried.len(), 2, "{error}");
    assert!(!sent, "refused connections carry nothing");
    // It comes back: nothing remembers that it was gone.
    let _b = b.listen(&[0, 1]).await;
    assert_eq!(peers.call(b.name(), "echo", "x".into(), PATIENCE).await.unwrap(), "x");
}

/// Carries bytes between a network address and the member behind it, until it is frozen.
struct Relay {
    frozen: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Relay {
    async fn start(at: std::net::SocketAddr, to: std::net::SocketAddr) -> Self {
        let frozen = Arc::new(AtomicBool::new(false));
        let listener = TcpListener::bind(at).await.unwrap();
        let ice = frozen.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(to).await.unwrap();
                let (client_in, client_out) = client.into_split();
                let (server_in, server_out) = server.into_split();
                tokio::spawn(carry(client_in, server_out, ice.clone()));
                tokio::spawn(carry(server_in, client_out, ice.clone()));
            }
        });
        Self { frozen, task }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    frozen: Arc<AtomicBool>,
) {
    let mut buffer = vec![0; 65_536];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        while frozen.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_path_that_goes_silent_under_way_is_left_and_found_again() {
    let cluster = Cluster::new();
    let (a, mut b) = (cluster.member("a"), cluster.member("b"));
    let _b = b.listen(&[0, 1]).await;
    let real = b.address(0);
    // The first path of b leads through a relay, at another address with the same port.
    b.member.paths[0].host = cluster.member("spare").member.paths[0].host.clone();
    let relay = Relay::start(b.address(0), real).await;
    let peers = a.peers(&[&b]);
    for path in [0, 1] {
        peers.call_on(b.name(), path, "echo", "x".into(), PATIENCE).await.unwrap();
    }

    relay.frozen.store(true, Ordering::SeqCst);
    for _ in 0..20 {
        assert_eq!(peers.call(b.name(), "echo", "x".into(), PATIENCE).await.unwrap(), "x");
    }
    let error = peers.call_on(b.name(), 0, "echo", "x".into(), SHORT).await.unwrap_err();
    assert!(error.to_string().contains("no answer within"), "{error}");
    assert!(matches!(error, CallError::Unreachable { sent: true, .. }), "it may have arrived");
    assert!(!peers.paths(b.name())[0].connected, "its connection is not used again");

    relay.frozen.store(false, Ordering::SeqCst);
    peers.call_on(b.name(), 0, "echo", "x".into(), PATIENCE).await.unwrap();
    let state = &peers.paths(b.name())[0];
    assert!(state.connected && state.failures == 0, "{state:?}");
}

#[tokio::test]
async fn a_slow_call_is_not_a_lost_path() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.member("a"), cluster.member("b"));
    let _b = b.listen(&[0, 1]).await;
    let peers = a.peers(&[&b]);
    let slow = peers.call_on(b.name(), 0, "wait", Bytes::new(), Duration::from_secs(1));
    let others = async {
        for _ in 0..10 {
            peers.call_on(b.name(), 0, "echo", "x".into(), PATIENCE).await.unwrap();
        }
    };
    let (slow, ()) = tokio::join!(slow, others);
    assert!(slow.is_err());
    assert!(peers.paths(b.name())[0].connected);
    // Its caller gave up, and it was still carried out.
    b.answers.go_on.notify_one();
    until("the call to be finished", || b.answers.finished.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn a_member_restarts_and_moves() {
    let cluster = Cluster::new();
    let (a, mut b) = (cluster.member("a"), cluster.member("b"));
    let server = b.listen(&[0, 1]).await;
    let peers = a.peers(&[&b]);
    for path in [0, 1] {
        peers.call_on(b.name(), path, "echo", "x".into(), PATIENCE).await.unwrap();
    }
    server.shutdown().await;
    let server = b.listen(&[0, 1]).await;
    for path in [0, 1] {
        peers.call_on(b.name(), path, "echo", "x".into(), PATIENCE).await.unwrap();
    }
    server.shutdown().await;

    b.member.paths = cluster.member("elsewhere").member.paths;
    let _server = b.listen(&[0, 1]).await;
    assert!(peers.call(b.name(), "echo", "x".into(), PATIENCE).await.is_err());
    peers.set_members([&b.member]);
    assert_eq!(peers.call(b.name(), "echo", "x".into(), PATIENCE).await.unwrap(), "x");
    peers.set_members([]);
    let error = peers.call(b.name(), "echo", "x".into(), PATIENCE).await.unwrap_err();
    assert!(matches!(error, CallError::UnknownMember(_)), "{error}");
}

#[tokio::test]
async fn each_path_leaves_from_its_own_address() {
    let cluster = Cluster::new();
    let (a, b) = (cluster.member("a"), cluster.member("b"));
    let peers = a.peers(&[&b]);
    for path in [0, 1] {
        let listener = TcpListener::bind(b.address(path)).await.unwrap();
        let (failed, accepted) = tokio::join!(
            peers.call_on(b.name(), path, "echo", "x".into(), SHORT),
            listener.accept()
        );
        assert_eq!(accepted.unwrap().1.ip(), a.address(path).ip());
        // Nobody spoke TLS there, so nothing can have been sent.
        assert!(matches!(failed, Err(CallError::Unreachable { sent: false, .. })), "{failed:?}");
    }
    // An address that this machine does not have is no hindrance.
    let _b = b.listen(&[0, 1]).await;
    peers.set_my_paths(vec![sempre_model::Path { host: "192.0.2.1".into() }]);
    peers.set_members([&b.member]);
    peers.call_on(b.name(), 0, "echo", "x".into(), PATIENCE).await.unwrap();
}
