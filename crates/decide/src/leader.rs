//! What the Raft leader proposes: one ordered table, the first rule that fires wins.
//!
//! Every proposal carries the generation (and, for the sync set, the value) it was made from, so
//! that one that comes too late is refused when it is applied.

use crate::{
    LeaderView, archive, detect,
    promote::{self, Choice},
    restart,
    sync::{future_commits_safe, hull, past_commits_safe},
};
use sempre_model::{
    Lsn, Member, MemberId, SyncSet,
    command::Change,
    observation::{Database, DiskState, ProcessState, Role},
    policy::Durability,
    record::{Cause, Phase, Switchover},
};
use std::collections::BTreeSet;

/// A standby joins the sync set only when it is this close, bytes: a commit may have to wait for
/// it from then on.
const SYNC_JOIN_LAG_BYTES: u64 = 16 << 20;
/// An idle standby replies once a second, so only this much silence towards its primary counts
/// against it, ms, on top of `sync_timeout_ms`.
const IDLE_REPLY_MS: u64 = 1_500;
/// How long the first standbys of a new primary may take to stream from it, ms.
const FIRST_STREAM_MS: u64 = 3_000;
/// A hand-over that did not stop the primary in this time is given up, ms.
const HAND_OVER_MS: u64 = 15_000;

/// The event of a pause or its end, as `sempre-model` writes it.
const PAUSE_EVENT: &str = "pause";
/// The event of a primary that was lost in a pause.
const LOST_IN_PAUSE: &str = "lost-in-pause";

/// What to propose, and the rule that says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The rule that fired.
    pub rule: &'static str,
    /// The change.
    pub change: Change,
}

/// The outcome of one decision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// What to propose, if anything.
    pub proposal: Option<Proposal>,
    /// Why nothing (more) is done, in words, for `status`.
    pub why_not: Vec<String>,
}

type Rule = fn(&LeaderView, &mut Vec<String>) -> Option<Change>;

/// The table. Order matters: safety of the present phase first, then wishes, then upkeep.
pub const RULES: [(&str, Rule); 10] = [
    ("fill-vacancy", fill_vacancy),
    ("confirm-serving", confirm_serving),
    ("shrink-while-promoting", shrink_while_promoting),
    ("complete-hand-over", complete_hand_over),
    ("replace-lost-primary", replace_lost_primary),
    ("abort-hand-over", abort_hand_over),
    ("leave-full-disk", leave_full_disk),
    ("begin-hand-over", begin_hand_over),
    ("restart-on-schedule", restart::on_schedule),
    ("keep-sync-set", keep_sync_set),
];

/// Decides what to propose now.
pub fn decide(view: &LeaderView) -> Decision {
    let mut why_not = Vec::new();
    for (rule, fires) in RULES {
        if let Some(change) = fires(view, &mut why_not) {
            return Decision { proposal: Some(Proposal { rule, change }), why_not };
        }
    }
    Decision { proposal: None, why_not }
}

fn fill_vacancy(view: &LeaderView, why_not: &mut Vec<String>) -> Option<Change> {
    if !matches!(view.record.phase, Phase::Fencing { .. }) {
        return None;
    }
    match promote::choose(view) {
        Choice::Wait(why) => {
            why_not.extend(why);
            None
        }
        Choice::Promote { to, fenced, evidence, .. } => {
            let mut standbys: BTreeSet<MemberId> = fenced
                .iter()
                .map(|f| f.member.clone())
                .filter(|m| *m != to && view.record.member(m).is_some_and(Member::can_sync))
                .collect();
            if view.record.policy.archive_in_sync_set {
                standbys.extend(promote::fenced_archives(view).into_iter().map(|f| f.member));
            }
            let sync = trim(view, &to, standbys);
            Some(Change::Promote { generation: view.record.generation, to, fenced, sync, evidence })
        }
    }
}

/// The promoted primary, as far as it says it is one.
fn promoted<'a>(view: &'a LeaderView) -> Option<(&'a MemberId, &'a Database, &'a SyncSet)> {
    let Phase::Promoting { sync, .. } = &view.record.phase else { return None };
    let primary = view.record.primary.as_ref()?;
    let database = view.database(primary)?;
    let is = database.process == ProcessState::Running
        && database.role == Role::Primary
        && database.generation == view.record.generation;
    is.then_some((primary, database, sync))
}

fn confirm_serving(view: &LeaderView, why_not: &mut Vec<String>) -> Option<Change> {
    let (primary, database, sync) = promoted(view)?;
    let in_force = database.sync_since_lsn != Lsn(u64::MAX) && !outdated(view, primary);
    if database.sync.as_ref() != Some(sync) || !in_force {
        why_not.push(format!("{primary} does not enforce its first sync set yet"));
        return None;
    }
    let flushed = flushed(database, sync, database.recovered_lsn);
    if flushed < sync.k {
        why_not.push(format!(
            "{flushed} of {} standbys have flushed {}, the end of {primary}'s recovery",
            sync.k, database.recovered_lsn
        ));
        return None;
    }
    Some(Change::ConfirmServing {
        generation: view.record.generation,
        timeline: database.timeline,
        lsn: database.recovered_lsn,
    })
}

/// Its newest word was said before it knew the present record. What it enforced then it may
/// enforce no more, even if the wanted set was the same before and is again.
fn outdated(view: &LeaderView, member: &MemberId) -> bool {
    view.observation(member).is_none_or(|o| o.record_version < view.record.version)
}

/// How many of `sync` have flushed `lsn`, as the primary's walsenders see it.
fn flushed(database: &Database, sync: &SyncSet, lsn: Lsn) -> usize {
    sync.members
        .iter()
        .filter(|m| database.downstreams.get(*m).is_some_and(|d| d.flush_lsn >= lsn))
        .count()
}

/// A standby that was to confirm the new primary is lost as well. Where k may not fall (`strict`),
/// others take its place, or nobody could ever confirm.
fn shrink_while_promoting(view: &LeaderView, _: &mut Vec<String>) -> Option<Change> {
    let (primary, database, sync) = promoted(view)?;
    // One whose WAL went another way never streams, however alive it is.
    let late = view.now.saturating_sub(view.since) >= FIRST_STREAM_MS;
    let attached = |m: &&MemberId| !late || database.downstreams.contains_key(*m);
    let members = sync.members.iter().filter(|m| alive(view, m)).filter(attached);
    let alive: BTreeSet<_> = members.cloned().collect();
    let first = if !view.record.policy.strict {
        SyncSet { k: sync.k.min(alive.len()), members: alive }
    } else if alive.len() < sync.k {
        wished_sync(view, primary, database)
    } else {
        return None;
    };
    (first != *sync).then(|| Change::SetSync {
        generation: view.record.generation,
        expect: view.record.sync.clone(),
        sync: view.record.sync.clone(),
        why: format!("first sync set without the lost: {}", show(&first)),
        wanted: first,
    })
}

/// Heard lately, with a database at work; of a repository: somebody keeps WAL there.
pub(crate) fn alive(view: &LeaderView, member: &MemberId) -> bool {
    if let Some(repository) = view.record.archive(member) {
        return archive::attended(view, repository);
    }
    let timeout = view.record.policy.sync_timeout_ms;
    view.age(member).is_some_and(|age| age < timeout)
        && view.heard.get(member).is_some_and(|h| {
            h.observation.busy.is_none()
                && h.observation
                    .database
                    .as_ref()
                    .is_some_and(|d| d.process == ProcessState::Running)
        })
}

fn complete_hand_over(view: &LeaderView, _: &mut Vec<String>) -> Option<Change> {
    let Phase::HandingOver { to, .. } = &view.record.phase else { return None };
    let primary = view.record.primary.as_ref()?;
    let observation = view.observation(primary)?;
    (observation.attests_below > view.record.generation).then(|| Change::BeginFailover {
        expect: view.record.generation,
        cause: Cause::Switchover,
        target: Some(to.clone()),
        allow_data_loss: false,
        served_until_unix_ms: served_until_hand_over(view),
        evidence: vec![format!("{primary} has shut down to hand over to {to}")],
    })
}

fn served_until_hand_over(view: &LeaderView) -> u64 {
    match &view.record.phase {
        Phase::HandingOver { began_unix_ms, .. } => *began_unix_ms,
        _ => view.now_unix_ms,
    }
}

fn replace_lost_primary(view: &LeaderView, why_not: &mut Vec<String>) -> Option<Change> {
    if matches!(view.record.phase, Phase::Forming | Phase::Fencing { .. }) {
        return None;
    }
    let primary = view.record.primary.as_ref()?;
    let condemned = match detect::judge(view, primary) {
        // A crash is answered in place or by a failover; in a pause by neither.
        None if view.record.paused => detect::crashed(view, primary)?,
        condemned => condemned?,
    };
    if view.record.paused {
        why_not.push(format!(
            "{primary} is lost ({}), but the cluster is paused: nothing automatic happens",
            condemned.evidence.join("; ")
        ));
        return note_loss_in_pause(view, primary, &condemned);
    }
    let ago = view.now.saturating_sub(condemned.served_until);
    let served_until_unix_ms = match &view.record.phase {
        Phase::Promoting { served_until_unix_ms, .. } => *served_until_unix_ms,
        _ => view.now_unix_ms.saturating_sub(ago),
    };
    Some(Change::BeginFailover {
        expect: view.record.generation,
        cause: condemned.cause,
        target: None,
        allow_data_loss: false,
        served_until_unix_ms,
        evidence: condemned.evidence,
    })
}

/// What is left as it is in a pause is kept in the events, once a pause.
fn note_loss_in_pause(
    view: &LeaderView,
    primary: &MemberId,
    condemned: &detect::Condemned,
) -> Option<Change> {
    let since_pause = view.record.events.iter().rev().take_while(|e| e.rule != PAUSE_EVENT);
    if since_pause.into_iter().any(|e| e.rule == LOST_IN_PAUSE) {
        return None;
    }
    Some(Change::Note {
        rule: LOST_IN_PAUSE.into(),
        text: format!(
            "{primary} is lost ({}); the cluster is paused, so it is left as it is until `sempre resume`",
            condemned.evidence.join("; ")
        ),
    })
}

fn abort_hand_over(view: &LeaderView, _: &mut Vec<String>) -> Option<Change> {
    let Phase::HandingOver { to, .. } = &view.record.phase else { return None };
    let waited = view.now.saturating_sub(view.since);
    let why = if !alive(view, to) {
        format!("hand-over given up: {to} is lost")
    } else if waited > HAND_OVER_MS + view.record.policy.drain_timeout_ms {
        format!("hand-over given up: the primary did not stop within {waited} ms")
    } else {
        return None;
    };
    Some(Change::AbortHandOver { expect: view.record.generation, why })
}

/// The primary's disk is full, and it still answers: hand over while it can.
fn leave_full_disk(view: &LeaderView, why_not: &mut Vec<String>) -> Option<Change> {
    if view.record.phase != Phase::Serving || view.record.paused {
        return None;
    }
    let primary = view.record.primary.as_ref()?;
    if view.observation(primary)?.disk != DiskState::Full {
        return None;
    }
    let wish = Switchover { to: None, at_unix_ms: None };
    match target(view, primary, &wish) {
        Ok(to) => Some(Change::BeginHandOver { expect: view.record.generation, to }),
        Err(why) => {
            why_not.push(format!("{primary}'s disk is full, but {why}"));
            None
        }
    }
}

fn begin_hand_over(view: &LeaderView, why_not: &mut Vec<String>) -> Option<Change> {
    let wish = view.record.switchover.as_ref()?;
    if view.record.phase != Phase::Serving
        || wish.at_unix_ms.is_some_and(|at| at > view.now_unix_ms)
    {
        return None;
    }
    let primary = view.record.primary.as_ref()?;
    match target(view, primary, wish) {
        Err(why) => {
            why_not.push(format!("switchover: {why}"));
            None
        }
        Ok(_) if !warming(view).is_empty() => {
            let names: Vec<_> = warming(view).iter().map(|m| m.as_str()).collect();
            why_not.push(format!("switchover: sessions are warmed up by {}", names.join(", ")));
            None
        }
        Ok(_) if !view.observation(primary)?.hand_over_ready => {
            why_not.push(format!("switchover: {primary} is still doing its checkpoint"));
            None
        }
        Ok(to) => Some(Change::BeginHandOver { expect: view.record.generation, to }),
    }
}

/// Whose routing still logs sessions in to the target of a switchover. Each limits that by itself.
pub(crate) fn warming<'a>(view: &'a LeaderView) -> Vec<&'a MemberId> {
    let names = view.heard.keys();
    names.filter(|name| view.observation(name).is_some_and(|o| o.warming)).collect()
}

/// Who a switchover goes to, or why to nobody. The API asks this as well, before it accepts the
/// wish.
pub fn target(
    view: &LeaderView,
    primary: &MemberId,
    wish: &Switchover,
) -> Result<MemberId, String> {
    let database =
        view.database(primary).ok_or_else(|| format!("the primary {primary} is not heard"))?;
    let mut reasons = Vec::new();
    let mut able: Vec<(u64, i32, &MemberId)> = Vec::new();
    for member in view.record.data_members().filter(|m| m.name != *primary) {
        let name = &member.name;
        if wish.to.as_ref().is_some_and(|to| to != name) {
            continue;
        }
        match hand_over_obstacle(view, database, member) {
            None => {
                let lag = database
                    .downstreams
                    .get(name)
                    .map_or(u64::MAX, |d| database.lsn.bytes_since(d.flush_lsn));
                able.push((lag >> 20, -member.tags.priority, name));
            }
            Some(why) => reasons.push(why),
        }
    }
    able.sort();
    match able.first() {
        Some((_, _, name)) => Ok((*name).clone()),
        None if reasons.is_empty() => Err("there is no other member with a database".into()),
        None => Err(reasons.join("; ")),
    }
}

fn hand_over_obstacle(view: &LeaderView, primary: &Database, member: &Member) -> Option<String> {
    let name = &member.name;
    if !member.can_lead() {
        return Some(format!("{name} is never_primary"));
    }
    if !alive(view, name) {
        return Some(format!("{name} is not running"));
    }
    let Some(downstream) = primary.downstreams.get(name).filter(|d| d.state == "streaming") else {
        return Some(format!("{name} is not streaming from the primary"));
    };
    if downstream.flush_lsn == Lsn(0) {
        return Some(format!("{name} has just connected, and not said yet how far it has come"));
    }
    let lag = primary.lsn.bytes_since(downstream.flush_lsn);
    let limit = view.record.policy.switchover_max_lag_bytes;
    (lag > limit).then(|| {
        format!("{name} is {lag} bytes behind, more than switchover_max_lag_bytes ({limit})")
    })
}

fn keep_sync_set(view: &LeaderView, why_not: &mut Vec<String>) -> Option<Change> {
    let record = view.record;
    if record.phase != Phase::Serving {
        return None;
    }
    let primary = record.primary.as_ref()?;
    let database = view.database(primary)?;
    if database.role != Role::Primary || database.generation != record.generation {
        return None;
    }
    let enforced = database.sync.as_ref()?;
    let target = wished_sync(view, primary, database);
    let (relied, wanted) = (&record.sync, &record.sync_wanted);
    if *relied == target && *wanted == target {
        return None;
    }
    let set = |sync: SyncSet, wanted: SyncSet| {
        Some(Change::SetSync {
            generation: record.generation,
            expect: relied.clone(),
            why: format!("relied on {}, enforcing {}", show(&sync), show(&wanted)),
            sync,
            wanted,
        })
    };
    if *wanted == target && *enforced == target {
        let flushed = flushed(database, &target, database.sync_since_lsn);
        let known = !outdated(view, primary) && flushed >= target.k;
        if past_commits_safe(relied, &target) || known {
            return set(target.clone(), target);
        }
        why_not.push(format!(
            "sync set {}: {flushed} of {} have flushed {}",
            show(&target),
            target.k,
            database.sync_since_lsn
        ));
        return None;
    }
    let hull = hull(relied, &[enforced, wanted], &target);
    debug_assert!(past_commits_safe(relied, &hull) && future_commits_safe(&hull, enforced));
    if hull == *relied && target == *wanted {
        why_not.push(format!("waiting for {primary} to enforce {}", show(&target)));
        return None;
    }
    set(hull, target)
}

fn show(sync: &SyncSet) -> String {
    let names: Vec<_> = sync.members.iter().map(|m| m.as_str()).collect();
    format!("{} of {{{}}}", sync.k, names.join(", "))
}

/// The sync set to aim for with what is seen.
pub fn wished_sync(view: &LeaderView, primary: &MemberId, database: &Database) -> SyncSet {
    if view.record.policy.durability == Durability::Async {
        return SyncSet::default();
    }
    let standbys = view
        .record
        .data_members()
        .filter(|m| m.name != *primary && m.can_sync() && alive(view, &m.name))
        .map(|m| m.name.clone());
    let able = standbys
        .chain(archive::eligible(view))
        .filter(|m| {
            let present = view.record.sync.members.contains(m);
            let Some(downstream) = database.downstreams.get(m) else {
                // Its archiver is being replaced, or it would not be eligible.
                return present && view.record.archive(m).is_some();
            };
            downstream.state == "streaming"
                && downstream.reply_age_ms < view.record.policy.sync_timeout_ms + IDLE_REPLY_MS
                && (present || database.lsn.bytes_since(downstream.flush_lsn) < SYNC_JOIN_LAG_BYTES)
        })
        .collect();
    trim(view, primary, able)
}

/// Picks k + spares of `able`: present members first, so that the set is steady; then other
/// zones than the primary's, then priority. With durability sync the operator has named who is
/// to be waited for, so priority comes before all. One outside the primary's zone is always
/// among them if there is one. Repositories only stand in for standbys that are missing: a
/// failover then needs them, and somebody has to take over what they have.
fn trim(view: &LeaderView, primary: &MemberId, able: BTreeSet<MemberId>) -> SyncSet {
    let record = view.record;
    let policy = &record.policy;
    if policy.durability == Durability::Async {
        return SyncSet::default();
    }
    let zone = |m: &MemberId| record.member(m).and_then(|m| m.zone.clone());
    let home = zone(primary);
    let elsewhere = |m: &MemberId| home.is_some() && zone(m).is_some_and(|z| Some(z) != home);
    let priority = |m: &MemberId| record.member(m).map_or(0, |m| m.tags.priority);
    let named = |m: &MemberId| match policy.durability {
        Durability::Sync => -priority(m),
        _ => 0,
    };
    let mut ranked: Vec<MemberId> = able.into_iter().collect();
    ranked.sort_by_key(|m| {
        let present = record.sync.members.contains(m);
        let archive = record.archive(m).is_some();
        (archive, named(m), !present, !elsewhere(m), -priority(m), m.clone())
    });
    if let Some(first) = ranked.iter().position(elsewhere) {
        let member = ranked.remove(first);
        ranked.insert(0, member);
    }
    let standbys = ranked.iter().filter(|m| record.archive(m).is_none()).count();
    ranked.truncate(match standbys < policy.sync_count {
        true => policy.sync_count,
        false => standbys.min(policy.sync_count + policy.sync_spares),
    });
    let k = if policy.strict { policy.sync_count } else { policy.sync_count.min(ranked.len()) };
    SyncSet { members: ranked.into_iter().collect(), k }
}
