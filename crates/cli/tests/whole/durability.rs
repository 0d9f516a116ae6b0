//! What commits wait for, and what a failover does with it.

use crate::common::{
    cluster::{Cluster, data, query, signal},
    writer::Writer,
};
use nix::sys::signal::Signal;
use serde_json::json;

/// What the database of this member enforces.
fn enforced(cluster: &Cluster, primary: &str) -> String {
    query(&cluster.member(primary).direct(), "show synchronous_standby_names").unwrap()
}

#[test]
fn modes_can_be_changed_and_hold_through_failovers() {
    // Named priority: m3 before the others.
    let mut cluster = Cluster::start(
        vec![data("m1"), data("m2"), data("m3").tags("priority = 7"), data("m4")],
        &["durability=sync"],
    );
    let first = cluster.until("m3 stands first", |cluster| {
        let names = enforced(cluster, "m1");
        names.contains("m3").then_some(names)
    });
    assert!(first.starts_with("FIRST 1 (\"m3\""), "{first}");
    let sql = "select application_name from pg_stat_replication where sync_state = 'sync'";
    assert_eq!(query(&cluster.member("m1").direct(), sql).unwrap(), "m3");
    let writer = Writer::start(&cluster.member("m2").read_write(), 0);
    cluster.kill_members(&["m3"]);
    writer.goes_on();
    cluster.run("m3");
    cluster.whole();
    cluster.kill_database("m1");
    cluster.kill_agent("m1");
    cluster.until("another is primary", |cluster| {
        let status = cluster.status()?;
        (status["primary"] != "m1" && status["writable"] == true).then_some(())
    });
    writer.goes_on();
    cluster.run("m1");
    cluster.whole();
    cluster.has_rows(&writer.stop());

    // Two copies beside the primary's, wherever: any two of the three may be lost at once with
    // nothing missing.
    cluster.ok(&["config", "set", "durability=quorum", "sync_count=2"]);
    let status = cluster.until("commits wait for two", |cluster| {
        let status = cluster.whole();
        (status["sync"]["database"]["k"] == 2).then_some(status)
    });
    let primary = status["primary"].as_str().unwrap().to_owned();
    assert!(enforced(&cluster, &primary).starts_with("ANY 2 ("));
    assert_eq!(status["sync"]["record"]["members"].as_array().unwrap().len(), 3);
    let through = cluster.members.iter().find(|m| m.spec.name != primary).unwrap().read_write();
    let writer = Writer::start(&through, 1_000_000);
    cluster.kill_members(&[&primary]);
    let status = cluster.until("another is primary", |cluster| {
        let status = cluster.status()?;
        (status["primary"] != json!(primary) && status["writable"] == true).then_some(status)
    });
    assert_eq!(status["sync"]["record"]["k"], 2);
    writer.goes_on();
    cluster.run(&primary);
    cluster.whole();
    cluster.has_rows(&writer.stop());
}

#[test]
fn asynchronous_commits_are_lost_up_to_the_limit_only() {
    let mut cluster =
        Cluster::start(vec![data("m1"), data("m2"), data("m3")], &["durability=async"]);
    let status = cluster.whole();
    assert_eq!(status["sync"]["record"], json!({"members": [], "k": 0}));
    assert_eq!(enforced(&cluster, "m1"), "");
    cluster.ok(&["config", "set", "max_lag_bytes=256kB"]);

    // Both standbys are further behind than that when the primary is lost.
    let receivers = ["m2", "m3"].map(|name| cluster.backend(name, "walreceiver").unwrap());
    receivers.iter().for_each(|pid| signal(*pid, Signal::SIGSTOP));
    cluster.write_local("m1", 2_048);
    let rows = "insert into w select generate_series(1, 100)";
    query(&cluster.member("m1").direct(), rows).unwrap();
    let all: Vec<i64> = (1..=100).collect();
    cluster.until("both know how far the primary is", |cluster| {
        let behind = |at: &str| {
            let status = cluster.status_at(at)?;
            let lag = |i: usize| status["members"][i]["database"]["receive_lag_bytes"].as_u64();
            (lag(1)? > 1 << 20 && lag(2)? > 1 << 20).then_some(())
        };
        behind("m2").and(behind("m3"))
    });
    cluster.kill_members(&["m1"]);
    for receiver in receivers {
        // What came meanwhile waits in its socket: it ends without reading it.
        signal(receiver, Signal::SIGTERM);
        signal(receiver, Signal::SIGCONT);
    }
    cluster.until("the cluster says why it waits", |cluster| {
        let status = cluster.status_at("m2")?;
        let notes = status["members"].to_string();
        (status["phase"] == "fencing" && notes.contains("more than max_lag_bytes (262144)"))
            .then_some(())
    });
    // Reading goes on, and nobody becomes primary until the old one is back, with every row.
    assert_eq!(query(&cluster.member("m2").direct(), "select 1").unwrap(), "1");
    assert!(cluster.status_at("m2").unwrap()["primary"].is_null());
    cluster.run("m1");
    cluster.primary_is("m1");
    cluster.has_rows(&all);
    cluster.whole();

    // Within the limit a standby takes over.
    cluster.kill_members(&["m1"]);
    let status = cluster.until("a standby is primary", |cluster| {
        cluster.status_at("m2").filter(|s| s["writable"] == true && s["primary"] != "m1")
    });
    assert_ne!(status["primary"], "m1");
    let evidence = cluster.last_change()["evidence"].to_string();
    assert!(evidence.contains("within max_lag_bytes"), "{evidence}");
    cluster.run("m1");
    cluster.whole();
    cluster.has_rows(&all);
}
