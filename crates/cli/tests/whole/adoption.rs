//! A server that ran without sempre becomes the first member.

use crate::common::{
    cluster::{Cluster, data, query},
    told, until,
    writer::Writer,
};
use std::{
    path::Path,
    process::{Command, Stdio},
};

/// One of PostgreSQL's programs, as the user that members run as.
fn postgres(program: &str) -> Command {
    let bin = std::env::var("SEMPRE_PG_BIN").unwrap_or_else(|_| {
        let said = Command::new("pg_config").arg("--bindir").output();
        let named = said.ok().map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned());
        let newest = || {
            let versions = std::fs::read_dir("/usr/lib/postgresql").unwrap().flatten();
            let newest = versions.map(|v| v.path()).max().unwrap();
            newest.join("bin").display().to_string()
        };
        named.filter(|bin| Path::new(bin).join("initdb").exists()).unwrap_or_else(newest)
    });
    let program = Path::new(&bin).join(program);
    if nix::unistd::geteuid().is_root() {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    }
}

fn done(command: &mut Command) {
    // A server started this way must not keep our pipes.
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(command.status().unwrap().success(), "{command:?}");
}

#[test]
fn a_running_server_becomes_the_first_member() {
    let mut cluster = Cluster::places(vec![data("m1"), data("m2")]);
    let home = cluster.folder.path().join("old");
    std::fs::create_dir(&home).unwrap();
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("postgres").unwrap().unwrap();
        nix::unistd::chown(&home, Some(user.uid), Some(user.gid)).unwrap();
    }
    let old = home.join("data");
    let port = cluster.members[0].port;
    done(postgres("initdb").arg("-D").arg(&old).args(["-U", "postgres", "-A", "trust"]));
    let options = format!(
        "-c port={port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={}",
        home.display()
    );
    let conf = old.join("postgresql.conf");
    let text = std::fs::read_to_string(&conf).unwrap();
    std::fs::write(&conf, format!("{text}\nwork_mem = '7MB'\nshared_buffers = '24MB'\n")).unwrap();
    done(postgres("pg_ctl").arg("-D").arg(&old).args(["start", "-w", "-s", "-o", &options]));
    let before = format!("postgresql://postgres@127.0.0.1:{port}/postgres");
    query(&before, "create role app login").unwrap();
    query(&before, "create database shop owner app").unwrap();
    let shop = |server: &str| server.replace("/postgres?", "/shop?");
    query(
        &format!("postgresql://postgres@127.0.0.1:{port}/shop"),
        "create table orders as select i from generate_series(1, 1000) i",
    )
    .unwrap();
    let identifier = "select system_identifier from pg_control_system()";
    let identifier = query(&before, identifier).unwrap();

    // The server still runs; the first member takes it over.
    let lines = format!("data_dir = \"{}\"", old.display());
    cluster.members[0].spec.postgres = lines;
    cluster.rewrite_config("m1");
    cluster.form(&[]);
    let orders = "select count(*), sum(i) from orders";
    let first = cluster.member("m1").direct();
    assert_eq!(query(&shop(&first), orders).unwrap(), "1000|500500");
    for (parameter, value) in [("work_mem", "7MB"), ("shared_buffers", "24MB")] {
        assert_eq!(query(&first, &format!("show {parameter}")).unwrap(), value);
    }
    let status = cluster.status().unwrap();
    assert_eq!(status["system_identifier"], identifier.as_str());

    // A second member, to which it hands over.
    cluster.join("m2");
    cluster.whole();
    let second = cluster.member("m2").direct();
    until("the standby has all of it", || {
        (query(&shop(&second), orders).ok()? == "1000|500500").then_some(())
    });
    let writer = Writer::start(&cluster.member("m2").read_write(), 0);
    cluster.switchover(&["--to", "m2"]);
    writer.goes_on();
    cluster.whole();
    cluster.has_rows(&writer.stop());
    let app = shop(&second).replace("postgres@", "app@");
    assert_eq!(query(&app, "select current_user").unwrap(), "app");

    // A folder of another cluster is refused, and left as it is.
    let (code, _, err) = told(
        crate::common::sempre()
            .args(["--config".as_ref(), cluster.member("m1").config.as_os_str()])
            .args(["init"])
            .output()
            .unwrap(),
    );
    assert!(code != 0 && err.contains("holds member m1"), "{err}");
}
