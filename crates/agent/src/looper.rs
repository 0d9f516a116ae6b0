//! The loop that owns the state of a member: gather an event, apply it, decide, hand work out.
//! Nothing in here waits for a disk, a database or a peer: work runs in tasks that report back as
//! events.

mod beat;
mod shown;
mod upkeep;

pub use shown::Shown;

use crate::{
    backups::BackupView,
    clock,
    executor::{Done, Executor, Job},
    hello::{Answer, Hello},
    membership, routing,
    state::{Report, State},
    warmth::Warmth,
};
use sempre_api::codes;
use sempre_consensus::Consensus;
use sempre_decide::{
    Millis, leader,
    member::{self, DataDir},
};
use sempre_guard::{GuardClient, GuardStatus};
use sempre_model::{
    Command, Generation, MemberId, Record,
    command::Change,
    observation::{DiskState, ProcessState, Role},
    record::Phase,
};
use sempre_net::Peers;
use sempre_route::Table;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::MissedTickBehavior,
};

/// Events that may wait. Each peer has at most a few calls under way, so this is far from full
/// unless the loop hangs; then senders wait, and heartbeats are missed, as they should be.
pub const EVENTS_MAX: usize = 1_024;
/// Heartbeats to one member on one path that may be under way; more would only pile up behind a
/// dead network.
const BEATS_UNDER_WAY_MAX: u32 = 3;
/// Heartbeats sent at once on news are at least this far apart, ms.
const NEWS_PAUSE_MS: u64 = 5;
/// Heartbeats without news are acted on together, this often at least, ms.
const ROUTINE_MS: u64 = 50;
/// Deadline of a heartbeat, as a multiple of its interval.
const BEAT_DEADLINE: u32 = 3;
/// After a primary's configuration changed, walsenders take a moment to read it. The position
/// that a change of the relied set waits for is sampled this much later, ms.
const SYNC_SETTLE_MS: u64 = 300;
/// A guard that is given a renewed lease and does not answer in this time is replaced: without
/// renewals it ends the database anyway.
const RENEW_WITHIN: Duration = Duration::from_secs(3);
/// Between two rounds of housekeeping, ms.
const HOUSEKEEPING_MS: u64 = 10_000;
/// How long a server takes at the most to load a configuration, ms. If it takes longer, what waits
/// for a restart is seen with the next housekeeping.
const SETTINGS_SETTLE_MS: u64 = 500;
/// The record shows within this time that a member has got its fresh copy, or it gets one more, ms.
const DONE_SHOWS_MS: u64 = 10_000;
/// Between two looks at a data directory that cannot be used.
const LOOK_AGAIN_MS: u64 = 2_000;

/// Something happened.
pub enum Event {
    /// Another member's heartbeat.
    Hello { from: MemberId, hello: Box<Hello>, reply: oneshot::Sender<Answer> },
    /// The answer to ours, or none.
    Answered { from: MemberId, path: usize, rtt_us: u64, answer: Option<Answer> },
    /// The database watcher.
    Report(Box<Report>),
    /// The disk probe.
    Disk(DiskState),
    /// A job ended.
    Done { job: Job, result: Result<Box<Done>, String> },
    /// A proposal ended.
    Proposed { rule: &'static str, error: Option<String> },
    /// A promise is on disk.
    Promised(Generation),
    /// The longest grant is on disk, ms.
    LongestWritten(u64),
    /// Progress of a long job, in words.
    Busy(Option<String>),
    /// What this member does for backups.
    Backups(Box<BackupView>),
    /// The config file or the record asks for the configuration to be written again.
    Rewrite,
}

impl Event {
    /// Comes many times a second, and says nothing new.
    fn is_routine(&self) -> bool {
        match self {
            Event::Hello { hello, .. } => !hello.news,
            Event::Answered { .. } => true,
            _ => false,
        }
    }
}

/// The loop and what it works with.
pub struct Looper {
    pub state: State,
    pub consensus: Arc<dyn Consensus>,
    pub peers: Arc<Peers>,
    pub guard: GuardClient,
    pub executor: Arc<Executor>,
    pub events: mpsc::Sender<Event>,
    pub shown: watch::Sender<Arc<Shown>>,
    pub table: watch::Sender<Arc<Table>>,
    pub job: Option<(Job, JoinHandle<()>)>,
    pub fencing: Option<Generation>,
    pub promising: bool,
    pub writing_longest: bool,
    pub proposing: bool,
    pub membership: membership::Duty,
    pub under_way: BTreeMap<(MemberId, usize), u32>,
    pub last_beat: Millis,
    pub acted: Millis,
    pub news: bool,
    pub sync_written_at: Millis,
    pub kept_house_at: Millis,
    pub inspect_due: bool,
    /// Counts changes of what the record says of the configuration.
    pub settings_change: u64,
    pub reconnecting: bool,
    pub table_key: Option<Table>,
    pub warmth: Warmth,
}

impl Looper {
    /// Runs until the events end or `stop` fires.
    pub async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        mut stop: watch::Receiver<bool>,
    ) -> State {
        let mut record = self.consensus.record();
        let mut standing = self.consensus.standing();
        let mut guard = self.guard.status();
        self.state.standing = standing.borrow_and_update().clone();
        self.take_guard(guard.borrow_and_update().clone());
        let mut interval_ms = self.state.record.policy.heartbeat_ms;
        let mut tick = ticker(interval_ms);
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => {
                        let routine = event.is_routine();
                        self.take(event);
                        // What comes many times a second and says nothing new waits for the rest.
                        if routine && !self.news && clock::now_ms() < self.acted + ROUTINE_MS {
                            continue;
                        }
                    }
                    None => return self.state,
                },
                _ = tick.tick() => self.beat(),
                Ok(()) = record.changed() => {
                    let next = record.borrow_and_update().clone();
                    self.take_record(next);
                    if interval_ms != self.state.record.policy.heartbeat_ms {
                        interval_ms = self.state.record.policy.heartbeat_ms;
                        tick = ticker(interval_ms);
                    }
                }
                Ok(()) = standing.changed() => {
                    self.state.standing = standing.borrow_and_update().clone();
                }
                Ok(()) = guard.changed() => {
                    let status = guard.borrow_and_update().clone();
                    self.take_guard(status);
                }
                _ = stop.changed() => return self.state,
            }
            self.act();
        }
    }

    fn take(&mut self, event: Event) {
        let now = clock::now_ms();
        match event {
            Event::Hello { from, hello, reply } => {
                let _ = reply.send(self.state.hear(&from, *hello, now));
            }
            Event::Answered { from, path, rtt_us, answer } => {
                if let Some(count) = self.under_way.get_mut(&(from.clone(), path)) {
                    *count = count.saturating_sub(1);
                }
                let Some(answer) = answer else { return };
                self.state.unanswered_since.remove(&(from.clone(), path));
                self.state.heard_on(&from, path, now);
                let count = self.state.record.member(&from).map_or(1, |m| m.paths.len());
                let rtt = self.state.rtt_us.entry(from.clone()).or_default();
                rtt.resize(count, None);
                if let Some(slot) = rtt.get_mut(path) {
                    *slot = Some(rtt_us);
                }
                if let Some(until) = answer.granted.and_then(|id| self.state.count_grant(id, &from))
                {
                    self.extend_lease(until);
                }
            }
            Event::Report(report) => self.take_report(*report, now),
            Event::Disk(disk) => {
                self.news |= disk != self.state.disk;
                self.state.disk = disk;
            }
            Event::Done { job, result } => self.take_done(job, result, now),
            Event::Proposed { rule, error } => {
                self.proposing = false;
                if let Some(error) = error {
                    tracing::warn!(rule, %error, "a proposal was not accepted");
                }
            }
            Event::Promised(generation) => {
                self.promising = false;
                self.state.voter.promise(generation);
                self.news = true;
            }
            Event::LongestWritten(longest_ms) => {
                self.writing_longest = false;
                self.state.voter.written(longest_ms);
            }
            Event::Backups(view) => {
                // A failover may wait for it.
                self.news |= view.fenced != self.state.backups.fenced;
                self.state.backups = *view;
            }
            Event::Busy(busy) => self.state.busy = busy,
            Event::Rewrite => {
                self.settings_change += 1;
                self.state.settings_differ = true;
            }
        }
    }

    fn take_record(&mut self, record: Arc<Record>) {
        let generation = self.state.record.generation;
        let settings = |r: &Record| (r.parameters.clone(), r.hba.clone(), r.members.clone());
        let differ = settings(&record) != settings(&self.state.record)
            || record.policy != self.state.record.policy;
        self.peers.set_members(record.members.values());
        self.executor.set_record(record.clone());
        if self.state.set_record(record) {
            self.news = true;
            tracing::info!(
                generation = %self.state.record.generation,
                primary = self.state.record.primary.as_ref().map_or("none", |m| m.as_str()),
                phase = self.state.record.phase.name(),
                "the record changed"
            );
        }
        if generation != self.state.record.generation
            && let Some((job, handle)) = &self.job
            && job.ends_with_generation()
        {
            handle.abort();
            self.job = None;
            self.state.busy = None;
        }
        if differ {
            self.settings_change += 1;
            self.state.settings_differ = true;
        }
    }

    fn take_guard(&mut self, status: GuardStatus) {
        let had = self.state.guard.postmaster.take();
        // A guard that was killed has no last words, and takes its database along.
        let last_words =
            status.last_exit.as_ref().filter(|e| had.as_ref().is_some_and(|h| h.pid == e.pid));
        let asked_for = last_words.is_some_and(|e| e.asked_for);
        let by_lease = last_words.is_some_and(|e| e.by_lease);
        let crashed = !asked_for;
        if had.is_some() && status.postmaster.is_none() {
            self.news = true;
            if crashed {
                let why = status.last_exit.as_ref().map_or("its guard is gone".into(), |e| {
                    if e.by_lease {
                        "its lease ended, so the guard ended it".into()
                    } else {
                        format!("exit code {:?}, signal {:?}", e.code, e.signal)
                    }
                });
                let generation = had.as_ref().and_then(|h| h.generation).map(|g| g.0);
                tracing::warn!(why, generation, "the database process ended");
                self.state.crashed_at = Some(clock::now_ms());
                self.state.ended_by_lease = by_lease;
                let answered = self.state.report.answers || self.state.report.hung;
                if !answered {
                    let log = self.executor.log_tail();
                    self.state.failed(format!(
                        "the database ended while starting ({why}): {log} ({})",
                        codes::DATABASE_DOES_NOT_START
                    ));
                }
            }
            self.state.report.answers = false;
            self.state.report.hung = false;
        }
        if had.as_ref().is_some_and(|h| !h.dying)
            && status.postmaster.as_ref().is_some_and(|p| p.dying)
        {
            self.news = true;
        }
        self.news |= status.fenced_below != self.state.guard.fenced_below;
        self.state.guard = status;
        self.executor.set_running(self.state.guard.postmaster.is_some());
        // What a database left behind is looked at before anything is decided about it.
        self.inspect_due |= had.is_some() && self.state.guard.postmaster.is_none();
    }

    fn take_report(&mut self, report: Report, now: Millis) {
        let old = &self.state.report;
        self.news |= old.answers != report.answers
            || old.hung != report.hung
            || old.database.role != report.database.role
            || (self.state.record.phase != Phase::Serving
                && old.database.downstreams != report.database.downstreams);
        if report.answers && !old.answers {
            self.state.succeeded();
            self.look_after_soon(now);
        }
        let streams = report.database.streaming_from.is_some();
        self.state.not_streaming_since = match (report.answers, report.database.role) {
            (true, Role::Standby) if !streams && self.state.applied.upstream.is_some() => {
                self.state.not_streaming_since.or(Some(now))
            }
            _ => None,
        };
        self.state.report = report;
    }

    /// A configuration was loaded: what waits for a restart is known in a moment.
    fn look_after_soon(&mut self, now: Millis) {
        self.kept_house_at = (now + SETTINGS_SETTLE_MS).saturating_sub(HOUSEKEEPING_MS);
    }

    fn take_done(&mut self, job: Job, result: Result<Box<Done>, String>, now: Millis) {
        if matches!(job, Job::Step(member::Step::Fence { .. })) {
            self.fencing = None;
        } else {
            self.job = None;
        }
        self.state.busy = None;
        self.news = true;
        // What the job did to the guard is known before the next step is chosen.
        let status = self.guard.status().borrow().clone();
        self.take_guard(status);
        if job == Job::Bootstrap {
            // Its outcome shows in the record in a moment.
            self.state.retry_at = now + 1_000;
        }
        if let Job::Step(
            member::Step::Clone { discard: true, .. } | member::Step::Fill { discard: true, .. },
        ) = &job
        {
            // Until the record says that it is done, it looks as if it were still wished.
            self.state.retry_at = now + DONE_SHOWS_MS;
        }
        match result {
            Ok(done) => {
                let done = *done;
                if let Some(applied) = done.applied {
                    if applied.sync != self.state.applied.sync || applied.sync_since.is_none() {
                        self.sync_written_at = now;
                    }
                    self.state.applied = applied;
                }
                if let Some((data, identifier, clean_end)) = done.data {
                    if let DataDir::Unusable(why) = &data {
                        if self.state.data != data {
                            tracing::error!(why, "the database cannot be started");
                        }
                        self.state.retry_at = now + LOOK_AGAIN_MS;
                    }
                    self.state.data = data;
                    self.state.system_identifier = identifier;
                    self.state.clean_end = clean_end;
                }
                if done.fenced.is_some() {
                    self.state.fenced = done.fenced;
                }
                if done.settings_written.is_some() {
                    self.look_after_soon(now);
                }
                if done.settings_written == Some(self.settings_change) {
                    self.state.settings_differ = false;
                }
                if matches!(
                    job,
                    Job::Step(
                        member::Step::Clone { .. }
                            | member::Step::Fill { .. }
                            | member::Step::Rejoin { .. }
                    )
                ) {
                    // Copies and rewinds bring no slots along.
                    self.state.settings_differ = true;
                }
                if let Some(pending) = done.pending_restart {
                    self.state.pending_restart = pending;
                }
                if let Some(error) = done.hba_error {
                    self.state.hba_trouble = error.map(|why| format!("{why} ({})", codes::BAD_HBA));
                }
                self.state.hand_over_ready |= done.hand_over_ready;
                if done.checked {
                    self.state.not_streaming_since = None;
                    if self.state.guard.postmaster.is_some() {
                        // It fits, so what keeps it from streaming needs time, not comparing.
                        self.state.retry_at = now + 1_000;
                    }
                }
                for change in done.propose {
                    self.propose("step-done", change);
                }
            }
            Err(error) => {
                tracing::warn!(job = job.name(), %error, "a step failed");
                if job.is_attempt() {
                    self.state.failed(format!("{}: {error}", job.name()));
                }
            }
        }
    }

    /// Decides and hands out what is to be done now.
    fn act(&mut self) {
        let now = clock::now_ms();
        self.acted = now;
        self.warm_up(now);
        if self.news && now >= self.last_beat + NEWS_PAUSE_MS {
            self.beat();
        }
        self.keep_promise();
        self.keep_longest_grant(now);
        self.keep_guard();
        self.step(now);
        self.lead(now);
        self.show(now);
    }

    /// Looks how the warm-up before a switchover goes.
    fn warm_up(&mut self, now: Millis) {
        let voters = self.state.voters();
        let warming = self.warmth.look(&self.state, &voters, now);
        if warming != self.state.warming {
            self.news = true;
            self.state.warming = warming;
        }
    }

    /// A newer generation is promised as soon as it is known: durably first, then in effect.
    fn keep_promise(&mut self) {
        let generation = self.state.record.generation;
        if self.promising || generation <= self.state.voter.promised() {
            return;
        }
        self.promising = true;
        let (consensus, events) = (self.consensus.clone(), self.events.clone());
        tokio::spawn(async move {
            while let Err(error) = consensus.promise(generation).await {
                tracing::error!(%error, "a promise could not be written");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            let _ = events.send(Event::Promised(generation)).await;
        });
    }

    /// No grant is longer than what is on disk, so the disk follows the policy.
    fn keep_longest_grant(&mut self, now: Millis) {
        // Without a record there is no policy that anybody chose.
        if self.writing_longest || self.state.record.cluster.is_none() {
            return;
        }
        let record = self.state.record.clone();
        let Some(longest_ms) = self.state.voter.longest_to_write(&record.policy, now) else {
            return;
        };
        self.writing_longest = true;
        let (consensus, events) = (self.consensus.clone(), self.events.clone());
        tokio::spawn(async move {
            while let Err(error) = consensus.set_longest_grant_ms(longest_ms).await {
                tracing::error!(%error, "the longest lease could not be written");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            let _ = events.send(Event::LongestWritten(longest_ms)).await;
        });
    }

    fn keep_guard(&mut self) {
        if self.state.guard.connected || self.reconnecting {
            if self.state.guard.connected {
                self.reconnecting = false;
            }
            return;
        }
        self.reconnecting = true;
        let guard = self.guard.clone();
        tokio::spawn(async move {
            while let Err(error) = guard.reconnect_or_spawn().await {
                tracing::error!(%error, "no guard");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
    }

    fn step(&mut self, now: Millis) {
        let mut next = self.next_step(now);
        // A fence runs beside everything else: nothing waits for it, and it waits for nothing.
        if let Some(member::Next { rule, step: member::Step::Fence { below } }) = next {
            if self.fencing.is_none() {
                tracing::info!(rule, %below, "fence");
                self.fencing = Some(below);
                self.start(Job::Step(member::Step::Fence { below }));
            }
            next =
                self.next_step(now).filter(|next| !matches!(next.step, member::Step::Fence { .. }));
        }
        if let Some(next) = next {
            if self.job.is_none() && !self.inspect_due {
                tracing::info!(rule = next.rule, step = ?next.step, "step");
                self.start(Job::Step(next.step));
            }
            self.inspect(now);
            return;
        }
        self.inspect(now);
        if self.job.is_none()
            && let Some(job) = self.upkeep(now)
        {
            self.start(job);
        }
    }

    fn next_step(&self, now: Millis) -> Option<member::Next> {
        let voters = self.state.voters();
        let database = self.state.database(now);
        let mut local = self.state.local(now, &voters, &database);
        // One that is under way counts as done: it will be, or the guard is replaced.
        local.fenced_below = local.fenced_below.max(self.fencing.unwrap_or_default());
        member::next(&local)
    }

    fn inspect(&mut self, now: Millis) {
        // One that cannot be used may have been put right meanwhile.
        self.inspect_due |= matches!(self.state.data, DataDir::Unusable(_))
            && self.state.guard.postmaster.is_none()
            && now >= self.state.retry_at;
        if self.inspect_due && self.job.is_none() {
            self.inspect_due = false;
            self.start(Job::Inspect);
        }
    }

    fn start(&mut self, job: Job) {
        let now = clock::now_ms();
        if matches!(job, Job::HouseKeeping { .. }) {
            self.kept_house_at = now;
        }
        let generation = self.state.record.generation;
        let lease = self.state.lease_until(now).map(|until| self.lease(generation, until));
        let task = self.executor.clone().prepare(
            job.clone(),
            self.state.applied.clone(),
            lease,
            self.hosts(),
            self.settings_change,
            self.events.clone(),
        );
        if let Job::Step(member::Step::SetSync { .. }) = &job {
            // From here on nobody may rely on a position sampled before.
            self.state.applied.sync_since = None;
        }
        if let Job::Step(member::Step::Follow { upstream: Some(_) }) = &job {
            self.state.fenced = None;
        }
        self.state.busy = job.busy().map(str::to_owned);
        let handle = tokio::spawn(task);
        if !matches!(job, Job::Step(member::Step::Fence { .. })) {
            self.job = Some((job, handle));
        }
    }

    /// The Raft leader's duties.
    fn lead(&mut self, now: Millis) {
        if !self.state.leads() || self.state.record.cluster.is_none() {
            self.state.notes.clear();
            return;
        }
        let voters = self.state.voters();
        // A new leader decides once it has applied all that was agreed before it.
        let standing = &self.state.standing;
        let caught_up = standing.applied_index >= standing.last_log_index;
        if !self.proposing && caught_up {
            let decision = leader::decide(&self.state.view(now, &voters));
            self.state.notes = decision.why_not;
            if let Some(proposal) = decision.proposal {
                tracing::info!(rule = proposal.rule, change = ?proposal.change, "propose");
                self.propose(proposal.rule, proposal.change);
            }
        }
        self.membership.check(&self.state, &self.consensus, now);
    }

    fn propose(&mut self, rule: &'static str, change: Change) {
        self.proposing = true;
        let (consensus, events) = (self.consensus.clone(), self.events.clone());
        tokio::spawn(async move {
            let command = Command { at_unix_ms: clock::now_unix_ms(), change };
            let error = consensus.propose(command).await.err().map(|e| e.to_string());
            let _ = events.send(Event::Proposed { rule, error }).await;
        });
    }

    fn show(&mut self, now: Millis) {
        let lease_until = self.state.lease_until(now);
        let paths: BTreeMap<_, _> = self
            .state
            .record
            .members
            .keys()
            .filter(|m| **m != self.state.me)
            .map(|m| (m.clone(), self.state.path_views(m, now)))
            .collect();
        let shown = Shown {
            me: self.state.me.clone(),
            record: self.state.record.clone(),
            standing: self.state.standing.clone(),
            heard: self.state.heard.clone(),
            paths,
            guard: self.state.guard.clone(),
            lease_until,
            since: self.state.since,
            since_before_start: self.state.since_before_start,
            started: self.state.started,
        };
        self.shown.send_replace(Arc::new(shown));
        let mut table = routing::table(&self.state, &self.hosts(), now);
        table.dead_hosts = self.dead_hosts(now);
        if self.table_key.as_ref() != Some(&table) {
            self.table_key = Some(table.clone());
            let version = self.table.borrow().version + 1;
            self.table.send_replace(Arc::new(Table { version, ..table }));
        }
    }
}

impl State {
    /// The database answers, and is not on its way out.
    fn process_answers(&self) -> bool {
        self.report.answers
            && self.guard.postmaster.as_ref().is_some_and(|p| p.stopping.is_none() && !p.dying)
            && self.database(clock::now_ms()).process == ProcessState::Running
    }
}

fn ticker(interval_ms: u64) -> tokio::time::Interval {
    let mut tick = tokio::time::interval(Duration::from_millis(interval_ms));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}
