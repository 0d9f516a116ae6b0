//! What an operator says of single members.

use crate::common::{
    cluster::{Cluster, data, query},
    writer::Writer,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// From whom a member streams.
fn upstream(status: &Value, name: &str) -> Value {
    let members = status["members"].as_array().unwrap();
    members.iter().find(|m| m["name"] == name).unwrap()["database"]["streaming_from"].clone()
}

/// Waits until a member streams from that one, by the word of both databases.
fn streams(cluster: &Cluster, name: &str, from: &str) {
    cluster.until(&format!("{name} streams from {from}"), |cluster| {
        let sql = "select string_agg(application_name, ' ') from pg_stat_replication";
        let attached = query(&cluster.member(from).direct(), sql).ok()?;
        let receives = "select status from pg_stat_wal_receiver";
        let received = query(&cluster.member(name).direct(), receives).ok()?;
        (attached.split(' ').any(|who| who == name)
            && received == "streaming"
            && upstream(&cluster.status()?, name) == from)
            .then_some(())
    });
}

#[test]
fn who_leads_and_who_follows_whom() {
    let mut cluster = Cluster::places(vec![
        data("m1"),
        data("m2"),
        data("m3").tags("priority = 5\nclone_from = true"),
        data("m4").tags("never_primary = true\npriority = 9\nno_route = true"),
        data("m5").tags("replicate_from = \"m4\"\nno_sync = true"),
    ]);
    // Only the test takes the primary away: five members on a busy machine stall for longer than is
    // usual, and a change of primary by that would be another test.
    cluster.form(&["detect_ms=2s", "lease_ttl_ms=6s"]);
    for name in ["m2", "m3", "m4"] {
        cluster.join(name);
    }
    cluster.whole();
    // Without its tag m4 would be copied from: no commit waits for that one.
    cluster.join("m5");
    cluster.whole();
    let log = cluster.member("m5").log();
    let copied: Vec<_> = log.lines().filter(|line| line.contains("step=Clone")).collect();
    assert!(!copied.is_empty() && copied.iter().all(|l| l.contains("from: m3")), "{copied:?}");
    streams(&cluster, "m4", "m1");
    streams(&cluster, "m5", "m4");
    let writer = Writer::start(&cluster.member("m2").read_write(), 0);

    // The middle of the cascade is lost, and comes back.
    cluster.kill_members(&["m4"]);
    streams(&cluster, "m5", "m1");
    cluster.run("m4");
    streams(&cluster, "m5", "m4");
    writer.goes_on();

    // Readers are led to standbys, but never to m4; while it has not heard of any since its start,
    // to the primary.
    cluster.until("m4 has heard of the others", |cluster| {
        let status = cluster.status_at("m4")?;
        let streams = |m: &&Value| m["state"] == "streaming";
        (status["members"].as_array()?.iter().filter(streams).count() == 4).then_some(())
    });
    let ports: BTreeSet<String> =
        (0..40).map(|_| query(&cluster.member("m4").read_only(), "show port").unwrap()).collect();
    let expected = ["m2", "m3", "m5"].map(|name| cluster.member(name).port.to_string());
    assert_eq!(ports, BTreeSet::from(expected));

    // All are equally far, so the priorities decide, among those that may lead at all.
    let acknowledged = writer.stop();
    cluster.until("m2 and m3 have all", |cluster| {
        let sql = "select count(*) from pg_stat_replication \
                   where application_name in ('m2', 'm3') and flush_lsn = pg_current_wal_lsn()";
        (query(&cluster.member("m1").direct(), sql).ok()? == "2").then_some(())
    });
    cluster.kill_database("m1");
    cluster.kill_agent("m1");
    cluster.primary_is("m3");
    cluster.has_rows(&acknowledged);
    streams(&cluster, "m4", "m3");
    streams(&cluster, "m5", "m4");
    let writer = Writer::start(&cluster.member("m2").read_write(), 1_000_000);
    cluster.run("m1");
    cluster.whole();
    cluster.has_rows(&writer.stop());

    // Neither of the two has ever been relied on.
    for event in cluster.events().iter().filter(|event| event["rule"] == "sync-set") {
        let text = event["text"].as_str().unwrap();
        assert!(!text.contains("m4") && !text.contains("m5"), "{text}");
    }
    let sync = cluster.status().unwrap()["sync"]["record"]["members"].clone();
    assert_eq!(sync, json!(["m1", "m2"]));
}
