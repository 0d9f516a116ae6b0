//! A reader of a logical slot goes on after a failover and after switchovers, without a gap.

use crate::common::cluster::{Cluster, data, query};
use serde_json::Value;
use std::{collections::BTreeSet, fs};

/// Reads from a slot as a subscriber does, and remembers what it saw.
struct Reader {
    dsn: String,
    written: u64,
    seen: BTreeSet<u64>,
}

impl Reader {
    /// Writes one row, and takes all that the slot has.
    fn step(&mut self) -> Result<(), String> {
        query(&self.dsn, &format!("insert into w values ({})", self.written + 1))?;
        self.written += 1;
        self.read()
    }

    fn read(&mut self) -> Result<(), String> {
        // The rows of pgoutput's inserts into a table with one column.
        let sql = "select convert_from(substr(data, 14), 'utf8') from \
             pg_logical_slot_get_binary_changes('feed', null, null, 'proto_version', '1', \
             'publication_names', 'p') where get_byte(data, 0) = ascii('I')";
        let rows = query(&self.dsn, sql)?;
        self.seen.extend(rows.lines().map(|row| row.parse::<u64>().unwrap()));
        Ok(())
    }

    /// It was given every row that was written; some of them twice, perhaps.
    fn has_all(&self) {
        let missed: Vec<_> = (1..=self.written).filter(|row| !self.seen.contains(row)).collect();
        assert!(missed.is_empty(), "the reader missed {missed:?}");
    }
}

/// Does this standby have a copy that it could go on from?
fn has_copy(cluster: &Cluster, name: &str, by_itself: bool) -> bool {
    if by_itself {
        let sql = "select count(*) from pg_replication_slots \
             where slot_name = 'feed' and synced and not temporary";
        return query(&cluster.member(name).direct(), sql).is_ok_and(|count| count == "1");
    }
    let file = cluster.member(name).dir.join("logical-slots.json");
    let notes = fs::read(file).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    notes.is_some_and(|notes| notes["slots"]["feed"]["usable_after"].is_u64())
}

#[test]
fn a_logical_slot_survives_failover_and_switchover() {
    let mut cluster = Cluster::places(vec![data("m1"), data("m2"), data("m3")]);
    cluster.form(&[]);
    cluster.ok(&["config", "set", "postgresql.wal_level=logical"]);
    cluster.ok(&["restart", "m1"]);
    let direct = cluster.member("m1").direct();
    cluster.until("the primary decodes", |_| {
        (query(&direct, "show wal_level").ok()? == "logical").then_some(())
    });
    cluster.join("m2");
    cluster.join("m3");
    cluster.whole();
    // From 17 on the server copies slots itself.
    let version = query(&direct, "show server_version_num").unwrap();
    let by_itself = version.parse::<u32>().unwrap() >= 170_000;
    let failover = if by_itself { ", failover => true" } else { "" };
    query(&direct, "create publication p for table w").unwrap();
    query(
        &direct,
        &format!("select pg_create_logical_replication_slot('feed', 'pgoutput'{failover})"),
    )
    .unwrap();
    let dsn = cluster.member("m2").read_write();
    let mut reader = Reader { dsn, written: 0, seen: BTreeSet::new() };
    let ready = |cluster: &Cluster, reader: &mut Reader, standbys: &[&str]| {
        cluster.until("the standbys have copies", |cluster| {
            reader.step().ok()?;
            standbys.iter().all(|name| has_copy(cluster, name, by_itself)).then_some(())
        });
    };
    ready(&cluster, &mut reader, &["m2", "m3"]);

    // The machine of the primary dies, with rows that were not read yet.
    query(&reader.dsn, &format!("insert into w values ({})", reader.written + 1)).unwrap();
    reader.written += 1;
    cluster.kill_members(&["m1"]);
    cluster.until("the reader goes on", |_| reader.step().ok());
    reader.has_all();
    let status = cluster.status().unwrap();
    let second = status["primary"].as_str().unwrap().to_owned();
    let third = if second == "m2" { "m3" } else { "m2" };

    // It comes back, and takes over again; then once more, which meets what it had before.
    cluster.run("m1");
    cluster.whole();
    ready(&cluster, &mut reader, &["m1", third]);
    cluster.switchover(&["--to", "m1"]);
    cluster.until("the reader goes on", |_| reader.step().ok());
    reader.has_all();
    cluster.whole();
    ready(&cluster, &mut reader, &[&second, third]);
    cluster.switchover(&["--to", &second]);
    cluster.until("the reader goes on", |_| reader.step().ok());
    reader.has_all();
    let lost = |e: &Value| e.to_string().contains("did not come along");
    assert!(!cluster.events().iter().any(lost), "{:?}", cluster.events());

    // What is dropped on the primary is dropped everywhere.
    query(&cluster.member(&second).direct(), "select pg_drop_replication_slot('feed')").unwrap();
    for name in ["m1", third] {
        cluster.until("the copy is dropped", |cluster| {
            let sql = "select count(*) from pg_replication_slots where slot_type = 'logical'";
            (query(&cluster.member(name).direct(), sql).ok()? == "0").then_some(())
        });
    }
    if !by_itself {
        what_is_not_whole_is_not_kept(&mut cluster, &second, third);
    }
}

/// No standby restarts for a copy while another is away, so there is none; it is told of.
fn what_is_not_whole_is_not_kept(cluster: &mut Cluster, primary: &str, away: &str) {
    cluster.kill_members(&[away]);
    cluster.until("it is missed", |cluster| {
        let status = cluster.status()?;
        let members = status["members"].as_array()?;
        let is_away = |m: &&Value| m["name"] == away && m["state"] != "streaming";
        members.iter().any(|m| is_away(&m)).then_some(())
    });
    let make = "select pg_create_logical_replication_slot('late', 'pgoutput')";
    query(&cluster.member(primary).direct(), make).unwrap();
    let file = cluster.member("m1").dir.join("logical-slots.json");
    cluster.until("the standby knows of it", |_| {
        fs::read_to_string(&file).ok()?.contains("late").then_some(())
    });
    cluster.switchover(&["--to", "m1"]);
    cluster.until("it is told", |cluster| {
        let told = |e: &Value| e.to_string().contains("`late` did not come along to m1");
        cluster.events().iter().any(told).then_some(())
    });
    let sql = "select count(*) from pg_replication_slots where slot_type = 'logical'";
    assert_eq!(query(&cluster.member("m1").direct(), sql).unwrap(), "0");
}
