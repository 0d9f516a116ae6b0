//! When files are backed up: in the schedule of base backups.

use crate::archive::RETRY_MAX_MS;
use sempre_model::{Record, backup::KeptFiles};
use std::collections::BTreeSet;

/// Sets of files of which a backup is due, by the policy's interval; of each repository one, as one is made
/// at a time: the one that waits longest.
pub fn due(record: &Record, now_unix_ms: u64) -> Vec<String> {
    let interval = record.policy.backup_interval_ms;
    if interval == 0 || record.paused {
        return Vec::new();
    }
    let backups = &record.backups;
    let due_at = |kept: &KeptFiles| {
        let newest = kept.newest_unix_ms.map_or(0, |newest| newest + interval);
        // One that failed is tried again, but not all the time.
        let failed = kept.ended.as_ref().filter(|ended| ended.outcome.is_err());
        let again = failed.map_or(0, |ended| ended.at_unix_ms + interval.min(RETRY_MAX_MS));
        newest.max(again)
    };
    let waiting = backups.files.iter().filter(|(_, kept)| {
        record.members.contains_key(&kept.set.member)
            && !backups.files_are_written(&kept.set.repository)
    });
    let mut waiting: Vec<_> = waiting.map(|(name, kept)| (due_at(kept), name, kept)).collect();
    waiting.retain(|(at, ..)| *at <= now_unix_ms);
    waiting.sort_by_key(|(at, name, _)| (*at, *name));
    let mut busy = BTreeSet::new();
    waiting.retain(|(.., kept)| busy.insert(&kept.set.repository));
    waiting.into_iter().map(|(_, name, _)| name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sempre_model::{
        Member, MemberId, MemberKind,
        backup::{BackupEnded, FileSet, FilesOrder},
        member::Ports,
    };

    const HOUR: u64 = 3_600_000;

    fn record() -> Record {
        let mut record = Record::default();
        let name = MemberId::new("m1").unwrap();
        let member = Member {
            name: name.clone(),
            node: 1,
            kind: MemberKind::Witness,
            paths: Vec::new(),
            ports: Ports::default(),
            zone: None,
            tags: Default::default(),
            own_certificate: false,
        };
        record.members.insert(name.clone(), member);
        for (set, repository) in [("a", "main"), ("b", "main"), ("c", "other")] {
            let set_of = FileSet {
                repository: repository.into(),
                member: name.clone(),
                paths: vec!["/srv".into()],
                excludes: Vec::new(),
            };
            let kept = KeptFiles {
                set: set_of,
                added_unix_ms: 0,
                order: None,
                ended: None,
                newest_unix_ms: None,
            };
            record.backups.files.insert(set.into(), kept);
        }
        record
    }

    #[test]
    fn one_of_each_repository_is_due_and_not_at_once_again_when_it_failed() {
        let mut record = record();
        let now = 1000 * HOUR;
        assert!(due(&record, now).is_empty(), "no interval");
        record.policy.backup_interval_ms = HOUR;
        assert_eq!(due(&record, now), ["a", "c"]);
        let order = FilesOrder { full: false, version: 1, at_unix_ms: now };
        record.backups.files.get_mut("c").unwrap().order = Some(order);
        assert_eq!(due(&record, now), ["a"], "c is being made");
        record.backups.files.get_mut("a").unwrap().newest_unix_ms = Some(now);
        assert_eq!(due(&record, now), ["b"]);
        let ended = BackupEnded {
            member: MemberId::new("m1").unwrap(),
            at_unix_ms: now,
            outcome: Err("unreadable".into()),
        };
        record.backups.files.get_mut("b").unwrap().ended = Some(ended);
        assert!(due(&record, now + RETRY_MAX_MS - 1).is_empty());
        assert_eq!(due(&record, now + RETRY_MAX_MS), ["b"]);
        assert_eq!(due(&record, now + HOUR), ["b"], "it waits longer than a");
        record.backups.files.remove("b");
        assert_eq!(due(&record, now + HOUR), ["a"]);
        record.paused = true;
        assert!(due(&record, now + HOUR).is_empty());
        record.paused = false;
        record.members.clear();
        assert!(due(&record, now + HOUR).is_empty(), "its member is gone");
    }
}
