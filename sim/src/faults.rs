//! Faults and operators' wishes, drawn from the seed, and their end.

use crate::{
    clock::MS,
    database::{Data, Running},
    event::{Mend, Process, What},
    net::PATHS,
    raft::Raft,
    scenario::Kind,
    world::{World, member},
};
use sempre_model::{
    Generation, MemberId, NodeId, Phase, Policy, SyncSet,
    command::Change,
    observation::DiskState,
    policy::Durability,
    record::{Cause, Switchover},
    restart::{RestartConditions, ScheduledRestart, WantedRole},
};
use std::collections::BTreeMap;

/// A stranded primary's successor is looked for this often, and so many times.
const STRAND_EVERY_US: u64 = 150 * MS;
const STRAND_TRIES: u32 = 60;
/// A promotion is looked for this often, and so many times.
const UNHEARD_EVERY_US: u64 = 10 * MS;
const UNHEARD_TRIES: u32 = 1_500;

impl World {
    /// The next fault of the storm.
    pub fn on_fault(&mut self) {
        if !self.storm {
            return;
        }
        let every = self.scenario.fault_every_ms;
        let pause = self.rng.range(every / 4, every * 2) * MS;
        self.at(pause, 0, What::Fault);
        let m = self.rng.index(self.members.len());
        if self.scenario.archive && self.rng.chance(80) {
            self.archive_fault();
            return;
        }
        if self.scenario.kind == Kind::Calm {
            self.calm_fault(m);
            return;
        }
        match self.rng.range(0, 100) {
            0..8 => self.agent_crash(m, 4_000),
            8..13 => self.guard_crash(m),
            13..23 => self.database_crash(m),
            23..32 => self.power_cut(m, 6_000),
            32..37 => self.pause(m, &[Process::Agent], 5_000),
            37..41 if self.scenario.pause_guard_alone => self.pause(m, &[Process::Guard], 5_000),
            41..46 => {
                self.pause(m, &[Process::Agent, Process::Guard, Process::Database], 5_000);
            }
            46..51 => self.pause(m, &[Process::Database], 6_000),
            51..65 => self.partition(m),
            65..69 => self.weather(m),
            69..73 => self.fade(m),
            73..79 => self.disk_fault(m),
            79..81 => self.replace(m),
            81..82 => self.take_out(m),
            82..83 => self.power_cut_all(),
            83..85 => self.strand(),
            85..86 => self.clocks_jump(),
            86..88 => self.unheard(UNHEARD_TRIES),
            _ => self.operator(),
        }
    }

    /// Only what rule 4 says must not matter.
    fn calm_fault(&mut self, m: usize) {
        let leader = (0..self.members.len())
            .find(|x| self.members[*x].raft.role == crate::raft::Role::Leader);
        let all_up = self.members.iter().all(|x| {
            x.powered
                && x.agent.up
                && !x.is_paused(Process::Agent)
                && (!x.has_database || x.db.running == Running::Up)
        });
        if !all_up || self.now_ms() < 6_000 {
            return;
        }
        match self.rng.range(0, 4) {
            0 => self.agent_crash(m, 500),
            1 => self.agent_crash(leader.unwrap_or(m), 500),
            2 if m != 0 => self.pause(m, &[Process::Agent], 1_500),
            3 if m != 0 && self.scenario.members > 3 => self.power_cut(m, 2_000),
            _ => {
                if let Some(leader) = leader.filter(|l| *l != 0) {
                    self.pause(leader, &[Process::Agent], 3_000);
                }
            }
        }
    }

    fn agent_crash(&mut self, m: usize, longest_ms: u64) {
        self.stats.count("fault: agent crash");
        self.log(|| format!("m{m}: FAULT agent crashes"));
        self.agent_ends(m);
        let delay = self.rng.range(20, longest_ms) * MS;
        self.at(delay, m, What::AgentStarts);
    }

    fn agent_ends(&mut self, m: usize) {
        let machine = &mut self.members[m];
        machine.agent.up = false;
        machine.paused[Process::Agent as usize] = false;
        machine.deferred.retain(|e| e.process() != Some(Process::Agent));
    }

    fn guard_crash(&mut self, m: usize) {
        self.stats.count("fault: guard crash");
        self.log(|| format!("m{m}: FAULT guard crashes"));
        self.guard_ends(m);
    }

    /// The kernel ends the database with its guard.
    fn guard_ends(&mut self, m: usize) {
        self.database_ends(m, false, "its guard is gone");
        let machine = &mut self.members[m];
        machine.guard.up = false;
        machine.guard.armed = None;
        machine.guard.crashed_at = None;
        machine.paused[Process::Guard as usize] = false;
        machine.paused[Process::Database as usize] = false;
        machine.db.hung_since = None;
        machine.deferred.retain(|e| e.process() == Some(Process::Agent));
    }

    fn database_crash(&mut self, m: usize) {
        self.stats.count("fault: database crash");
        self.log(|| format!("m{m}: FAULT database crashes"));
        self.members[m].paused[Process::Database as usize] = false;
        self.members[m].db.hung_since = None;
        self.database_ends(m, true, "crashed");
        self.act(m);
    }

    pub(crate) fn power_cut(&mut self, m: usize, longest_ms: u64) {
        if !self.members[m].powered {
            return;
        }
        self.stats.count("fault: power cut");
        self.log(|| format!("m{m}: FAULT power cut"));
        self.agent_ends(m);
        self.guard_ends(m);
        let now = self.now;
        let machine = &mut self.members[m];
        machine.powered = false;
        machine.archiver = None;
        machine.deferred.clear();
        machine.data.lose_unflushed();
        machine.clock = machine.clock.rebooted(now);
        let delay = self.rng.range(300, longest_ms) * MS;
        self.at(delay, m, What::Mend(Mend::Power));
    }

    fn power_cut_all(&mut self) {
        self.stats.count("fault: power cut of all");
        for m in 0..self.members.len() {
            self.power_cut(m, 3_000);
        }
    }

    fn pause(&mut self, m: usize, processes: &[Process], longest_ms: u64) {
        let delay = self.rng.range(100, longest_ms) * MS;
        let now = self.now;
        self.stats.count(match processes {
            [Process::Agent] => "fault: agent paused",
            [Process::Guard] => "fault: guard paused",
            [Process::Database] => "fault: database hung",
            _ => "fault: machine paused",
        });
        for (order, process) in processes.iter().rev().enumerate() {
            if self.members[m].is_paused(*process) {
                continue;
            }
            self.log(|| format!("m{m}: FAULT {process:?} paused"));
            self.members[m].paused[*process as usize] = true;
            if *process == Process::Database {
                self.members[m].db.hung_since = Some(now);
            }
            // After a pause of the whole machine each goes on in its turn.
            self.at(delay + order as u64 * 500, m, What::Resume(*process));
        }
    }

    fn partition(&mut self, m: usize) {
        let count = self.members.len();
        let all_paths = self.rng.chance(700);
        let only = self.rng.index(PATHS);
        let one_way = self.rng.chance(250);
        let kind = self.rng.index(4);
        let pivot = self.rng.index(count.max(2) - 1) + 1;
        let mut cuts = Vec::new();
        for a in 0..count {
            for b in (0..count).filter(|b| *b != a) {
                let cut = match kind {
                    // One member alone.
                    0 => a == m || b == m,
                    // Two halves.
                    1 => (a < pivot) != (b < pivot),
                    // A ring: only neighbours hear each other.
                    2 => (a + 1) % count != b && (b + 1) % count != a,
                    // One pair.
                    _ => (a == m && b == pivot) || (b == m && a == pivot),
                };
                let cut = cut && (!one_way || a < b);
                for path in (0..PATHS).filter(|p| cut && (all_paths || *p == only)) {
                    cuts.push((a, b, path));
                }
            }
        }
        self.stats.count(if one_way { "fault: one-way cut" } else { "fault: cut" });
        let (cuts_len, paths) = (cuts.len(), if all_paths { 2 } else { 1 });
        self.log(|| format!("FAULT cut kind {kind} at m{m}/{pivot}, one-way {one_way}, {paths} paths, {cuts_len} directions"));
        for (a, b, path) in &cuts {
            self.net.cut(*a, *b, *path);
        }
        let delay = self.rng.range(200, 6_000) * MS;
        self.at(delay, 0, What::Mend(Mend::Cuts(cuts)));
    }

    fn weather(&mut self, m: usize) {
        self.stats.count("fault: loss and delay");
        self.net.loss = self.rng.range(0, 400);
        self.net.twice = self.rng.range(0, 300);
        self.net.slow = self.rng.range(0, 800);
        self.net.slow_us = self.rng.range(10, 3_000) * MS;
        self.net.slow_at = self.rng.chance(600).then_some(m);
        let (loss, slow) = (self.net.loss, self.net.slow_us / MS);
        let at = self.net.slow_at;
        self.log(|| format!("FAULT loss {loss} per mille, delays up to {slow} ms at {at:?}"));
        let delay = self.rng.range(500, 5_000) * MS;
        self.at(delay, 0, What::Mend(Mend::Weather));
    }

    /// What comes to one member, mostly the primary, comes late; then nothing that it says is heard
    /// any more. So the last grants reach it long after they were given, and end all the same.
    fn fade(&mut self, m: usize) {
        self.stats.count("fault: slow, then silent");
        let primary = self.newest().primary.clone().map(|p| self.index_of(&p));
        let m = primary.filter(|_| self.rng.chance(900)).unwrap_or(m);
        // Shorter than the lease, or there is none left to be kept too long.
        let ttl = self.newest().policy.lease_ttl_ms;
        let late = self.rng.range(ttl / 4, ttl * 9 / 10);
        self.net.late_at = Some((m, late * MS));
        self.log(|| format!("m{m}: FAULT what comes to it takes {late} ms, then it is silent"));
        let delay = self.rng.range(50, late + 500) * MS;
        self.at(delay, m, What::Mend(Mend::Silence));
        let delay = delay + self.rng.range(late, 5_000) * MS;
        self.at(delay, 0, What::Mend(Mend::Weather));
    }

    fn disk_fault(&mut self, m: usize) {
        self.stats.count("fault: disk");
        let now = self.now;
        let disk = &mut self.members[m].disk;
        match self.rng.index(4) {
            0 => disk.flush_us = 300 * MS,
            1 => disk.state = DiskState::Stalled,
            2 => disk.state = DiskState::Full,
            _ => disk.state = DiskState::Failing("input/output error".into()),
        }
        disk.since = now;
        let state = self.members[m].disk.state.clone();
        self.log(|| format!("m{m}: FAULT disk {state:?} or slow"));
        if matches!(state, DiskState::Failing(_)) {
            self.database_crash(m);
        }
        let delay = self.rng.range(500, 6_000) * MS;
        self.at(delay, m, What::Mend(Mend::Disk));
    }

    /// A standby's machine is replaced: nothing of it is left, and it comes back under a new
    /// Raft node. Only while the primary serves, so that no data are destroyed that nobody else
    /// has; and only one at a time.
    fn replace(&mut self, m: usize) {
        if let Some(node) = self.new_machine(m) {
            self.stats.count("fault: member replaced");
            self.log(|| format!("m{m}: replaced, now Raft node {node}"));
            self.announce(m);
        }
    }

    /// The same, but the cluster is one member smaller for a while: it is taken out by hand, and
    /// joins again later.
    fn take_out(&mut self, m: usize) {
        let Some(node) = self.new_machine(m) else { return };
        self.stats.count("fault: member taken out");
        let name = self.names[m].clone();
        self.log(|| format!("m{m}: taken out; comes back as Raft node {node}"));
        self.ask_any(Change::RemoveMember { name, force: false });
        let delay = self.rng.range(1_000, 8_000) * MS;
        self.at(delay, m, What::Mend(Mend::Rejoin));
    }

    /// The wall clocks of all jump, back or forth.
    fn clocks_jump(&mut self) {
        self.stats.count("fault: wall clocks jump");
        let hours = self.rng.range(0, 100) as i64 - 50;
        self.wall_jump_ms = hours * 3_600_000;
        self.log(|| format!("FAULT the wall clocks are {hours} hours wrong"));
    }

    /// The primary is cut off from everyone, until its successor serves, and longer.
    fn strand(&mut self) {
        let record = self.newest().clone();
        let Some(old) = record.primary.clone().filter(|_| record.phase == Phase::Serving) else {
            return;
        };
        let old = self.index_of(&old);
        self.stats.count("fault: primary stranded");
        self.log(|| format!("m{old}: FAULT stranded"));
        self.isolate(old, 12_000);
        let next = Mend::Strand { old, generation: record.generation, tries: STRAND_TRIES };
        self.at(STRAND_EVERY_US, 0, What::Mend(next));
    }

    /// Cuts all directions and paths between it and everyone.
    fn isolate(&mut self, m: usize, lasts_ms: u64) {
        let others = (0..self.members.len()).filter(|o| *o != m);
        let cuts: Vec<_> = others
            .flat_map(|o| (0..PATHS).flat_map(move |path| [(m, o, path), (o, m, path)]))
            .collect();
        for (a, b, path) in &cuts {
            self.net.cut(*a, *b, *path);
        }
        self.at(lasts_ms * MS, 0, What::Mend(Mend::Cuts(cuts)));
    }

    /// Whoever is promoted next is cut off before anybody hears of its timeline.
    fn unheard(&mut self, tries: u32) {
        let record = self.newest().clone();
        let promoted = record
            .primary
            .as_ref()
            .filter(|_| matches!(record.phase, Phase::Promoting { .. }))
            .map(|primary| self.index_of(primary))
            .filter(|m| self.members[*m].db.is_primary());
        if let Some(m) = promoted {
            self.stats.count("fault: promoted and not heard");
            self.log(|| format!("m{m}: FAULT cut off as soon as it is promoted"));
            let lasts_ms = self.rng.range(4_000, 9_000);
            self.isolate(m, lasts_ms);
        } else if tries > 0 && self.storm {
            self.at(UNHEARD_EVERY_US, 0, What::Mend(Mend::Unheard { tries: tries - 1 }));
        }
    }

    /// A voter restarts beside a stranded primary, on a disk so slow that it takes long to promise
    /// again what it has promised before.
    fn restart_beside(&mut self, old: usize, other: usize) {
        self.stats.count("fault: restarted beside a stranded primary");
        self.log(|| format!("m{other}: FAULT restarts on a slow disk, and hears m{old}"));
        self.members[other].disk.flush_us = 300 * MS;
        self.at(3_000 * MS, other, What::Mend(Mend::Disk));
        for path in 0..PATHS {
            self.net.mend(old, other, path);
            self.net.mend(other, old, path);
        }
        self.agent_crash(other, 100);
    }

    /// Once it has a successor, a standby forgets what it promised (it is replaced) and meets the
    /// old primary before anyone else.
    fn strand_on(&mut self, old: usize, generation: Generation, tries: u32) {
        let record = self.newest().clone();
        let serves = record.generation > generation && record.phase == Phase::Serving;
        let other = (0..self.members.len()).find(|m| {
            let name = Some(&self.names[*m]);
            *m != old && record.primary.as_ref() != name && record.last_serving() != name
        });
        let (Some(other), true) = (other.filter(|_| serves), self.storm) else {
            if tries > 0 && self.storm {
                let next = Mend::Strand { old, generation, tries: tries - 1 };
                self.at(STRAND_EVERY_US, 0, What::Mend(next));
            }
            return;
        };
        if self.rng.chance(400) {
            self.restart_beside(old, other);
            return;
        }
        let Some(node) = self.new_machine(other) else { return };
        self.stats.count("fault: replaced beside a stranded primary");
        self.log(|| format!("m{other}: replaced, now Raft node {node}; hears m{old} only"));
        let mut cuts = Vec::new();
        for path in 0..PATHS {
            self.net.mend(old, other, path);
            self.net.mend(other, old, path);
            for o in (0..self.members.len()).filter(|o| *o != old && *o != other) {
                cuts.push((o, other, path));
            }
        }
        for (a, b, path) in &cuts {
            self.net.cut(*a, *b, *path);
        }
        self.at(4_000 * MS, 0, What::Mend(Mend::Cuts(cuts)));
        self.announce(other);
    }

    /// A new machine in place of `m`'s, if that may be done now: its Raft node.
    fn new_machine(&mut self, m: usize) -> Option<NodeId> {
        let record = self.newest().clone();
        let safe = record.phase == Phase::Serving
            && record.primary.as_ref() != Some(&self.names[m])
            && record.last_serving() != Some(&self.names[m])
            && record.primary.as_ref().is_some_and(|p| self.takes_clients(self.index_of(p)));
        let settled = self.members.iter().enumerate().all(|(i, x)| {
            record.members.values().any(|y| y.node == x.node)
                && x.raft.voters().1.contains(&x.node)
                && x.raft.voters().1.len() == self.members.len()
                && (!x.has_database || x.data.present || self.scenario.spare == Some(i))
        });
        if !safe || !settled {
            return None;
        }
        self.power_cut(m, 1_000);
        let node = record.next_node();
        let election = (record.policy.election_min_ms, record.policy.election_max_ms);
        let machine = &mut self.members[m];
        machine.node = node;
        machine.raft = Raft::new(node, Vec::new(), election);
        machine.promised = Generation(0);
        machine.longest_ms = 0;
        machine.data = Data::default();
        machine.guard.fenced_below = Generation(0);
        Some(node)
    }

    /// Asks to be let in under its present node.
    fn announce(&mut self, m: usize) {
        let new = Box::new(member(&self.scenario, m, self.members[m].node));
        self.ask_any(Change::PutMember { member: new, token_hash: None });
    }

    /// An operator asks whoever leads.
    pub(crate) fn ask_any(&mut self, change: Change) {
        let leader = (0..self.members.len()).find(|m| {
            self.members[*m].agent.up && self.members[*m].raft.role == crate::raft::Role::Leader
        });
        if let Some(leader) = leader {
            self.ask_leader(leader, change);
        }
    }

    fn operator(&mut self) {
        let record = self.newest().clone();
        let to = self.rng.index(self.members.len());
        let name = self.names[to].clone();
        let change = match self.rng.range(0, 100) {
            0..35 => {
                self.stats.count("operator: switchover");
                let to = self.rng.chance(500).then_some(name);
                Change::RequestSwitchover(Switchover { to, at_unix_ms: None })
            }
            35..40 => Change::CancelSwitchover,
            40..50 => {
                self.stats.count("operator: manual failover");
                Change::BeginFailover {
                    expect: record.generation,
                    cause: Cause::Manual,
                    target: self.rng.chance(500).then_some(name),
                    allow_data_loss: self.rng.chance(100),
                    served_until_unix_ms: self.unix_ms(),
                    evidence: vec!["by hand".into()],
                }
            }
            50..75 => {
                self.stats.count("operator: policy");
                let policy = self.other_policy(&record.policy);
                Change::SetPolicy { policy: Box::new(policy), expect_version: None }
            }
            75..80 => {
                self.stats.count("operator: restart");
                Change::RequestRestart(name)
            }
            80..82 => self.schedule_restart(name),
            82..83 => Change::CancelRestart(name),
            83..88 => {
                self.stats.count("operator: reinit");
                Change::RequestReinit(name)
            }
            88..94 => {
                self.stats.count("operator: parameters");
                let value = format!("{}MB", self.rng.range(1, 64));
                let parameters = BTreeMap::from([("work_mem".to_owned(), Some(value))]);
                Change::SetParameters { parameters }
            }
            _ => {
                self.stats.count("operator: pause");
                let delay = self.rng.range(500, 4_000) * MS;
                self.at(delay, 0, What::Mend(Mend::Unpause));
                Change::SetPaused(true)
            }
        };
        self.ask_any(change);
    }

    /// In a while; some of them on a condition that may not hold then.
    fn schedule_restart(&mut self, member: MemberId) -> Change {
        self.stats.count("operator: scheduled restart");
        let at_unix_ms = self.unix_ms() + self.rng.range(0, 5_000);
        let role = self.rng.chance(300).then_some(WantedRole::Replica);
        let only_if = RestartConditions { role, ..RestartConditions::default() };
        let wish = ScheduledRestart { at_unix_ms, only_if, timeout_seconds: None };
        Change::ScheduleRestart { member, wish }
    }

    fn other_policy(&mut self, now: &Policy) -> Policy {
        let mut policy = now.clone();
        match self.rng.index(8) {
            0 if self.scenario.members >= 4 => policy.sync_count = 1 + self.rng.index(2),
            1 => policy.sync_spares = self.rng.index(3),
            // With a repository more standbys may be asked for than there are.
            2 => policy.strict = self.rng.chance(300) && !self.scenario.archive,
            3 => policy.lease_ttl_ms = self.rng.range(1_200, 5_000),
            4 if self.scenario.keeps_commits() => {
                // Never to `async` and back: what was acknowledged in between may be lost.
                let quorum = policy.durability == Durability::Quorum;
                policy.durability = if quorum { Durability::Sync } else { Durability::Quorum };
                policy.fast_promotion &= !quorum;
            }
            5 if policy.durability == Durability::Quorum => policy.fast_promotion ^= true,
            6 => policy.detect_ms = self.rng.range(500, 1_200),
            _ => policy.sync_timeout_ms = self.rng.range(500, 2_000),
        }
        policy
    }

    /// A fault ends.
    pub fn on_mend(&mut self, m: usize, mend: Mend) {
        match mend {
            Mend::Power => {
                if !self.members[m].powered {
                    self.log(|| format!("m{m}: power is back"));
                    self.members[m].powered = true;
                    self.members[m].guard.up = true;
                    self.at(0, m, What::AgentStarts);
                }
            }
            Mend::Cuts(cuts) => {
                for (a, b, path) in cuts {
                    self.net.mend(a, b, path);
                }
            }
            Mend::Silence => {
                let others = (0..self.members.len()).filter(|o| *o != m);
                let cuts: Vec<_> =
                    others.flat_map(|o| (0..PATHS).map(move |path| (m, o, path))).collect();
                if !self.storm {
                    return;
                }
                for (a, b, path) in &cuts {
                    self.net.cut(*a, *b, *path);
                }
                let delay = self.rng.range(1_000, 5_000) * MS;
                self.at(delay, 0, What::Mend(Mend::Cuts(cuts)));
            }
            Mend::Strand { old, generation, tries } => self.strand_on(old, generation, tries),
            Mend::Unheard { tries } => self.unheard(tries),
            Mend::Rejoin => self.announce(m),
            Mend::Weather => {
                (self.net.loss, self.net.twice, self.net.slow) = (0, 0, 0);
                (self.net.slow_at, self.net.late_at) = (None, None);
            }
            Mend::Disk => {
                let now = self.now;
                let disk = &mut self.members[m].disk;
                disk.state = DiskState::Healthy;
                disk.since = now;
                disk.flush_us = 3 * MS;
            }
            Mend::Unpause => self.ask_any(Change::SetPaused(false)),
        }
    }

    /// All faults end: from now on the cluster must come back by itself.
    pub fn heal(&mut self) {
        if self.storm {
            self.log(|| "all faults end".into());
            self.set_healing();
            self.net.heal();
            self.repository.hangs_until = 0;
        }
        for m in 0..self.members.len() {
            self.on_mend(m, Mend::Disk);
            self.on_mend(m, Mend::Power);
            for process in [Process::Database, Process::Guard, Process::Agent] {
                self.resume(m, process);
            }
            if !self.members[m].agent.up {
                self.at(0, m, What::AgentStarts);
            }
            // A replaced member asks again until it is let in.
            let node = self.members[m].node;
            if self.newest().members.get(&self.names[m]).is_none_or(|x| x.node != node) {
                self.announce(m);
            }
        }
        if self.newest().paused {
            self.ask_any(Change::SetPaused(false));
        }
        self.accept_loss();
        self.at(1_000 * MS, 0, What::Heal);
    }

    /// Serves, with everyone streaming and a new write acknowledged; else what is missing.
    pub fn recovered(&self) -> Result<(), String> {
        let record = self.newest();
        let Some(primary) = record.primary.as_ref().filter(|_| record.phase == Phase::Serving)
        else {
            return Err(format!("the cluster is {}", record.phase.name()));
        };
        let m = self.index_of(primary);
        if !self.takes_clients(m) || !self.routed(m) {
            return Err(format!("{primary} lets no clients in"));
        }
        if self.oracle.acked_at < self.healing_since() + 500 * MS {
            return Err("no write was acknowledged".into());
        }
        for (m, machine) in self.members.iter().enumerate() {
            let name = &self.names[m];
            if record.members.get(name).is_none_or(|x| x.node != machine.node) {
                return Err(format!("{name} is not let in again"));
            }
            if !machine.raft.voters().1.contains(&machine.node) {
                return Err(format!("{name} does not vote"));
            }
            let streams = machine.db.receiver.as_ref().is_some_and(|r| r.streaming);
            let spare = self.scenario.spare == Some(m) && !machine.data.present;
            if machine.has_database && name != primary && !streams && !spare {
                return Err(format!("{name} does not stream"));
            }
        }
        if record.sync.k == 0 && record.policy.sync_count > 0 && self.scenario.keeps_commits() {
            let able = record
                .data_members()
                .filter(|x| x.can_sync() && x.name != *primary)
                .filter(|x| !x.tags.spare || self.members[self.index_of(&x.name)].data.present)
                .count();
            if able > 0 && record.sync == SyncSet::default() {
                return Err("nothing is in the sync set".into());
            }
        }
        Ok(())
    }
}
