//! A seed replays exactly, and seeds that once failed pass.

use sempre_sim::{run, run_many};

/// Seeds that failed at some time, with what they found then. What a seed stands for changes
/// whenever the scenarios do; each finding has a test of its own in `crates/decide` as well.
const FOUND: [(u64, &str); 18] = [
    (0, "strict: a first sync set that nobody could fill; the cluster stayed in `promoting`"),
    (18, "a promoted primary that crashed before it served was never started again"),
    (43, "a new lease was condemned by grants heard before it"),
    (166, "two fast promotions in a row: the lease before the last still ran"),
    (221, "standbys on a dead branch blocked the confirmation of the new primary"),
    (281, "the sync set was narrowed by a word of the primary older than the record"),
    (422, "an accepted loss was counted before anybody had seen it"),
    (1241, "a replaced member granted a lease that it had promised not to"),
    (1443, "a first sync set was confirmed before every walsender knew it"),
    (4046, "the leader's own stream from the primary did not count as a sign of life"),
    (3658, "a shutdown that lost its agent half-way never came to its end"),
    (8731, "a clean hand-over went to a standby as far on, but on another timeline"),
    (11379, "a leader that was paused condemned the primary by its own deafness"),
    (
        412,
        "an archiver that was fenced began anew and acknowledged what was stored after the fence was read",
    ),
    (802, "the same, beside a stranded primary"),
    (
        19770,
        "a standby on the timeline of a primary that never served counted as the most advanced",
    ),
    (22526, "the same, among six"),
    (11658, "WAL of a primary that was promoted and never served counted as the archive's end"),
];

#[test]
fn the_same_seed_gives_the_same_trace() {
    let mut hashes = Vec::new();
    for seed in [1, 2, 3, 7, 11] {
        let (first, second) = (run(seed, None, false), run(seed, None, false));
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert_eq!(first.stats.events, second.stats.events, "seed {seed}");
        hashes.push(first.hash);
    }
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), 5, "another seed gives another trace");
}

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
fn seeds_that_once_failed_pass() {
    for (seed, what) in FOUND {
        assert_eq!(run(seed, None, false).violation, None, "seed {seed}: {what}");
    }
}
