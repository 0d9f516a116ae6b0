//! Repositories that commits wait for, and failovers that use them.

use crate::common::{
    cluster::{Cluster, data, query, signal, witness},
    writer::Writer,
};
use nix::{sys::signal::Signal, unistd::Pid};
use serde_json::json;
use std::os::unix::fs::PermissionsExt;

const POLICY: [&str; 3] =
    ["archive_in_sync_set=true", "recover_from_backup=true", "recover_from_backup_after_ms=1000"];

/// A repository with a base backup.
fn repository(cluster: &Cluster) {
    let folder = cluster.folder.path().join("repository");
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
    cluster.ok(&["backup", "init", "main", "--folder", folder.to_str().unwrap()]);
    cluster.ok(&["backup", "run"]);
}

/// Waits until commits wait for these, by the record and by the database.
fn sync_set_is(cluster: &Cluster, members: &[&str]) {
    cluster.until(&format!("the sync set is {members:?}"), |cluster| {
        let status = cluster.status()?;
        let is = json!({"members": members, "k": 1});
        let all = ["record", "wanted", "database"];
        all.iter().all(|of| status["sync"][of] == is).then_some(())
    });
}

#[test]
fn one_database_and_a_repository_survive_the_loss_of_the_database() {
    let specs = vec![data("m1"), data("m2").tags("spare = true"), witness("w1")];
    let mut cluster = Cluster::places(specs);
    cluster.form(&POLICY);
    cluster.join("m2");
    cluster.join("w1");
    repository(&cluster);
    sync_set_is(&cluster, &["archive-main"]);
    assert!(!cluster.data_dir("m2").join("PG_VERSION").exists(), "a spare has no copy");
    cluster.refused(&["backup", "detach", "main", "--yes"], "SEMPRE-0013");

    let writer = Writer::start(&cluster.member("w1").read_write(), 0);
    writer.goes_on();
    cluster.kill_members(&["m1"]);
    cluster.primary_is("m2");
    writer.goes_on();
    let acknowledged = writer.stop();
    cluster.has_rows(&acknowledged);
    let recovered = |event: &serde_json::Value| event["rule"] == "recover-from-backup";
    assert!(cluster.events().iter().any(recovered), "{:?}", cluster.events());

    // The old one comes back, and follows.
    cluster.run("m1");
    cluster.whole();
    sync_set_is(&cluster, &["m1"]);
    cluster.ok(&["backup", "detach", "main", "--yes"]);
}

#[test]
fn a_standby_that_was_left_behind_takes_over_what_is_archived() {
    let mut cluster = Cluster::start(vec![data("m1"), data("m2"), witness("w1")], &POLICY);
    repository(&cluster);
    sync_set_is(&cluster, &["m2"]);
    let writer = Writer::start(&cluster.member("w1").read_write(), 0);
    writer.goes_on();
    // It receives nothing any more, and the commits go on without it.
    let receiver = cluster.backend("m2", "walreceiver").expect("it streams");
    signal(receiver, Signal::SIGSTOP);
    sync_set_is(&cluster, &["archive-main"]);
    // More than the network holds for it.
    let much = "create table much as select md5(i::text) from generate_series(1, 400000) i";
    query(&cluster.member("w1").read_write(), much).unwrap();
    writer.goes_on();
    cluster.kill_members(&["m1"]);
    signal(receiver, Signal::SIGCONT);
    cluster.primary_is("m2");
    writer.goes_on();
    let acknowledged = writer.stop();
    cluster.has_rows(&acknowledged);
    assert!(cluster.member("m2").log().contains("the archived WAL is taken over"));
    cluster.run("m1");
    cluster.whole();
}

/// The archiver's process on this member, if it is there.
fn worker(cluster: &Cluster, name: &str) -> Option<Pid> {
    let agent = cluster.member(name).agent_pid()?;
    let threads = std::fs::read_dir(format!("/proc/{agent}/task")).ok()?;
    let children = threads
        .flatten()
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let children: Vec<String> = children
        .flat_map(|c| c.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let is_worker = |pid: &&String| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|b| *b == 0).any(|word| word == b"worker")
    };
    children.iter().find(is_worker)?.parse().ok().map(Pid::from_raw)
}

/// The primary and the archiver are killed at once, again and again; nothing that was acknowledged
/// is ever missing.
#[test]
fn primary_and_archiver_are_killed_at_random_moments() {
    let mut cluster = Cluster::start(vec![data("m1"), data("m2"), witness("w1")], &POLICY);
    repository(&cluster);
    // Without it commits go on alone when both are away for long.
    cluster.ok(&["config", "set", "strict=true"]);
    let rounds = std::env::var("SEMPRE_ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(3);
    let mut first = 0;
    for round in 0..rounds {
        cluster.whole();
        // The standby is away, so that nobody but the repository has what is acknowledged.
        let primary = cluster.last_change()["primary"].as_str().unwrap().to_owned();
        let standby = if primary == "m1" { "m2" } else { "m1" };
        let receiver = cluster.until("it streams", |c| c.backend(standby, "walreceiver"));
        signal(receiver, Signal::SIGSTOP);
        sync_set_is(&cluster, &["archive-main"]);
        let writer = Writer::start(&cluster.member("w1").read_write(), first);
        writer.goes_on();
        std::thread::sleep(std::time::Duration::from_millis(rand::random_range(0..400)));
        let archivers: Vec<Pid> =
            ["m1", "m2", "w1"].iter().filter_map(|name| worker(&cluster, name)).collect();
        assert!(!archivers.is_empty(), "round {round}");
        for archiver in archivers {
            signal(archiver, Signal::SIGKILL);
        }
        cluster.kill_members(&[&primary]);
        signal(receiver, Signal::SIGCONT);
        cluster.primary_is(standby);
        writer.goes_on();
        let acknowledged = writer.stop();
        cluster.has_rows(&acknowledged);
        first = query(&cluster.member(standby).direct(), "select max(id) + 1 from w")
            .unwrap()
            .parse()
            .unwrap();
        cluster.run(&primary);
    }
}
