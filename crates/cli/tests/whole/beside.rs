//! The routing part alone, beside an application.

use crate::common::{
    base_port,
    cluster::{Cluster, data, dsn, query},
    psql, sempre, until,
    writer::Writer,
};
use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Stdio},
};

/// `sempre route run`; killed when dropped.
pub struct Beside(Child);

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Beside {
    /// At the first member's address, with these further arguments.
    pub fn start(cluster: &Cluster, port: u16, more: &[&str]) -> Self {
        let first = cluster.member("m1");
        let child = sempre()
            .args(["route", "run", "--members", &first.rest()])
            .args(["--read-write", &format!("{}:{port}", first.address)])
            .args(["--read-only", &format!("{}:{}", first.address, port + 1)])
            .args(more)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Beside(child.unwrap())
    }
}

/// Encrypted to the router and on to the server, few connections for many clients, and somebody
/// who may look at them.
#[test]
fn routing_beside_an_application_encrypts_and_shares_connections() {
    let cluster = Cluster::start(vec![data("m1"), data("m2")], &[]);
    let first = cluster.member("m1");
    // Certificate and key of a member are in one file, and made out to its address.
    let file = |name: &str| first.dir.join("tls").join(name).to_str().unwrap().to_owned();
    let (pem, ca) = (file("member.pem"), file("ca.pem"));
    let port = base_port();
    let tls = ["--ca", &ca, "--cert", &pem, "--key", &pem, "--require-tls"];
    let pool = ["--pool-mode", "transaction", "--pool-size", "1", "--admin-user", "postgres"];
    let _beside = Beside::start(&cluster, port, &[&tls[..], &pool[..]].concat());
    let address = |database: &str, port: u16, mode: &str| {
        format!(
            "host={} port={port} user=postgres dbname={database} gssencmode=disable \
             connect_timeout=40 sslmode={mode} sslrootcert={ca}",
            first.address
        )
    };
    let write = address("postgres", port, "verify-full");
    until("it leads to the primary", || query(&write, "select 1").ok());

    let ssl = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    assert_eq!(query(&write, ssl).unwrap(), "t", "and from there to the server");
    let read = address("postgres", port + 1, "verify-full");
    assert_eq!(query(&read, "select pg_is_in_recovery()").unwrap(), "t");
    let refused = query(&address("postgres", port, "disable"), "select 1").unwrap_err();
    assert!(refused.contains("encrypt"), "{refused}");

    // One client stays, and others have its connection between its transactions.
    let own = "select pg_backend_pid()";
    let mut stays =
        psql().arg(&write).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut says = BufReader::new(stays.stdout.take().unwrap());
    let mut typed = stays.stdin.take().unwrap();
    let mut pid = String::new();
    writeln!(typed, "{own};").unwrap();
    says.read_line(&mut pid).unwrap();
    assert_eq!(query(&write, own).unwrap(), pid.trim());
    drop(typed);
    stays.wait().unwrap();

    // What the admin database tells of it.
    let pools = query(&address("sempre", port, "verify-full"), "show pools").unwrap();
    let line = pools.lines().find(|line| line.starts_with("postgres|postgres|")).unwrap();
    assert!(line.contains("|transaction"), "{pools}");
    let settings = query(&address("sempre", port, "verify-full"), "show config").unwrap();
    assert!(settings.lines().any(|line| line.starts_with("admin_users|postgres|")), "{settings}");
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
