//! When an object may be deleted: pure, from its name and what is known of it.
//!
//! A window protects *backups*, not objects: what a young backup, or one under a hold, uses stays as long as
//! the backup does, however old it is itself.

use crate::names::{
    self, BACKUPS, IDENTITY, KEEPS, KEYS, MARKS, PACKS, REPOSITORY, SEGMENTS, WRITERS,
};
use std::time::Duration;

/// What was left half written may go when nobody writes it any more.
const UNFINISHED_MS: u64 = 3600 * 1000;
const HISTORIES: &str = "history/";

/// What is known of an object that is to be deleted, and of what is beside it.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts<'a> {
    pub(super) key: &'a str,
    /// Since its file was last changed in any way, ms. The owner of a file can set any other time of it.
    pub(super) age_ms: u64,
    /// A young backup, or one under a hold, that uses it.
    pub(super) kept_for: Option<String>,
    /// The backup whose it is is under a hold, or was less than a window ago.
    pub(super) is_held: bool,
    /// The backup whose it is is still there.
    pub(super) is_there: bool,
    /// It is a fence, and a newer one is there.
    pub(super) is_outdone: bool,
    /// For how long another key has opened the same, ms.
    pub(super) replaced_for_ms: Option<u64>,
}

fn days(ms: u64) -> String {
    match ms.div_ceil(3_600_000) {
        hours @ 0..48 => format!("{hours} hours"),
        hours => format!("{} days", hours / 24),
    }
}

/// Why it must stay, in words; none: it may go.
pub(super) fn must_stay(facts: &Facts<'_>, window: Duration) -> Option<String> {
    let window_ms = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
    let key = facts.key;
    if key.starts_with(crate::store::folder::UNFINISHED) {
        return (facts.age_ms < UNFINISHED_MS).then(|| "it may still be written".to_owned());
    }
    if key == REPOSITORY || key == IDENTITY || key.starts_with(HISTORIES) {
        return Some("every backup needs it".to_owned());
    }
    // No backup, and what stays holds off every writer that the others do: the newest.
    if names::fence_of(key).is_some() {
        return (!facts.is_outdone).then(|| "it holds off writers of older generations".to_owned());
    }
    if facts.age_ms < window_ms {
        let left = days(window_ms - facts.age_ms);
        return Some(format!("it may be deleted in {left}"));
    }
    if key.starts_with(KEYS) {
        return match facts.replaced_for_ms {
            Some(ms) if ms >= window_ms => None,
            Some(ms) => Some(format!("another key replaces it in {}", days(window_ms - ms))),
            None => Some("no other key opens the same".to_owned()),
        };
    }
    let owner = [BACKUPS, SEGMENTS, PACKS, WRITERS, KEEPS, MARKS]
        .into_iter()
        .find_map(|prefix| names::owner(key, prefix));
    if let Some(owner) = owner {
        if facts.is_held {
            return Some(format!("backup {owner} is under a hold, or was until lately"));
        }
        if key.starts_with(MARKS) && facts.is_there {
            return Some(format!("backup {owner} is still there"));
        }
    }
    facts.kept_for.as_ref().map(|backup| format!("backup {backup} uses it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600 * 1000;
    const WINDOW: Duration = Duration::from_secs(30 * 24 * 3600);

    fn old(key: &str) -> Facts<'_> {
        Facts { key, age_ms: 31 * DAY, ..Facts::default() }
    }

    #[test]
    fn what_is_young_stays_and_what_is_old_goes() {
        for key in ["packs/a/00000001", "wal/00000001/0000000000000001", "backups/a", "keeps/a"] {
            assert_eq!(must_stay(&old(key), WINDOW), None, "{key}");
            let young = Facts { age_ms: 30 * DAY - 1, ..old(key) };
            assert!(must_stay(&young, WINDOW).is_some(), "{key}");
        }
    }

    #[test]
    fn what_everything_needs_never_goes() {
        for key in ["repository", "identity", "history/00000002", "keys/00000001.a"] {
            assert!(
                must_stay(&Facts { age_ms: 9999 * DAY, ..old(key) }, WINDOW).is_some(),
                "{key}"
            );
        }
        let replaced = |ms| Facts { replaced_for_ms: Some(ms), ..old("keys/00000001.a") };
        assert!(must_stay(&replaced(29 * DAY), WINDOW).is_some());
        assert_eq!(must_stay(&replaced(30 * DAY), WINDOW), None);
    }

    #[test]
    fn what_is_used_or_held_stays() {
        let used = Facts { kept_for: Some("b".into()), ..old("packs/a/00000001") };
        assert_eq!(must_stay(&used, WINDOW).unwrap(), "backup b uses it");
        for key in ["packs/a/00000001", "backups/a", "segments/a/000000", "keeps/a", "marks/a/held"]
        {
            let held = Facts { is_held: true, ..old(key) };
            assert!(must_stay(&held, WINDOW).unwrap().contains("hold"), "{key}");
        }
        let mark = Facts { is_there: true, ..old("marks/a/forgotten") };
        assert!(must_stay(&mark, WINDOW).is_some());
        assert_eq!(must_stay(&old("marks/a/forgotten"), WINDOW), None);
    }

    /// Fences come with failovers, and none of them is a backup.
    #[test]
    fn the_newest_fence_stays_and_others_go_at_any_time() {
        for age_ms in [0, 31 * DAY] {
            let fence = |is_outdone| Facts { is_outdone, age_ms, ..old("fences/007") };
            assert_eq!(must_stay(&fence(true), WINDOW), None);
            assert!(must_stay(&fence(false), WINDOW).is_some());
        }
        // Whatever else is there, nobody knows what it means.
        let other = |age_ms| Facts { age_ms, is_outdone: true, ..old("fences/x") };
        assert!(must_stay(&other(0), WINDOW).is_some());
        assert_eq!(must_stay(&other(31 * DAY), WINDOW), None);
    }

    #[test]
    fn what_was_left_half_written_goes_soon() {
        let left = |age_ms| Facts { age_ms, ..old("tmp/0123") };
        assert!(must_stay(&left(UNFINISHED_MS - 1), WINDOW).is_some());
        assert_eq!(must_stay(&left(UNFINISHED_MS), WINDOW), None);
    }
}
