//! Clients: most connect as routing lets them, some insist on any database that takes them.

use crate::{
    clock::{MS, Micros},
    database::{Running, Waiting},
    event::What,
    world::World,
};
use sempre_model::{Phase, observation::DiskState};

/// A client gives up on an answer after this long.
const PATIENCE_US: Micros = 2_000 * MS;

/// A client.
#[derive(Clone, Debug, Default)]
pub struct Client {
    /// Goes to any database that lets it in, whatever routing says.
    pub stubborn: bool,
    /// Waits for an answer from this member.
    pub at: Option<usize>,
    /// Since.
    pub since: Micros,
}

impl World {
    /// A client's next move.
    pub fn on_client(&mut self, client: usize) {
        let pause = self.rng.range(5, 60) * MS;
        self.at(pause, 0, What::Client { client });
        let state = &self.clients[client];
        if state.at.is_some() && self.now - state.since < PATIENCE_US {
            return;
        }
        let able: Vec<usize> = (0..self.members.len())
            .filter(|m| self.takes_clients(*m) && (state.stubborn || self.routed(*m)))
            .collect();
        let Some(m) = self.rng.pick(&able) else { return };
        if self.rng.chance(250) {
            self.read(m);
        } else {
            self.write(m, client);
        }
    }

    /// A database that lets clients in.
    pub fn takes_clients(&self, m: usize) -> bool {
        let machine = &self.members[m];
        machine.db.is_primary()
            && machine.data.admitted
            && machine.db.hung_since.is_none()
            && !machine.db.stopping
    }

    /// Routing leads there: the lease-holding primary.
    pub fn routed(&self, m: usize) -> bool {
        let machine = &self.members[m];
        machine.agent.up
            && machine.agent.record.phase == Phase::Serving
            && self.lease_until(m).is_some()
    }

    fn write(&mut self, m: usize, client: usize) {
        if self.members[m].disk.state == DiskState::Full {
            return;
        }
        let bytes = if self.rng.chance(5) { 20 << 20 } else { self.rng.range(100, 8_000) };
        let commit = self.next_commit;
        self.next_commit += 1;
        let now = self.now;
        let machine = &mut self.members[m];
        debug_assert!(machine.db.running == Running::Up);
        let timeline = machine.data.timeline();
        let record = machine.data.append(timeline, bytes, commit);
        let waiting = Waiting { lsn: record.lsn, hash: record.hash, client, commit };
        machine.db.waiting.push(waiting);
        self.clients[client].at = Some(m);
        self.clients[client].since = now;
        self.flush_soon(m);
    }

    /// What a client sees there now must never vanish.
    fn read(&mut self, m: usize) {
        let machine = &self.members[m];
        let waits_from = machine.db.waiting.first().map_or(u64::MAX, |w| w.lsn);
        let log = &machine.data.log;
        let visible = log.partition_point(|r| r.lsn < waits_from).min(machine.data.flushed);
        // The newest visible commit stands for all before it.
        let Some(newest) = log[..visible].iter().rev().find(|r| r.commit != 0).copied() else {
            return;
        };
        self.stats.reads += 1;
        self.client_knows(m, newest.lsn, newest.hash, "read");
    }
}
