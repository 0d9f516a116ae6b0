//! Backups of a whole cluster: through a failover, and back after everything is lost.

use crate::common::{
    cluster::{Cluster, data, query, witness},
    writer::Writer,
};
use serde_json::Value;
use std::{os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

/// A folder that every member can write to.
pub fn shared_folder(cluster: &Cluster, name: &str) -> PathBuf {
    let folder = cluster.folder.path().join(name);
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
    folder
}

pub fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Waits until all that the primary has flushed is in the repository.
pub fn archived(cluster: &Cluster) {
    let primary = cluster.last_change()["primary"].as_str().unwrap().to_owned();
    let end = "select pg_current_wal_flush_lsn() - '0/0'::pg_lsn";
    let end: u64 = query(&cluster.member(&primary).direct(), end).unwrap().parse().unwrap();
    cluster.until("the WAL is archived", |cluster| {
        let status = cluster.status()?;
        (status["repositories"][0]["archive"]["flushed"].as_u64()? >= end).then_some(())
    });
}

#[test]
fn after_a_failover_and_the_loss_of_everything_all_is_back() {
    let mut cluster = Cluster::start(vec![data("m1"), data("m2"), witness("w1")], &[]);
    let folder = shared_folder(&cluster, "repository");
    cluster.refused(&["backup", "run"], "SEMPRE-0070");
    cluster.ok(&["backup", "init", "main", "--folder", folder.to_str().unwrap()]);
    let key = cluster.ok(&["backup", "key"]);
    let writer = Writer::start(&cluster.member("w1").read_write(), 0);
    let first = json(&cluster.ok(&["--json", "backup", "run"]));

    // The archiver and the primary, one after the other.
    let archiver = cluster.until("somebody archives", |cluster| {
        Some(cluster.status()?["repositories"][0]["archiver"].as_str()?.to_owned())
    });
    assert_eq!(archiver, "w1", "who has the least to do");
    cluster.kill_members(&[&archiver]);
    cluster.until("another one archives", |cluster| {
        let status = cluster.status()?;
        (status["repositories"][0]["archiver"].as_str()? == "m2").then_some(())
    });
    cluster.run(&archiver);
    cluster.whole();
    cluster.kill_database("m1");
    writer.goes_on();
    cluster.whole();
    let second = json(&cluster.ok(&["--json", "backup", "run"]));
    assert!(second["stored_bytes"].as_u64() < first["stored_bytes"].as_u64());
    writer.goes_on();
    let listed = json(&cluster.ok(&["--json", "backup", "list"]));
    let backups = listed["repositories"][0]["backups"].as_array().unwrap();
    assert_eq!((backups.len(), &backups[1]["parent"]), (2, &first["id"]));
    let windows = listed["repositories"][0]["windows"].as_array().unwrap();
    assert!(windows.len() == 1 && windows[0]["open"] == true, "one window, no gap: {windows:?}");
    let shown = cluster.ok(&["backup", "list"]);
    assert!(shown.contains('█') && shown.contains("to now"), "{shown}");

    // A moment before the end, to the second.
    let direct = cluster.member(cluster.last_change()["primary"].as_str().unwrap()).direct();
    let rows = query(&direct, "select count(*) from w").unwrap();
    std::thread::sleep(Duration::from_millis(1_100));
    let now = "to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')";
    let then = query(&direct, &format!("select {now}")).unwrap();
    std::thread::sleep(Duration::from_millis(1_100));
    let acknowledged = writer.stop();
    archived(&cluster);

    // All machines are lost. What is left are the repository and the key.
    let names = ["m1", "m2", "w1"];
    cluster.kill_members(&names);
    let key_file = cluster.folder.path().join("key");
    std::fs::write(&key_file, key).unwrap();
    let restore = |target: &str, more: &[&str]| {
        let target = cluster.folder.path().join(target).join("data");
        let words = ["--json", "restore", "--target", target.to_str().unwrap()];
        let from = ["--folder", folder.to_str().unwrap(), "--key-file", key_file.to_str().unwrap()];
        let (code, out, err) = cluster.at("m1", &[&words[..], &from, more].concat());
        assert_eq!(code, 0, "{err}");
        (target, json(&out))
    };
    for name in ["all", "then"] {
        shared_folder(&cluster, name);
    }
    let (all, said) = restore("all", &[]);
    assert_eq!(said["backup"], second["id"]);
    let (then, _) = restore("then", &["--to-time", &then]);
    let lives = |data_dir: PathBuf, check: &dyn Fn(&Cluster)| {
        let lines = format!("data_dir = \"{}\"", data_dir.display());
        let mut again = Cluster::places(vec![data("m1").postgres(&lines), data("m2")]);
        again.form(&[]);
        check(&again);
        again.join("m2");
        again.whole();
    };
    lives(all, &|again| again.has_rows(&acknowledged));
    lives(then, &|again| {
        let count = query(&again.member("m1").direct(), "select count(*) from w").unwrap();
        let (count, least): (usize, usize) = (count.parse().unwrap(), rows.parse().unwrap());
        assert!((least..acknowledged.len()).contains(&count), "{least} <= {count}");
    });
}

#[test]
fn backups_are_asked_for_and_refused_in_words() {
    let mut cluster = Cluster::places(vec![data("m1")]);
    cluster.form(&[]);
    let folder = shared_folder(&cluster, "repository");
    let path = folder.to_str().unwrap();
    let (code, _, err) = cluster.at("m1", &["backup", "init", "main", "--folder", "relative"]);
    assert!(code == 2 && err.contains("absolute"), "{err}");
    std::fs::write(folder.join("mine"), "x").unwrap();
    let (_, _, err) = cluster.at("m1", &["backup", "init", "main", "--folder", path]);
    assert!(err.contains("SEMPRE-0071") && err.contains("not empty"), "{err}");
    std::fs::remove_file(folder.join("mine")).unwrap();
    cluster.ok(&["backup", "init", "main", "--folder", path]);
    cluster.refused(&["backup", "run", "--repository", "other"], "SEMPRE-0070");
    cluster.refused(&["backup", "run", "--member", "m9"], "SEMPRE-0020");
    let shown = cluster.ok(&["backup", "list"]);
    assert!(shown.contains("nothing can be restored yet"), "{shown}");
    let target = cluster.folder.path().join("target");
    let target = target.to_str().unwrap();
    let (code, _, err) = cluster.at("m1", &["restore", "--target", target]);
    assert!(code == 1 && err.contains("SEMPRE-0072") && err.contains("no backup yet"), "{err}");

    // One database member alone is its own source and archiver.
    cluster.ok(&["backup", "run"]);
    let made = json(&cluster.ok(&["--json", "backup", "run", "--full"]));
    assert!(made["stored_bytes"].as_u64() > Some(1_000_000), "{made}");
    let id = made["id"].as_str().unwrap();
    cluster.ok(&["backup", "hold", id, "--reason", "the auditors"]);
    let (code, _, err) = cluster.at("m1", &["backup", "forget", id, "--yes"]);
    assert!(code != 0 && err.contains("under a hold"), "{err}");
    assert!(cluster.ok(&["backup", "show", "latest"]).contains("held           yes"));
    cluster.ok(&["backup", "hold", id, "--release"]);
    cluster.ok(&["backup", "forget", id, "--yes"]);
    let listed = json(&cluster.ok(&["--json", "backup", "list"]));
    assert_eq!(listed["repositories"][0]["backups"].as_array().unwrap().len(), 1);
    let (code, _, err) =
        cluster.at("m1", &["restore", "--target", target, "--to-time", "2020-01-01T00:00:00Z"]);
    assert!(code == 1 && err.contains("begins at"), "{err}");

    // Everything is read; a restore is proved, and the time it took is known.
    let verified = json(&cluster.ok(&["--json", "backup", "verify"]));
    assert_eq!((&verified["backups"], &verified["damages"]), (&1.into(), &Value::Array(vec![])));
    let drill = |check: &str| {
        let target = shared_folder(&cluster, "spare").join("data");
        let words = ["--json", "drill", "restore", "--target", target.to_str().unwrap()];
        let done = cluster.at("m1", &[&words[..], &["--check", check]].concat());
        assert!(!target.exists(), "what was tried is removed");
        std::fs::remove_dir_all(target.parent().unwrap()).unwrap();
        done
    };
    let (code, _, err) = drill("psql -Atc 'select 1/0'");
    assert!(code == 1 && err.contains("division by zero"), "{err}");
    cluster.until("a drill that failed is odd", |cluster| {
        cluster.ok(&["status"]).contains("the last drill could not restore").then_some(())
    });
    let (code, out, err) = drill("psql -Atc 'select count(*) from w'");
    assert_eq!(code, 0, "{err}");
    let proof = json(&out);
    assert!(proof["rto_ms"].as_u64() > Some(0) && proof["checks"].as_array().unwrap().len() == 2);
    let status = cluster.until("the proof is known", |cluster| {
        let status = cluster.status()?;
        status["repositories"][0]["proved"]["Ok"]["rto_ms"].as_u64()?;
        Some(status)
    });
    assert!(!status["oddities"].to_string().contains("drill"), "{status}");
    cluster.ok(&["config", "set", "backup_rto_ms=1", "backup_keep_last=1"]);
    cluster.until("the target is missed", |cluster| {
        cluster.ok(&["status"]).contains("backup_rto_ms").then_some(())
    });

    // What is too much goes with the next backup, or at once; what would go is shown first.
    cluster.ok(&["backup", "hold", "latest"]);
    cluster.ok(&["backup", "run"]);
    let plan = json(&cluster.ok(&["--json", "backup", "prune", "--dry-run"]));
    assert_eq!(plan[0]["reasons"], Value::Array(vec!["held".into()]));
    cluster.ok(&["backup", "hold", plan[0]["id"].as_str().unwrap(), "--release"]);
    let (code, _, err) = cluster.at("m1", &["backup", "prune"]);
    assert!(code == 2 && err.contains("--yes"), "{err}");
    let pruned = json(&cluster.ok(&["--json", "backup", "prune", "--yes"]));
    assert_eq!(pruned["backups"].as_array().unwrap().len(), 1, "{pruned}");
    let verified = json(&cluster.ok(&["--json", "backup", "verify"]));
    assert_eq!((&verified["backups"], &verified["damages"]), (&1.into(), &Value::Array(vec![])));

    // By itself, too.
    cluster.ok(&["config", "set", "backup_interval_ms=3s"]);
    cluster.until("backups are made by themselves", |cluster| {
        let listed = json(&cluster.ok(&["--json", "backup", "list"]));
        let newest = listed["repositories"][0]["backups"].as_array()?.last()?["id"].clone();
        (newest != plan[1]["id"]).then_some(())
    });
    cluster.ok(&["config", "set", "backup_interval_ms=0"]);

    // The folder goes away: it is said, and comes back by itself.
    let away = cluster.folder.path().join("away");
    std::fs::rename(&folder, &away).unwrap();
    let (_, _, err) = cluster.at("m1", &["backup", "list"]);
    assert!(err.contains("SEMPRE-0071"), "{err}");
    std::fs::rename(&away, &folder).unwrap();
    query(&cluster.member("m1").direct(), "insert into w values (-1)").unwrap();
    archived(&cluster);
    cluster.ok(&["backup", "detach", "main", "--yes"]);
    assert!(cluster.ok(&["backup", "list"]).contains("no repository"));
}
