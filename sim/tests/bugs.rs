//! The simulation finds something: bugs put in on purpose, one at a time, in the simulated shell
//! (never in production code), are each caught by the invariant that is there for them.

use sempre_sim::{Bug, run_many};

/// As many as `make test` runs; each of these is caught much sooner.
const SEEDS: u64 = 2_000;

/// Some seed from `from` on shows `bug` by one of the invariants that are there for it. (It may
/// break others as well, and which seed ends first is up to the threads.)
fn catches(bug: Bug, from: u64, expected: &[&str]) {
    let mut caught = false;
    run_many(from, SEEDS, 2, Some(bug), |outcome| {
        caught |= outcome.violation.is_some_and(|v| expected.contains(&v.invariant));
        !caught
    });
    assert!(caught, "{bug:?} was not caught by {expected:?} in {SEEDS} seeds from {from}");
}

#[test]
fn a_lease_counted_from_the_answers_arrival() {
    catches(Bug::LeaseFromArrival, 0, &["one-lease", "one-serves"]);
}

#[test]
fn a_promotion_without_fencing() {
    catches(Bug::PromoteWithoutFencing, 0, &["no-commit-lost", "one-lease", "one-serves"]);
}

#[test]
fn a_sync_set_shrunk_in_the_database_first() {
    catches(Bug::ShrinkDatabaseFirst, 0, &["enforced-is-relied-on", "no-commit-lost"]);
}

#[test]
fn an_attestation_before_the_guard_has_killed() {
    catches(Bug::AttestWithoutKilling, 0, &["one-serves", "one-lease", "one-acknowledges"]);
}

#[test]
fn timelines_that_two_members_number_alike() {
    catches(Bug::OwnTimelines, 0, &["one-history"]);
}

#[test]
fn a_voter_that_forgets_its_promise() {
    catches(Bug::ForgetPromise, 0, &["one-lease", "one-serves", "no-commit-lost"]);
}

#[test]
fn an_archiver_that_looks_for_the_fence_too_early() {
    catches(Bug::ArchiveFenceSeenEarly, 0, &["no-commit-lost"]);
}

#[test]
fn a_replaced_member_that_grants_before_it_votes() {
    catches(Bug::GrantBeforeVoting, 0, &["one-lease", "one-serves", "no-commit-lost"]);
}
