//! The four rules, as invariants over the whole cluster at one moment of real time. Each is a
//! function with the rule in its comment; [`World::violated`] stops the run.

use crate::{clock::Micros, database::Waiting, event::Process, scenario::Kind, world::World};
use sempre_decide::sync::future_commits_safe;
use sempre_model::{Generation, Phase, Record, SyncSet, record::Cause};

/// In a calm run no routed write waits longer than this: losing a sync standby costs its
/// time-out, a new Raft leader on top of it may have to be elected.
const CALM_STALL_MS: u64 = 6_000;

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Its name.
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
}

/// What the invariants remember.
#[derive(Debug, Default)]
pub struct Oracle {
    /// The first violation.
    pub violation: Option<Violation>,
    /// The newest commit that a client knows of: end, hash. Logs are chains, so whoever has it has
    /// all before it.
    newest: Option<(u64, u64)>,
    /// The highest generation that has acknowledged a write, and who did.
    acked: Option<(Generation, usize)>,
    /// Generations that began by `fast_promotion`, or by force.
    fast: Vec<Generation>,
    /// A commit may be lost from this generation on: somebody accepted it.
    lossy: Vec<Generation>,
    /// When a write was acknowledged last.
    pub acked_at: Micros,
    /// A sync set somewhere changed.
    pub dirty: bool,
}

impl World {
    /// An invariant does not hold.
    pub fn violated(&mut self, invariant: &'static str, what: String) {
        self.log(|| format!("VIOLATED {invariant}: {what}"));
        self.oracle.violation.get_or_insert(Violation { invariant, what });
    }

    /// Everything that can be checked at any moment.
    pub fn check(&mut self) {
        self.check_one_serves();
        if self.oracle.dirty {
            self.oracle.dirty = false;
            self.check_enforced();
        }
        self.check_calm();
    }

    /// Rules 1 and 3: a database that begins to serve has every commit that a client was told of
    /// or has read.
    pub fn check_serving(&mut self, m: usize) {
        self.oracle.dirty = true;
        let Some((lsn, hash)) = self.oracle.newest else { return };
        let machine = &self.members[m];
        let generation = machine.guard.armed.map(|(g, _)| g).unwrap_or_default();
        if machine.data.contains(lsn, hash) || !self.scenario.keeps_commits() {
            return;
        }
        // One that is only late (its guard is paused) must not be compared with a newer one.
        if self.oracle.acked.is_some_and(|(newer, _)| newer > generation) {
            return;
        }
        let acked = self.oracle.acked.map_or(Generation(0), |(g, _)| g);
        if self.oracle.lossy.iter().any(|g| *g > acked && *g <= generation) {
            // The loss counts from the moment that anybody sees it.
            if self.takes_clients(m) {
                let data = &self.members[m].data;
                self.oracle.newest = Some((data.flushed_lsn(), data.hash()));
            }
            return;
        }
        let end = machine.data.end_lsn();
        self.violated(
            "no-commit-lost",
            format!("m{m} serves generation {generation} up to {end} without the commit at {lsn}"),
        );
    }

    /// A commit is acknowledged. Rules 1 and 2: nobody of a newer generation has acknowledged
    /// one, and every newer primary has it.
    pub fn acknowledged(&mut self, m: usize, commit: Waiting) {
        let generation = self.members[m].guard.armed.map(|(g, _)| g).unwrap_or_default();
        self.stats.commits += 1;
        self.oracle.acked_at = self.now;
        if let Some(client) = self.clients.get_mut(commit.client).filter(|c| c.at == Some(m)) {
            client.at = None;
        }
        match self.oracle.acked {
            // The old one, whose guard was paused past the deadline, or that `fast_promotion` left
            // behind, may hear the last confirmations late: of commits that the new one has.
            Some((newer, _)) if newer > generation && self.excused(m, newer) => {}
            Some((newer, other)) if newer > generation || newer == generation && other != m => {
                self.violated(
                    "one-acknowledges",
                    format!("m{m} of generation {generation} acknowledges commit {} after m{other} did of generation {newer}", commit.commit),
                );
            }
            _ => self.oracle.acked = Some((generation, m)),
        }
        self.client_knows(m, commit.lsn, commit.hash, "acknowledged");
    }

    /// Rules 1 and 3: what a client knows from one primary, every newer one has.
    pub fn client_knows(&mut self, m: usize, lsn: u64, hash: u64, how: &str) {
        if !self.scenario.keeps_commits() {
            return;
        }
        let generation = self.members[m].guard.armed.map(|(g, _)| g);
        for other in 0..self.members.len() {
            let machine = &self.members[other];
            let newer = machine.guard.armed.map(|(g, _)| g) > generation;
            if newer && machine.db.is_primary() && !machine.data.contains(lsn, hash) {
                self.violated(
                    "no-commit-lost",
                    format!("m{m}'s commit at {lsn} is {how}, but m{other} serves without it"),
                );
            }
        }
        match self.oracle.newest {
            Some((known, known_hash)) if lsn <= known => {
                let holder = self.members.iter().find(|x| x.data.contains(known, known_hash));
                if holder.is_some_and(|x| !x.data.contains(lsn, hash)) {
                    let what = format!(
                        "m{m}'s commit {how} at {lsn} is not before the one known at {known}"
                    );
                    self.violated("no-commit-lost", what);
                }
            }
            Some((known, known_hash)) if !self.members[m].data.contains(known, known_hash) => {
                self.violated(
                    "no-commit-lost",
                    format!("m{m} has a commit {how} at {lsn} without the one known at {known}"),
                );
            }
            _ => self.oracle.newest = Some((lsn, hash)),
        }
    }

    /// Its guard is, or until this moment was, paused.
    fn guard_missed(&self, m: usize) -> bool {
        self.members[m].is_paused(Process::Guard) || self.members[m].guard.late
    }

    fn excused(&self, m: usize, newer: Generation) -> bool {
        self.guard_missed(m) || self.hurried(Generation(0), newer)
    }

    /// Rule 2: one database at most lets clients in. Excepted: a guard that is stopped cannot kill
    /// (its limit; it does so first thing when it goes on), and `fast_promotion`, where
    /// the old one may serve reads until its lease ends.
    fn check_one_serves(&mut self) {
        let serving = |w: &World, m: usize| w.takes_clients(m) && !w.guard_missed(m);
        let Some(first) = (0..self.members.len()).find(|m| serving(self, *m)) else { return };
        let Some(second) = (first + 1..self.members.len()).find(|m| serving(self, *m)) else {
            return;
        };
        let generation = |m: usize| self.members[m].guard.armed.map(|(g, _)| g).unwrap_or_default();
        let (one, other) = (generation(first), generation(second));
        if !self.hurried(one.min(other), one.max(other)) {
            self.violated(
                "one-serves",
                format!(
                    "m{first} of generation {one} and m{second} of {other} both let clients in"
                ),
            );
        }
    }

    /// Between the two generations there was a promotion that did not wait for leases to end
    /// (`fast_promotion`).
    fn hurried(&self, older: Generation, newer: Generation) -> bool {
        self.oracle.fast.iter().any(|g| *g > older && *g <= newer)
    }

    /// Rule 2: no two leases of different generations hold at the same real time. One whose
    /// holder's guard has fenced it counts no more.
    pub fn check_leases(&mut self, m: usize) {
        let Some(mine) = self.lease_until(m) else { return };
        let now = self.now;
        let generation = self.members[m].agent.record.generation;
        let void = self.members[m].guard.fenced_below > generation;
        if void || self.members[m].clock.real(mine) <= now {
            return;
        }
        for other in (0..self.members.len()).filter(|o| *o != m) {
            let machine = &self.members[other];
            let theirs = machine.agent.record.generation;
            let Some(until) = self.lease_until(other) else { continue };
            let void = machine.guard.fenced_below > theirs || !machine.agent.up;
            if !void
                && machine.clock.real(until) > now
                && !self.hurried(generation.min(theirs), generation.max(theirs))
            {
                self.violated(
                    "one-lease",
                    format!(
                        "m{m} of generation {generation} and m{other} of {theirs} both hold a lease"
                    ),
                );
            }
        }
    }

    /// Rule 1: while the cluster serves, a failover by the record finds every commit that the
    /// primary's database may acknowledge, whichever of its processes does it.
    fn check_enforced(&mut self) {
        let record = self.newest().clone();
        if record.phase != Phase::Serving || !self.scenario.keeps_commits() {
            return;
        }
        let Some(primary) = &record.primary else { return };
        let m = self.index_of(primary);
        let machine = &self.members[m];
        let armed = machine.guard.armed.map(|(g, _)| g) == Some(record.generation);
        if !armed || !machine.db.is_primary() || !machine.data.admitted {
            return;
        }
        let nothing = SyncSet::default();
        let mut enforced: Vec<&SyncSet> = machine
            .db
            .senders
            .iter()
            .filter(|(s, x)| x.sync.k > 0 && x.sync.members.contains(self.sender_name(**s)))
            .map(|(_, x)| &x.sync)
            .collect();
        if machine.db.sync.k == 0 {
            enforced.push(&nothing);
        }
        if let Some(bad) = enforced.into_iter().find(|s| !future_commits_safe(&record.sync, s)) {
            let what = format!("m{m} enforces {bad:?}, the record relies on {:?}", record.sync);
            self.violated("enforced-is-relied-on", what);
        }
    }

    /// The record's own rules: generations and versions grow, history and phase fit.
    pub fn check_record(&mut self, before: &Record, after: &Record) {
        self.oracle.dirty = true;
        let grown = after.generation >= before.generation && after.version >= before.version;
        let named = match after.phase {
            Phase::Fencing { .. } | Phase::Forming => after.primary.is_none(),
            _ => after.primary.as_ref().is_some_and(|p| after.members.contains_key(p)),
        };
        let rising = after.history.windows(2).all(|w| w[0].generation < w[1].generation);
        let apart = after.primary.as_ref().is_none_or(|p| !after.sync.members.contains(p))
            || after.phase != Phase::Serving;
        if !(grown && named && rising && apart) {
            self.violated(
                "record-is-sound",
                format!("after v{}: {:?}", after.version, after.phase),
            );
        }
        if let Phase::Promoting { evidence, .. } = &after.phase
            && after.phase != before.phase
        {
            let says = |word: &str| evidence.iter().any(|e| e.contains(word));
            if says("fast_promotion") {
                self.oracle.fast.push(after.generation);
            }
            if says("data loss accepted") {
                self.oracle.lossy.push(after.generation);
            }
        }
        if after.history.len() > before.history.len() {
            self.stats.failovers += 1;
            let cause = after.history.last().map(|h| h.cause.clone());
            self.stats.count(cause.map_or("", |c| cause_name(&c)));
        }
    }

    /// Rule 4: in a calm run, the first primary stays, its database is never stopped, and no
    /// write waits longer than losing a standby and a Raft election cost.
    fn check_calm(&mut self) {
        if self.scenario.kind != Kind::Calm || self.now_ms() < 5_000 {
            return;
        }
        let generation = self.newest().generation;
        if generation != Generation(1) {
            self.violated("calm-keeps-primary", format!("generation {generation} began"));
        }
        if self.members[0].db.life != 1 {
            self.violated("calm-keeps-primary", "the primary's database was stopped".into());
        }
        let stall = (self.now - self.oracle.acked_at) / 1_000;
        if stall > CALM_STALL_MS && !self.newest().policy.strict {
            self.violated("calm-keeps-writing", format!("no write for {stall} ms"));
        }
    }
}

fn cause_name(cause: &Cause) -> &'static str {
    match cause {
        Cause::Bootstrap => "cause: bootstrap",
        Cause::DatabaseCrashed => "cause: database crashed",
        Cause::DatabaseHung => "cause: database hung",
        Cause::DiskFailed => "cause: disk failed",
        Cause::MemberLost => "cause: member lost",
        Cause::LeaseExpired => "cause: lease expired",
        Cause::DataLost => "cause: data lost",
        Cause::Switchover => "cause: switchover",
        Cause::Manual => "cause: manual",
        Cause::Recover => "cause: recover",
    }
}
