//! The simulation of the record replays, and finds what is put in on purpose.

use sempre_sim::record::{Bug, run, run_many};

/// More seeds than any of these needs.
const SEEDS: u64 = 60;

/// Seeds that failed at some time, with what they found then. What a seed stands for changes
/// whenever the shapes do.
const FOUND: [(u64, &str); 6] = [
    (1077, "a leader that went on after a restart let a reader see less than others had applied"),
    (1120, "the same"),
    (1762, "the same"),
    (1267, "entries were purged before the snapshot that holds them was on disk; a power cut"),
    (1035, "a candidate with an old log and short election times kept all others from winning"),
    (1108, "the same"),
];

fn catches(bug: Bug, expected: &[&str]) {
    let mut caught = false;
    run_many(0, SEEDS, 2, Some(bug), |outcome| {
        caught |= outcome.violation.is_some_and(|v| expected.contains(&v.invariant));
        !caught
    });
    assert!(caught, "{bug:?} was not caught by {expected:?} in {SEEDS} seeds");
}

/// Exact only where tokio's own chance is seeded too; see `record`.
#[cfg(tokio_unstable)]
#[test]
fn the_same_seed_gives_the_same_trace() {
    let mut hashes = Vec::new();
    for seed in [1, 2, 3, 7, 11, 12] {
        let (first, second) = (run(seed, None, false), run(seed, None, false));
        assert_eq!(first.hash, second.hash, "seed {seed}");
        hashes.push(first.hash);
    }
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), 6, "another seed gives another trace");
}

#[cfg(tokio_unstable)]
#[test]
fn threads_change_nothing() {
    let mut together = Vec::new();
    run_many(50, 8, 3, None, |outcome| {
        together.push((outcome.seed, outcome.hash));
        true
    });
    together.sort_unstable();
    let alone: Vec<_> = (50..58).map(|seed| (seed, run(seed, None, false).hash)).collect();
    assert_eq!(together, alone);
}

#[test]
fn a_disk_that_lies_about_syncs_is_caught() {
    let expected = ["one-history", "acknowledged", "member-goes-on", "promise-kept", "opens-again"];
    catches(Bug::LyingDisk, &expected);
}

#[test]
fn a_read_that_asks_nobody_is_caught() {
    catches(Bug::ReadWithoutAsking, &["read-barrier"]);
}

#[test]
fn seeds_that_once_failed_pass() {
    for (seed, what) in FOUND {
        assert_eq!(run(seed, None, false).violation, None, "seed {seed}: {what}");
    }
}
