//! Who may be promoted, and when: rules 1 and 2, apart from everything else.
//!
//! [`choose`] is called while the record is in `Fencing`. It names a new primary only when
//!
//! * rule 1 holds for it: enough of the sync set is fenced and it is the most advanced of them
//!   ([`Grounds::Quorum`]); or its own disk holds every acknowledged commit, because it was the
//!   last one to serve ([`Grounds::LastServing`]); or the policy or the operator accepts a loss;
//! * rule 2 holds: the old primary attests that its database is gone, or a majority has promised
//!   the new generation and no lease of an older one is left with it (or `fast_promotion`).

use crate::{LeaderView, sync::fences_needed};
use sempre_model::{
    Lsn, Member, MemberId, SyncSet, Timeline,
    observation::{DiskState, ProcessState},
    policy::Durability,
    record::{Fenced, Phase},
};

/// How long the asked-for target of a switchover is preferred over one that is ready, ms.
const TARGET_PATIENCE_MS: u64 = 3_000;
/// How long standbys are preferred over restarting the last primary, ms: it may be the one whose
/// failure began this, so it is only taken when the others cannot be.
const LAST_SERVING_PATIENCE_MS: u64 = 4_000;

/// Why a promotion loses nothing (or who accepted that it may).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grounds {
    /// Enough of the sync set is fenced, and this is the most advanced of them.
    Quorum,
    /// It was the last to serve clients: its own disk holds all it acknowledged.
    LastServing,
    /// The old primary shut down cleanly, and this one has all of its WAL.
    CleanHandOver,
    /// Durability is async, and it is within `max_lag_bytes`.
    WithinLag,
    /// The operator accepted the loss.
    LossAllowed,
}

/// What to do next about a vacant primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Promote.
    Promote {
        /// Whom.
        to: MemberId,
        /// On which grounds.
        grounds: Grounds,
        /// Everyone fenced.
        fenced: Vec<Fenced>,
        /// In words.
        evidence: Vec<String>,
    },
    /// Not yet, or not at all: why, in words.
    Wait(Vec<String>),
}

/// Members fenced for the present generation, most advanced first (then by priority and name).
pub fn fenced(view: &LeaderView) -> Vec<Fenced> {
    let generation = view.record.generation;
    let mut list: Vec<Fenced> = view
        .record
        .data_members()
        .filter_map(|m| view.observation(&m.name)?.fenced.clone())
        .filter(|f| f.generation == generation)
        .collect();
    let priority = |f: &Fenced| view.record.member(&f.member).map_or(0, |m| m.tags.priority);
    let rank = |f: &Fenced| (served(view, f), f.timeline, f.lsn, priority(f));
    list.sort_by(|a, b| rank(b).cmp(&rank(a)).then_with(|| a.member.cmp(&b.member)));
    list
}

/// How far it has come on the newest timeline that clients were ever served on, as far as it has
/// that one: acknowledged commits are nowhere else. A timeline of a primary that was promoted and
/// never served counts for nothing, however new it is: the last primary may have gone on serving
/// the old one since.
fn served(view: &LeaderView, fenced: &Fenced) -> Option<(Timeline, Lsn)> {
    let timelines = view.record.history.iter().rev().map(|entry| entry.timeline);
    timelines.into_iter().find_map(|timeline| Some((timeline, fenced.end_of(timeline)?)))
}

/// How far each repository of the sync set has come, read after its writers were fenced for the
/// present generation. Of two members that read the same one the less counts: either has all that
/// was acknowledged.
pub fn fenced_archives(view: &LeaderView) -> Vec<Fenced> {
    let record = view.record;
    let read = |name: &MemberId| {
        let repository = record.archive(name)?;
        let members = record.members.keys().filter_map(|m| view.observation(m));
        members
            .filter_map(|o| o.fenced_archives.get(repository))
            .filter(|f| f.generation == record.generation && f.member == *name)
            .min_by_key(|f| position(f))
            .cloned()
    };
    record.sync.members.iter().filter_map(read).collect()
}

/// Picks the new primary, if one may be picked now.
pub fn choose(view: &LeaderView) -> Choice {
    let Phase::Fencing { target, allow_data_loss, .. } = &view.record.phase else {
        return Choice::Wait(vec![format!("the cluster is {}", view.record.phase.name())]);
    };
    let fenced = fenced(view);
    let mut why_not = Vec::new();
    let grounds = clean_hand_over(view, &fenced, target.as_ref())
        .map(|to| (to, Grounds::CleanHandOver))
        .or_else(|| {
            by_quorum(view, &fenced, target.as_ref(), &mut why_not).map(|to| (to, Grounds::Quorum))
        })
        .or_else(|| within_lag(view, &fenced, &mut why_not).map(|to| (to, Grounds::WithinLag)))
        .or_else(|| last_serving(view, &mut why_not).map(|to| (to, Grounds::LastServing)))
        .or_else(|| {
            allow_data_loss
                .then(|| loss_allowed(view, &fenced, target.as_ref()))
                .flatten()
                .map(|to| (to, Grounds::LossAllowed))
        });
    let Some((to, grounds)) = grounds else { return Choice::Wait(why_not) };
    let over = match old_lease_over(view, &grounds) {
        Ok(over) => over,
        Err(why) => return Choice::Wait(vec![why]),
    };
    let position = fenced
        .iter()
        .find(|f| f.member == to)
        .map_or(String::new(), |f| format!(" at {} on timeline {}", f.lsn, f.timeline));
    let words = match grounds {
        Grounds::Quorum => format!(
            "{to} is the most advanced of {} fenced{position}; relied on {} of {}",
            fenced.len(),
            view.record.sync.k,
            list(&view.record.sync)
        ),
        Grounds::CleanHandOver => {
            format!("{to} has all the WAL of the old primary, which shut down cleanly{position}")
        }
        Grounds::LastServing => format!("{to} served last and has every acknowledged commit"),
        Grounds::WithinLag => format!("{to} is within max_lag_bytes{position}"),
        Grounds::LossAllowed => format!("{to} chosen by hand, data loss accepted{position}"),
    };
    Choice::Promote { to, grounds, fenced, evidence: vec![words, over] }
}

fn list(sync: &SyncSet) -> String {
    let names: Vec<_> = sync.members.iter().map(|m| m.as_str()).collect();
    format!("{{{}}}", names.join(", "))
}

fn fit(view: &LeaderView, member: &Member) -> bool {
    member.can_lead()
        && view.observation(&member.name).is_some_and(|o| {
            o.disk == DiskState::Healthy
                && o.busy.is_none()
                && o.database.as_ref().is_some_and(|d| d.has_data)
        })
}

fn by_quorum(
    view: &LeaderView,
    fenced: &[Fenced],
    target: Option<&MemberId>,
    why_not: &mut Vec<String>,
) -> Option<MemberId> {
    let sync = &view.record.sync;
    let archives = fenced_archives(view);
    let of_set: Vec<&Fenced> = fenced.iter().filter(|f| sync.members.contains(&f.member)).collect();
    let Some(needed) = fences_needed(sync) else {
        why_not.push(format!(
            "no standby is known to have every commit: {} of {} were waited for",
            sync.k,
            list(sync)
        ));
        return None;
    };
    if of_set.len() + archives.len() < needed {
        let fenced = |m: &MemberId| of_set.iter().copied().chain(&archives).any(|f| f.member == *m);
        let missing: Vec<_> =
            sync.members.iter().filter(|m| !fenced(m)).map(|m| m.as_str()).collect();
        why_not.push(format!(
            "{} of {} must be fenced, {} are; waiting for {}",
            needed,
            list(sync),
            of_set.len() + archives.len(),
            missing.join(", ")
        ));
        return None;
    }
    // Where it is not known what was served, the newest timeline is taken for it.
    let end = |f: &Fenced| served(view, f).unwrap_or((f.timeline, f.lsn));
    let best = of_set.first().map(|f| end(f));
    let counts = |f: &&Fenced| match sync.members.contains(&f.member) {
        true => Some(end(f)) == best,
        // A repository cannot be promoted. Whoever took over what it has may be, of the set or not,
        // as far as it has what the others of the set have.
        false => !archives.is_empty() && best.is_none_or(|(at, lsn)| f.contains(at, lsn)),
    };
    let has_archived = |f: &&Fenced| archives.iter().all(|a| f.contains(a.timeline, a.lsn));
    let able: Vec<&Fenced> = fenced
        .iter()
        .filter(counts)
        .filter(has_archived)
        .filter(|f| view.record.member(&f.member).is_some_and(|m| fit(view, m)))
        .collect();
    if let Some(target) = target {
        if able.iter().any(|f| f.member == *target) {
            return Some(target.clone());
        }
        if view.now.saturating_sub(view.since) < TARGET_PATIENCE_MS {
            why_not.push(format!("waiting for {target}, the chosen target"));
            return None;
        }
    }
    if able.is_empty() {
        let ahead = archives.iter().find(|a| !of_set.iter().any(|f| f.contains(a.timeline, a.lsn)));
        why_not.push(match (ahead, of_set.first()) {
            (Some(ahead), _) => format!(
                "{} has WAL up to {} that no fenced member has: waiting for one to take it over",
                ahead.member, ahead.lsn
            ),
            (None, Some(first)) => {
                format!("{} is the most advanced, but may not be primary now", first.member)
            }
            (None, None) => "no member with the data is fenced".to_owned(),
        });
    }
    able.first().map(|f| f.member.clone())
}

/// The last primary stopped cleanly and says where: whoever has its WAL up to there has every
/// commit, whatever the sync set is.
fn clean_hand_over(
    view: &LeaderView,
    fenced: &[Fenced],
    target: Option<&MemberId>,
) -> Option<MemberId> {
    let served = view.record.history.last()?;
    let last = view.observation(&served.primary)?;
    let end = last.database.as_ref()?.clean_end_lsn?;
    if last.attests_below < view.record.generation {
        return None;
    }
    let able = || {
        fenced
            .iter()
            // As far on another timeline is not as far on this one.
            .filter(|f| f.lsn >= end && f.timeline == served.timeline)
            .filter(|f| view.record.member(&f.member).is_some_and(|m| fit(view, m)))
    };
    let wanted = able().find(|f| target.is_none_or(|t| *t == f.member));
    let waited = view.now.saturating_sub(view.since) >= TARGET_PATIENCE_MS;
    wanted.or_else(|| able().next().filter(|_| waited)).map(|f| f.member.clone())
}

fn position(fenced: &Fenced) -> (Timeline, Lsn) {
    (fenced.timeline, fenced.lsn)
}

fn last_serving(view: &LeaderView, why_not: &mut Vec<String>) -> Option<MemberId> {
    let last = view.record.last_serving()?;
    let member = view.record.member(last)?;
    let Some(observation) = view.observation(last) else {
        why_not.push(format!("{last} served last, but is not heard"));
        return None;
    };
    if observation.attests_below < view.record.generation {
        why_not.push(format!("{last} served last, but has not yet stopped its database"));
        return None;
    }
    let patience_over = view.now.saturating_sub(view.since) >= LAST_SERVING_PATIENCE_MS;
    let hopeless = fences_needed(&view.record.sync).is_none();
    let failing = observation
        .database
        .as_ref()
        .is_some_and(|d| matches!(d.process, ProcessState::Failing(_)));
    if !fit(view, member) || failing || !(patience_over || hopeless) {
        why_not.push(format!("{last} served last; standbys are preferred for a while"));
        return None;
    }
    Some(last.clone())
}

/// Async durability: the most advanced fenced standby, if it is not too far behind what the old
/// primary last said.
fn within_lag(view: &LeaderView, fenced: &[Fenced], why_not: &mut Vec<String>) -> Option<MemberId> {
    if view.record.policy.durability != Durability::Async {
        return None;
    }
    let expected = view
        .record
        .data_members()
        .filter(|m| view.record.primary.as_ref() != Some(&m.name))
        .filter(|m| view.fresh(&m.name))
        .count();
    if fenced.len() * 2 < expected {
        why_not.push("waiting for more standbys to be fenced".into());
        return None;
    }
    let last = view.record.last_serving()?;
    // However long ago it was said: what was written after it may be lost as well, which is why
    // the limit is no promise. But one that was never said, or an agent's first word after its
    // own restart, is no position.
    let said = view.heard.get(last).and_then(|h| h.observation.database.as_ref()).map(|d| d.lsn);
    let Some(last_lsn) = said.filter(|lsn| *lsn > Lsn(0)) else {
        why_not.push(format!("how far {last}, which served last, had come is not known"));
        return None;
    };
    let best =
        fenced.iter().find(|f| view.record.member(&f.member).is_some_and(|m| fit(view, m)))?;
    let behind = last_lsn.bytes_since(best.lsn);
    if behind > view.record.policy.max_lag_bytes {
        why_not.push(format!(
            "{} is {behind} bytes behind, more than max_lag_bytes ({})",
            best.member, view.record.policy.max_lag_bytes
        ));
        return None;
    }
    Some(best.member.clone())
}

fn loss_allowed(
    view: &LeaderView,
    fenced: &[Fenced],
    target: Option<&MemberId>,
) -> Option<MemberId> {
    fenced
        .iter()
        .filter(|f| target.is_none_or(|t| *t == f.member))
        .find(|f| view.record.member(&f.member).is_some_and(|m| fit(view, m)))
        .map(|f| f.member.clone())
}

/// Rule 2. `Ok` says how it is known, `Err` what is waited for.
fn old_lease_over(view: &LeaderView, grounds: &Grounds) -> Result<String, String> {
    let generation = view.record.generation;
    let Phase::Fencing { from, .. } = &view.record.phase else {
        return Err("not fencing".into());
    };
    let gone = |m: &MemberId| view.observation(m).is_some_and(|o| o.attests_below >= generation);
    match from {
        None => return Ok("there was no primary".into()),
        Some(old) if gone(old) => return Ok(format!("{old} attests that its database is gone")),
        Some(_) => {}
    }
    if view.record.policy.fast_promotion && *grounds == Grounds::Quorum {
        return Ok("fast_promotion: the old primary can commit nothing any more".into());
    }
    let mut left: Vec<u64> = view
        .voters
        .iter()
        .filter_map(|name| {
            let observation = view.observation(name).filter(|o| o.promised >= generation)?;
            let passed = view.age(name).unwrap_or(0);
            Some(observation.old_grant_ms.saturating_sub(passed))
        })
        .collect();
    left.sort_unstable();
    let majority = view.majority();
    match left.get(majority - 1) {
        None => Err(format!(
            "{} of {majority} needed members promised generation {generation}",
            left.len()
        )),
        Some(0) => Ok("the old lease has ended at a majority".into()),
        Some(ms) => Err(format!("the old lease may last for {ms} ms more")),
    }
}
