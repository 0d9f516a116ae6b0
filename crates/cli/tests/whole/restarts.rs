//! Restarts at a time: kept over lost agents and leaders, done when due, and taken back.

use crate::{
    common::cluster::{Cluster, data, query},
    hand_over::after,
};
use serde_json::Value;
use std::time::Duration;

/// When the database of a member was started, as it says itself.
fn started(cluster: &Cluster, name: &str) -> Option<String> {
    query(&cluster.member(name).direct(), "select pg_postmaster_start_time()").ok()
}

/// When its next restart is due, ms.
fn due(cluster: &Cluster, member: usize) -> Option<u64> {
    cluster.status()?["members"][member]["scheduled_restart"]["at_unix_ms"].as_u64()
}

#[test]
fn a_restart_is_done_when_its_time_comes_or_taken_back() {
    let mut cluster = Cluster::start(vec![data("m1"), data("m2"), data("m3")], &[]);

    // Refused, each with its code.
    let tomorrow = after(Duration::from_secs(86_400));
    cluster.refused(&["restart", "m9", "--at", &tomorrow], "SEMPRE-0020");
    cluster.refused(&["restart", "m2", "--cancel"], "SEMPRE-0025");
    for (time, why) in [("soon", "2026-01-31T03:00:00Z"), ("2020-01-31T03:00:00Z", "in the past")] {
        let (exit, _, err) = cluster.at("m1", &["restart", "m2", "--at", time]);
        assert!(exit == 2 && err.contains(why), "{exit}: {err}");
    }
    cluster.ok(&["pause"]);
    cluster.refused(&["restart", "m2", "--at", &tomorrow], "SEMPRE-0035");
    cluster.ok(&["resume"]);

    // Listed, one a member.
    let said = cluster.ok(&["restart", "m2", "--at", &tomorrow]);
    assert!(said.contains("restart of m2 scheduled at"), "{said}");
    cluster.refused(&["restart", "m2", "--at", &tomorrow], "SEMPRE-0036");
    let shown = cluster.ok(&["status"]);
    assert!(shown.contains("a restart of m2 is scheduled for"), "{shown}");
    cluster.ok(&["restart", "m2", "--cancel"]);
    cluster.whole();

    // Two for one time, one of them taken back.
    let before = ["m1", "m2", "m3"].map(|name| started(&cluster, name).unwrap());
    let soon = after(Duration::from_secs(3));
    cluster.ok(&["restart", "m2", "--at", &soon]);
    cluster.ok(&["restart", "m3", "--at", &soon]);
    let at = due(&cluster, 1).unwrap();
    cluster.ok(&["restart", "m3", "--cancel"]);
    cluster.until("m2 is restarted", |cluster| {
        let now = started(cluster, "m2")?;
        (now != before[1]).then_some(())
    });
    let events = cluster.events();
    let begun = |e: &&Value| e["text"] == "restart of m2 begins as scheduled";
    assert!(events.iter().find(begun).unwrap()["at_unix_ms"].as_u64().unwrap() >= at);
    cluster.until("m3's time is over", |cluster| {
        (cluster.status()?["at_unix_ms"].as_u64()? > at + 2_000).then_some(())
    });
    cluster.whole();
    assert_eq!(started(&cluster, "m3").as_ref(), Some(&before[2]), "it was taken back");
    assert_eq!(started(&cluster, "m1").as_ref(), Some(&before[0]), "none was scheduled");

    // The agents that were asked, that lead and that are to do it are killed meanwhile.
    let before = started(&cluster, "m1").unwrap();
    cluster.ok(&["restart", "m1", "--at", &after(Duration::from_secs(15))]);
    for name in ["m1", "m2", "m3"] {
        cluster.kill_agent(name);
        cluster.run(name);
        cluster.until("it is back", |cluster| {
            cluster.status_at(name).filter(|status| status["writable"] == true)
        });
    }
    cluster.until("it is still scheduled", |cluster| due(cluster, 0).filter(|new| *new > at));
    assert_eq!(started(&cluster, "m1").as_ref(), Some(&before), "it is not due yet");
    cluster.until("m1 is restarted", |cluster| {
        let now = started(cluster, "m1")?;
        (now != before).then_some(())
    });
    assert_eq!(cluster.whole()["generation"], 1, "a restart that was scheduled is no failover");
}
