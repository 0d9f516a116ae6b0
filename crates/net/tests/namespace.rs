//! Networks that come late, go silent and come back, in a network namespace of the test's own
//! (`unshare`, `ip` and `nft`; works as a plain user as well).

mod common;

use bytes::Bytes;
use common::{Cluster, Node, PATIENCE, until};
use sempre_model::Path;
use std::{
    os::unix::fs::MetadataExt,
    process::Command,
    time::{Duration, Instant},
};

const INSIDE: &str = "SEMPRE_NET_TEST_INSIDE";
const HEARTBEAT: Duration = Duration::from_millis(200);

/// True inside. Outside: runs the test inside, and is done.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        run("ip", "link set lo up");
        return true;
    }
    let root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let outcome = Command::new("unshare")
        .arg(if root { "-n" } else { "-rn" })
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    // Shown when this test is, and not taken for a test run of its own.
    print!("{}", String::from_utf8_lossy(&outcome.stdout));
    eprint!("{}", String::from_utf8_lossy(&outcome.stderr));
    assert!(outcome.status.success(), "inside the namespace: {}", outcome.status);
    false
}

fn run(program: &str, arguments: &str) {
    let outcome = Command::new(program).args(arguments.split(' ')).status().unwrap();
    assert!(outcome.success(), "{program} {arguments}: {outcome}");
}

/// Two members on the networks 10.77.1.0/24 and 10.77.2.0/24.
fn two_members(cluster: &Cluster) -> [Node; 2] {
    [("a", 1), ("b", 2)].map(|(name, host)| {
        let mut node = cluster.member(name);
        node.member.paths = [1, 2].map(|net| Path { host: format!("10.77.{net}.{host}") }).into();
        node
    })
}

fn add_addresses(node: &Node, path: usize) {
    run("ip", &format!("addr add {}/32 dev lo", node.member.paths[path].host));
}

#[tokio::test]
async fn an_address_that_comes_late_is_listened_on() {
    if !inside("an_address_that_comes_late_is_listened_on") {
        return;
    }
    let cluster = Cluster::new();
    let [a, b] = two_members(&cluster);
    for path in [0, 1] {
        add_addresses(&a, path);
    }
    add_addresses(&b, 1);
    let server = b.listen(&[0, 1]).await;
    let peers = a.peers(&[&b]);
    peers.call(b.name(), "echo", "x".into(), PATIENCE).await.unwrap();
    assert_eq!(server.local_addresses(), [b.address(1)]);

    add_addresses(&b, 0);
    until("the late address", || server.local_addresses().contains(&b.address(0))).await;
    peers.call_on(b.name(), 0, "echo", "x".into(), PATIENCE).await.unwrap();
}

#[tokio::test]
async fn a_network_that_goes_silent_stops_no_calls() {
    if !inside("a_network_that_goes_silent_stops_no_calls") {
        return;
    }
    let cluster = Cluster::new();
    let [a, b] = two_members(&cluster);
    for path in [0, 1] {
        add_addresses(&a, path);
        add_addresses(&b, path);
    }
    let _server = b.listen(&[0, 1]).await;
    let peers = std::sync::Arc::new(a.peers(&[&b]));
    // Heartbeats on both paths, as an agent sends them.
    for path in [0, 1] {
        let (peers, to) = (peers.clone(), b.name().clone());
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(HEARTBEAT);
            loop {
                tick.tick().await;
                let _ = peers.call_on(&to, path, "echo", Bytes::new(), 2 * HEARTBEAT).await;
            }
        });
    }
    until("both paths", || peers.paths(b.name()).iter().all(|p| p.connected)).await;

    run("nft", "add table ip cut");
    run("nft", "add chain ip cut in { type filter hook input priority 0 ; }");
    for (index, net) in [(0, "10.77.1.0/24"), (1, "10.77.2.0/24")] {
        run("nft", &format!("add rule ip cut in ip daddr {net} drop"));
        let mut longest = Duration::ZERO;
        let lost = || {
            let state = &peers.paths(b.name())[index];
            state.failures > 2 && !state.connected
        };
        let began = Instant::now();
        while !lost() {
            assert!(began.elapsed() < PATIENCE, "the loss was not noticed");
            let since = Instant::now();
            peers.call(b.name(), "echo", "x".into(), PATIENCE).await.unwrap();
            longest = longest.max(since.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        println!(
            "path {index} cut: longest call {longest:?}, noticed within {:?}",
            began.elapsed()
        );
        run("nft", "flush chain ip cut in");
        let healed = || peers.paths(b.name()).iter().all(|p| p.connected && p.failures == 0);
        until("the path to be found again", healed).await;
    }
}
