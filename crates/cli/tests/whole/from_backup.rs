//! New standbys, and old ones anew, from a repository: nobody has to copy for them.

use crate::common::cluster::{Cluster, data, query};
use std::{fs, os::unix::fs::PermissionsExt};

/// Copies that this member's server was asked for.
fn copies(cluster: &Cluster, name: &str) -> usize {
    let log = cluster.member(name).dir.join("log/postgresql.log");
    fs::read_to_string(log).unwrap().matches("BASE_BACKUP").count()
}

/// What the events say of how a member got its data.
fn told(cluster: &Cluster, name: &str) -> Vec<String> {
    let (got, not) = (format!("{name} got its data"), format!("{name} did not get its data"));
    let events = cluster.events();
    let texts = events.iter().filter_map(|event| event["text"].as_str());
    texts.filter(|t| t.starts_with(&got) || t.starts_with(&not)).map(String::from).collect()
}

#[test]
fn a_standby_comes_from_the_repository() {
    let mut cluster = Cluster::start(vec![data("m1"), data("m2")], &[]);
    cluster.ok(&["config", "set", "postgresql.log_replication_commands=on"]);
    let folder = cluster.folder.path().join("repository");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();

    // Without a repository it is refused, and the token is good for another try.
    cluster.place(data("m3"));
    let token = cluster.ok(&["token"]);
    let (code, _, err) = cluster.at("m3", &["join", token.trim(), "--from-backup"]);
    assert!(code != 0 && err.contains("no repository"), "{code} {err}");
    cluster.ok(&["backup", "init", "main", "--folder", folder.to_str().unwrap()]);
    cluster.ok(&["backup", "run"]);
    let direct = cluster.member("m1").direct();
    let more = "insert into w select generate_series(1, 20000); select pg_switch_wal(); \
                insert into w select generate_series(20001, 40000)";
    query(&direct, more).unwrap();
    let before = (copies(&cluster, "m1"), copies(&cluster, "m2"));
    cluster.ok_at("m3", &["join", token.trim(), "--from-backup"]);
    cluster.run("m3");
    cluster.until("m3 is relied on", |cluster| {
        let status = cluster.status()?;
        let sync = status["sync"]["record"]["members"].as_array()?;
        sync.iter().any(|m| m == "m3").then_some(())
    });
    cluster.whole();
    assert_eq!((copies(&cluster, "m1"), copies(&cluster, "m2")), before, "nobody copied for it");
    let events = told(&cluster, "m3");
    assert!(events.len() == 1 && events[0].contains("from main: backup"), "{events:?}");
    let m3 = cluster.member("m3").direct();
    let count = |dsn: &str| query(dsn, "select count(*), sum(id) from w").unwrap();
    cluster.until("all rows are there", |_| (count(&m3) == count(&direct)).then_some(()));

    // As primary it has all of it, and its indexes are right.
    cluster.switchover(&["--to", "m3"]);
    cluster.primary_is("m3");
    query(&m3, "create extension if not exists amcheck").unwrap();
    let check = "select count(bt_index_check(c.oid, true)) from pg_class c \
                 where c.relkind = 'i' and c.relam = 403 and c.relpersistence = 'p'";
    assert!(query(&m3, check).unwrap().parse::<u32>().unwrap() > 100);
    cluster.whole();

    // Another one anew, over what it has; then without a usable backup: said so, and copied.
    let before = copies(&cluster, "m1") + copies(&cluster, "m3");
    cluster.ok(&["reinit", "m2", "--from-backup", "main", "--yes"]);
    cluster.until("m2 was filled", |cluster| (told(cluster, "m2").len() == 1).then_some(()));
    cluster.whole();
    assert_eq!(copies(&cluster, "m1") + copies(&cluster, "m3"), before, "nobody copied for it");
    let listed: serde_json::Value =
        serde_json::from_str(&cluster.ok(&["--json", "backup", "list"])).unwrap();
    for backup in listed["repositories"][0]["backups"].as_array().unwrap() {
        cluster.ok(&["backup", "forget", backup["id"].as_str().unwrap(), "--yes"]);
    }
    cluster.ok(&["reinit", "m2", "--from-backup", "--yes"]);
    cluster.until("m2 was copied", |cluster| (told(cluster, "m2").len() == 2).then_some(()));
    cluster.whole();
    let events = told(&cluster, "m2");
    assert!(events[1].contains("none of its 0 backups") && events[1].contains("copied from"));
    assert!(copies(&cluster, "m1") + copies(&cluster, "m3") > before, "{events:?}");
    let (code, _, err) = cluster.at("m1", &["reinit", "m2", "--from-backup", "other", "--yes"]);
    assert!(code != 0 && err.contains("no repository `other`"), "{err}");
}
