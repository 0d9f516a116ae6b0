//! Repositories on another member and in an S3-compatible store, several at a time: one that hangs or is gone
//! does not hold back the others.

use crate::{
    common::{
        cluster::{Cluster, Spec, data, query, signal, witness},
        writer::Writer,
    },
    s3,
};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// A folder that every member can write to.
fn folder(cluster: &Cluster, name: &str) -> PathBuf {
    let folder = cluster.folder.path().join(name);
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
    folder
}

/// The cluster, of which `w1` serves a folder of its own.
fn serving(specs: Vec<Spec>, rule: &str) -> (Cluster, PathBuf) {
    let mut cluster = Cluster::places(specs);
    let served = folder(&cluster, "served");
    let lines = format!("[[repository]]\nfolder = \"{}\"\n{rule}", served.display());
    cluster.member_mut("w1").spec.more = lines;
    cluster.rewrite_config("w1");
    let names: Vec<_> = cluster.members.iter().map(|m| m.spec.name.clone()).collect();
    cluster.form(&[]);
    for name in &names[1..] {
        cluster.join(name);
    }
    cluster.whole();
    (cluster, served)
}

/// Where the primary is now.
fn end(cluster: &Cluster) -> u64 {
    let primary = cluster.last_change()["primary"].as_str().unwrap().to_owned();
    let end = "select pg_current_wal_flush_lsn() - '0/0'::pg_lsn";
    query(&cluster.member(&primary).direct(), end).unwrap().parse().unwrap()
}

/// Waits until all that the primary has flushed by now is in this repository.
fn archived(cluster: &Cluster, name: &str) {
    let end = end(cluster);
    cluster.until(&format!("the WAL is archived in {name}"), |cluster| {
        let status = cluster.status()?;
        let all = status["repositories"].as_array()?;
        let one = all.iter().find(|repository| repository["name"] == name)?;
        (one["archive"]["flushed"].as_u64()? >= end).then_some(())
    });
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_witness_keeps_backups_that_a_stolen_credential_cannot_remove() {
    let specs = vec![data("m1"), data("m2"), witness("w1")];
    let (mut cluster, served) = serving(specs, "window_days = 1\nquota_bytes = 10_000_000_000");
    let init = ["backup", "init", "main", "--on", "w1", "--folder"];
    let other = cluster.folder.path().join("other");
    let (_, _, err) = cluster.at("m1", &[&init[..], &[text(&other)]].concat());
    assert!(err.contains("SEMPRE-0071") && err.contains("w1 does not serve"), "{err}");
    let (_, _, err) = cluster.at("m1", &["backup", "init", "main", "--on", "m9", "--folder", "/x"]);
    assert!(err.contains("SEMPRE-0020"), "{err}");
    cluster.ok(&[&init[..], &[text(&served)]].concat());
    let key = cluster.ok(&["backup", "key"]);
    let writer = Writer::start(&cluster.member("m1").read_write(), 0);
    let first = json(&cluster.ok(&["--json", "backup", "run"]));
    writer.goes_on();
    archived(&cluster, "main");

    // Its member dies, and comes back.
    cluster.kill_members(&["w1"]);
    writer.goes_on();
    cluster.run("w1");
    cluster.whole();
    writer.goes_on();
    archived(&cluster, "main");
    let second = json(&cluster.ok(&["--json", "backup", "run"]));
    assert!(second["stored_bytes"].as_u64() < first["stored_bytes"].as_u64());

    // Somebody with all there is to steal forgets everything.
    for backup in [&first, &second] {
        cluster.ok(&["backup", "forget", backup["id"].as_str().unwrap(), "--yes"]);
    }
    let pruned = json(&cluster.ok(&["--json", "backup", "prune", "--yes"]));
    assert!(pruned["too_early"].as_u64() > Some(4) && pruned["bytes"] == 0, "{pruned}");
    let listed = json(&cluster.ok(&["--json", "backup", "list"]));
    assert!(listed["repositories"][0]["backups"].as_array().unwrap().is_empty(), "{listed}");
    for backup in [&first, &second] {
        cluster.ok(&["backup", "unforget", backup["id"].as_str().unwrap()]);
    }
    let verified = json(&cluster.ok(&["--json", "backup", "verify"]));
    assert_eq!((&verified["backups"], &verified["damages"]), (&2.into(), &Value::Array(vec![])));
    let spare = folder(&cluster, "spare").join("data");
    cluster.ok(&["--json", "drill", "restore", "--target", text(&spare)]);

    // From the member that serves it, and, when all are gone, from its folder and the key.
    let acknowledged = writer.stop();
    archived(&cluster, "main");
    let there = folder(&cluster, "there").join("data");
    cluster.ok_at("m2", &["restore", "--target", text(&there)]);
    cluster.kill_members(&["m1", "m2", "w1"]);
    let key_file = cluster.folder.path().join("key");
    std::fs::write(&key_file, key).unwrap();
    let all = folder(&cluster, "all").join("data");
    let from = ["--folder", text(&served), "--key-file", text(&key_file)];
    let (code, _, err) =
        cluster.at("w1", &[&["restore", "--target", text(&all)], &from[..]].concat());
    assert_eq!(code, 0, "{err}");
    for data_dir in [there, all] {
        let lines = format!("data_dir = \"{}\"", data_dir.display());
        let mut again = Cluster::places(vec![data("m1").postgres(&lines)]);
        again.form(&[]);
        again.has_rows(&acknowledged);
    }
}

#[test]
fn a_repository_that_hangs_or_is_gone_does_not_hold_back_another() {
    let (cluster, served) = serving(vec![data("m1"), data("m2"), witness("w1")], "");
    let near = folder(&cluster, "near");
    let by = ["--member", "m1", "--member", "m2"];
    let init = |words: &[&str]| cluster.ok(&[&["backup", "init"], words, &by[..]].concat());
    init(&["near", "--folder", text(&near)]);
    init(&["far", "--on", "w1", "--folder", text(&served)]);
    let writer = Writer::start(&cluster.member("m1").read_write(), 0);
    let run = |name: &str| json(&cluster.ok(&["--json", "backup", "run", "--repository", name]));
    // Both at once.
    std::thread::scope(|scope| {
        let both = ["near", "far"].map(|name| scope.spawn(move || run(name)));
        for one in both {
            assert!(one.join().unwrap()["bytes"].as_u64() > Some(1_000_000));
        }
    });
    for name in ["near", "far"] {
        archived(&cluster, name);
    }

    // Who serves one of them is stopped: its machine takes what is sent, and nothing is done.
    let stopped = cluster.agent("w1");
    signal(stopped, Signal::SIGSTOP);
    writer.goes_on();
    archived(&cluster, "near");
    run("near");
    writer.goes_on();
    archived(&cluster, "near");
    signal(stopped, Signal::SIGCONT);
    archived(&cluster, "far");
    run("far");

    // The other one's folder is gone.
    let away = cluster.folder.path().join("away");
    std::fs::rename(&near, &away).unwrap();
    std::fs::write(&near, "no folder").unwrap();
    writer.goes_on();
    archived(&cluster, "far");
    run("far");
    std::fs::remove_file(&near).unwrap();
    std::fs::rename(&away, &near).unwrap();
    archived(&cluster, "near");
    let acknowledged = writer.stop();
    cluster.has_rows(&acknowledged);
    for name in ["near", "far"] {
        archived(&cluster, name);
        let verified = json(&cluster.ok(&["--json", "backup", "verify", "--repository", name]));
        assert_eq!(verified["damages"], Value::Array(vec![]), "{name}: {verified}");
    }
}

#[test]
fn a_cluster_keeps_its_backups_in_a_store_that_speaks_s3() {
    let mut cluster = Cluster::start(vec![data("m1"), data("m2")], &[]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let stored = cluster.folder.path().join("s3");
    let server = runtime.block_on(s3::Server::start_tls(&stored)).unwrap();
    let at = server.config();
    let (ca, credentials) =
        (cluster.folder.path().join("ca.pem"), cluster.folder.path().join("credentials"));
    std::fs::write(&ca, at.ca_pem.unwrap()).unwrap();
    let lines = |secret: &str| {
        format!("[default]\naws_access_key_id = me\naws_secret_access_key = {secret}\n")
    };
    std::fs::write(&credentials, lines("GUESSED")).unwrap();
    let endpoint = at.endpoint.unwrap();
    let init = ["backup", "init", "main", "--s3", "bucket/here", "--s3-endpoint", &endpoint];
    let init =
        [&init[..], &["--s3-credentials", text(&credentials), "--s3-ca", text(&ca)]].concat();
    let (_, _, err) = cluster.at("m1", &init);
    assert!(err.contains("SEMPRE-0071") && !err.contains("GUESSED"), "{err}");
    std::fs::write(&credentials, lines("TOPSECRET")).unwrap();
    cluster.ok(&init);
    let place = cluster.folder.path().join("place");
    std::fs::write(&place, cluster.ok(&["--json", "backup", "key"])).unwrap();
    let writer = Writer::start(&cluster.member("m1").read_write(), 0);
    cluster.ok(&["backup", "run"]);
    writer.goes_on();
    archived(&cluster, "main");
    // The store fails for a while.
    server.always(Some(s3::Fault::Busy));
    writer.goes_on();
    server.always(None);
    cluster.ok(&["backup", "run"]);
    let acknowledged = writer.stop();
    archived(&cluster, "main");
    let verified = json(&cluster.ok(&["--json", "backup", "verify"]));
    assert_eq!((&verified["backups"], &verified["damages"]), (&2.into(), &Value::Array(vec![])));
    // By what was printed, without any member.
    let target = folder(&cluster, "back").join("data");
    cluster.kill_members(&["m1", "m2"]);
    let words = ["restore", "--target", text(&target), "--place", text(&place)];
    let (code, _, err) = cluster.at("m1", &words);
    assert_eq!(code, 0, "{err}");
    let lines = format!("data_dir = \"{}\"", target.display());
    let mut again = Cluster::places(vec![data("m1").postgres(&lines)]);
    again.form(&[]);
    again.has_rows(&acknowledged);
}
