//! A member killed with SIGKILL at any moment: nothing acknowledged may be missing after.
#![allow(missing_docs)]

mod common;

use common::{Cluster, get, set};
use sempre_consensus::{Consensus, inspect};
use sempre_model::{Generation, Record};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

/// This test binary is its own child, which is told so by these.
const DIR: &str = "SEMPRE_TEST_KILL_DIR";
const START: &str = "SEMPRE_TEST_KILL_START";
const ROUNDS: u64 = 25;
/// Proposals run side by side, so that the log grows past its snapshots.
const LANES: u64 = 4;

/// What a child acknowledged: the highest value a key.
type Acknowledged = BTreeMap<String, u64>;

/// The child's life: changes and promises without end, each printed once it is acknowledged.
async fn live(dir: &Path, start: u64) {
    let cluster = Cluster::new();
    let member = cluster.start_in(dir, 1).await;
    if member.standing().borrow().voters.is_empty() {
        member.form().await.unwrap();
    }
    let say = |key: &str, value: u64| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "ack {key} {value}").unwrap();
        out.flush().unwrap();
    };
    let mut lanes = tokio::task::JoinSet::new();
    for lane in 0..LANES {
        let member: Arc<_> = member.clone();
        lanes.spawn(async move {
            for value in start.. {
                let key = format!("lane{lane}");
                if let Err(error) = member.propose(set(&key, value)).await {
                    // Only a full disk ends it: see the test of that.
                    let fault = common::standing(&member, "stops", |s| s.fault.is_some()).await;
                    let fault = fault.fault;
                    println!("\nend {error:?}; fault {fault:?}");
                    return;
                }
                say(&key, value);
                if lane == 0 && value % 3 == 0 && member.promise(Generation(value)).await.is_ok() {
                    say("promise", value);
                }
            }
        });
    }
    lanes.join_next().await;
}

/// Kills and reaps its child, also when the test fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a child on `dir`, kills it some time after its first acknowledgement, and returns what it
/// acknowledged.
fn run_and_kill(dir: &Path, start: u64, after: Duration) -> Acknowledged {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "nothing_acknowledged_is_lost_by_a_kill", "--nocapture"])
        // What a killed child leaves behind goes with the rest.
        .env("TMPDIR", dir)
        .env(DIR, dir)
        .env(START, start.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Killed(child);
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let mut acknowledged = Acknowledged::new();
    let mut note = |line: &str| {
        let mut words = line.split(' ').skip_while(|word| *word != "ack").skip(1);
        // The last line may be cut short: only a whole one counts.
        if let (Some(key), Some(Ok(value))) = (words.next(), words.next().map(str::parse)) {
            acknowledged.insert(key.to_owned(), value);
            return true;
        }
        false
    };
    loop {
        let line = lines.next().expect("the child ended before it acknowledged anything").unwrap();
        if note(&line) {
            break;
        }
    }
    // Not a wait for something: the random moment of the kill.
    std::thread::sleep(after);
    child.0.kill().unwrap();
    let mut rest: Vec<String> = lines.map_while(Result::ok).collect();
    // A number cut short would be read as a smaller one; the last line is not needed.
    rest.pop();
    for line in &rest {
        note(line);
    }
    acknowledged
}

fn check(round: u64, highest: &Acknowledged, promised: Generation, records: &[&Record]) {
    for (key, value) in highest {
        if key == "promise" {
            assert!(promised.0 >= *value, "round {round}: promised {promised}, not {value}");
            continue;
        }
        for record in records {
            let found = get(record, key);
            assert!(found >= Some(*value), "round {round}: {key} is {found:?}, not {value}");
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_by_a_kill() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let (Ok(dir), Ok(start)) = (std::env::var(DIR), std::env::var(START)) {
        runtime.block_on(live(Path::new(&dir), start.parse().unwrap()));
        return;
    }

    let dir = tempfile::tempdir().unwrap();
    let mut highest = Acknowledged::new();
    let mut next = 1;
    for round in 0..ROUNDS {
        let after = Duration::from_micros(rand::random_range(0..120_000));
        let acknowledged = run_and_kill(dir.path(), next, after);
        for (key, value) in acknowledged {
            let known = highest.entry(key).or_default();
            *known = value.max(*known);
        }

        // A look without touching it, and a real opening, find all of it.
        let seen = inspect(dir.path()).unwrap_or_else(|error| panic!("round {round}: {error}"));
        // Every other time only the look, so that a child finds what a kill left.
        if round % 2 == 1 {
            next = highest.values().max().unwrap() + 1;
            check(round, &highest, seen.promised, &[&seen.record_with_log]);
            continue;
        }
        let opened = runtime.block_on(async {
            let cluster = Cluster::new();
            let member = cluster.start_in(dir.path(), 1).await;
            let at_once = member.record().borrow().clone();
            let promised = member.promised();
            let read = member.read_barrier().await.unwrap();
            member.shutdown().await;
            (at_once, promised, read)
        });
        check(round, &highest, seen.promised, &[&seen.record_with_log]);
        check(round, &highest, opened.1, &[&opened.0, &opened.2]);
        next = highest.values().max().unwrap() + 1;
    }
    let entries = inspect(dir.path()).unwrap().last_log_index;
    println!("{ROUNDS} kills, {entries:?} entries, highest acknowledged {highest:?}");
    assert!(highest.contains_key("promise"));
}

/// The file size limit stands in for a full disk: a write beyond it fails just so.
#[test]
fn a_full_disk_stops_the_member_and_loses_nothing() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    // The signal that goes with the limit is ignored, and stays so in what the shell becomes.
    let child = Command::new("sh")
        .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "nothing_acknowledged_is_lost_by_a_kill", "--nocapture"])
        // What a killed child leaves behind goes with the rest.
        .env("TMPDIR", dir.path())
        .env(DIR, dir.path())
        .env(START, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Killed(child);
    let mut acknowledged = Acknowledged::new();
    let mut end = None;
    let mut limited = false;
    for line in BufReader::new(child.0.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let words: Vec<_> = line.split(' ').skip_while(|word| *word != "ack").collect();
        if let [_, key, value] = words[..] {
            acknowledged.insert(key.to_owned(), value.parse().unwrap());
        }
        if line.starts_with("end ") {
            end = Some(line);
        }
        if acknowledged.len() as u64 > LANES && !limited {
            limited = true;
            let pid = child.0.id().to_string();
            let done =
                Command::new("prlimit").args(["--pid", &pid, "--fsize=8192"]).status().unwrap();
            assert!(done.success());
        }
    }
    child.0.wait().unwrap();
    let end = end.expect("the member went on without a disk");
    assert!(end.contains("Fault") || end.contains("TimedOut"), "{end}");
    assert!(end.contains("fault Some("), "{end}");

    runtime.block_on(async {
        let cluster = Cluster::new();
        let member = cluster.start_in(dir.path(), 1).await;
        let record = member.read_barrier().await.unwrap();
        check(0, &acknowledged, member.promised(), &[&record]);
        member.shutdown().await;
    });
}
