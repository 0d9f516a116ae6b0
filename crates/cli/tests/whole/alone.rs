//! A primary that is left without a majority takes no writes, and can still be read.

use crate::common::{
    cluster::{Cluster, data, query},
    until,
    writer::Writer,
};

#[test]
fn a_lone_former_primary_is_read_until_a_majority_is_back() {
    let mut cluster = Cluster::start(vec![data("m1"), data("m2"), data("m3")], &[]);
    let writer = Writer::start(&cluster.member("m1").read_write(), 0);
    writer.goes_on();
    let acknowledged = writer.stop();
    let timeline =
        |dsn: &str| query(dsn, "select timeline_id from pg_control_checkpoint()").unwrap();
    let before = timeline(&cluster.member("m1").direct());

    // Both others are gone: the guard ends the database when its lease does, and it comes back to
    // be read, itself and through routing.
    cluster.kill_members(&["m2", "m3"]);
    let read_only = cluster.member("m1").read_only();
    let direct = cluster.member("m1").direct();
    for dsn in [&read_only, &direct] {
        until("reads go on", || {
            (query(dsn, "select pg_is_in_recovery()").ok()? == "t").then_some(())
        });
        let count = query(dsn, "select count(*) from w").unwrap();
        assert!(count.parse::<usize>().unwrap() >= acknowledged.len(), "{count}");
    }
    assert!(query(&direct, "create table no (n int)").unwrap_err().contains("read-only"));
    let status = cluster.status_at("m1").unwrap();
    assert_eq!((&status["writable"], &status["raft"]["quorum"]), (&false.into(), &false.into()));

    // One other is a majority: what was read is stopped, and goes on as the primary it was or as
    // a standby of the new one; never was it promoted where it stood.
    cluster.run("m2");
    let status = cluster.until("there is a primary again", |cluster| {
        let status = cluster.status()?;
        (status["writable"] == true).then_some(status)
    });
    if status["generation"] == 1 {
        assert_eq!(timeline(&direct), before, "the primary it was, on the timeline it had");
    }
    cluster.run("m3");
    cluster.whole();
    let writer = Writer::start(&cluster.member("m1").read_write(), 1_000_000);
    writer.goes_on();
    cluster.has_rows(&writer.stop());
    cluster.has_rows(&acknowledged);
}
