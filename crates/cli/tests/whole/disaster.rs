//! The majority is gone; the record of a member is damaged.

use crate::common::{
    cluster::{Cluster, data, query},
    until,
    writer::Writer,
};
use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

/// Reads from one database all the while.
struct Reader {
    stop: Arc<AtomicBool>,
    read: Arc<AtomicUsize>,
    thread: std::thread::JoinHandle<Vec<String>>,
}

impl Reader {
    fn start(dsn: String) -> Self {
        let (stop, read) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (told_to, count) = (stop.clone(), read.clone());
        let thread = std::thread::spawn(move || {
            let mut errors = Vec::new();
            while !told_to.load(Ordering::Relaxed) {
                match query(&dsn, "select count(*) from w") {
                    Ok(_) => _ = count.fetch_add(1, Ordering::Relaxed),
                    Err(error) => errors.push(error),
                }
            }
            errors
        });
        Self { stop, read, thread }
    }

    fn goes_on(&self) {
        let before = self.read.load(Ordering::Relaxed);
        until("reading goes on", || (self.read.load(Ordering::Relaxed) > before + 2).then_some(()));
    }

    fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

#[test]
fn a_cluster_is_re_formed_from_the_one_that_is_left() {
    let mut cluster = Cluster::start(vec![data("m1"), data("m2"), data("m3")], &[]);
    let writer = Writer::start(&cluster.member("m3").read_write(), 0);
    writer.goes_on();
    let acknowledged = writer.stop();
    until("m3 has all rows", || {
        let count = query(&cluster.member("m3").direct(), "select count(*) from w").ok()?;
        (count.parse::<usize>().unwrap() >= acknowledged.len()).then_some(())
    });

    // Two of three are gone for good. Reading goes on, also through routing; writing stops.
    let reader = Reader::start(cluster.member("m3").direct());
    cluster.kill_members(&["m1", "m2"]);
    for name in ["m1", "m2"] {
        fs::remove_dir_all(&cluster.member(name).dir).unwrap();
    }
    let status = cluster.until("the majority is missed", |cluster| {
        let status = cluster.status_at("m3")?;
        (status["raft"]["quorum"] == false && status["writable"] == false).then_some(status)
    });
    assert!(status["oddities"].to_string().contains("`sempre recover`"), "{status}");
    let read_only = cluster.member("m3").read_only();
    assert_eq!(query(&read_only, "select pg_is_in_recovery()").unwrap(), "t");
    let (exit, _, err) = cluster.at("m3", &["config", "set", "strict=true"]);
    assert!(exit == 4 && err.contains("SEMPRE-0011"), "{exit}: {err}");

    // Not while the daemon runs; not without being asked.
    cluster.refused(&["recover", "--yes"], "the daemon of m3 runs");
    cluster.kill_agent("m3");
    let (exit, _, err) = cluster.at("m3", &["recover"]);
    assert!(exit == 2 && err.contains("--yes"), "{exit}: {err}");
    reader.goes_on();
    let (exit, out, err) = cluster.at("m3", &["recover", "--yes"]);
    assert_eq!(exit, 0, "{err}");
    assert!(err.contains("m1 was the last primary, as far as is known here"), "{err}");
    assert!(err.contains("Left out: m1, m2") && err.contains("remove their folders"), "{err}");
    assert!(out.contains("re-formed from m3, at generation 2"), "{out}");
    cluster.run("m3");
    cluster.primary_is("m3");
    reader.goes_on();
    // But for the moment of the promotion: clients of a new primary are let in at its end.
    let errors = reader.stop();
    let closed = |error: &String| error.contains("pg_hba.conf rejects connection");
    assert!(errors.iter().all(closed), "reading went on all the while: {errors:?}");
    cluster.has_rows(&acknowledged);

    // It goes on, and the others join anew.
    let writer = Writer::start(&cluster.member("m3").read_write(), 1_000_000);
    for name in ["m1", "m2"] {
        cluster.join(name);
    }
    cluster.whole();
    let change = cluster.last_change();
    assert_eq!((&change["cause"], &change["primary"]), (&"recover".into(), &"m3".into()));
    cluster.switchover(&["--to", "m1"]);
    writer.goes_on();
    cluster.whole();
    cluster.has_rows(&writer.stop());
    cluster.has_rows(&acknowledged);
}

/// Flips a bit in every page of a file.
fn spoil(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    for at in (512..bytes.len()).step_by(4_096) {
        bytes[at] ^= 0x10;
    }
    fs::write(file, bytes).unwrap();
}

#[test]
fn a_damaged_record_is_named_and_repaired() {
    let mut cluster = Cluster::start(vec![data("m1"), data("m2"), data("m3")], &[]);
    let writer = Writer::start(&cluster.member("m1").read_write(), 0);
    // A standby's, with the database going on; then the primary's, whose machine was down.
    cluster.kill_agent("m3");
    let mut spoiled = 0;
    for (name, down) in [("m3", false), ("m1", true)] {
        if down {
            cluster.kill_members(&[name]);
        }
        let folder = cluster.member(name).dir.join("record");
        let files: Vec<_> = fs::read_dir(&folder).unwrap().map(|f| f.unwrap().path()).collect();
        let record: Vec<_> =
            files.iter().filter(|f| f.extension().is_some_and(|e| e == "redb")).collect();
        assert!(!record.is_empty(), "{files:?}");
        record.iter().for_each(|file| spoil(file));
        spoiled += record.len();
        cluster.run(name);
        cluster.until("the damage is named", |cluster| {
            let log = cluster.member(name).log();
            let line = log.lines().find(|line| line.contains("the record is damaged"))?.to_owned();
            line.contains("record.redb").then_some(())
        });
        cluster.until("it knows the record again", |cluster| {
            let own = cluster.status_at(name)?;
            let same = own["generation"] == cluster.status_at("m2")?["generation"];
            (own["answered_by"] == name && same).then_some(())
        });
        assert!(cluster.member(name).log().contains("the damaged record was set aside"));
        let status = cluster.whole();
        if !down {
            writer.goes_on();
            assert_eq!(status["generation"], 1, "no failover for it");
        }
    }
    assert!(spoiled >= 2);
    let writer_rows = writer.stop();
    cluster.has_rows(&writer_rows);
    // Its vote counts again: with another member down it makes the majority.
    cluster.kill_members(&["m2"]);
    cluster.until("the cluster goes on", |cluster| {
        cluster.status_at("m3").filter(|s| s["writable"] == true && s["raft"]["quorum"] == true)
    });
    let writer = Writer::start(&cluster.member("m3").read_write(), 1_000_000);
    cluster.has_rows(&writer.stop());
}
