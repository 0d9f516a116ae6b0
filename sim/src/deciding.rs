//! Deciding, as the real agent's loop does it: what the member itself is to do next, and what the
//! Raft leader is to propose. The decisions are the real ones of `decide`.

use crate::{
    agent::{Doing, Said},
    clock::MS,
    event::{Process, What},
    raft::{Out, Payload},
    scenario::Bug,
    world::World,
};
use sempre_decide::{
    Heard, leader,
    member::{self, Step},
};
use sempre_model::{
    Generation, Lsn, Observation, Phase,
    command::Change,
    observation::{Database, Role},
};
use std::collections::BTreeSet;

impl World {
    /// Decides, hands out the next step, and says so if something changed.
    pub fn act(&mut self, m: usize) {
        if !self.members[m].agent.up || self.members[m].is_paused(Process::Agent) {
            return;
        }
        let observation = self.observe(m);
        let now = self.clock(m);
        let said = Self::news(&observation);
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

    fn news(o: &Observation) -> Said {
        let nothing = Database::default();
        let database = o.database.as_ref().unwrap_or(&nothing);
        Said {
            process: database.process.clone(),
            role: database.role,
            fenced: o.fenced.clone(),
            fenced_archives: o.fenced_archives.clone(),
            promised: o.promised,
            attests_below: o.attests_below,
            hand_over_ready: o.hand_over_ready,
            unsettled: database.sync_since_lsn == Lsn(u64::MAX),
            admitted: database.admitted,
        }
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
}
