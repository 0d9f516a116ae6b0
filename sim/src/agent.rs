//! The agent of each member, as the real one is: it hears, promises, observes, decides, and hands
//! out steps. It runs the real `decide`; only the shell around it is simulated.

use crate::{
    clock::{MS, Micros},
    event::{Msg, What, Write},
    net::PATHS,
    raft::{Out, Payload},
    scenario::Bug,
    world::World,
};
use sempre_decide::{
    Heard, Millis,
    lease::{Holder, Voter},
    member::Step,
};
use sempre_model::{
    Command, Generation, MemberId, Observation, Record,
    command::Change,
    observation::{DiskState, ProcessState, Role},
    record::Fenced,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

/// A disk whose flushes take longer is slow with the record and the promise, too.
const SLOW_US: Micros = 100 * MS;
/// Longer than any lease: [`Bug::GrantBeforeVoting`].
const ANY_GRANT_MS: u64 = 60_000;
/// What the disk refused is written again after this.
const WRITE_AGAIN_US: Micros = 200 * MS;

/// What is worth a heartbeat out of turn when it changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub(crate) process: ProcessState,
    pub(crate) role: Role,
    pub(crate) fenced: Option<Fenced>,
    pub(crate) fenced_archives: BTreeMap<String, Fenced>,
    pub(crate) promised: Generation,
    pub(crate) attests_below: Generation,
    pub(crate) hand_over_ready: bool,
    pub(crate) unsettled: bool,
    pub(crate) admitted: bool,
}

/// A step under way.
#[derive(Clone, Debug)]
pub struct Doing {
    /// Which.
    pub id: u64,
    /// What.
    pub step: Step,
    /// How far.
    pub stage: u8,
    /// The database's life it began with.
    pub db_life: u64,
    /// When it began, own clock.
    pub began: Millis,
}

/// The agent's memory: lost when it restarts.
#[derive(Debug, Default)]
pub struct Agent {
    /// It runs.
    pub up: bool,
    /// Counts its lives.
    pub life: u64,
    pub(crate) seq: u64,
    pub(crate) started: Millis,
    /// Who was heard.
    pub heard: BTreeMap<MemberId, Heard>,
    /// When, own clock, by member and path.
    pub paths: Vec<[Option<Millis>; PATHS]>,
    /// As voter.
    pub voter: Option<Voter>,
    /// As holder.
    pub holder: Holder,
    late_lease: Option<(Generation, Millis)>,
    /// The record it has applied.
    pub record: Rc<Record>,
    pub(crate) since: Millis,
    pub(crate) since_before_start: bool,
    key: Option<(Generation, &'static str, Option<MemberId>)>,
    /// What it is doing.
    pub doing: Option<Doing>,
    pub(crate) next_id: u64,
    pub(crate) fencing: Option<Generation>,
    /// No start before.
    pub retry_at: Millis,
    /// Failed starts in a row.
    pub failures: u32,
    pub(crate) not_streaming_since: Option<Millis>,
    /// For the hand-over.
    pub hand_over_ready: bool,
    applying: bool,
    /// The generation for which it fences, or has fenced, the repository; and what it found.
    pub archive_fencing: Option<Generation>,
    /// See there.
    pub archive_fenced: Option<Fenced>,
    /// Under way to the disk: the promise, the longest grant.
    writing: [bool; 2],
    pub(crate) said: Option<Said>,
}

impl Agent {
    /// One that never ran.
    pub fn unborn(members: usize) -> Self {
        Self { paths: vec![[None; PATHS]; members], ..Self::default() }
    }
}

impl World {
    /// The agent starts.
    pub fn agent_starts(&mut self, m: usize) {
        let now = self.clock(m);
        let real = self.now;
        let count = self.names.len();
        let machine = &mut self.members[m];
        if machine.agent.up || !machine.powered {
            return;
        }
        let life = machine.agent.life + 1;
        let applied = machine.raft.applied as usize;
        let record = match applied {
            0 => Rc::default(),
            _ => self.committed[applied - 1].1.clone(),
        };
        if self.scenario.bug == Some(Bug::ForgetPromise) {
            machine.promised = Generation(0);
        }
        let mut voter = Voter::restored(machine.promised, machine.longest_ms, &record.policy, now);
        if self.scenario.bug == Some(Bug::GrantBeforeVoting) {
            voter.written(ANY_GRANT_MS);
        }
        machine.raft.restart(real, &mut self.rng);
        machine.agent = Agent {
            up: true,
            life,
            started: now,
            since: now,
            since_before_start: true,
            key: Some(key(&record)),
            record,
            voter: Some(voter),
            paths: vec![[None; PATHS]; count],
            ..Agent::default()
        };
        self.log(|| format!("m{m}: agent starts"));
        let delay = self.rng.range(0, 50) * MS;
        self.at(delay, m, What::Beat { life });
        self.at(delay, m, What::RaftTick { life });
    }

    /// Is this life of the agent still going on?
    pub fn alive(&self, m: usize, life: u64) -> bool {
        self.members[m].agent.up && self.members[m].agent.life == life
    }

    /// Heartbeat.
    pub fn on_beat(&mut self, m: usize, life: u64) {
        if !self.alive(m, life) {
            return;
        }
        if !self.members[m].guard.up {
            self.log(|| format!("m{m}: a new guard starts"));
            self.members[m].guard.up = true;
        }
        self.sample_sync(m);
        self.watch_streaming(m);
        self.keep_written(m);
        self.keep_archive(m);
        self.hello(m, false);
        self.act(m);
        let interval = self.members[m].agent.record.policy.heartbeat_ms.max(20) * MS;
        self.at(interval, m, What::Beat { life });
    }

    /// Says what it sees, on every path, with a renewal of the lease if it may ask for one.
    pub fn hello(&mut self, m: usize, urgent: bool) {
        let renewal = self.begin_renewal(m);
        let says = Rc::new(self.observe(m));
        let peers: Vec<usize> = (0..self.names.len())
            .filter(|p| *p != m)
            .filter(|p| self.members[m].agent.record.members.contains_key(&self.names[*p]))
            .collect();
        for to in peers {
            for path in 0..PATHS {
                let says = says.clone();
                self.send(m, to, path, Msg::Hello { path, says, renewal, urgent });
            }
        }
    }

    /// A renewal of the lease, if it may hold one: id, generation, term.
    pub fn begin_renewal(&mut self, m: usize) -> Option<(u64, Generation, u64)> {
        let now = self.clock(m);
        let voters = self.voters(m);
        let me = self.names[m].clone();
        let agent = &mut self.members[m].agent;
        if !agent.record.may_hold_lease(&me) || !voters.contains(&me) {
            return None;
        }
        let (generation, ttl_ms) = (agent.record.generation, agent.record.policy.lease_ttl_ms);
        let id = agent.holder.begin(generation, ttl_ms, now);
        let policy = agent.record.policy.clone();
        if agent.voter.as_mut()?.renew(generation, ttl_ms, &policy, now) {
            self.granted(m, id, &me);
        }
        Some((id, generation, ttl_ms))
    }

    fn granted(&mut self, m: usize, id: u64, voter: &MemberId) {
        let now = self.clock(m);
        let voters = self.voters(m);
        let late = self.scenario.bug == Some(Bug::LeaseFromArrival);
        let agent = &mut self.members[m].agent;
        let Some((generation, until)) = agent.holder.granted(id, voter, &voters) else { return };
        let ttl = agent.record.policy.lease_ttl_ms;
        let until = if late { now + ttl } else { until };
        agent.late_lease = late.then_some((generation, until));
        let margin = agent.record.policy.lease_margin_ms;
        if until > now {
            let delay = self.rng.range(50, MS);
            let until = until.saturating_sub(margin);
            self.at(delay, m, What::Extend { generation, until });
        }
        self.check_leases(m);
        self.act(m);
    }

    /// The end of its lease, if it holds one.
    pub fn lease_until(&self, m: usize) -> Option<Millis> {
        let agent = &self.members[m].agent;
        let (now, generation) = (self.clock(m), agent.record.generation);
        if !agent.record.may_hold_lease(&self.names[m]) {
            return None;
        }
        match agent.late_lease {
            Some((g, until)) if g == generation && until > now => Some(until),
            _ => agent.holder.until(generation, now),
        }
    }

    /// Who votes, by name, as far as this member's log says.
    pub fn voters(&self, m: usize) -> BTreeSet<MemberId> {
        let (_, nodes) = self.members[m].raft.voters();
        let members = self.members[m].agent.record.members.values();
        members.filter(|x| nodes.contains(&x.node)).map(|x| x.name.clone()).collect()
    }

    /// A message for the agent.
    pub fn agent_hears(&mut self, m: usize, from: usize, path: usize, msg: Msg) {
        let now = self.clock(m);
        match msg {
            Msg::Hello { path, says, renewal, urgent } => {
                self.heard_hello(m, from, path, &says, now);
                // One that was replaced has forgotten its promise. It votes again only when it has
                // applied the entry that let it in, which is newer than what it promised before.
                let votes = self.voters(m).contains(&self.names[m])
                    || self.scenario.bug == Some(Bug::GrantBeforeVoting);
                if let Some((id, generation, ttl_ms)) = renewal.filter(|_| votes) {
                    let agent = &mut self.members[m].agent;
                    let policy = agent.record.policy.clone();
                    let voter = agent.voter.as_mut().expect("a running agent votes");
                    if voter.renew(generation, ttl_ms, &policy, now) {
                        let incarnation = says.incarnation;
                        self.send(m, from, path, Msg::Grant { id, incarnation });
                    }
                }
                if urgent {
                    self.act(m);
                }
            }
            Msg::Grant { id, incarnation } => {
                self.members[m].agent.paths[from][path] = Some(now);
                if self.members[m].agent.life == incarnation {
                    let voter = self.names[from].clone();
                    self.granted(m, id, &voter);
                }
            }
            Msg::Raft { from, to, msg } if self.members[m].node == to => {
                let mut out = Out::new();
                let real = self.now;
                self.members[m].raft.handle(from, msg, real, &mut self.rng, &mut out);
                self.pump(m, out);
            }
            Msg::Propose(change) => self.propose(m, change),
            _ => {}
        }
    }

    fn heard_hello(&mut self, m: usize, from: usize, path: usize, says: &Observation, now: Millis) {
        let agent = &mut self.members[m].agent;
        agent.paths[from][path] = Some(now);
        match agent.heard.get_mut(&says.member) {
            Some(known) if known.observation.incarnation == says.incarnation => {
                if known.observation.seq == says.seq {
                    known.at = now;
                } else if known.observation.seq < says.seq {
                    *known = Heard { at: now, observation: says.clone() };
                }
            }
            _ => {
                let heard = Heard { at: now, observation: says.clone() };
                agent.heard.insert(says.member.clone(), heard);
            }
        }
    }

    /// The Raft node's timer.
    pub fn on_raft_tick(&mut self, m: usize, life: u64) {
        if !self.alive(m, life) {
            return;
        }
        let mut out = Out::new();
        let real = self.now;
        self.members[m].raft.tick(real, &mut self.rng, &mut out);
        self.pump(m, out);
        let due = self.members[m].raft.due().max(self.now + 5 * MS);
        self.at_real(due, m, What::RaftTick { life });
    }

    /// Sends what Raft wants sent, and has applied what is committed.
    pub fn pump(&mut self, m: usize, out: Out) {
        for (to, msg) in out {
            let from = self.members[m].node;
            if let Some(peer) = self.members.iter().position(|x| x.node == to) {
                self.send_any(m, peer, Msg::Raft { from, to, msg });
            }
        }
        let machine = &mut self.members[m];
        if machine.raft.commit > machine.raft.applied && !machine.agent.applying {
            machine.agent.applying = true;
            // The record's disk is the database's.
            let machine = &self.members[m];
            let slow = machine.disk.flush_us > SLOW_US || machine.disk.state != DiskState::Healthy;
            let late = match slow {
                true => 1_500,
                false if self.rng.chance(30) => 300,
                false => 10,
            };
            let delay = self.rng.range(0, late * MS);
            let life = self.members[m].agent.life;
            self.at(delay, m, What::Apply { life });
        }
    }

    /// Committed entries reach the record.
    pub fn on_apply(&mut self, m: usize, life: u64) {
        if !self.alive(m, life) {
            return;
        }
        self.members[m].agent.applying = false;
        let commit = self.members[m].raft.commit as usize;
        for index in self.members[m].raft.applied as usize..commit {
            let entry = self.members[m].raft.log[index].clone();
            match self.committed.get(index) {
                Some((known, _)) => {
                    if !Rc::ptr_eq(&known.payload, &entry.payload) {
                        self.violated("raft-agrees", format!("m{m} applies another entry {index}"));
                        return;
                    }
                }
                None => {
                    let before = self.newest().clone();
                    let record = self.record_after(&entry);
                    self.committed.push((entry, record.clone()));
                    self.check_record(&before, &record);
                }
            }
        }
        self.members[m].raft.applied = commit as u64;
        if commit > 0 {
            let record = self.committed[commit - 1].1.clone();
            self.set_record(m, record);
        }
        self.act(m);
    }

    fn set_record(&mut self, m: usize, record: Rc<Record>) {
        let now = self.clock(m);
        let agent = &mut self.members[m].agent;
        let next = key(&record);
        if let Some(before) = agent.key.clone().filter(|k| *k != next) {
            agent.since_before_start &= agent.record.cluster.is_none();
            agent.since = now;
            agent.hand_over_ready = false;
            if before.0 != next.0 {
                agent.retry_at = 0;
                agent.failures = 0;
                agent.holder.release();
                agent.late_lease = None;
            }
            agent.key = Some(next);
        }
        let (first, started) = (agent.record.cluster.is_none(), agent.started);
        agent.record = record;
        if let Some(voter) = agent.voter.as_mut().filter(|_| first) {
            voter.learn(&agent.record.policy, started);
        }
        self.keep_written(m);
    }

    /// What a voter has to have on disk goes there: a promise, and how long its grants may be.
    /// Durable first, then in effect; the record is in effect meanwhile.
    fn keep_written(&mut self, m: usize) {
        let now = self.clock(m);
        let agent = &mut self.members[m].agent;
        let generation = agent.record.generation;
        let Some(voter) = agent.voter.as_mut() else { return };
        let mut writes = Vec::new();
        if !agent.writing[0] && generation > voter.promised() {
            agent.writing[0] = true;
            writes.push(Write::Promise(generation));
        }
        if !agent.writing[1]
            && agent.record.cluster.is_some()
            && let Some(longest) = voter.longest_to_write(&agent.record.policy, now)
        {
            agent.writing[1] = true;
            writes.push(Write::Longest(longest));
        }
        let life = agent.life;
        for write in writes {
            let longest = match self.members[m].disk.flush_us > SLOW_US {
                true => 1_500,
                false if self.rng.chance(30) => 400,
                false => 15,
            };
            let delay = self.rng.range(300, longest * MS);
            self.at(delay, m, What::Written { life, write });
        }
    }

    /// It is on disk, if the disk works; from now on it is in effect.
    pub fn on_written(&mut self, m: usize, life: u64, write: Write) {
        if !self.alive(m, life) {
            return;
        }
        if self.members[m].disk.state != DiskState::Healthy {
            self.stats.count("promise: the disk refused");
            self.at(WRITE_AGAIN_US, m, What::Written { life, write });
            return;
        }
        let machine = &mut self.members[m];
        let Some(voter) = machine.agent.voter.as_mut() else { return };
        match write {
            Write::Promise(generation) => {
                machine.promised = machine.promised.max(generation);
                machine.agent.writing[0] = false;
                voter.promise(generation);
            }
            Write::Longest(longest) => {
                machine.longest_ms = longest;
                machine.agent.writing[1] = false;
                voter.written(longest);
            }
        }
        self.keep_written(m);
        self.act(m);
    }

    /// As Raft leader, proposes a change of the record.
    pub fn propose(&mut self, m: usize, change: Change) {
        let command = Command { at_unix_ms: self.unix_ms(), change };
        let mut out = Out::new();
        self.members[m].raft.propose(Payload::Command(command), &mut out);
        self.pump(m, out);
    }

    /// Brings a change to the Raft leader that `m` follows.
    pub fn ask_leader(&mut self, m: usize, change: Change) {
        let Some(leader) = self.members[m].raft.leader else { return };
        match self.members.iter().position(|x| x.node == leader) {
            Some(to) if to == m => self.propose(m, change),
            Some(to) => self.send_any(m, to, Msg::Propose(change)),
            None => {}
        }
    }
}

fn key(record: &Record) -> (Generation, &'static str, Option<MemberId>) {
    (record.generation, record.phase.name(), record.primary.clone())
}
