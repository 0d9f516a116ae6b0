//! The codes of the health checks, as Patroni documents them.

mod common;

use common::{FakeAgent, change_database, change_record, change_seen, id, silence, snapshot};
use sempre_api::{Snapshot, serve};
use sempre_model::{
    Generation, Lsn, Phase,
    observation::{ProcessState, Role},
    policy::Durability,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Sends a request without a body; gives the code and what follows the head.
async fn ask(address: std::net::SocketAddr, method: &str, target: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

const PATHS: [&str; 16] = [
    "/",
    "/primary",
    "/read-write",
    "/master",
    "/leader",
    "/standby-leader",
    "/replica",
    "/read-only",
    "/read-only-sync",
    "/read-only-quorum",
    "/sync",
    "/quorum",
    "/async",
    "/health",
    "/liveness",
    "/readiness",
];

/// Asks every path by GET, HEAD and OPTIONS; `yes` names those that say 200.
async fn expect(case: &str, snapshot: Snapshot, yes: &[&str]) {
    let server = serve(vec!["127.0.0.1:0".parse().unwrap()], FakeAgent::new(snapshot)).unwrap();
    let address = server.addresses()[0];
    for path in PATHS {
        let wanted = if yes.contains(&path) { 200 } else { 503 };
        for method in ["GET", "HEAD", "OPTIONS"] {
            let (code, body) = ask(address, method, path).await;
            assert_eq!(code, wanted, "{case}: {method} {path}");
            let has_document = method == "GET" && !["/liveness", "/readiness"].contains(&path);
            assert_eq!(!body.is_empty(), has_document, "{case}: {method} {path}: {body}");
        }
    }
    server.shutdown().await;
}

const PRIMARY: &[&str] = &[
    "/",
    "/primary",
    "/read-write",
    "/master",
    "/leader",
    "/read-only",
    "/read-only-sync",
    "/read-only-quorum",
    "/health",
    "/liveness",
    "/readiness",
];
const QUORUM_STANDBY: &[&str] = &[
    "/replica",
    "/read-only",
    "/read-only-quorum",
    "/quorum",
    "/health",
    "/liveness",
    "/readiness",
];
const SYNC_STANDBY: &[&str] =
    &["/replica", "/read-only", "/read-only-sync", "/sync", "/health", "/liveness", "/readiness"];
const ASYNC_STANDBY: &[&str] =
    &["/replica", "/read-only", "/async", "/health", "/liveness", "/readiness"];

#[tokio::test]
async fn a_primary() {
    expect("primary", snapshot("m1"), PRIMARY).await;

    let mut paused = snapshot("m1");
    change_record(&mut paused, |record| record.paused = true);
    expect("paused", paused, PRIMARY).await;
}

#[tokio::test]
async fn a_primary_that_may_not_or_does_not_serve() {
    let alive = ["/health", "/liveness"];
    let mut without = snapshot("m1");
    change_seen(&mut without, "m1", |seen| seen.lease = None);
    expect("no lease", without, &alive).await;

    let mut ended = snapshot("m1");
    ended.seen.get_mut(&id("m1")).unwrap().age_ms = 1_900;
    expect("the lease ended since", ended, &alive).await;

    let mut stale = snapshot("m1");
    change_record(&mut stale, |record| record.generation = Generation(3));
    expect("lease of an old generation", stale, &alive).await;

    let mut replaced = snapshot("m1");
    change_record(&mut replaced, |record| record.primary = Some(id("m2")));
    expect("someone else is primary", replaced, &alive).await;

    let leads = ["/leader", "/health", "/liveness", "/readiness"];
    let mut closed = snapshot("m1");
    change_database(&mut closed, "m1", |d| d.admitted = false);
    expect("clients are not let in", closed, &leads).await;

    let mut promoting = snapshot("m1");
    change_database(&mut promoting, "m1", |d| {
        d.role = Role::Standby;
        d.streaming_from = None;
        d.admitted = false;
    });
    let yes = ["/leader", "/replica", "/read-only", "/async", "/health", "/liveness", "/readiness"];
    expect("not promoted yet", promoting, &yes).await;

    let mut old_database = snapshot("m1");
    change_database(&mut old_database, "m1", |d| d.generation = Generation(1));
    expect("its database is of an old generation", old_database, &leads).await;

    let mut crashed = snapshot("m1");
    change_database(&mut crashed, "m1", |d| d.process = ProcessState::Crashed);
    expect("database crashed", crashed, &["/leader", "/liveness", "/readiness"]).await;
}

#[tokio::test]
async fn standbys() {
    expect("quorum", snapshot("m2"), QUORUM_STANDBY).await;

    let mut paused = snapshot("m2");
    change_record(&mut paused, |record| record.paused = true);
    expect("paused", paused, QUORUM_STANDBY).await;

    let mut sync = snapshot("m2");
    change_record(&mut sync, |record| record.policy.durability = Durability::Sync);
    expect("sync", sync, SYNC_STANDBY).await;

    let mut outside = snapshot("m2");
    change_record(&mut outside, |record| {
        record.sync.members.remove(&id("m2"));
    });
    expect("not in the sync set", outside, ASYNC_STANDBY).await;

    let mut asynchronous = snapshot("m2");
    change_record(&mut asynchronous, |record| record.policy.durability = Durability::Async);
    expect("async", asynchronous, ASYNC_STANDBY).await;

    let mut unrouted = snapshot("m2");
    change_record(&mut unrouted, |record| {
        record.members.get_mut(&id("m2")).unwrap().tags.no_route = true;
    });
    expect("no_route", unrouted, &["/health", "/liveness", "/readiness"]).await;

    let mut starting = snapshot("m2");
    change_database(&mut starting, "m2", |d| d.process = ProcessState::Starting);
    expect("starting", starting, &["/liveness"]).await;

    let mut detached = snapshot("m2");
    change_database(&mut detached, "m2", |d| d.streaming_from = None);
    let yes: Vec<_> = QUORUM_STANDBY.iter().copied().filter(|p| *p != "/readiness").collect();
    expect("not streaming", detached, &yes).await;

    let mut behind = snapshot("m2");
    change_database(&mut behind, "m2", |d| d.replay_lsn = Lsn(0x100));
    let yes: Vec<_> = QUORUM_STANDBY.iter().copied().filter(|p| *p != "/readiness").collect();
    expect("far behind: only readiness has a limit of its own", behind, &yes).await;
}

#[tokio::test]
async fn others() {
    expect("witness", snapshot("w1"), &["/liveness"]).await;

    let mut stuck = snapshot("m2");
    silence(&mut stuck, "m2", 21_000);
    let yes: Vec<_> = QUORUM_STANDBY.iter().copied().filter(|p| *p != "/liveness").collect();
    expect("the loop is stuck", stuck.clone(), &yes).await;
    change_record(&mut stuck, |record| record.paused = true);
    expect("stuck while paused", stuck, QUORUM_STANDBY).await;

    let mut empty = snapshot("m1");
    empty.record = Default::default();
    empty.seen.clear();
    empty.agent.uptime_ms = 1_000;
    expect("nothing known yet", empty, &["/liveness"]).await;

    let mut fencing = snapshot("m2");
    change_record(&mut fencing, |record| {
        record.primary = None;
        record.phase = Phase::Forming;
    });
    let yes: Vec<_> = QUORUM_STANDBY.iter().copied().filter(|p| *p != "/readiness").collect();
    expect("no primary", fencing, &yes).await;
}

#[tokio::test]
async fn filters() {
    let mut behind = snapshot("m2");
    change_database(&mut behind, "m2", |d| {
        d.lsn = Lsn(d.lsn.0 - 100);
        d.replay_lsn = Lsn(d.replay_lsn.0 - (2 << 20));
    });
    change_record(&mut behind, |record| {
        let member = record.members.get_mut(&id("m2")).unwrap();
        member.tags.clone_from = true;
        member.zone = Some("z1".into());
    });
    let server = serve(vec!["127.0.0.1:0".parse().unwrap()], FakeAgent::new(behind)).unwrap();
    for (target, wanted) in [
        ("/replica?lag=1048576", 503),
        ("/replica?lag=2097152", 200),
        ("/replica?lag=1MB", 503),
        ("/replica?lag=2048kB", 200),
        ("/replica?lag=10MB", 200),
        ("/replica?lag=1GB", 200),
        ("/replica?lag=much", 200),
        ("/replica?lag=", 200),
        ("/replica?lag=1MB&lag=10MB", 503),
        ("/read-only?lag=1MB", 503),
        ("/quorum?lag=1MB", 503),
        ("/async?lag=10MB", 503),
        ("/replica?replication_state=streaming", 200),
        ("/replica?replication_state=in%20archive%20recovery", 503),
        ("/replica?tag_clonefrom=true", 200),
        ("/replica?tag_clone_from=true", 200),
        ("/replica?tag_clonefrom=false", 503),
        ("/replica?tag_nofailover=false&tag_zone=z1", 200),
        ("/replica?tag_zone=z2", 503),
        ("/replica?tag_unknown=1", 503),
        ("/health?tag_unknown=1", 503),
        ("/readiness", 503),
        ("/readiness?lag=3MB", 200),
        ("/readiness?mode=write", 200),
        ("/readiness?mode=apply&lag=1MB", 503),
        ("/replica?%ff=%zz&&==&lag", 200),
    ] {
        assert_eq!(ask(server.addresses()[0], "GET", target).await.0, wanted, "{target}");
    }
    server.shutdown().await;

    let server =
        serve(vec!["127.0.0.1:0".parse().unwrap()], FakeAgent::new(snapshot("m1"))).unwrap();
    for target in ["/?tag_x=1", "/leader?tag_x=1", "/primary?tag_x=1&lag=0", "/read-only?lag=0"] {
        assert_eq!(ask(server.addresses()[0], "GET", target).await.0, 200, "{target}");
    }
    server.shutdown().await;
}
