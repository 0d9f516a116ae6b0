//! The routing part alone, beside an application.

use crate::common::{
    base_port,
    cluster::{Cluster, data, dsn, query},
    sempre, until,
    writer::Writer,
};
use std::process::{Child, Stdio};

/// `sempre route run`; killed when dropped.
struct Beside(Child);

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_application_follows_the_primary_through_one_address() {
    let mut cluster = Cluster::start(vec![data("m1"), data("m2"), data("m3")], &[]);
    let port = base_port();
    let (read_write, read_only) = (port, port + 1);
    // It is told of two; the third it learns of.
    let members = format!("{},{}", cluster.member("m1").rest(), cluster.member("m2").rest());
    let child = sempre()
        .args(["route", "run", "--members", &members])
        .args(["--read-write", &format!("127.0.0.1:{read_write}")])
        .args(["--read-only", &format!("127.0.0.1:{read_only}")])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let _beside = Beside(child.unwrap());
    let (write, read) = (dsn("127.0.0.1", read_write), dsn("127.0.0.1", read_only));
    until("it leads to the primary", || query(&write, "select 1").ok());
    let led = |address: &str| query(address, "show port").unwrap();
    let port_of = |cluster: &Cluster, name: &str| cluster.member(name).port.to_string();
    assert_eq!(led(&write), port_of(&cluster, "m1"));
    assert_eq!(query(&read, "select pg_is_in_recovery()").unwrap(), "t");
    let writer = Writer::start(&write, 0);

    // A switchover, to the member it was not told of.
    cluster.switchover(&["--to", "m3"]);
    writer.goes_on();
    assert_eq!(led(&write), port_of(&cluster, "m3"));
    cluster.whole();

    // A failover, and then the loss of a member it was told of.
    cluster.kill_members(&["m3"]);
    writer.goes_on();
    let primary = cluster.until("another is primary", |cluster| {
        let status = cluster.status()?;
        let primary = status["primary"].as_str()?.to_owned();
        (primary != "m3" && status["writable"] == true).then_some(primary)
    });
    assert_eq!(led(&write), port_of(&cluster, &primary));
    cluster.run("m3");
    cluster.whole();
    cluster.kill_database(&primary);
    cluster.kill_agent(&primary);
    writer.goes_on();
    cluster.run(&primary);
    cluster.whole();
    until("readers are led to a standby", || {
        (query(&read, "select pg_is_in_recovery()").ok()? == "t").then_some(())
    });
    cluster.has_rows(&writer.stop());
}
