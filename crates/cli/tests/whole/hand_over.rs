//! Changes of primary by hand: in good order, later, refused, and by force.

use crate::common::{
    cluster::{Cluster, data, query, signal, witness},
    until,
    writer::Writer,
};
use nix::sys::signal::Signal;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A time from now on, as `--at` takes it.
pub fn after(pause: Duration) -> String {
    let at = SystemTime::now() + pause;
    let seconds = at.duration_since(UNIX_EPOCH).unwrap().as_secs();
    let date = std::process::Command::new("date")
        .args(["-u", "-d", &format!("@{seconds}"), "+%Y-%m-%dT%H:%M:%SZ"])
        .output()
        .unwrap();
    String::from_utf8(date.stdout).unwrap().trim().to_owned()
}

#[test]
fn a_switchover_is_refused_or_scheduled_or_done() {
    let cluster =
        Cluster::start(vec![data("m1"), data("m2"), data("m3").tags("never_primary = true")], &[]);
    let writer = Writer::start(&cluster.member("m3").read_write(), 0);

    // Refused, each with its code.
    let switchover = |to: &'static str| ["switchover", "--to", to, "--yes"];
    cluster.refused(&switchover("m9"), "SEMPRE-0020");
    cluster.refused(&switchover("m3"), "SEMPRE-0021");
    cluster.refused(&switchover("m1"), "SEMPRE-0022");
    cluster.refused(&["switchover", "--cancel", "--yes"], "SEMPRE-0025");
    let tomorrow = after(Duration::from_secs(86_400));
    let later = |to: &'static str| ["switchover", "--to", to, "--at", &tomorrow, "--yes"];
    cluster.refused(&later("m9"), "SEMPRE-0020");
    cluster.refused(&later("m3"), "SEMPRE-0021");
    cluster.refused(&later("m1"), "SEMPRE-0022");
    let (exit, _, err) = cluster.at("m1", &["switchover", "--at", "soon", "--yes"]);
    assert!(exit == 2 && err.contains("2026-01-31T03:00:00Z"), "{err}");

    // A target that is behind.
    cluster.ok(&["config", "set", "switchover_max_lag_bytes=64kB"]);
    let receiver = cluster.backend("m2", "walreceiver").unwrap();
    signal(receiver, Signal::SIGSTOP);
    cluster.write_local("m1", 1_024);
    cluster.until("m2 is seen to be behind", |cluster| {
        let lag = cluster.status()?["members"][1]["database"]["receive_lag_bytes"].as_u64()?;
        (lag > 64 << 10).then_some(())
    });
    let said = cluster.refused(&switchover("m2"), "SEMPRE-0023");
    signal(receiver, Signal::SIGCONT);
    assert!(said.contains("switchover_max_lag_bytes (65536)"), "{said}");
    cluster.ok(&["config", "set", "switchover_max_lag_bytes=16MB"]);
    assert_eq!(cluster.whole()["primary"], "m1");

    // Scheduled, listed, and taken back.
    let said = cluster.ok(&["switchover", "--to", "m2", "--at", &tomorrow, "--yes"]);
    assert!(said.contains("scheduled"), "{said}");
    let status = cluster.status().unwrap();
    assert_eq!(status["switchover"]["to"], "m2");
    assert!(status["switchover"]["at_unix_ms"].as_u64() > status["at_unix_ms"].as_u64());
    let shown = cluster.ok(&["status"]);
    assert!(shown.contains("a switchover to m2 is scheduled"), "{shown}");
    cluster.ok(&["switchover", "--cancel", "--yes"]);
    assert!(cluster.whole()["switchover"].is_null());

    // Scheduled, and done when its time comes, not before.
    let soon = after(Duration::from_secs(3));
    cluster.ok(&["switchover", "--to", "m2", "--at", &soon, "--yes"]);
    let due = cluster.status().unwrap()["switchover"]["at_unix_ms"].as_u64().unwrap();
    cluster.primary_is("m2");
    let change = cluster.last_change();
    assert!(change["at_unix_ms"].as_u64().unwrap() >= due, "{change}");
    assert_eq!((&change["cause"], &change["from"]), (&"switchover".into(), &"m1".into()));
    writer.goes_on();
    cluster.whole();

    // Without a target: the best that may lead, which leaves one.
    let said = cluster.switchover(&[]);
    assert!(said.contains("m1 is the primary of generation 3"), "{said}");
    writer.goes_on();
    assert_eq!(cluster.whole()["primary"], "m1");
    cluster.has_rows(&writer.stop());
}

#[test]
fn a_failover_by_hand_says_what_would_be_lost() {
    let mut cluster = Cluster::start(
        vec![data("m1"), data("m2"), data("m3"), witness("w1"), witness("w2")],
        &["sync_timeout_ms=5s"],
    );
    cluster.refused(&["failover", "--to", "w1", "--yes"], "SEMPRE-0021");
    cluster.refused(&["failover", "--to", "m1", "--yes"], "SEMPRE-0022");
    cluster.refused(&["failover", "--to", "m9", "--yes"], "SEMPRE-0020");

    // The primary answers, so this loses nothing.
    let writer = Writer::start(&cluster.member("w1").read_write(), 0);
    cluster.ok(&["failover", "--to", "m2", "--yes"]);
    writer.goes_on();
    assert_eq!(cluster.whole()["primary"], "m2");
    let kept = writer.stop();
    cluster.has_rows(&kept);

    // Commits that m1 flushed and m3 did not; then both who have them are gone.
    let receiver = cluster.backend("m3", "walreceiver").unwrap();
    signal(receiver, Signal::SIGSTOP);
    query(
        &cluster.member("m2").direct(),
        "insert into w select 2000000 + i from generate_series(1, 5000) i",
    )
    .unwrap();
    let end = query(&cluster.member("m2").direct(), "select pg_current_wal_flush_lsn()").unwrap();
    cluster.until("m3 has heard how far m2 is", |cluster| {
        let sql = format!(
            "select '{}'::pg_lsn >= '{end}'",
            cluster.status_at("m3")?["members"][1]["database"]["lsn"].as_str()?
        );
        (query(&cluster.member("m3").direct(), &sql).ok()? == "t").then_some(())
    });
    cluster.kill_members(&["m1", "m2"]);
    // What came meanwhile waits in its socket: it ends without reading it.
    signal(receiver, Signal::SIGTERM);
    signal(receiver, Signal::SIGCONT);
    let refusal = cluster.until("m2 is given up", |cluster| {
        let status = cluster.status_at("m3")?;
        if status["phase"] != "fencing" {
            return None;
        }
        let (exit, _, err) = cluster.at("m3", &["failover", "--to", "m3", "--yes"]);
        (exit == 3 && err.contains("SEMPRE-0026")).then_some(err)
    });
    let words: Vec<_> = refusal.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "bytes").expect(&refusal);
    let bytes: u64 = words[at - 1].parse().expect(&refusal);
    assert!(bytes > 100_000, "5000 rows are more: {refusal}");
    assert!(refusal.contains("--allow-data-loss"), "{refusal}");
    assert_eq!(cluster.status_at("m3").unwrap()["phase"], "fencing", "nothing was done");

    // Accepted: the older rows are there, the cluster goes on.
    cluster.ok_at("m3", &["failover", "--to", "m3", "--allow-data-loss", "--yes"]);
    cluster.run("m1");
    cluster.primary_is("m3");
    cluster.has_rows(&kept);
    let lost = "select count(*) from w where id > 2000000";
    assert_eq!(query(&cluster.member("m3").direct(), lost).unwrap(), "0");
    let evidence = cluster.last_change()["evidence"].to_string();
    assert!(evidence.contains("data loss accepted"), "{evidence}");

    // Who had the lost rows follows again, and has kept them aside.
    cluster.run("m2");
    cluster.whole();
    assert_eq!(query(&cluster.member("m2").direct(), lost).unwrap(), "0");
    until("the diverged WAL is kept", || {
        let salvage = std::fs::read_dir(cluster.member("m2").dir.join("salvage")).ok()?;
        (salvage.count() > 0).then_some(())
    });
}
