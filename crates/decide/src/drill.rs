//! When a restore is tried, and by whom.

use sempre_model::{MemberId, MemberKind, Phase, Record};
use std::collections::BTreeMap;

/// A drill that failed is tried again so much later, at the most: ms.
const RETRY_MAX_MS: u64 = 6 * 3_600_000;
/// One that says nothing for so long, or for an interval if that is longer, was lost with its member: ms.
const LOST_MS: u64 = 12 * 3_600_000;

/// Repositories from which a restore is to be tried, by the policy's interval.
pub fn due(record: &Record, now_unix_ms: u64) -> Vec<String> {
    let interval = record.policy.drill_interval_ms;
    if interval == 0 || record.paused || record.phase != Phase::Serving {
        return Vec::new();
    }
    let backups = &record.backups;
    let is_due = |name: &&String| {
        // Without a backup there is nothing to be tried.
        if !backups.newest_unix_ms.contains_key(*name) {
            return false;
        }
        let under_way = backups.drills.get(*name);
        if under_way.is_some_and(|o| now_unix_ms < o.at_unix_ms + interval.max(LOST_MS)) {
            return false;
        }
        let failed = backups.proved.get(*name).is_some_and(Result::is_err);
        let wait = if failed { interval.min(RETRY_MAX_MS) } else { interval };
        backups.drilled_unix_ms.get(*name).is_none_or(|last| now_unix_ms >= last + wait)
    };
    backups.repositories.keys().filter(is_due).cloned().collect()
}

/// Who does it: rather not the primary, and rather not who keeps the WAL. `alive` are the members that are
/// heard, each with whether it keeps WAL now.
pub fn driller(
    record: &Record,
    repository: &str,
    alive: &BTreeMap<MemberId, bool>,
) -> Option<MemberId> {
    let place = record.backups.repositories.get(repository)?;
    let able = |name: &MemberId| {
        let known = record.members.get(name);
        known.is_some_and(|m| m.kind == MemberKind::Data) && place.is_reached_by(name)
    };
    let rank = |(name, archives): &(&MemberId, &bool)| {
        (record.primary.as_ref() == Some(*name), **archives, (*name).clone())
    };
    alive.iter().filter(|(name, _)| able(name)).min_by_key(rank).map(|(name, _)| name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sempre_model::{
        Member,
        backup::{BackupKey, DrillOrder, Repository, StoreAt},
        member::Ports,
    };

    fn name(name: &str) -> MemberId {
        MemberId::new(name).unwrap()
    }

    fn record() -> Record {
        let mut record = Record { phase: Phase::Serving, ..Record::default() };
        let place = Repository {
            store: StoreAt::Folder("/r".into()),
            members: Default::default(),
            key: BackupKey("k".into()),
            made_unix_ms: 0,
        };
        record.backups.repositories.insert("main".into(), place);
        record
    }

    #[test]
    fn drills_are_due_by_the_interval_sooner_after_a_failure_and_one_at_a_time() {
        let mut record = record();
        let hour = 3_600_000;
        let now = 1_000 * hour;
        assert!(due(&record, now).is_empty(), "no interval");
        record.policy.drill_interval_ms = 100 * hour;
        assert!(due(&record, now).is_empty(), "no backup");
        record.backups.newest_unix_ms.insert("main".into(), now);
        assert_eq!(due(&record, now), ["main"]);
        let order = DrillOrder { member: name("a"), version: 1, at_unix_ms: now };
        record.backups.drills.insert("main".into(), order);
        assert!(due(&record, now + 99 * hour).is_empty(), "it is under way");
        assert_eq!(due(&record, now + 100 * hour), ["main"], "it was lost");
        record.backups.drills.clear();
        record.backups.drilled_unix_ms.insert("main".into(), now);
        assert!(due(&record, now + 99 * hour).is_empty());
        assert_eq!(due(&record, now + 100 * hour), ["main"]);
        record.backups.proved.insert("main".into(), Err("no".into()));
        assert!(due(&record, now + RETRY_MAX_MS - 1).is_empty());
        assert_eq!(due(&record, now + RETRY_MAX_MS), ["main"]);
        record.paused = true;
        assert!(due(&record, now + RETRY_MAX_MS).is_empty());
    }

    #[test]
    fn the_primary_does_it_only_when_it_is_alone() {
        let mut record = record();
        record.primary = Some(name("a"));
        for (at, kind) in [
            ("a", MemberKind::Data),
            ("b", MemberKind::Data),
            ("c", MemberKind::Data),
            ("w", MemberKind::Witness),
        ] {
            let member = Member {
                name: name(at),
                node: 1,
                kind,
                paths: Vec::new(),
                ports: Ports::default(),
                zone: None,
                tags: Default::default(),
                own_certificate: false,
            };
            record.members.insert(name(at), member);
        }
        let who = |alive: &[(&str, bool)]| {
            let alive = alive.iter().map(|(at, archives)| (name(at), *archives)).collect();
            driller(&record, "main", &alive)
        };
        assert_eq!(who(&[("a", false), ("b", true), ("c", false)]), Some(name("c")));
        assert_eq!(who(&[("a", false), ("b", true)]), Some(name("b")));
        assert_eq!(who(&[("a", false), ("w", false)]), Some(name("a")));
        assert_eq!(who(&[("w", false)]), None);
    }
}
