//! Failure domains.

use crate::common::{
    cluster::{Cluster, data},
    writer::Writer,
};
use serde_json::Value;

/// Waits until the cluster is whole, with somebody outside the primary's zone relied on.
fn spanned(cluster: &Cluster) -> Value {
    cluster.until("the set lies in two zones", |cluster| Some(cluster.whole()).filter(spans_zones))
}

/// Is somebody outside the primary's zone relied on?
fn spans_zones(status: &Value) -> bool {
    let members = status["members"].as_array().unwrap();
    let zone = |name: &Value| &members.iter().find(|m| m["name"] == *name).unwrap()["zone"];
    let home = zone(&status["primary"]);
    let relied = status["sync"]["record"]["members"].as_array().unwrap();
    relied.iter().any(|member| zone(member) != home)
}

#[test]
fn commits_never_wait_for_the_primarys_own_zone_alone() {
    // With one standby in the set, its name alone would make it m2.
    let cluster = Cluster::start(
        vec![
            data("m1").zone("east"),
            data("m2").zone("east"),
            data("m3").zone("west"),
            data("m4").zone("west"),
        ],
        &["sync_spares=0"],
    );
    spanned(&cluster);
    let writer = Writer::start(&cluster.member("m2").read_write(), 0);

    // Into the other zone, and within it.
    for to in ["m3", "m4", "m2"] {
        cluster.switchover(&["--to", to]);
        writer.goes_on();
        assert_eq!(spanned(&cluster)["primary"], to);
    }

    // A set of two is held by both zones as well.
    cluster.ok(&["config", "set", "sync_spares=1"]);
    cluster.until("the set has two members", |cluster| {
        let relied = spanned(cluster)["sync"]["record"]["members"].as_array()?.len();
        (relied == 2).then_some(())
    });
    cluster.has_rows(&writer.stop());
}
