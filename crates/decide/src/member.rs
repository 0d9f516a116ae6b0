//! What a member does to its own database, so that it becomes what the record says: one ordered
//! table, the first rule that fires gives the next step. The agent executes it and asks again.
//!
//! A member acts only on a record at least as new as what it promised ([`Local::promised`]):
//! one that restarted with an older record stays fenced until it has caught up.

mod takeover;

use crate::{LeaderView, Millis, detect, leader, sync::enforceable};
use sempre_model::{
    Generation, Lsn, MemberId, MemberKind, Record, SyncSet, Timeline,
    observation::{Database, ProcessState, Role},
    record::Phase,
};

/// How long a crashed primary waits for the leader to begin the failover that it expects too,
/// before it restarts in place after all, ms.
const CRASH_PATIENCE_MS: u64 = 3_000;
/// How long a standby may fail to stream before its WAL is compared with its upstream's, ms.
/// Shorter than this, a reconnect is still likely.
const NOT_STREAMING_MS: u64 = 3_000;
/// Voters that are silent for this long are gone for reads to go on without them, ms. Long enough
/// that a hiccup of the network does not start and stop a database for nothing.
const ALONE_MS: u64 = 5_000;

/// What is in the data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataDir {
    /// Nothing.
    Missing,
    /// Something sempre must not touch; why, in words.
    Unusable(String),
    /// A cluster; `was_primary`: its control file says it last ran out of recovery.
    Present {
        /// It last ran as a primary.
        was_primary: bool,
    },
}

/// What the member knows of itself.
#[derive(Clone, Debug)]
pub struct Local<'a> {
    /// What the member, if it were leader, would see.
    pub view: LeaderView<'a>,
    /// It acts on nothing older.
    pub promised: Generation,
    /// Until when it holds the lease of the record's generation.
    pub lease_until: Option<Millis>,
    /// The guard has a live database process.
    pub running: bool,
    /// The guard runs it as the primary of this generation.
    pub armed: Option<Generation>,
    /// The guard refuses to serve any generation below.
    pub fenced_below: Generation,
    /// The database ended without being asked to, at this time.
    pub crashed_at: Option<Millis>,
    /// The data directory.
    pub data: DataDir,
    /// The newest word of the database.
    pub database: &'a Database,
    /// The upstream its configuration names.
    pub upstream: Option<MemberId>,
    /// The sync set its configuration enforces.
    pub sync: SyncSet,
    /// Its configuration lets clients in.
    pub admitted: bool,
    /// Since when it is a standby that should stream and does not.
    pub not_streaming_since: Option<Millis>,
    /// It has compared its WAL with the upstream's for this generation, and they fit.
    pub checked_for: Generation,
    /// A start or rejoin failed; not before this time again.
    pub retry_at: Millis,
    /// The settings that need no restart differ from the ones in force.
    pub settings_differ: bool,
    /// The data are a primary's, and last ran as a standby of nobody, to serve reads
    /// ([`Step::Rest`]). `data` says `was_primary` meanwhile.
    pub resting: bool,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Have the guard end any database that serves a generation below, and refuse it for ever.
    Fence {
        /// The generation.
        below: Generation,
    },
    /// Start PostgreSQL as the primary of `generation` (crash recovery included), clients kept out.
    StartPrimary {
        /// The generation.
        generation: Generation,
        /// What it enforces from the beginning.
        sync: SyncSet,
    },
    /// Start PostgreSQL as a standby.
    StartStandby {
        /// From whom it streams; none: from nobody (fenced).
        upstream: Option<MemberId>,
    },
    /// Stream from somebody else, or from nobody.
    Follow {
        /// From whom.
        upstream: Option<MemberId>,
    },
    /// Become the primary of `generation`.
    Promote {
        /// The generation.
        generation: Generation,
        /// What it enforces from the beginning.
        sync: SyncSet,
    },
    /// Enforce another sync set.
    SetSync {
        /// The set.
        sync: SyncSet,
    },
    /// Let clients in, or keep new ones out.
    Admit(bool),
    /// Write and reload the configuration.
    Reload,
    /// A checkpoint, so that the shutdown of a hand-over is short.
    Checkpoint,
    /// Let sessions finish for a moment, shut down, and attest.
    HandOver,
    /// Make the data follow `upstream`: straight, by rewinding, or by a fresh copy.
    Rejoin {
        /// The new upstream.
        upstream: MemberId,
    },
    /// A fresh copy.
    Clone {
        /// From whom.
        from: MemberId,
        /// For `reinit`: throw away what is there.
        discard: bool,
    },
    /// A copy from a repository; from a member should that not work.
    Fill {
        /// From where.
        repository: String,
        /// From whom otherwise.
        from: MemberId,
        /// For `reinit`: throw away what is there.
        discard: bool,
    },
    /// A fenced standby takes over the WAL of a repository, up to there.
    TakeArchived {
        /// Which.
        repository: String,
        /// The timeline of the end.
        timeline: Timeline,
        /// The end.
        lsn: Lsn,
    },
    /// A member without data restores itself, with all the WAL up to there, to be a fenced standby.
    Recover {
        /// From which repository.
        repository: String,
        /// The timeline of the end.
        timeline: Timeline,
        /// The end.
        lsn: Lsn,
    },
    /// Stop and start, on request.
    Restart,
    /// Start a former primary as a standby of nobody: reads go on while no majority is there.
    Rest,
    /// Stop it again: a majority is there to say what it is to be.
    EndRest,
}

/// The next step and the rule that says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Next {
    /// The rule that fired.
    pub rule: &'static str,
    /// What to do.
    pub step: Step,
}

type Rule = fn(&Local) -> Option<Step>;

/// The table: safety first, then getting the role right, then upkeep.
pub const RULES: [(&str, Rule); 11] = [
    ("fence-old-primary", fence_old_primary),
    ("stay-fenced", stay_fenced),
    ("take-archived", takeover::take_archived),
    ("recover-from-backup", takeover::recover_from_backup),
    ("rest-alone", rest_alone),
    ("hand-over", hand_over),
    ("be-primary", be_primary),
    ("get-data", get_data),
    ("be-standby", be_standby),
    ("restart-on-request", restart_on_request),
    ("reload", reload),
];

/// Decides the next step, if there is one.
pub fn next(local: &Local) -> Option<Next> {
    let record = local.view.record;
    let me = record.member(local.view.me)?;
    if me.kind == MemberKind::Witness || record.cluster.is_none() {
        return None;
    }
    RULES.iter().find_map(|(rule, fires)| fires(local).map(|step| Next { rule, step }))
}

fn record<'a>(local: &Local<'a>) -> &'a Record {
    local.view.record
}

/// The record is older than what this member has promised.
fn outdated(local: &Local) -> bool {
    record(local).generation < local.promised
}

fn my_turn(local: &Local) -> bool {
    !outdated(local) && record(local).may_hold_lease(local.view.me)
}

fn forming(local: &Local) -> bool {
    record(local).phase == Phase::Forming
}

fn lease_valid(local: &Local) -> bool {
    local.lease_until.is_some_and(|until| until > local.view.now)
}

/// A database that serves an older generation ends; a fence is kept even if none runs.
fn fence_old_primary(local: &Local) -> Option<Step> {
    if forming(local) {
        return None;
    }
    let newest = record(local).generation.max(local.promised);
    let below = if my_turn(local) { record(local).generation } else { newest };
    let stale = local.armed.is_some_and(|g| g < below);
    let vacant = matches!(record(local).phase, Phase::Fencing { .. }) || outdated(local);
    let someone_else = !my_turn(local) && local.armed.is_some_and(|g| g <= newest);
    let attest = vacant && local.fenced_below < below;
    (stale || attest).then_some(Step::Fence { below }).or_else(|| {
        // Another member holds this very generation: no database here may be armed for it.
        (someone_else && !stale).then_some(Step::Fence { below: newest.next() })
    })
}

/// While there is no primary (or the record is outdated), a standby streams from nobody.
fn stay_fenced(local: &Local) -> Option<Step> {
    let vacant = matches!(record(local).phase, Phase::Fencing { .. });
    if !vacant && !outdated(local) || local.armed.is_some() {
        return None;
    }
    if local.running {
        return local.upstream.is_some().then_some(Step::Follow { upstream: None });
    }
    match local.data {
        // One that ran as a primary may have WAL that nobody else has: it is compared first.
        DataDir::Present { was_primary }
            if local.view.now >= local.retry_at && (!was_primary || never_served(local)) =>
        {
            Some(Step::StartStandby { upstream: None })
        }
        _ => None,
    }
}

/// It was promoted, but went down before it served: it has all that it was chosen for, and
/// nothing that was ever acknowledged beyond, so it counts as a standby again.
fn never_served(local: &Local) -> bool {
    let served = record(local).history.last();
    served.is_some_and(|h| h.primary != *local.view.me && local.database.timeline > h.timeline)
}

/// No majority of voters is heard, by any path.
fn alone(local: &Local) -> bool {
    let view = &local.view;
    let since_start = view.now.saturating_sub(view.started);
    let heard = |m: &&MemberId| {
        *m == view.me || view.age(m).map_or(since_start < ALONE_MS, |age| age < ALONE_MS)
    };
    view.voters.iter().filter(heard).count() < view.majority()
}

/// A primary that was stopped because its lease ended, and hears no majority, can be no primary.
/// Its data can be read all the same: it runs as a standby that follows nobody. It is never
/// promoted from there: first it stops, and then it is a former primary like any other.
fn rest_alone(local: &Local) -> Option<Step> {
    if !local.resting || !local.running || local.armed.is_some() {
        let may = matches!(local.data, DataDir::Present { was_primary: true })
            && my_turn(local)
            && !record(local).paused
            && !local.running
            && !lease_valid(local)
            && local.view.now >= local.retry_at;
        return (may && alone(local)).then_some(Step::Rest);
    }
    (!alone(local)).then_some(Step::EndRest)
}

fn hand_over(local: &Local) -> Option<Step> {
    if !my_turn(local) {
        return None;
    }
    let generation = record(local).generation;
    match &record(local).phase {
        Phase::HandingOver { .. } if local.running => Some(Step::HandOver),
        Phase::HandingOver { .. } if local.fenced_below <= generation => {
            Some(Step::Fence { below: generation.next() })
        }
        Phase::Serving if local.running && local.armed == Some(generation) => {
            let wish = record(local).switchover.as_ref()?;
            let due = wish.at_unix_ms.is_none_or(|at| at <= local.view.now_unix_ms);
            let ready =
                local.view.heard.get(local.view.me).is_some_and(|h| h.observation.hand_over_ready);
            // A checkpoint that is long ago is of little use.
            let warm = leader::warming(&local.view).is_empty();
            (due && warm && !ready).then_some(Step::Checkpoint)
        }
        _ => None,
    }
}

fn be_primary(local: &Local) -> Option<Step> {
    if !my_turn(local)
        || matches!(record(local).phase, Phase::HandingOver { .. })
        || local.fenced_below > record(local).generation
    {
        return None;
    }
    let generation = record(local).generation;
    let sync = first_sync(local);
    let rests = local.resting && local.running && local.armed.is_none();
    if rests || !lease_valid(local) {
        return None;
    }
    if !local.running {
        return start_as_primary(local, generation, sync);
    }
    match local.armed {
        None if local.database.role == Role::Standby && answers(local) => {
            Some(Step::Promote { generation, sync })
        }
        Some(g) if g == generation && answers(local) && local.database.role == Role::Primary => {
            serve(local, sync)
        }
        // Armed, but the promotion was cut short (the agent restarted in between).
        Some(g) if g == generation && answers(local) && local.database.role == Role::Standby => {
            Some(Step::Promote { generation, sync })
        }
        _ => None,
    }
}

fn answers(local: &Local) -> bool {
    local.database.process == ProcessState::Running
}

/// What the database is to enforce by the record.
fn first_sync(local: &Local) -> SyncSet {
    let record = record(local);
    match &record.phase {
        Phase::Promoting { sync, .. } => sync.clone(),
        _ => enforceable(&record.sync, &record.sync_wanted).clone(),
    }
}

fn start_as_primary(local: &Local, generation: Generation, sync: SyncSet) -> Option<Step> {
    let DataDir::Present { was_primary } = local.data else { return None };
    if local.view.now < local.retry_at {
        return None;
    }
    if !was_primary {
        // A standby becomes primary by promotion only, so that it gets a timeline of its own.
        return Some(Step::StartStandby { upstream: None });
    }
    // A standby when it was chosen, it was promoted for this very generation, and went down before
    // it served: it goes on from there.
    let promoted = matches!(&record(local).phase, Phase::Promoting { fenced, .. }
        if fenced.iter().any(|f| f.member == *local.view.me));
    if record(local).last_serving() != Some(local.view.me) && !promoted {
        return None;
    }
    let waits = local.crashed_at.is_some_and(|at| {
        local.view.now.saturating_sub(at) < CRASH_PATIENCE_MS
            && detect::prefer_failover(&local.view, local.view.me)
    });
    if waits || (record(local).paused && local.crashed_at.is_some()) {
        return None;
    }
    Some(Step::StartPrimary { generation, sync })
}

/// A primary at work: the right sync set, then clients.
fn serve(local: &Local, sync: SyncSet) -> Option<Step> {
    if local.sync != sync {
        return Some(Step::SetSync { sync });
    }
    let admit = record(local).phase == Phase::Serving && confirmed(local, &sync);
    (admit && !local.admitted).then_some(Step::Admit(true))
}

/// Rule 3: k of the sync set have flushed what recovery left, so nothing a client reads can
/// vanish.
fn confirmed(local: &Local, sync: &SyncSet) -> bool {
    let end = local.database.recovered_lsn;
    let flushed = sync
        .members
        .iter()
        .filter(|m| local.database.downstreams.get(*m).is_some_and(|d| d.flush_lsn >= end))
        .count();
    flushed >= sync.k
}

fn upstream(local: &Local) -> Option<MemberId> {
    let record = record(local);
    let primary = record.primary.clone()?;
    let wished = record.member(local.view.me)?.tags.replicate_from.clone();
    // A cascade is only as good as its middle: without it, go to the primary.
    wished
        .filter(|m| m != local.view.me && *m != primary && streams(local, m))
        .filter(|_| !breaks_ring(record, local.view.me, &primary))
        .or(Some(primary))
}

/// Do the tags `replicate_from` lead round to me, past the primary? Then nobody in the ring would
/// receive anything: the first of them by name goes to the primary instead.
fn breaks_ring(record: &Record, me: &MemberId, primary: &MemberId) -> bool {
    let (mut at, mut first) = (me, me);
    for _ in 0..record.members.len() {
        let wish = record.member(at).and_then(|m| m.tags.replicate_from.as_ref());
        let Some(next) = wish.filter(|next| *next != primary) else { return false };
        if next == me {
            return first == me;
        }
        (at, first) = (next, first.min(next));
    }
    false
}

fn streams(local: &Local, member: &MemberId) -> bool {
    local.view.database(member).is_some_and(|d| {
        d.process == ProcessState::Running && d.role == Role::Standby && d.streaming_from.is_some()
    })
}

/// The member to stream from, once there is one.
fn leader_to_follow(local: &Local) -> Option<MemberId> {
    if outdated(local) || my_turn(local) || forming(local) {
        return None;
    }
    upstream(local)
}

fn get_data(local: &Local) -> Option<Step> {
    let upstream = leader_to_follow(local)?;
    let reinit = record(local).reinits.contains_key(local.view.me);
    if local.view.now < local.retry_at {
        return None;
    }
    let primary = local.view.database(record(local).primary.as_ref()?).filter(|d| {
        d.process == ProcessState::Running
            && d.role == Role::Primary
            && d.generation == record(local).generation
    });
    // Nothing is thrown away before the new primary is confirmed, unless nobody else could.
    let ready = match &record(local).phase {
        Phase::Serving => {
            primary.is_some_and(|d| d.admitted || starved(&record(local).sync_wanted))
        }
        Phase::Promoting { sync, .. } => primary.is_some() && starved(sync),
        _ => false,
    };
    if !ready {
        return None;
    }
    match local.data {
        _ if reinit => copy(local, true),
        DataDir::Missing if spare(local) => None,
        DataDir::Missing => copy(local, false),
        DataDir::Present { was_primary } if !local.running => {
            let checked = local.checked_for == record(local).generation;
            (was_primary && !checked).then_some(Step::Rejoin { upstream })
        }
        DataDir::Present { .. } => {
            let stuck = local
                .not_streaming_since
                .is_some_and(|since| local.view.now.saturating_sub(since) >= NOT_STREAMING_MS)
                && local.upstream.as_ref() == Some(&upstream);
            stuck.then_some(Step::Rejoin { upstream })
        }
        DataDir::Unusable(_) => None,
    }
}

fn spare(local: &Local) -> bool {
    record(local).member(local.view.me).is_some_and(|m| m.tags.spare)
}

/// Fewer members than a commit waits for (`strict`).
fn starved(sync: &SyncSet) -> bool {
    sync.members.len() < sync.k
}

/// A fresh copy: from a repository if that is wished, so that nobody is loaded by it.
fn copy(local: &Local, discard: bool) -> Option<Step> {
    let from = clone_source(local)?;
    let wished = record(local).backups.fills.get(local.view.me).cloned();
    Some(match wished {
        Some(repository) => Step::Fill { repository, from, discard },
        None => Step::Clone { from, discard },
    })
}

/// The least loaded member to copy from: one tagged for it, else the streaming standby with the
/// fewest standbys of its own (one outside the sync set before one that commits wait for), else
/// the primary.
fn clone_source(local: &Local) -> Option<MemberId> {
    let record = record(local);
    let limit = record.policy.switchover_max_lag_bytes;
    let primary = record.primary.clone()?;
    let end = local.view.database(&primary)?.lsn;
    record
        .data_members()
        .filter(|m| m.name != *local.view.me && m.name != primary && streams(local, &m.name))
        .filter_map(|m| {
            let database = local.view.database(&m.name)?;
            let load = (!m.tags.clone_from, record.sync.members.contains(&m.name));
            let near = end.bytes_since(database.replay_lsn) <= limit;
            near.then(|| (load, database.downstreams.len(), m.name.clone()))
        })
        .min()
        .map(|(_, _, name)| name)
        .or(Some(primary))
}

fn be_standby(local: &Local) -> Option<Step> {
    let upstream = leader_to_follow(local)?;
    if local.armed.is_some() {
        return None;
    }
    if local.running {
        // One that rests is stopped first: its WAL is a primary's, and nobody has compared it.
        let differs = local.upstream.as_ref() != Some(&upstream) && !local.resting;
        return differs.then_some(Step::Follow { upstream: Some(upstream) });
    }
    match local.data {
        DataDir::Present { was_primary }
            if local.view.now >= local.retry_at
                && (!was_primary || local.checked_for == record(local).generation) =>
        {
            Some(Step::StartStandby { upstream: Some(upstream) })
        }
        _ => None,
    }
}

fn restart_on_request(local: &Local) -> Option<Step> {
    let wished = record(local).restarts.contains_key(local.view.me);
    (wished && local.running && answers(local) && !outdated(local)).then_some(Step::Restart)
}

fn reload(local: &Local) -> Option<Step> {
    (local.running && local.settings_differ && answers(local)).then_some(Step::Reload)
}
