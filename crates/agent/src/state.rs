//! All that the loop knows, and how it changes. No IO, no waiting: the loop gathers events and
//! applies them here.

use crate::{
    backups::BackupView,
    clock,
    hello::{Answer, Hello, Renewal},
    member_dir::{Applied, Who},
    warmth::Warming,
};
use sempre_consensus::Standing;
use sempre_decide::{
    Heard, LeaderView, Millis,
    lease::{Holder, Voter},
    member::{DataDir, Local},
};
use sempre_guard::GuardStatus;
use sempre_model::{
    Generation, Lsn, MemberId, NodeId, Observation, Patience, Record,
    observation::{Database, DiskState, LeaseView, PathView, ProcessState, Role},
    record::{Fenced, Phase},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// After this many starts that failed in a row, the member says that it cannot, so that another
/// can take over.
const START_FAILURES_MAX: u32 = 2;
/// First pause after a failed start or rejoin, ms; doubled each time.
const RETRY_FIRST_MS: u64 = 500;
/// Longest pause, ms.
const RETRY_MAX_MS: u64 = 30_000;

/// The newest report of the database watcher.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What the database said, when it last answered.
    pub database: Database,
    /// It answers.
    pub answers: bool,
    /// It did answer before, and has not for `hang_ms`.
    pub hung: bool,
}

/// What the loop knows.
pub struct State {
    pub who: Who,
    pub me: MemberId,
    pub record: Arc<Record>,
    pub standing: Standing,
    pub voter: Voter,
    pub holder: Holder,
    pub heard: BTreeMap<MemberId, Heard>,
    pub heard_paths: BTreeMap<MemberId, Vec<Patience>>,
    pub unanswered_since: BTreeMap<(MemberId, usize), Millis>,
    pub rtt_us: BTreeMap<MemberId, Vec<Option<u64>>>,
    pub started: Millis,
    pub since: Millis,
    pub since_before_start: bool,
    pub guard: GuardStatus,
    pub report: Report,
    pub disk: DiskState,
    pub applied: Applied,
    pub data: DataDir,
    pub system_identifier: Option<u64>,
    /// Of a primary that was shut down cleanly, and does not run.
    pub clean_end: Option<Lsn>,
    pub incarnation: u64,
    pub seq: u64,
    pub busy: Option<String>,
    pub retry_at: Millis,
    pub failures: u32,
    pub last_failure: Option<String>,
    pub crashed_at: Option<Millis>,
    /// The guard ended it then, because no lease was left.
    pub ended_by_lease: bool,
    pub not_streaming_since: Option<Millis>,
    pub fenced: Option<Fenced>,
    pub hand_over_ready: bool,
    /// The warm-up before a switchover.
    pub warming: Warming,
    pub settings_differ: bool,
    pub pending_restart: Vec<String>,
    pub hba_trouble: Option<String>,
    pub notes: Vec<String>,
    /// What this member does for backups.
    pub backups: BackupView,
    phase_key: (Generation, &'static str, Option<MemberId>),
}

impl State {
    /// Knows nothing of others yet.
    ///
    /// `promised` and `longest_grant_ms` are this voter's own, from its disk.
    pub fn new(
        who: Who,
        record: Arc<Record>,
        (promised, longest_grant_ms): (Generation, u64),
        applied: Applied,
    ) -> Self {
        let now = clock::now_ms();
        Self {
            me: who.name.clone(),
            who,
            standing: Standing::default(),
            voter: Voter::restored(promised, longest_grant_ms, &record.policy, now),
            holder: Holder::default(),
            heard: BTreeMap::new(),
            heard_paths: BTreeMap::new(),
            unanswered_since: BTreeMap::new(),
            rtt_us: BTreeMap::new(),
            started: now,
            since: now,
            since_before_start: true,
            guard: GuardStatus::default(),
            report: Report::default(),
            disk: DiskState::Healthy,
            applied,
            data: DataDir::Missing,
            system_identifier: None,
            clean_end: None,
            incarnation: rand::random(),
            seq: 0,
            busy: None,
            retry_at: 0,
            failures: 0,
            last_failure: None,
            crashed_at: None,
            ended_by_lease: false,
            not_streaming_since: None,
            fenced: None,
            hand_over_ready: false,
            warming: Warming::default(),
            settings_differ: false,
            pending_restart: Vec::new(),
            hba_trouble: None,
            notes: Vec::new(),
            backups: BackupView::default(),
            phase_key: key(&record),
            record,
        }
    }

    /// This member's Raft node.
    pub fn node(&self) -> NodeId {
        self.who.node
    }

    /// The record was applied further. True: generation, phase or primary changed.
    pub fn set_record(&mut self, record: Arc<Record>) -> bool {
        if self.record.cluster.is_none() && record.cluster.is_some() {
            self.voter.learn(&record.policy, self.started);
        }
        let next = key(&record);
        let changed = next != self.phase_key;
        if changed {
            // A record that was empty before is not news: this member only just learned of it.
            self.since_before_start &= self.record.cluster.is_none();
            self.since = clock::now_ms();
            self.hand_over_ready = false;
            if self.phase_key.0 != next.0 {
                self.retry_at = 0;
                self.failures = 0;
                self.holder.release();
            }
            self.phase_key = next;
        }
        let asked = |record: &Record| record.reinits.get(&self.me).copied();
        if asked(&record).is_some() && asked(&record) != asked(&self.record) {
            // Whatever failed before, this is a new wish.
            self.retry_at = 0;
            self.failures = 0;
        }
        if asked(&record).is_none() && asked(&self.record).is_some() {
            // It has it.
            self.retry_at = 0;
        }
        self.record = record;
        changed
    }

    /// Who votes, by name.
    pub fn voters(&self) -> BTreeSet<MemberId> {
        self.record
            .members
            .values()
            .filter(|m| self.standing.voters.contains(&m.node))
            .map(|m| m.name.clone())
            .collect()
    }

    /// Is this member the Raft leader?
    pub fn leads(&self) -> bool {
        self.standing.leader == Some(self.node())
    }

    /// The lease of the record's generation, if this member holds it.
    pub fn lease_until(&self, now: Millis) -> Option<Millis> {
        self.record
            .may_hold_lease(&self.me)
            .then(|| self.holder.until(self.record.generation, now))
            .flatten()
    }

    /// Begins a renewal, if this member is entitled to one. Its own vote is counted at once.
    pub fn begin_renewal(&mut self, now: Millis) -> Option<(Renewal, Option<Millis>)> {
        if !self.record.may_hold_lease(&self.me) || !self.voters().contains(&self.me) {
            return None;
        }
        let generation = self.record.generation;
        let ttl_ms = self.record.policy.lease_ttl_ms;
        let id = self.holder.begin(generation, ttl_ms, now);
        let own = self.voter.renew(generation, ttl_ms, &self.record.policy, now);
        let until = own.then(|| self.count_grant(id, &self.me.clone())).flatten();
        Some((Renewal { id, generation, ttl_ms }, until))
    }

    /// A voter granted. The new end of the lease, if it moved.
    pub fn count_grant(&mut self, id: u64, voter: &MemberId) -> Option<Millis> {
        let voters = self.voters();
        self.holder.granted(id, voter, &voters).map(|(_, until)| until)
    }

    /// Another member's heartbeat came.
    pub fn hear(&mut self, from: &MemberId, hello: Hello, now: Millis) -> Answer {
        self.heard_on(from, hello.path, now);
        let renewal = hello.renewal;
        if let Some(observation) = hello.observation {
            let newer = self.heard.get(from).is_none_or(|known| {
                let old = &known.observation;
                // A new incarnation replaces any old one; within one, only newer words count.
                old.incarnation != observation.incarnation || old.seq <= observation.seq
            });
            if newer && observation.member == *from {
                let mut observation = *observation;
                self.remember_position(from, &mut observation);
                self.heard.insert(from.clone(), Heard { at: now, observation });
            }
        }
        let granted =
            renewal.filter(|r| self.voter.renew(r.generation, r.ttl_ms, &self.record.policy, now));
        Answer { granted: granted.map(|r| r.id), promised: self.voter.promised() }
    }

    /// An agent that restarted does not know how far its database had come, if that runs no
    /// more. What it said before still tells how much would be lost without it.
    fn remember_position(&self, member: &MemberId, observation: &mut Observation) {
        let known = self.heard.get(member).and_then(|h| h.observation.database.as_ref());
        if let (Some(known), Some(database)) = (known, observation.database.as_mut())
            && database.lsn == Lsn(0)
        {
            database.lsn = known.lsn;
        }
    }

    /// Something came from `member` over `path`.
    pub fn heard_on(&mut self, member: &MemberId, path: usize, now: Millis) {
        let count = self.record.member(member).map_or(1, |m| m.paths.len());
        let paths = self.heard_paths.entry(member.clone()).or_default();
        paths.resize(count, Patience::default());
        let limit = self.record.policy.path_detect_ms;
        let others = paths.iter().enumerate().any(|(i, p)| i != path && p.steady(limit, now));
        if let Some(patience) = paths.get_mut(path) {
            patience.speaks(others, limit, now);
        }
    }

    /// The paths to a member, as heard.
    pub fn path_views(&self, member: &MemberId, now: Millis) -> Vec<PathView> {
        let count = self.record.member(member).map_or(0, |m| m.paths.len());
        let heard = self.heard_paths.get(member);
        let rtt = self.rtt_us.get(member);
        (0..count)
            .map(|i| PathView {
                age_ms: heard.and_then(|h| h.get(i)).and_then(|p| p.silent_ms(now)),
                rtt_us: rtt.and_then(|r| r.get(i).copied().flatten()),
            })
            .collect()
    }

    /// Has a heartbeat on this path been without an answer for longer than one takes?
    pub fn path_doubtful(&self, member: &MemberId, path: usize, now: Millis) -> bool {
        let interval = self.record.policy.heartbeat_ms;
        self.unanswered_since
            .get(&(member.clone(), path))
            .is_some_and(|since| now.saturating_sub(*since) >= interval / 2)
    }

    /// Is `path` to `member` lost? Silent for long enough, with a heartbeat of ours unanswered,
    /// while another path to the same member works. A member that is silent everywhere is not
    /// judged by this. A path that was silent lately and came back is given longer ([`Patience`]).
    pub fn path_lost(&self, member: &MemberId, path: usize, now: Millis) -> bool {
        let limit = self.record.policy.path_detect_ms;
        let paths = self.heard_paths.get(member).map_or(&[][..], Vec::as_slice);
        let others = paths.iter().enumerate().any(|(i, p)| i != path && p.steady(limit, now));
        // One that never spoke is lost as well.
        let silent = paths.get(path).is_some_and(|p| match p.silent_ms(now) {
            Some(_) => p.over(limit, now),
            None => true,
        });
        let unanswered = self
            .unanswered_since
            .get(&(member.clone(), path))
            .is_some_and(|since| now.saturating_sub(*since) >= limit / 2);
        unanswered && others && silent
    }

    /// The database as this member reports it.
    pub fn database(&self, now: Millis) -> Database {
        let mut database = self.report.database.clone();
        let running = self.guard.postmaster.as_ref();
        database.process = self.process();
        database.pid = running.and_then(|p| u32::try_from(p.pid).ok());
        database.has_data = matches!(self.data, DataDir::Present { .. });
        database.system_identifier = self.system_identifier;
        database.generation = running.and_then(|p| p.generation).unwrap_or_default();
        database.clean_end_lsn = self.clean_end;
        database.pending_restart = self.pending_restart.clone();
        if !self.report.answers {
            database.role = Role::Unknown;
            database.streaming_from = None;
            database.downstreams.clear();
        }
        if database.role == Role::Primary {
            database.sync = Some(self.applied.sync.clone());
            database.sync_since_lsn = self.applied.sync_since.unwrap_or(Lsn(u64::MAX));
            database.recovered_lsn = self.applied.recovered.unwrap_or(Lsn(u64::MAX));
            // Only with a lease does it really let anyone in.
            database.admitted = self.applied.admitted && self.lease_until(now).is_some();
        } else {
            database.sync = None;
            database.admitted = false;
            if database.streaming_from.is_some() {
                database.streaming_from = self.applied.upstream.clone();
            }
        }
        database
    }

    fn process(&self) -> ProcessState {
        if let (None, DataDir::Unusable(why)) = (&self.guard.postmaster, &self.data) {
            // Trying to start it would not help: someone has to put it right first.
            return ProcessState::Failing(why.clone());
        }
        match &self.guard.postmaster {
            Some(p) if p.dying || !self.guard.connected => ProcessState::Crashed,
            Some(p) if p.stopping.is_some() => ProcessState::Stopping,
            Some(_) if self.report.hung => ProcessState::Hung,
            Some(_) if self.report.answers => ProcessState::Running,
            Some(_) => ProcessState::Starting,
            None if self.failures > START_FAILURES_MAX => {
                ProcessState::Failing(self.last_failure.clone().unwrap_or_default())
            }
            None if self.crashed_at().is_some() => ProcessState::Crashed,
            None => ProcessState::Stopped,
        }
    }

    /// What this member says with its next heartbeat.
    pub fn observe(&mut self, now: Millis, promised_on_disk: Generation) -> Observation {
        self.seq += 1;
        let generation = self.record.generation;
        let witness = self.record.member(&self.me).is_some_and(|m| m.database_less());
        let attests = self.guard.connected && self.guard.fence_saved;
        let heard = self
            .record
            .members
            .keys()
            .filter(|m| **m != self.me)
            .map(|m| (m.clone(), self.path_views(m, now)))
            .collect();
        Observation {
            member: self.me.clone(),
            node: self.node(),
            incarnation: self.incarnation,
            seq: self.seq,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            record_version: self.record.version,
            generation,
            raft_leader: self.standing.leader,
            database: (!witness).then(|| self.database(now)),
            disk: self.disk.clone(),
            fenced: self
                .fenced
                .clone()
                .filter(|f| f.generation == generation && promised_on_disk >= generation)
                .filter(|_| matches!(self.record.phase, Phase::Fencing { .. })),
            attests_below: if attests { self.guard.fenced_below } else { Generation(0) },
            voters: self.standing.voters.clone(),
            promised: self.voter.promised(),
            old_grant_ms: self.voter.old_grant_ms(now),
            grant_ms: self.voter.grant_ms(generation, now),
            hand_over_ready: self.hand_over_ready,
            warming: self.warming.at_it,
            lease: self
                .lease_until(now)
                .map(|until| LeaseView { generation, remaining_ms: until.saturating_sub(now) }),
            heard,
            archives: self.backups.archives.clone(),
            fenced_archives: match self.record.phase {
                Phase::Fencing { .. } => self.backups.fenced.clone(),
                _ => BTreeMap::new(),
            },
            backing_up: self.backups.backing_up.clone(),
            busy: self.busy.clone(),
            notes: self
                .notes
                .iter()
                .cloned()
                .chain(self.last_failure.clone())
                .chain(self.hba_trouble.clone())
                .chain(self.backups.notes())
                .collect(),
            at_unix_ms: clock::now_unix_ms(),
        }
    }

    /// A start or rejoin failed: say so, and wait before the next one.
    pub fn failed(&mut self, what: String) {
        let now = clock::now_ms();
        let pause = RETRY_FIRST_MS << self.failures.min(6);
        self.failures += 1;
        self.retry_at = now + pause.min(RETRY_MAX_MS);
        self.last_failure = Some(what);
    }

    /// It works again.
    pub fn succeeded(&mut self) {
        self.failures = 0;
        self.last_failure = None;
        self.crashed_at = None;
    }

    /// When the database crashed, as far as that counts. What crashed in a pause is left as it is; a
    /// database whose lease ended did not crash, and in a pause nobody else would take its place.
    fn crashed_at(&self) -> Option<Millis> {
        self.crashed_at.filter(|_| !(self.record.paused && self.ended_by_lease))
    }

    /// The view that decisions are made from. `voters` is [`State::voters`].
    pub fn view<'a>(&'a self, now: Millis, voters: &'a BTreeSet<MemberId>) -> LeaderView<'a> {
        LeaderView {
            record: &self.record,
            me: &self.me,
            now,
            now_unix_ms: clock::now_unix_ms(),
            started: self.started,
            since: self.since,
            since_before_start: self.since_before_start,
            voters,
            heard: &self.heard,
        }
    }

    /// The member's own view, for its own steps.
    pub fn local<'a>(
        &'a self,
        now: Millis,
        voters: &'a BTreeSet<MemberId>,
        database: &'a Database,
    ) -> Local<'a> {
        let postmaster = self.guard.postmaster.as_ref();
        Local {
            view: self.view(now, voters),
            promised: self.voter.promised(),
            lease_until: self.lease_until(now),
            running: postmaster.is_some(),
            armed: postmaster.and_then(|p| p.generation),
            fenced_below: self.guard.fenced_below,
            crashed_at: self.crashed_at(),
            data: self.data.clone(),
            database,
            upstream: self.applied.upstream.clone(),
            sync: self.applied.sync.clone(),
            admitted: self.applied.admitted,
            not_streaming_since: self.not_streaming_since,
            checked_for: self.applied.checked_for,
            retry_at: self.retry_at,
            settings_differ: self.settings_differ,
            resting: self.applied.resting,
        }
    }
}

fn key(record: &Record) -> (Generation, &'static str, Option<MemberId>) {
    (record.generation, record.phase.name(), record.primary.clone())
}
