//! Two databases and a vote; members that move.

use crate::common::{
    cluster::{Cluster, data, query, witness},
    writer::Writer,
};

#[test]
fn two_databases_and_a_witness_survive_the_loss_of_either() {
    let mut cluster = Cluster::start(vec![data("m1"), data("m2"), witness("w1")], &[]);
    assert_eq!(cluster.whole()["members"][2]["role"], "witness");
    assert!(!cluster.data_dir("w1").exists(), "a witness has no database");
    let writer = Writer::start(&cluster.member("w1").read_write(), 0);

    // The standby: writes go on, and the cluster says with how little.
    cluster.kill_members(&["m2"]);
    writer.goes_on();
    let status = cluster.until("m2 is missed", |cluster| {
        let status = cluster.status()?;
        (status["sync"]["record"]["k"] == 0).then_some(status)
    });
    assert_eq!((&status["primary"], &status["writable"]), (&"m1".into(), &true.into()));
    let odd = status["oddities"].to_string();
    assert!(odd.contains("commits wait for 0 standbys instead of 1"), "{odd}");
    writer.goes_on();
    cluster.run("m2");
    cluster.whole();

    // The primary.
    cluster.kill_members(&["m1"]);
    cluster.primary_is("m2");
    writer.goes_on();
    cluster.run("m1");
    cluster.whole();
    cluster.has_rows(&writer.stop());
}

#[test]
fn members_that_move_are_found_again() {
    let mut cluster = Cluster::start(vec![data("m1"), data("m2"), witness("w1")], &[]);
    let writer = Writer::start(&cluster.member("w1").read_write(), 0);
    for (mover, other) in [("m2", "m1"), ("m1", "m2"), ("w1", "m2")] {
        let before = cluster.member(mover).address.clone();
        cluster.stop(mover);
        cluster.move_house(mover);
        cluster.run(mover);
        let address = cluster.member(mover).address.clone();
        assert_ne!(address, before);
        let status = cluster.until("its new address is known, and all is well", |cluster| {
            let status = cluster.status_at(other)?;
            let members = status["members"].as_array()?;
            let moved = members.iter().find(|m| m["name"] == mover)?["paths"][0]["host"] == address;
            (moved && status["oddities"].as_array()?.is_empty()).then_some(status)
        });
        if mover == "w1" {
            break;
        }
        writer.goes_on();
        // Replication comes from, or goes to, the new address.
        let primary = status["primary"].as_str().unwrap();
        let standby = if primary == "m1" { "m2" } else { "m1" };
        let sql = "select sender_host || ':' || sender_port from pg_stat_wal_receiver";
        let sender = query(&cluster.member(standby).direct(), sql).unwrap();
        let upstream = cluster.member(primary);
        assert_eq!(sender, format!("{}:{}", upstream.address, upstream.port));
        // And clients are led there.
        let sql = "show port";
        let led = query(&cluster.member(other).read_write(), sql).unwrap();
        assert_eq!(led, upstream.port.to_string());
        let led = query(&cluster.member(other).read_only(), sql).unwrap();
        assert_eq!(led, cluster.member(standby).port.to_string());
    }
    let acknowledged = writer.stop();
    cluster.whole();
    cluster.has_rows(&acknowledged);

    // Only the agents are restarted: a database comes to the new address with a restart of its
    // own, which is asked for.
    for name in ["m1", "m2"] {
        cluster.kill_agent(name);
        cluster.readdress(name);
        cluster.run(name);
        let status = cluster.until("a restart is asked for", |cluster| {
            let status = cluster.status()?;
            let odd = status["oddities"].to_string();
            odd.contains("listen_addresses").then_some(status)
        });
        assert_eq!(status["writable"], true);
        cluster.ok(&["restart", name]);
        cluster.whole();
        let direct = cluster.member(name).direct();
        assert_eq!(query(&direct, "select 1").unwrap(), "1");
    }

    // A standby that lives at a new place takes over as well as any.
    cluster.switchover(&[]);
    let writer = Writer::start(&cluster.member("w1").read_write(), 1_000_000);
    cluster.whole();
    cluster.has_rows(&writer.stop());
}
