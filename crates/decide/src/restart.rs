//! Restarts of databases: which go first, and what becomes of one whose time has come.

use crate::{LeaderView, leader::alive};
use sempre_model::{MemberId, Phase, command::Change, restart::ScheduledRestart};

/// A standby refuses to follow a primary where one of these is larger than its own. So a larger
/// value goes to the standbys first, a smaller one to the primary first.
pub const STANDBYS_FIRST_ON_INCREASE: [&str; 5] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];

/// A restart that could not be begun for so long after its time is dropped, ms: much later, nobody
/// reckons with it any more. Until then a few members of one schedule get their turns.
pub const LATE_MAX_MS: u64 = 300_000;

/// The standbys to restart before `member`, as a parameter that is pending there must be in force
/// there first. None, if `member` is not the primary.
pub fn standbys_first(view: &LeaderView, member: &MemberId) -> Vec<MemberId> {
    if view.record.primary.as_ref() != Some(member) {
        return Vec::new();
    }
    let waits = |name: &MemberId| {
        view.heard.get(name).and_then(|h| h.observation.database.as_ref()).is_some_and(|d| {
            d.pending_restart.iter().any(|p| STANDBYS_FIRST_ON_INCREASE.contains(&p.as_str()))
        })
    };
    let others = view.record.data_members().filter(|m| m.name != *member);
    others.filter(|m| waits(&m.name)).map(|m| m.name.clone()).collect()
}

/// What is to be done about a scheduled restart that is due.
enum Verdict {
    Begin,
    Wait(String),
    Drop(String),
}

/// Standbys come before the primary, and one at a time: those that are left go on serving.
pub(crate) fn on_schedule(view: &LeaderView, why_not: &mut Vec<String>) -> Option<Change> {
    let record = view.record;
    let scheduled = record.scheduled_restarts.iter();
    let mut due: Vec<_> = scheduled.filter(|(_, w)| w.at_unix_ms <= view.now_unix_ms).collect();
    due.sort_by_key(|(member, wish)| {
        (record.primary.as_ref() == Some(*member), wish.at_unix_ms, *member)
    });
    for (member, wish) in due {
        let end = |dropped| Change::EndScheduledRestart {
            member: member.clone(),
            at_unix_ms: wish.at_unix_ms,
            dropped,
        };
        match judge(view, member, wish) {
            Verdict::Begin => return Some(end(None)),
            Verdict::Drop(why) => return Some(end(Some(why))),
            Verdict::Wait(why) if view.now_unix_ms - wish.at_unix_ms > LATE_MAX_MS => {
                return Some(end(Some(format!("{} s later {why}", LATE_MAX_MS / 1_000))));
            }
            Verdict::Wait(why) => why_not.push(format!("scheduled restart of {member}: {why}")),
        }
    }
    None
}

fn judge(view: &LeaderView, member: &MemberId, wish: &ScheduledRestart) -> Verdict {
    let record = view.record;
    if record.paused {
        return Verdict::Wait("the cluster is paused".into());
    }
    if record.phase != Phase::Serving {
        return Verdict::Wait(format!("the cluster is {}", record.phase.name()));
    }
    if let Some(other) = record.restarts.keys().next() {
        return Verdict::Wait(format!("{other} is still to restart"));
    }
    let Some(database) = view.database(member).filter(|_| alive(view, member)) else {
        return Verdict::Wait(format!("{member} is not running"));
    };
    if let Some(why) = wish.only_if.unmet(Some(database)) {
        return Verdict::Drop(why);
    }
    match standbys_first(view, member).first() {
        Some(first) => {
            Verdict::Wait(format!("a parameter that is pending must be in force on {first} first"))
        }
        None => Verdict::Begin,
    }
}
