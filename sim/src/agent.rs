//! The agent of each member, as the real one is: it hears, promises, observes, decides, and hands
//! out steps. It runs the real `decide`; only the shell around it is simulated.

use crate::{
    clock::MS,
    database::Running,
    event::{Msg, Process, What},
    net::PATHS,
    raft::{Out, Payload},
    scenario::Bug,
    world::World,
};
use sempre_decide::{
    Heard, LeaderView, Millis, leader,
    lease::{Holder, Voter},
    member::{self, Local, Step},
};
use sempre_model::{
    Command, Generation, Lsn, MemberId, Observation, Phase, Record, Timeline,
    command::Change,
    observation::{Database, Downstream, LeaseView, PathView, ProcessState, Role},
    record::Fenced,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

/// After this many failed starts a member says that it cannot.
const START_FAILURES_MAX: u32 = 2;
/// A disk that is not healthy is noticed after this long, µs.
const PROBE_US: u64 = 500 * MS;

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
    seq: u64,
    started: Millis,
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
    since: Millis,
    since_before_start: bool,
    key: Option<(Generation, &'static str, Option<MemberId>)>,
    /// What it is doing.
    pub doing: Option<Doing>,
    next_id: u64,
    fencing: Option<Generation>,
    /// No start before.
    pub retry_at: Millis,
    /// Failed starts in a row.
    pub failures: u32,
    not_streaming_since: Option<Millis>,
    /// For the hand-over.
    pub hand_over_ready: bool,
    applying: bool,
    said: Option<(ProcessState, Role, Option<Fenced>, Generation, Generation, bool, bool)>,
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
        let voter = Voter::new(machine.promised, &record.policy, now);
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

    fn alive(&self, m: usize, life: u64) -> bool {
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
        self.hello(m, false);
        self.act(m);
        let interval = self.members[m].agent.record.policy.heartbeat_ms.max(20) * MS;
        self.at(interval, m, What::Beat { life });
    }

    fn hello(&mut self, m: usize, urgent: bool) {
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

    fn begin_renewal(&mut self, m: usize) -> Option<(u64, Generation, u64)> {
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
            Msg::Raft { from, to, msg } => {
                if self.members[m].node == to {
                    let mut out = Out::new();
                    let real = self.now;
                    self.members[m].raft.handle(from, msg, real, &mut self.rng, &mut out);
                    self.pump(m, out);
                }
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
    fn pump(&mut self, m: usize, out: Out) {
        for (to, msg) in out {
            let from = self.members[m].node;
            if let Some(peer) = self.members.iter().position(|x| x.node == to) {
                self.send_any(m, peer, Msg::Raft { from, to, msg });
            }
        }
        let machine = &mut self.members[m];
        if machine.raft.commit > machine.raft.applied && !machine.agent.applying {
            machine.agent.applying = true;
            let late = if self.rng.chance(30) { 300 } else { 10 };
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
        let machine = &mut self.members[m];
        let agent = &mut machine.agent;
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
        agent.record = record;
        // Durable first, then in effect, before anything else is done with the record.
        let generation = agent.record.generation;
        if generation > machine.promised {
            machine.promised = generation;
        }
        if let Some(voter) = agent.voter.as_mut() {
            voter.promise(generation);
        }
    }

    fn propose(&mut self, m: usize, change: Change) {
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

    /// Decides, hands out the next step, and says so if something changed.
    pub fn act(&mut self, m: usize) {
        if !self.members[m].agent.up || self.members[m].is_paused(Process::Agent) {
            return;
        }
        let observation = self.observe(m);
        let now = self.clock(m);
        let said = self.news(&observation);
        let me = self.names[m].clone();
        let agent = &mut self.members[m].agent;
        agent.heard.insert(me, Heard { at: now, observation });
        let news = agent.said.as_ref() != Some(&said);
        agent.said = Some(said);
        self.next_step(m);
        self.lead(m);
        if news {
            self.hello(m, true);
        }
    }

    fn news(
        &self,
        o: &Observation,
    ) -> (ProcessState, Role, Option<Fenced>, Generation, Generation, bool, bool) {
        let database = o.database.as_ref();
        (
            database.map_or(ProcessState::Stopped, |d| d.process.clone()),
            database.map_or(Role::Unknown, |d| d.role),
            o.fenced.clone(),
            o.promised,
            o.attests_below,
            o.hand_over_ready || database.is_some_and(|d| d.sync_since_lsn == Lsn(u64::MAX)),
            database.is_some_and(|d| d.admitted),
        )
    }

    fn next_step(&mut self, m: usize) {
        let voters = self.voters(m);
        let database = self.report(m);
        let next = member::next(&self.local(m, &voters, &database));
        let Some(next) = self.sabotaged(m, next) else { return };
        let life = self.members[m].agent.life;
        let step = next.step;
        if let Step::Fence { below } = step {
            let agent = &mut self.members[m].agent;
            if agent.fencing.is_none() {
                agent.fencing = Some(below);
                *self.stats.member_rules.entry(next.rule).or_insert(0) += 1;
                self.log(|| format!("m{m}: {}: fence below {below}", next.rule));
                let delay = self.rng.range(0, 5 * MS);
                self.at(delay, m, What::Fence { life, below });
            }
            return;
        }
        if self.members[m].agent.doing.is_some() {
            return;
        }
        *self.stats.member_rules.entry(next.rule).or_insert(0) += 1;
        self.log(|| format!("m{m}: {}: {step:?}", next.rule));
        let began = self.clock(m);
        let db_life = self.members[m].db.life;
        let agent = &mut self.members[m].agent;
        agent.next_id += 1;
        let id = agent.next_id;
        agent.doing = Some(Doing { id, step, stage: 0, db_life, began });
        let delay = self.rng.range(0, 10 * MS);
        self.at(delay, m, What::Step { life, id });
    }

    /// [`Bug::ShrinkDatabaseFirst`]: the primary enforces what its agent wishes, at once, instead
    /// of what the record allows.
    fn sabotaged(&self, m: usize, next: Option<member::Next>) -> Option<member::Next> {
        let record = &self.members[m].agent.record;
        if self.scenario.bug != Some(Bug::ShrinkDatabaseFirst)
            || record.phase != Phase::Serving
            || record.primary.as_ref() != Some(&self.names[m])
            || !self.members[m].db.is_primary()
        {
            return next;
        }
        let voters = self.voters(m);
        let database = self.report(m);
        let sync = leader::wished_sync(&self.view(m, &voters), &self.names[m], &database);
        if sync != self.members[m].data.sync {
            return Some(member::Next { rule: "be-primary", step: Step::SetSync { sync } });
        }
        next.filter(|n| !matches!(n.step, Step::SetSync { .. }))
    }

    /// The guard does what the fence asks.
    pub fn on_fence(&mut self, m: usize, life: u64, below: Generation) {
        if !self.alive(m, life) {
            return;
        }
        if !self.guard_answers(m) {
            self.at(20 * MS, m, What::Fence { life, below });
            return;
        }
        let kill = self.members[m].guard.armed.is_some_and(|(g, _)| g < below);
        if kill && self.scenario.bug != Some(Bug::AttestWithoutKilling) {
            self.database_ends(m, false, "fenced");
        }
        let machine = &mut self.members[m];
        machine.guard.fenced_below = machine.guard.fenced_below.max(below);
        machine.agent.fencing = None;
        self.act(m);
    }

    /// The Raft leader's duties.
    fn lead(&mut self, m: usize) {
        if !self.members[m].raft.may_decide() {
            return;
        }
        let voters = self.voters(m);
        let mut proposal = leader::decide(&self.view(m, &voters)).proposal;
        if self.scenario.bug == Some(Bug::PromoteWithoutFencing) {
            proposal = self.hasty_promotion(m).or(proposal);
        }
        if let Some(proposal) = proposal {
            *self.stats.leader_rules.entry(proposal.rule).or_insert(0) += 1;
            self.log(|| format!("m{m}: leader proposes {}", proposal.rule));
            self.propose(m, proposal.change);
            return;
        }
        self.keep_voters(m);
    }

    /// What the Raft leader waits for, for the report of a run that does not heal.
    pub fn why_not(&self) -> String {
        let leader = (0..self.members.len())
            .find(|m| self.members[*m].agent.up && self.members[*m].raft.may_decide());
        let Some(m) = leader else { return "no Raft leader may decide".into() };
        let voters = self.voters(m);
        leader::decide(&self.view(m, &voters)).why_not.join("; ")
    }

    fn hasty_promotion(&self, m: usize) -> Option<leader::Proposal> {
        let voters = self.voters(m);
        let view = self.view(m, &voters);
        let Phase::Fencing { from, .. } = &view.record.phase else { return None };
        let to = view.record.data_members().find(|x| {
            x.can_lead()
                && Some(&x.name) != from.as_ref()
                && view.database(&x.name).is_some_and(|d| d.role == Role::Standby)
        })?;
        let change = Change::Promote {
            generation: view.record.generation,
            to: to.name.clone(),
            fenced: vec![],
            sync: Default::default(),
            evidence: vec!["the first standby that runs".into()],
        };
        Some(leader::Proposal { rule: "fill-vacancy", change })
    }

    /// Makes voters of the members in the record, one change at a time, as the real agent does.
    fn keep_voters(&mut self, m: usize) {
        let (now, policy_detect) = {
            let agent = &self.members[m].agent;
            (self.clock(m), agent.record.policy.detect_ms)
        };
        let machine = &self.members[m];
        let record = machine.agent.record.clone();
        let wanted: BTreeSet<_> = record.members.values().map(|x| x.node).collect();
        let (at, voters) = machine.raft.voters();
        if wanted == voters || at > machine.raft.commit {
            return;
        }
        self.members[m].raft.learners = wanted.difference(&voters).copied().collect();
        let machine = &self.members[m];
        if let Some(primary) = &record.primary {
            let Some(heard) = machine.agent.heard.get(primary) else { return };
            let fresh = now.saturating_sub(heard.at) < policy_detect;
            if !fresh || heard.observation.voters != voters {
                return;
            }
        }
        let mut next = voters.clone();
        let gone = voters.difference(&wanted).find(|n| **n != machine.node);
        if let Some(gone) = gone {
            next.remove(gone);
        } else if let Some(new) = wanted.difference(&voters).find(|n| machine.raft.caught_up(**n)) {
            next.insert(*new);
        } else {
            return;
        }
        self.log(|| format!("m{m}: voters {next:?}"));
        let mut out = Out::new();
        self.members[m].raft.propose(Payload::Voters(next), &mut out);
        self.pump(m, out);
    }

    fn view<'a>(&'a self, m: usize, voters: &'a BTreeSet<MemberId>) -> LeaderView<'a> {
        let agent = &self.members[m].agent;
        LeaderView {
            record: &agent.record,
            me: &self.names[m],
            now: self.clock(m),
            now_unix_ms: self.unix_ms(),
            started: agent.started,
            since: agent.since,
            since_before_start: agent.since_before_start,
            voters,
            heard: &agent.heard,
        }
    }

    fn local<'a>(
        &'a self,
        m: usize,
        voters: &'a BTreeSet<MemberId>,
        database: &'a Database,
    ) -> Local<'a> {
        let machine = &self.members[m];
        let agent = &machine.agent;
        Local {
            view: self.view(m, voters),
            promised: machine.promised,
            lease_until: self.lease_until(m),
            running: machine.db.running != Running::Down,
            armed: machine.guard.armed.map(|(g, _)| g),
            fenced_below: machine.guard.fenced_below,
            crashed_at: machine.guard.crashed_at,
            data: machine.data.dir(),
            database,
            upstream: machine.data.upstream.map(|u| self.names[u].clone()),
            sync: machine.data.sync.clone(),
            admitted: machine.data.admitted,
            not_streaming_since: agent.not_streaming_since,
            checked_for: machine.data.checked_for,
            retry_at: agent.retry_at,
            settings_differ: machine.data.parameters != agent.record.parameters,
        }
    }

    fn watch_streaming(&mut self, m: usize) {
        let now = self.clock(m);
        let machine = &mut self.members[m];
        let should = machine.db.running == Running::Up
            && machine.db.role == Role::Standby
            && machine.data.upstream.is_some();
        let streams = machine.db.receiver.as_ref().is_some_and(|r| r.streaming);
        if !should || streams {
            machine.agent.not_streaming_since = None;
        } else if machine.agent.not_streaming_since.is_none() {
            machine.agent.not_streaming_since = Some(now);
        }
    }

    fn process(&self, m: usize) -> ProcessState {
        let machine = &self.members[m];
        let hang = machine.agent.record.policy.hang_ms * MS;
        match machine.db.running {
            Running::Up if machine.db.hung_since.is_some_and(|s| self.now - s >= hang) => {
                ProcessState::Hung
            }
            Running::Up => ProcessState::Running,
            Running::Starting => ProcessState::Starting,
            Running::Down if machine.agent.failures > START_FAILURES_MAX => {
                ProcessState::Failing("it does not start".into())
            }
            Running::Down if machine.guard.crashed_at.is_some() => ProcessState::Crashed,
            Running::Down => ProcessState::Stopped,
        }
    }

    /// What the agent knows of its database.
    fn report(&self, m: usize) -> Database {
        let (now, machine) = (self.now, &self.members[m]);
        let (data, db) = (&machine.data, &machine.db);
        let answers = db.running == Running::Up && db.hung_since.is_none();
        let mut report = Database {
            process: self.process(m),
            has_data: data.present,
            system_identifier: data.present.then_some(1),
            timeline: Timeline(data.timeline()),
            lsn: Lsn(data.flushed_lsn()),
            replay_lsn: Lsn(data.flushed_lsn()),
            redo_bytes: data.end_lsn() % 60_000_000,
            generation: machine.guard.armed.map(|(g, _)| g).unwrap_or_default(),
            clean_end_lsn: data.clean_end.map(Lsn),
            ..Database::default()
        };
        if !answers {
            return report;
        }
        report.role = db.role;
        if let Some(receiver) = db.receiver.as_ref().filter(|r| r.streaming) {
            report.streaming_from = Some(self.names[receiver.upstream].clone());
            report.receiver_age_ms = Some((now - receiver.heard_at) / MS);
        }
        for (standby, sender) in &db.senders {
            let flushed = Lsn(sender.flushed.unwrap_or(0));
            let downstream = Downstream {
                state: if sender.flushed.is_some() { "streaming" } else { "catchup" }.into(),
                flush_lsn: flushed,
                replay_lsn: flushed,
                sync_state: "quorum".into(),
                reply_age_ms: (now - sender.replied_at) / MS,
                client_addr: None,
            };
            report.downstreams.insert(self.names[*standby].clone(), downstream);
        }
        if db.role == Role::Primary {
            report.sync = Some(data.sync.clone());
            // From the moment a change is handed out, what is enforced is not known.
            let doing = self.members[m].agent.doing.as_ref();
            let changing = doing.is_some_and(|d| matches!(d.step, Step::SetSync { .. }));
            let since = db.sync_since.filter(|_| !changing);
            report.sync_since_lsn = Lsn(since.unwrap_or(u64::MAX));
            report.recovered_lsn = Lsn(db.recovered);
            report.admitted = data.admitted && self.lease_until(m).is_some();
        }
        report
    }

    fn fenced(&self, m: usize) -> Option<Fenced> {
        let machine = &self.members[m];
        let (data, db, record) = (&machine.data, &machine.db, &machine.agent.record);
        let stopped = db.upstream.is_none() && data.upstream.is_none() && db.receiver.is_none();
        let fenced = matches!(record.phase, Phase::Fencing { .. })
            && db.running == Running::Up
            && db.hung_since.is_none()
            && db.role == Role::Standby
            && stopped
            && machine.guard.armed.is_none()
            && machine.promised >= record.generation;
        fenced.then(|| Fenced {
            member: self.names[m].clone(),
            generation: record.generation,
            timeline: Timeline(data.timeline()),
            lsn: Lsn(data.flushed_lsn()),
        })
    }

    /// What the member says.
    fn observe(&mut self, m: usize) -> Observation {
        let now = self.clock(m);
        self.members[m].agent.seq += 1;
        let database = self.members[m].has_database.then(|| self.report(m));
        let fenced = self.fenced(m);
        let lease = self.lease_until(m);
        let machine = &self.members[m];
        let (agent, guard) = (&machine.agent, &machine.guard);
        let generation = agent.record.generation;
        let voter = agent.voter.as_ref().expect("a running agent votes");
        let view = |at: &Option<Millis>| PathView {
            age_ms: at.map(|at| now.saturating_sub(at)),
            rtt_us: None,
        };
        let heard = self
            .names
            .iter()
            .enumerate()
            .filter(|(p, name)| *p != m && agent.record.members.contains_key(*name))
            .map(|(p, name)| (name.clone(), agent.paths[p].iter().map(view).collect()))
            .collect();
        let answers = guard.up && !machine.is_paused(Process::Guard);
        let busy = agent
            .doing
            .as_ref()
            .is_some_and(|d| matches!(d.step, Step::Rejoin { .. } | Step::Clone { .. }));
        let noticed = self.now.saturating_sub(machine.disk.since) >= PROBE_US;
        Observation {
            incarnation: agent.life,
            seq: agent.seq,
            record_version: agent.record.version,
            generation,
            raft_leader: machine.raft.leader,
            database,
            disk: if noticed { machine.disk.state.clone() } else { Default::default() },
            fenced,
            attests_below: if answers { guard.fenced_below } else { Generation(0) },
            voters: machine.raft.voters().1,
            promised: voter.promised(),
            old_grant_ms: voter.old_grant_ms(now),
            grant_ms: voter.grant_ms(generation, now),
            hand_over_ready: agent.hand_over_ready,
            lease: lease
                .map(|until| LeaseView { generation, remaining_ms: until.saturating_sub(now) }),
            heard,
            busy: busy.then(|| "copying".to_owned()),
            ..Observation::empty(self.names[m].clone(), machine.node)
        }
    }
}

fn key(record: &Record) -> (Generation, &'static str, Option<MemberId>) {
    (record.generation, record.phase.name(), record.primary.clone())
}
