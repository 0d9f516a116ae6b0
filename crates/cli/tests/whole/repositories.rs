//! Repositories that need care: keys that are replaced, backups that take their time.

use super::backups::{archived, json, shared_folder};
use crate::common::cluster::{Cluster, data, query};

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
    let (_, _, err) = cluster.at("m1", &["backup", "accept", "nothing"]);
    assert!(err.contains("SEMPRE-0071") && err.contains("nothing"), "{err}");
    cluster.ok(&["backup", "accept", "latest"]);
    assert!(cluster.ok(&["backup", "show", "latest"]).contains("hardly packs"));
}
