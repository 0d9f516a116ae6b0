//! Repositories that need care: keys that are replaced, backups that take their time.

use super::backups::{archived, json, shared_folder};
use crate::common::{
    cluster::{Cluster, data, query, witness},
    writer::Writer,
};
use serde_json::Value;

#[test]
fn the_key_is_replaced_and_backups_take_their_time() {
    let mut cluster = Cluster::places(vec![data("m1")]);
    cluster.form(&[]);
    let folder = shared_folder(&cluster, "repository");
    cluster.ok(&["backup", "init", "main", "--folder", folder.to_str().unwrap()]);
    let old = cluster.ok(&["backup", "key"]);
    cluster.ok(&["config", "set", "backup_max_bytes_per_s=10MB"]);
    let slow = json(&cluster.ok(&["--json", "backup", "run"]));
    let expected_ms = slow["bytes"].as_u64().unwrap() * 1000 / (10 << 20);
    assert!(slow["took_ms"].as_u64().unwrap() >= expected_ms, "{slow}");
    assert_eq!(slow["alarms"], json("[]"));
    cluster.ok(&["config", "set", "backup_max_bytes_per_s=0"]);

    let new = cluster.ok(&["backup", "key", "--rotate"]);
    assert!(new != old && new.starts_with("sempre-backup-key-1:"), "{new}");
    assert_eq!(cluster.ok(&["backup", "key"]), new);
    let events = cluster.ok(&["events"]);
    assert!(events.contains("the key of repository main was replaced"), "{events}");
    // The WAL goes on into it, and so do backups.
    query(&cluster.member("m1").direct(), "create table after_rotation as select 1").unwrap();
    archived(&cluster);
    cluster.ok(&["backup", "run"]);
    let verified = json(&cluster.ok(&["--json", "backup", "verify"]));
    assert_eq!((&verified["backups"], &verified["damages"]), (&json("2"), &json("[]")));

    // The old key opens nothing; with the new one both backups come back.
    let restore = |key: &str, backup: &str| {
        let target = shared_folder(&cluster, &format!("target-{backup}")).join("data");
        let file = cluster.folder.path().join("key");
        std::fs::write(&file, key).unwrap();
        let from = ["--folder", folder.to_str().unwrap(), "--key-file", file.to_str().unwrap()];
        let words = ["restore", "--target", target.to_str().unwrap(), "--backup", backup];
        let done = cluster.at("m1", &[&words[..], &from].concat());
        std::fs::remove_dir_all(target.parent().unwrap()).unwrap();
        done
    };
    let (code, _, err) = restore(&old, "latest");
    assert!(code != 0 && err.contains("was replaced by a newer one"), "{err}");
    for backup in [slow["id"].as_str().unwrap(), "latest"] {
        let (code, _, err) = restore(&new, backup);
        assert_eq!(code, 0, "{err}");
    }
    let full = shared_folder(&cluster, "full");
    std::fs::write(full.join("mine"), "x").unwrap();
    let (code, _, err) = cluster.at("m1", &["restore", "--target", full.to_str().unwrap()]);
    assert!(code == 1 && err.contains("not empty"), "{err}");
    assert!(full.join("mine").exists());
    let (_, _, err) = cluster.at("m1", &["backup", "accept", "nothing"]);
    assert!(err.contains("SEMPRE-0071") && err.contains("nothing"), "{err}");
    cluster.ok(&["backup", "accept", "latest"]);
    assert!(cluster.ok(&["backup", "show", "latest"]).contains("hardly packs"));
}

/// What is copied is of one server, from its beginning to its end: if that server changes its role or dies, there
/// is no backup, and that is said. The next one is whole.
#[test]
fn a_failover_in_the_middle_of_a_base_backup_gives_none_and_the_next_one_is_whole() {
    let cluster =
        Cluster::start(vec![data("m1"), data("m2"), witness("w1")], &["on_crash=failover"]);
    let folder = shared_folder(&cluster, "repository");
    cluster.ok(&["backup", "init", "main", "--folder", folder.to_str().unwrap()]);
    let writer = Writer::start(&cluster.member("w1").read_write(), 0);
    // First of the standby that is promoted meanwhile, then of the primary that dies.
    for of_primary in [false, true] {
        let primary = cluster.last_change()["primary"].as_str().unwrap().to_owned();
        let standby = if primary == "m1" { "m2" } else { "m1" };
        let source = if of_primary { primary.as_str() } else { standby };
        cluster.ok(&["config", "set", "backup_max_bytes_per_s=3MB"]);
        let (code, _, err) = std::thread::scope(|scope| {
            let words = ["backup", "run", "--full", "--member", source];
            let cluster = &cluster;
            let backup = scope.spawn(move || cluster.at("w1", &words));
            cluster.until("files are copied", |cluster| {
                let status = cluster.status()?;
                let done = status["repositories"][0]["progress"]["done_bytes"].as_u64()?;
                (done > 3_000_000).then_some(())
            });
            cluster.kill_database(&primary);
            writer.goes_on();
            backup.join().unwrap()
        });
        assert!(code == 1 && err.contains("SEMPRE-0073"), "of {source}: {err}");
        assert!(of_primary || err.contains("promoted"), "{err}");
        cluster.primary_is(standby);
        // Nothing else is odd than that there is no backup.
        cluster.until("the old primary follows", |cluster| {
            let status = cluster.status()?;
            let odd = status["oddities"].as_array()?;
            let expected = |odd: &Value| odd.to_string().contains("the last backup in main failed");
            odd.iter().all(expected).then_some(())
        });
    }
    cluster.ok(&["config", "set", "backup_max_bytes_per_s=0"]);
    assert_eq!(
        json(&cluster.ok(&["--json", "backup", "list"]))["repositories"][0]["backups"],
        json("[]")
    );
    let made = json(&cluster.ok(&["--json", "backup", "run"]));
    let acknowledged = writer.stop();
    archived(&cluster);
    let verified = json(&cluster.ok(&["--json", "backup", "verify"]));
    assert_eq!((&verified["backups"], &verified["damages"]), (&json("1"), &json("[]")));
    let target = shared_folder(&cluster, "spare").join("data");
    let rows = format!("test $(psql -Atc 'select count(*) from w') -ge {}", acknowledged.len());
    let words = ["--json", "drill", "restore", "--target", target.to_str().unwrap()];
    let (code, out, err) = cluster.at("m1", &[&words[..], &["--check", &rows]].concat());
    assert_eq!(code, 0, "{err}");
    assert!(out.contains(made["id"].as_str().unwrap()) || json(&out)["rto_ms"].as_u64() > Some(0));
}
