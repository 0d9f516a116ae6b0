//! Steps, as the agent's executor does them: in stages that take time, any of which a crash, a
//! pause or a cut can interrupt.

use crate::{
    clock::MS,
    database::Running,
    event::{Process, What},
    world::World,
};
use sempre_decide::member::Step;
use sempre_model::{
    Generation, Lsn, SyncSet, Timeline,
    command::Change,
    observation::{DiskState, Role},
};

/// First pause after a failed start, ms; doubled each time up to 32 times.
const RETRY_FIRST_MS: u64 = 500;
/// How long a copy or a compare of WAL waits for its source, µs.
const COPY_TRIES_US: u64 = 500 * MS;
/// A clean shutdown waits this long for its standbys, ms.
const SHUTDOWN_MS: u64 = 3_000;

/// What becomes of a step after a stage.
enum Then {
    /// Another stage, after so long.
    Again(u8, u64),
    /// It is done.
    Done,
    /// It failed; not again for a while.
    Failed,
}

impl World {
    /// Does the guard answer its agent?
    pub fn guard_answers(&self, m: usize) -> bool {
        self.members[m].guard.up && !self.members[m].is_paused(Process::Guard)
    }

    /// The next stage of the step under way.
    pub fn on_step(&mut self, m: usize, life: u64, id: u64) {
        let agent = &self.members[m].agent;
        if !agent.up || agent.life != life {
            return;
        }
        let Some(doing) = agent.doing.clone().filter(|d| d.id == id) else { return };
        let then = self.stage(m, &doing.step, doing.stage, doing.db_life, doing.began);
        let now = self.clock(m);
        let agent = &mut self.members[m].agent;
        match then {
            Then::Again(stage, delay) => {
                if let Some(doing) = agent.doing.as_mut() {
                    doing.stage = stage;
                }
                self.at(delay, m, What::Step { life, id });
            }
            Then::Done => {
                agent.doing = None;
                self.act(m);
            }
            Then::Failed => {
                agent.doing = None;
                agent.retry_at = now + (RETRY_FIRST_MS << agent.failures.min(5));
                agent.failures += 1;
                self.log(|| format!("m{m}: {:?} failed", doing.step));
                self.act(m);
            }
        }
    }

    fn stage(&mut self, m: usize, step: &Step, stage: u8, db_life: u64, began: u64) -> Then {
        let wait = Then::Again(stage, 20 * MS);
        match step {
            Step::StartPrimary { generation, sync } if stage == 0 => {
                self.start_primary(m, *generation, sync)
            }
            Step::StartStandby { upstream } if stage == 0 => {
                if !self.guard_answers(m) {
                    return wait;
                }
                let upstream = upstream.as_ref().map(|u| self.index_of(u));
                self.members[m].data.upstream = upstream;
                self.members[m].data.resting = false;
                self.start_database(m, Role::Standby)
            }
            Step::StartPrimary { .. } | Step::StartStandby { .. } => self.started(m),
            Step::Promote { generation, sync } => {
                self.promote(m, stage, *generation, sync, db_life)
            }
            Step::Follow { upstream } => {
                let upstream = upstream.as_ref().map(|u| self.index_of(u));
                self.follow(m, stage, upstream)
            }
            Step::SetSync { sync } => {
                self.set_sync(m, sync);
                Then::Done
            }
            Step::Admit(admit) => {
                if stage == 0 {
                    return Then::Again(1, self.rng.range(1, 30) * MS);
                }
                if self.members[m].db.hung_since.is_some() {
                    return wait;
                }
                if self.members[m].db.life == db_life && self.members[m].db.is_primary() {
                    self.members[m].data.admitted = *admit;
                    self.log(|| format!("m{m}: clients let in: {admit}"));
                    self.check_serving(m);
                }
                Then::Done
            }
            Step::Reload => {
                self.members[m].data.parameters = self.members[m].agent.record.parameters.clone();
                Then::Done
            }
            Step::Checkpoint => {
                if stage == 0 {
                    return Then::Again(1, self.rng.range(50, 400) * MS);
                }
                self.members[m].agent.hand_over_ready = self.members[m].db.life == db_life;
                Then::Done
            }
            Step::HandOver => {
                let below = self.members[m].agent.record.generation.next();
                self.shut_down(m, stage, db_life, began, Some(below))
            }
            Step::Restart => self.restart(m, stage, db_life, began),
            Step::Rest if stage == 0 => {
                if !self.guard_answers(m) {
                    return wait;
                }
                self.stats.count("rest");
                self.members[m].data.resting = true;
                self.members[m].data.upstream = None;
                self.start_database(m, Role::Standby)
            }
            Step::Rest => self.started(m),
            Step::EndRest => self.shut_down(m, stage, db_life, began, None),
            Step::Rejoin { upstream } => {
                let upstream = self.index_of(upstream);
                self.rejoin(m, stage, upstream)
            }
            Step::TakeArchived { timeline, lsn, .. } => {
                if stage == 0 {
                    return Then::Again(1, self.rng.range(10, 400) * MS);
                }
                self.take_archived(m, db_life, *timeline, *lsn)
            }
            Step::Recover { timeline, lsn, .. } => {
                if stage == 0 {
                    return Then::Again(1, self.rng.range(500, 4_000) * MS);
                }
                self.recover(m, *timeline, *lsn)
            }
            Step::Clone { from, .. } | Step::Fill { from, .. } => {
                let from = self.index_of(from);
                self.copy(m, stage, from)
            }
            Step::Fence { .. } => Then::Done,
        }
    }

    fn start_primary(&mut self, m: usize, generation: Generation, sync: &SyncSet) -> Then {
        if !self.guard_answers(m) {
            return Then::Again(0, 20 * MS);
        }
        let Some(until) = self.guard_allows(m, generation) else { return Then::Failed };
        let machine = &mut self.members[m];
        if machine.db.running != Running::Down || !machine.data.present {
            return Then::Failed;
        }
        machine.data.sync = sync.clone();
        machine.data.admitted = false;
        self.arm(m, generation, until);
        let then = self.start_database(m, Role::Primary);
        if matches!(then, Then::Failed) {
            self.members[m].guard.armed = None;
        }
        then
    }

    /// The guard's deadline, if it lets `generation` serve.
    fn guard_allows(&self, m: usize, generation: Generation) -> Option<u64> {
        let margin = self.members[m].agent.record.policy.lease_margin_ms;
        let deadline = self.lease_until(m)?.saturating_sub(margin);
        let guard = &self.members[m].guard;
        let right = self.members[m].agent.record.generation == generation;
        (right && generation >= guard.fenced_below && deadline > self.clock(m)).then_some(deadline)
    }

    fn arm(&mut self, m: usize, generation: Generation, deadline: u64) {
        self.members[m].guard.armed = Some((generation, deadline));
        let at = self.members[m].clock.real(deadline);
        self.at_real(at, m, What::Deadline);
    }

    fn start_database(&mut self, m: usize, role: Role) -> Then {
        let disk_works = self.members[m].disk.state == DiskState::Healthy;
        let takes = self.rng.range(50, if self.rng.clone().chance(50) { 3_000 } else { 600 }) * MS;
        let now = self.now;
        let machine = &mut self.members[m];
        if machine.db.running != Running::Down || !machine.data.present || !disk_works {
            return Then::Failed;
        }
        machine.data.clean_end = None;
        let life = machine.db.life + 1;
        machine.db = crate::database::Database {
            life,
            running: Running::Starting,
            role,
            ready_at: now + takes,
            sync: machine.data.sync.clone(),
            upstream: machine.data.upstream,
            ..Default::default()
        };
        self.at(takes, m, What::DatabaseTick { life });
        Then::Again(1, 10 * MS)
    }

    fn started(&mut self, m: usize) -> Then {
        match self.members[m].db.running {
            Running::Starting => Then::Again(1, 10 * MS),
            Running::Down => Then::Failed,
            Running::Up => {
                let machine = &mut self.members[m];
                machine.agent.failures = 0;
                machine.guard.crashed_at = None;
                Then::Done
            }
        }
    }

    fn promote(
        &mut self,
        m: usize,
        stage: u8,
        generation: Generation,
        sync: &SyncSet,
        db_life: u64,
    ) -> Then {
        if self.members[m].db.life != db_life || self.members[m].db.running != Running::Up {
            return Then::Failed;
        }
        if !self.guard_answers(m) || self.members[m].db.hung_since.is_some() {
            return Then::Again(stage, 20 * MS);
        }
        if stage == 0 {
            let Some(until) = self.guard_allows(m, generation) else { return Then::Failed };
            self.arm(m, generation, until);
            self.members[m].data.sync = sync.clone();
            self.members[m].data.admitted = false;
            return Then::Again(1, self.rng.range(10, 300) * MS);
        }
        if self.members[m].guard.armed.map(|(g, _)| g) != Some(generation) {
            return Then::Failed;
        }
        if self.members[m].db.role == Role::Standby {
            self.promote_database(m);
        }
        Then::Done
    }

    fn follow(&mut self, m: usize, stage: u8, upstream: Option<usize>) -> Then {
        if stage == 0 {
            let slow = if self.rng.chance(50) { 800 } else { 80 };
            return Then::Again(1, self.rng.range(3, slow) * MS);
        }
        if self.members[m].db.hung_since.is_some() {
            return Then::Again(1, 20 * MS);
        }
        // Only what is done counts as configured: an agent that dies before must do it again.
        self.members[m].data.upstream = upstream;
        if self.members[m].db.running != Running::Down {
            self.stop_receiver(m);
            self.members[m].db.upstream = upstream;
            self.connect(m);
        }
        Then::Done
    }

    /// Writes the sync set and has it reloaded; each process of the database sees it later.
    fn set_sync(&mut self, m: usize, sync: &SyncSet) {
        let machine = &mut self.members[m];
        machine.data.sync = sync.clone();
        machine.db.sync_since = None;
        let life = machine.db.life;
        let senders: Vec<usize> = machine.db.senders.keys().copied().collect();
        for sender in senders.into_iter().map(Some).chain([None]) {
            let slow = if self.rng.chance(50) { 800 } else { 60 };
            let delay = self.rng.range(0, slow) * MS;
            self.at(delay, m, What::Reloaded { life, sender });
        }
    }

    /// A clean shutdown; with `fence`, as the end of a hand-over.
    fn shut_down(
        &mut self,
        m: usize,
        stage: u8,
        db_life: u64,
        began: u64,
        fence: Option<Generation>,
    ) -> Then {
        let drain = self.members[m].agent.record.policy.drain_timeout_ms;
        if stage == 0 {
            return Then::Again(1, self.rng.range(0, drain + 1) * MS);
        }
        if self.members[m].db.hung_since.is_some() || !self.guard_answers(m) {
            return Then::Again(stage, 20 * MS);
        }
        let clean = self.members[m].db.life == db_life;
        if clean && self.members[m].db.running == Running::Up {
            if !self.shut_down_database(m) && self.clock(m) < began + SHUTDOWN_MS {
                return Then::Again(2, 5 * MS);
            }
            self.stopped_cleanly(m);
        }
        if let Some(below) = fence {
            let machine = &mut self.members[m];
            if machine.db.running != Running::Down {
                return Then::Done;
            }
            machine.guard.fenced_below = machine.guard.fenced_below.max(below);
        }
        Then::Done
    }

    fn restart(&mut self, m: usize, stage: u8, db_life: u64, began: u64) -> Then {
        let then = self.shut_down(m, stage, db_life, began, None);
        if matches!(then, Then::Done) {
            let name = self.names[m].clone();
            self.ask_leader(m, Change::RestartDone(name));
        }
        then
    }

    fn source_answers(&self, m: usize, from: usize) -> bool {
        let source = &self.members[from];
        self.net.talk(m, from)
            && source.powered
            && source.db.running == Running::Up
            && source.db.hung_since.is_none()
    }

    fn rejoin(&mut self, m: usize, stage: u8, upstream: usize) -> Then {
        let generation = self.members[m].agent.record.generation;
        match stage {
            0 => Then::Again(1, self.rng.range(20, 200) * MS),
            1 => {
                if !self.source_answers(m, upstream) {
                    return Then::Failed;
                }
                let mine = &self.members[m].data;
                let end = mine.end_lsn();
                let timeline = mine.log.last().map_or(1, |r| r.timeline);
                let hash = mine.log.last().map_or(0, |r| r.hash);
                if self.members[upstream].data.history_has(timeline, end) {
                    if !self.members[upstream].data.contains(end, hash) {
                        self.violated(
                            "one-history",
                            format!(
                                "m{m}'s WAL (timeline {timeline}, {end}) fits m{upstream}'s by PostgreSQL's rules, but is another one"
                            ),
                        );
                    }
                    self.members[m].data.checked_for = generation;
                    self.members[m].data.resting = false;
                    self.stats.count("rejoin-straight");
                    return Then::Done;
                }
                self.database_ends(m, false, "stopped to be rewound");
                self.members[m].data.present = false;
                Then::Again(2, self.rng.range(100, 1_500) * MS)
            }
            _ => {
                self.stats.count("rejoin-rewind");
                self.take_copy(m, upstream)
            }
        }
    }

    fn copy(&mut self, m: usize, stage: u8, source: usize) -> Then {
        let record = self.members[m].agent.record.clone();
        match stage {
            0 => Then::Again(1, self.rng.range(10, 100) * MS),
            1 => {
                self.database_ends(m, false, "stopped for a fresh copy");
                self.members[m].data = Default::default();
                Then::Again(2, self.rng.range(200, 2_000) * MS)
            }
            _ => {
                let Some(primary) = &record.primary else { return Then::Failed };
                self.stats.count(match *primary == self.names[source] {
                    true => "fresh-copy",
                    false => "fresh-copy of a standby",
                });
                let then = self.take_copy(m, source);
                if matches!(then, Then::Done) && record.reinits.contains_key(&self.names[m]) {
                    let name = self.names[m].clone();
                    self.ask_leader(m, Change::ReinitDone(name));
                }
                then
            }
        }
    }

    /// A fenced standby goes on with what the repository has.
    fn take_archived(&mut self, m: usize, db_life: u64, timeline: Timeline, lsn: Lsn) -> Then {
        let Some(log) = self.repository.up_to(timeline, lsn) else { return Then::Failed };
        let machine = &mut self.members[m];
        let data = &mut machine.data;
        let still = machine.db.life == db_life && data.upstream.is_none();
        let fits = data.log.len() <= log.len() && data.log[..] == log[..data.log.len()];
        if !still || !fits || machine.disk.state != DiskState::Healthy {
            return Then::Failed;
        }
        data.log = log.to_vec();
        data.flushed = log.len();
        data.timeline_known = data.timeline_known.max(timeline.0);
        self.stats.count("archived WAL taken");
        self.log(|| format!("m{m}: has the archived WAL up to {lsn}"));
        Then::Done
    }

    /// The data come from the repository.
    fn recover(&mut self, m: usize, timeline: Timeline, lsn: Lsn) -> Then {
        let Some(log) = self.repository.up_to(timeline, lsn).map(<[_]>::to_vec) else {
            return Then::Failed;
        };
        let machine = &mut self.members[m];
        if machine.data.present || machine.disk.state != DiskState::Healthy {
            return Then::Failed;
        }
        let flushed = log.len();
        machine.data = crate::database::Data {
            present: true,
            log,
            flushed,
            timeline_known: timeline.0,
            ..Default::default()
        };
        self.stats.count("recovered from the repository");
        self.log(|| format!("m{m}: recovered from the repository up to {lsn}"));
        Then::Done
    }

    fn take_copy(&mut self, m: usize, from: usize) -> Then {
        if !self.source_answers(m, from) {
            self.at(COPY_TRIES_US, m, What::Deadline);
            return Then::Failed;
        }
        let generation = self.members[m].agent.record.generation;
        let source = &self.members[from].data;
        let mut log = source.log.clone();
        log.truncate(source.flushed);
        let (flushed, timeline_known) = (log.len(), source.timeline_known);
        self.members[m].data = crate::database::Data {
            present: true,
            log,
            flushed,
            timeline_known,
            checked_for: generation,
            ..Default::default()
        };
        self.log(|| format!("m{m}: has m{from}'s data"));
        Then::Done
    }
}
