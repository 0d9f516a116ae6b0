//! Looking after a cluster: pause, restarts, settings, fresh copies, members that leave.

use crate::common::{
    cluster::{Cluster, data, query},
    until,
    writer::Writer,
};
use serde_json::Value;

#[test]
fn while_paused_a_killed_database_is_left_alone() {
    let cluster = Cluster::start(vec![data("m1"), data("m2"), data("m3")], &[]);
    let writer = Writer::start(&cluster.member("m2").read_write(), 0);
    cluster.ok(&["pause"]);
    writer.goes_on();
    cluster.kill_database("m1");
    let status = cluster.until("the crash is seen", |cluster| {
        let status = cluster.status()?;
        (status["members"][0]["state"] == "crashed").then_some(status)
    });
    assert_eq!(status["paused"], true);
    let odd = status["oddities"].to_string();
    assert!(odd.contains("the cluster is paused: nothing automatic happens"), "{odd}");
    assert!(
        odd.contains("the database of m1: crashed") && odd.contains("`sempre resume`"),
        "{odd}"
    );

    // Heartbeats go round many times more than a failover would need; nothing is decided.
    let at = |status: &Value| status["at_unix_ms"].as_u64().unwrap();
    let begun = at(&status);
    cluster.until("a failover would long be over", |cluster| {
        let status = cluster.status()?;
        assert_eq!((&status["generation"], &status["primary"]), (&1.into(), &"m1".into()));
        assert_eq!((&status["phase"], &status["writable"]), (&"serving".into(), &false.into()));
        assert!(cluster.postmaster("m1").is_none(), "it was started again");
        (at(&status) > begun + 6_000).then_some(())
    });
    let events = cluster.events();
    let last = events.last().unwrap();
    assert_eq!(last["rule"], "lost-in-pause", "{last}");
    let text = last["text"].as_str().unwrap();
    assert!(text.contains("m1 is lost") && text.contains("left as it is"), "{last}");

    cluster.ok(&["resume"]);
    let status = cluster.whole();
    assert_eq!(status["paused"], false);
    writer.goes_on();
    cluster.has_rows(&writer.stop());
    let events = cluster.events();
    assert!(events.iter().any(|e| e["rule"] == "pause" && e["text"] == "resumed"));
}

/// The events of one rule, in words.
fn told(cluster: &Cluster, rule: &str) -> Vec<String> {
    let events = cluster.events().into_iter().filter(|event| event["rule"] == rule);
    events.map(|event| event["text"].as_str().unwrap().to_owned()).collect()
}

/// Which members wait for a restart because of this parameter.
fn pending(cluster: &Cluster, parameter: &str) -> Option<Vec<String>> {
    let shown: Value = serde_json::from_str(&cluster.ok(&["--json", "config", "show"])).unwrap();
    let members = shown["pending_restart"].as_object()?.iter();
    let waits = members.filter(|(_, list)| list.as_array().unwrap().contains(&parameter.into()));
    Some(waits.map(|(name, _)| name.clone()).collect())
}

#[test]
fn settings_restarts_and_what_is_told_of_them() {
    let cluster = Cluster::start(vec![data("m1"), data("m2"), data("m3")], &[]);
    let show = |name: &str| query(&cluster.member(name).direct(), "show max_connections").unwrap();

    // Refused as a whole: neither the good value nor the good parameter is taken.
    let before = cluster.ok(&["--json", "config", "show"]);
    for (changes, code) in [
        (["detect_ms=700ms", "lease_ttl_ms=300ms"], "SEMPRE-0032"),
        (["fast_promotion=true", "durability=async"], "SEMPRE-0032"),
        (["detect_ms=700ms", "lease_tll_ms=3s"], "SEMPRE-0030"),
        (["postgresql.work_mem=9MB", "lease_ttl_ms=soon"], "SEMPRE-0031"),
        (["detect_ms=700ms", "postgresql.fsync=off"], "SEMPRE-0033"),
        (["detect_ms=700ms", "postgresql.no_such_parameter=1"], "SEMPRE-0033"),
        (["postgresql.work_mem=9MB", "postgresql.max_connections=many"], "SEMPRE-0033"),
    ] {
        let (exit, _, err) = cluster.at("m1", &["config", "set", changes[0], changes[1]]);
        assert!([2, 3].contains(&exit) && err.contains(code), "{changes:?}: {exit}, {err}");
    }
    assert_eq!(cluster.ok(&["--json", "config", "show"]), before);
    // What fits only together is accepted together.
    cluster.ok(&[
        "config",
        "set",
        "lease_ttl_ms=4s",
        "heartbeat_ms=300ms",
        "detect_ms=900ms",
        "path_detect_ms=700ms",
        "election_min_ms=700ms",
    ]);
    cluster.ok(&[
        "config",
        "set",
        "lease_ttl_ms=2s",
        "heartbeat_ms=150ms",
        "detect_ms=500ms",
        "path_detect_ms=300ms",
        "election_min_ms=500ms",
    ]);

    // A larger value: standbys first.
    let writer = Writer::start(&cluster.member("m2").read_write(), 0);
    let old = show("m1");
    cluster.ok(&["config", "set", "postgresql.max_connections=150"]);
    cluster.until("all wait for a restart", |cluster| {
        (pending(cluster, "max_connections")?.len() == 3).then_some(())
    });
    let shown = cluster.ok(&["status"]);
    assert!(shown.contains("m2 waits for a restart"), "{shown}");
    assert_eq!(show("m2"), old);
    let refusal = cluster.refused(&["restart", "m1"], "SEMPRE-0013");
    assert!(refusal.contains("`sempre restart m2` first"), "{refusal}");
    for name in ["m2", "m3", "m1"] {
        cluster.ok(&["restart", name]);
        cluster.until("it has the new value", |cluster| {
            let sql = "show max_connections";
            (query(&cluster.member(name).direct(), sql).ok()? == "150").then_some(())
        });
        cluster.until("it waits no more", |cluster| {
            (!pending(cluster, "max_connections")?.contains(&name.to_owned())).then_some(())
        });
        writer.goes_on();
    }
    assert_eq!(cluster.whole()["generation"], 1, "a restart on request is no failover");
    let restarts = told(&cluster, "restart");
    for line in ["restart of m2 requested", "m2 restarted", "m1 restarted"] {
        assert!(restarts.iter().any(|text| text == line), "{restarts:?}");
    }

    // A smaller one: the primary first, as standbys with less than it would not start. They keep
    // the larger one until then.
    cluster.ok(&["config", "set", "postgresql.max_connections=120"]);
    cluster.until("the primary waits for a restart", |cluster| {
        pending(cluster, "max_connections")?.contains(&"m1".to_owned()).then_some(())
    });
    cluster.ok(&["restart", "m2"]);
    assert_eq!(show("m2"), "150");
    for name in ["m1", "m2", "m3"] {
        cluster.until(&format!("{name} is restarted to the new value"), |cluster| {
            cluster.ok(&["restart", name]);
            let sql = "show max_connections";
            (query(&cluster.member(name).direct(), sql).ok()? == "120").then_some(())
        });
    }
    cluster.whole();
    writer.goes_on();

    // What happened is told with its rule, evidence and stall.
    cluster.ok(&["config", "set", "on_crash=failover"]);
    cluster.kill_database("m1");
    cluster.until("another is primary", |cluster| {
        cluster.status().filter(|s| s["generation"] == 2 && s["writable"] == true)
    });
    writer.goes_on();
    let change = cluster.last_change();
    assert_eq!((&change["from"], &change["cause"]), (&"m1".into(), &"database_crashed".into()));
    assert!(change["stall_ms"].as_u64().unwrap() > 0, "{change}");
    let evidence = change["evidence"].to_string();
    assert!(evidence.contains("m1: the database process ended by itself"), "{evidence}");
    assert!(evidence.contains("is the most advanced of"), "{evidence}");
    for (rule, word) in [
        ("begin-failover", "generation 2: replacing m1 (m1: the database process ended"),
        ("promote", "generation 2: "),
        ("serving", "timeline 2 from "),
    ] {
        let told = told(&cluster, rule);
        assert!(told.iter().any(|text| text.contains(word)), "{rule}: {told:?}");
    }
    let serving = told(&cluster, "serving").pop().unwrap();
    assert!(serving.contains(&format!("after {} ms", change["stall_ms"])), "{serving}");
    let shown = cluster.ok(&["history"]);
    assert!(shown.contains("database crashed") && shown.contains("m1 → "), "{shown}");
    cluster.whole();
    cluster.has_rows(&writer.stop());
}

#[test]
fn members_get_fresh_copies_leave_and_come_again() {
    let mut cluster = Cluster::start(vec![data("m1"), data("m2"), data("m3")], &[]);
    let writer = Writer::start(&cluster.member("m1").read_write(), 0);

    // A fresh copy: another directory than before, on request only.
    let inode = |cluster: &Cluster| {
        use std::os::unix::fs::MetadataExt;
        let file = cluster.data_dir("m3").join("PG_VERSION");
        std::fs::metadata(file).map(|m| (m.ino(), m.mtime(), m.mtime_nsec())).ok()
    };
    let before = inode(&cluster).unwrap();
    cluster.refused(&["reinit", "m1", "--yes"], "SEMPRE-0028");
    cluster.refused(&["reinit", "m9", "--yes"], "SEMPRE-0020");
    cluster.ok(&["reinit", "m3", "--yes"]);
    cluster.until("m3 has a fresh copy", |cluster| {
        told(cluster, "reinit").iter().any(|t| t == "m3 has a fresh copy").then_some(())
    });
    cluster.whole();
    assert_ne!(inode(&cluster), Some(before));
    writer.goes_on();

    // The majority is guarded: with m2 silent, m3 has to stay.
    cluster.refused(&["remove", "m1", "--yes"], "SEMPRE-0028");
    cluster.refused(&["remove", "m9", "--yes"], "SEMPRE-0020");
    cluster.kill_members(&["m2"]);
    cluster.until("m2 is missed", |cluster| {
        (cluster.status()?["members"][1]["state"] == "silent").then_some(())
    });
    cluster.refused(&["remove", "m3", "--yes"], "SEMPRE-0029");

    // The dead one leaves, and its machine comes again as a new member of the same name.
    writer.goes_on();
    cluster.ok(&["remove", "m2", "--yes"]);
    let status = cluster.whole();
    assert_eq!(
        (status["members"].as_array().unwrap().len(), &status["raft"]["voters"]),
        (2, &2.into())
    );
    let slots = "select count(*) from pg_replication_slots where slot_name ~ 'm2'";
    let primary = cluster.member("m1").direct();
    until("its slot keeps no WAL back any more", || {
        (query(&primary, slots).ok()? == "0").then_some(())
    });
    let token = cluster.ok(&["token"]);
    let (exit, _, err) = cluster.at("m2", &["join", token.trim()]);
    assert!(exit != 0 && err.contains("holds member m2"), "{err}");
    // With its old folder it is a stranger.
    cluster.run("m2");
    until("it is turned away", || {
        let log = cluster.member("m2").log();
        log.contains("m2 is not a member of this cluster (any more)").then_some(())
    });
    assert_eq!(cluster.status().unwrap()["members"].as_array().unwrap().len(), 2);
    cluster.kill_members(&["m2"]);
    std::fs::remove_dir_all(&cluster.member("m2").dir).unwrap();
    cluster.join("m2");
    assert_eq!(cluster.whole()["raft"]["voters"], 3);

    // A live standby that is removed stops being one, also when nobody is there to tell it (its
    // agent may be cut off before it hears); forced, the primary goes too.
    cluster.kill_agent("m3");
    cluster.ok(&["remove", "m3", "--yes"]);
    cluster.until("m3 is gone", |cluster| {
        let sql = "select count(*) from pg_stat_replication where application_name = 'm3'";
        (query(&cluster.member("m1").direct(), sql).ok()? == "0").then_some(())
    });
    cluster.kill_members(&["m3"]);
    std::fs::remove_dir_all(&cluster.member("m3").dir).unwrap();
    cluster.join("m3");
    cluster.whole();
    let acknowledged = writer.stop();
    cluster.ok_at("m2", &["remove", "m1", "--force", "--yes"]);
    cluster.until("another is primary", |cluster| {
        let status = cluster.status_at("m2")?;
        (status["primary"] != "m1" && status["writable"] == true).then_some(())
    });
    cluster.until("the removed one takes no writes", |cluster| {
        query(&cluster.member("m1").direct(), "insert into w values (-1)").err()
    });
    cluster.kill_members(&["m1"]);
    let writer = Writer::start(&cluster.member("m2").read_write(), 1_000_000);
    let status = cluster.until("two are left, and are whole", |cluster| {
        let status = cluster.status_at("m2")?;
        (status["oddities"].as_array()?.is_empty() && status["raft"]["voters"] == 2)
            .then_some(status)
    });
    assert_eq!(status["members"].as_array().unwrap().len(), 2);
    cluster.has_rows(&acknowledged);
    cluster.has_rows(&writer.stop());
}
