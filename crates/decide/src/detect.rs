//! Is the primary lost?
//!
//! A member's own word (its database crashed, hangs, its disk fails) is believed at once. Silence
//! is believed only when a majority of voters, each by all its paths, misses the primary, and no
//! standby still receives from it: one member with a broken network condemns nobody. A lease that
//! a majority has not renewed condemns whatever else is seen: its guard has ended the database.

use crate::{LeaderView, Millis};
use sempre_model::{
    MemberId,
    observation::{DiskState, ProcessState},
    policy::OnCrash,
    record::{Cause, Phase},
};

/// WAL replay speed assumed when estimating a crash restart, bytes/ms. PostgreSQL's redo is one
/// process; 50 MB/s is what a slow disk still gives.
const REDO_BYTES_PER_MS: u64 = 50_000;
/// What a crash restart costs besides redo, ms (start, end-of-recovery checkpoint, standbys
/// reconnecting).
const RESTART_MS: u64 = 600;
/// What a promotion costs when the old database is known to be gone, ms.
const PROMOTION_MS: u64 = 500;

/// The primary is to be replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condemned {
    /// Why.
    pub cause: Cause,
    /// What was seen, in words.
    pub evidence: Vec<String>,
    /// When it was last known to serve, my clock.
    pub served_until: Millis,
}

/// Judges the record's primary.
pub fn judge(view: &LeaderView, primary: &MemberId) -> Option<Condemned> {
    own_word(view, primary).or_else(|| silence(view, primary)).or_else(|| no_lease(view, primary))
}

/// The primary's own word that its database process ended by itself, whatever is to be done then.
pub fn crashed(view: &LeaderView, primary: &MemberId) -> Option<Condemned> {
    let database = view.database(primary)?;
    let evidence = vec![format!("{primary}: the database process ended by itself")];
    (database.process == ProcessState::Crashed)
        .then(|| condemned(view, primary, Cause::DatabaseCrashed, evidence))
        .flatten()
}

fn last_heard(view: &LeaderView, primary: &MemberId) -> Millis {
    view.heard.get(primary).map_or(view.started, |h| h.at)
}

fn condemned(
    view: &LeaderView,
    primary: &MemberId,
    cause: Cause,
    evidence: Vec<String>,
) -> Option<Condemned> {
    Some(Condemned { cause, evidence, served_until: last_heard(view, primary) })
}

/// What the primary's own agent says.
fn own_word(view: &LeaderView, primary: &MemberId) -> Option<Condemned> {
    let observation = view.observation(primary)?;
    let database = observation.database.as_ref()?;
    let say =
        |cause, text: &str| condemned(view, primary, cause, vec![format!("{primary}: {text}")]);
    if observation.generation == view.record.generation
        && observation.attests_below > view.record.generation
        && !matches!(view.record.phase, Phase::HandingOver { .. })
    {
        return say(Cause::DatabaseCrashed, "its database is gone and will not serve again");
    }
    match (&database.process, &observation.disk) {
        (ProcessState::Crashed, _) if prefer_failover(view, primary) => {
            say(Cause::DatabaseCrashed, "the database process ended by itself")
        }
        (ProcessState::Failing(why), _) => {
            say(Cause::DatabaseCrashed, &format!("the database does not start: {why}"))
        }
        (ProcessState::Hung, _) => say(Cause::DatabaseHung, "the database answers no more"),
        (_, DiskState::Stalled) => say(Cause::DiskFailed, "the disk does not answer"),
        (_, DiskState::Failing(why)) => say(Cause::DiskFailed, &format!("the disk fails: {why}")),
        _ if !database.has_data && database.process == ProcessState::Stopped => {
            say(Cause::DataLost, "it has no usable data directory")
        }
        _ => None,
    }
}

/// After a crash of the database process alone: promote a standby, or restart it in place?
///
/// Both the leader and the primary's own agent ask this. If they disagree nothing is lost: the
/// generation decides which of the two counts.
pub fn prefer_failover(view: &LeaderView, primary: &MemberId) -> bool {
    match view.record.policy.on_crash {
        OnCrash::Restart => false,
        OnCrash::Failover => standby_ready(view, primary),
        OnCrash::Auto => {
            let redo = view.database(primary).map_or(0, |d| d.redo_bytes);
            let restart_ms = RESTART_MS + redo / REDO_BYTES_PER_MS;
            let promotion_ms = PROMOTION_MS + replay_left(view, primary) / REDO_BYTES_PER_MS;
            standby_ready(view, primary) && restart_ms > promotion_ms
        }
    }
}

/// What the sync standby that is furthest has received and not replayed, bytes: a promotion waits
/// for it.
fn replay_left(view: &LeaderView, primary: &MemberId) -> u64 {
    let standbys = view.record.sync.members.iter().filter(|m| *m != primary);
    let furthest = standbys.filter_map(|m| view.database(m)).max_by_key(|d| d.lsn);
    furthest.map_or(0, |d| d.lsn.bytes_since(d.replay_lsn))
}

/// Can a promotion succeed at once, as far as is seen?
fn standby_ready(view: &LeaderView, primary: &MemberId) -> bool {
    let sync = &view.record.sync;
    let Some(needed) = crate::sync::fences_needed(sync) else { return false };
    let ready = sync
        .members
        .iter()
        .filter(|m| *m != primary)
        .filter(|m| {
            view.database(m).is_some_and(|d| d.process == ProcessState::Running)
                && view.record.member(m).is_some_and(|m| m.can_lead())
        })
        .count();
    !view.record.paused && ready >= needed
}

/// Nobody hears it, on any path, and nothing streams from it.
fn silence(view: &LeaderView, primary: &MemberId) -> Option<Condemned> {
    if primary == view.me {
        return None;
    }
    let detect = view.record.policy.detect_ms;
    let own_age = view.now.saturating_sub(last_heard(view, primary));
    if own_age < detect || !known_to_have_served(view, primary) {
        return None;
    }
    let streams = |name: &MemberId, reported: u64| {
        view.database(name).is_some_and(|d| {
            d.streaming_from.as_ref() == Some(primary)
                && d.receiver_age_ms.is_some_and(|age| age + reported < detect)
        })
    };
    if streams(view.me, view.age(view.me).unwrap_or(0)) {
        return None;
    }
    let mut missing = vec![format!("{} misses it for {own_age} ms", view.me)];
    for name in view.record.members.keys().filter(|m| *m != primary && *m != view.me) {
        let votes = view.voters.contains(name);
        let Some(observation) = view.observation(name) else { continue };
        let reported = view.age(name).unwrap_or(0);
        // After a pause of my own everybody seems silent: old words are no evidence of it.
        if reported >= 2 * view.record.policy.heartbeat_ms {
            continue;
        }
        let age = observation
            .heard
            .get(primary)
            .and_then(|paths| paths.iter().filter_map(|p| p.age_ms).min())
            .map(|age| age + reported);
        match age {
            Some(age) if age < detect => {}
            Some(age) if votes => missing.push(format!("{name} misses it for {age} ms")),
            None if votes => missing.push(format!("{name} does not hear it")),
            _ => {}
        }
        if streams(name, reported) {
            return None;
        }
    }
    if missing.len() < view.majority() {
        return None;
    }
    condemned(view, primary, Cause::MemberLost, missing)
}

/// A majority has no grant outstanding for it, so its lease is over.
fn no_lease(view: &LeaderView, primary: &MemberId) -> Option<Condemned> {
    let generation = view.record.generation;
    // Its own word may come before those of the voters that have just granted it.
    let holds = view.observation(primary).and_then(|o| o.lease).is_some_and(|lease| {
        lease.generation == generation && lease.remaining_ms > view.age(primary).unwrap_or(0)
    });
    if holds {
        return None;
    }
    let without: Vec<&MemberId> = view
        .voters
        .iter()
        .filter(|name| {
            view.observation(name).is_some_and(|o| {
                let passed = view.age(name).unwrap_or(0);
                o.generation == generation && o.grant_ms.saturating_sub(passed) == 0
            })
        })
        .collect();
    let could_grant = view.voters.len() - without.len();
    if could_grant >= view.majority() || !known_to_have_served(view, primary) {
        return None;
    }
    let names: Vec<_> = without.iter().map(|m| m.as_str()).collect();
    condemned(
        view,
        primary,
        Cause::LeaseExpired,
        vec![format!("no lease of generation {generation} is left at {}", names.join(", "))],
    )
}

/// A primary that never renewed under my eyes gets some time to begin: after a start of
/// everything until it is back, after a promotion until its first renewal.
fn known_to_have_served(view: &LeaderView, primary: &MemberId) -> bool {
    let seen = view.heard.get(primary).is_some_and(|h| {
        h.observation.lease.is_some_and(|l| l.generation == view.record.generation)
    });
    let policy = &view.record.policy;
    let patience = if view.since_before_start {
        policy.startup_grace_ms
    } else {
        policy.lease_ttl_ms + policy.detect_ms
    };
    seen || view.now.saturating_sub(view.since) >= patience
}
