//! Who keeps the WAL in a repository. Every member comes to it by itself; two that come to different
//! results for a moment do no harm: the replication slot is one, and what is stored twice is the same.
//!
//! And when a repository may stand in for a standby in the sync set.

use crate::LeaderView;
use sempre_model::{
    MemberId, MemberKind, Phase, Record,
    backup::{StoreAt, archiver_of},
};
use std::collections::BTreeMap;

/// Does a member that is heard keep WAL in this repository, with no gap behind its base backup? Or
/// did one just now: another one takes its place within a moment.
pub fn attended(view: &LeaderView, repository: &str) -> bool {
    let policy = &view.record.policy;
    let patience = policy.sync_timeout_ms + SILENT * policy.detect_ms;
    let heard = |m: &MemberId| view.heard.get(m).filter(|_| view.age(m) < Some(patience));
    let members = view.record.members.keys().filter_map(heard);
    let archives = members.filter_map(|h| h.observation.archives.get(repository));
    archives.into_iter().any(|archive| archive.gap.is_none())
}

/// The repositories that a commit may wait for, by the names of their archivers: what is there can
/// be restored, and is not on the primary's own machine, as far as that is known.
pub fn eligible<'a>(view: &'a LeaderView) -> impl Iterator<Item = MemberId> + 'a {
    let backups = &view.record.backups;
    let primary = view.record.primary.as_ref();
    let elsewhere = move |at: &StoreAt| match at {
        StoreAt::Member(at) => Some(&at.member) != primary,
        StoreAt::Folder(_) | StoreAt::S3(_) => true,
    };
    let places = backups.repositories.iter().filter(|_| view.record.policy.archive_in_sync_set);
    let names = places.filter(move |(_, place)| elsewhere(&place.store)).map(|(name, _)| name);
    names
        .filter(|name| backups.newest_unix_ms.contains_key(*name) && attended(view, name))
        .filter_map(|name| archiver_of(name).ok())
        .filter(|name| view.record.archive(name).is_some())
}

/// Whose duty it is. `alive` are the members that are heard, each with whether it does it now.
///
/// Whoever does it goes on. Else rather a member without the primary, so that losing that machine
/// does not take the archiver with it; a witness has the least to do.
pub fn archiver(
    record: &Record,
    repository: &str,
    alive: &BTreeMap<MemberId, bool>,
) -> Option<MemberId> {
    let place = record.backups.repositories.get(repository)?;
    let candidates = alive
        .iter()
        .filter(|(name, _)| record.members.contains_key(*name) && place.is_reached_by(name));
    let rank = |(name, does): &(&MemberId, &bool)| {
        let kind = record.members.get(*name).map(|m| m.kind);
        let is_primary = record.primary.as_ref() == Some(*name);
        (!**does, is_primary, kind != Some(MemberKind::Witness), (*name).clone())
    };
    candidates.min_by_key(rank).map(|(name, _)| name.clone())
}

/// A member that was not heard for so many times the detection time keeps no WAL.
pub const SILENT: u64 = 2;

/// After a base backup that failed, the next one is due so much later, at the most: ms.
pub(crate) const RETRY_MAX_MS: u64 = 15 * 60_000;

/// Repositories in which a base backup is due, by the policy's interval.
pub fn due(record: &Record, now_unix_ms: u64) -> Vec<String> {
    let interval = record.policy.backup_interval_ms;
    if interval == 0 || record.paused || record.phase != Phase::Serving {
        return Vec::new();
    }
    let backups = &record.backups;
    let is_due = |name: &&String| {
        let newest = backups.newest_unix_ms.get(*name).copied().unwrap_or(0);
        // One that failed is tried again, but not all the time.
        let failed = backups.ended.get(*name).filter(|ended| ended.outcome.is_err());
        let failed = failed.map_or(0, |ended| ended.at_unix_ms);
        let at = (newest + interval).max(failed + interval.min(RETRY_MAX_MS));
        !backups.orders.contains_key(*name) && now_unix_ms >= at
    };
    backups.repositories.keys().filter(is_due).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sempre_model::{
        Member,
        backup::{BackupEnded, BackupKey, Repository},
        member::Ports,
    };

    fn name(name: &str) -> MemberId {
        MemberId::new(name).unwrap()
    }

    #[test]
    fn backups_are_due_by_the_interval_and_not_again_at_once_when_one_failed() {
        let mut record = Record { phase: Phase::Serving, ..Record::default() };
        let place = Repository {
            store: StoreAt::Folder("/r".into()),
            members: Default::default(),
            key: BackupKey("k".into()),
            made_unix_ms: 0,
        };
        record.backups.repositories.insert("main".into(), place);
        let hour = 3_600_000;
        let now = 1_000 * hour;
        assert!(due(&record, now).is_empty(), "no interval");
        record.policy.backup_interval_ms = hour;
        assert_eq!(due(&record, now), ["main"], "there was none yet");
        record.backups.newest_unix_ms.insert("main".into(), now);
        assert!(due(&record, now + hour - 1).is_empty());
        assert_eq!(due(&record, now + hour), ["main"]);
        let ended = BackupEnded {
            member: name("a"),
            at_unix_ms: now + hour,
            outcome: Err("no space".into()),
        };
        record.backups.ended.insert("main".into(), ended);
        assert!(due(&record, now + hour + RETRY_MAX_MS - 1).is_empty());
        assert_eq!(due(&record, now + hour + RETRY_MAX_MS), ["main"]);
        record.paused = true;
        assert!(due(&record, now + 2 * hour).is_empty());
    }

    #[test]
    fn the_duty_stays_and_prefers_who_is_not_primary() {
        let mut record = Record { primary: Some(name("a")), ..Record::default() };
        for (at, kind) in
            [("a", MemberKind::Data), ("b", MemberKind::Data), ("w", MemberKind::Witness)]
        {
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
        let place = Repository {
            store: StoreAt::Folder("/r".into()),
            members: [name("a"), name("b")].into(),
            key: BackupKey("k".into()),
            made_unix_ms: 0,
        };
        record.backups.repositories.insert("main".into(), place);
        let alive = |doing: &[(&str, bool)]| -> Option<MemberId> {
            let alive = doing.iter().map(|(at, does)| (name(at), *does)).collect();
            archiver(&record, "main", &alive)
        };
        assert_eq!(alive(&[("a", false), ("b", false), ("w", false)]), Some(name("b")));
        assert_eq!(alive(&[("a", true), ("b", false)]), Some(name("a")), "it stays");
        assert_eq!(alive(&[("a", false)]), Some(name("a")), "rather the primary than nobody");
        assert_eq!(alive(&[("w", true), ("x", true)]), None, "they do not reach it");
        record.backups.repositories.get_mut("main").unwrap().members.clear();
        let all = [("a", false), ("b", false), ("w", false)];
        let alive = all.iter().map(|(at, does)| (name(at), *does)).collect();
        assert_eq!(archiver(&record, "main", &alive), Some(name("w")));
        assert_eq!(archiver(&record, "other", &alive), None);
    }
}
