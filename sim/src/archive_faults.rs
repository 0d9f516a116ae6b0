//! Faults of a cluster with a repository: it hangs; the primary's disk is lost.

use crate::{clock::MS, database::Data, world::World};
use sempre_model::{Phase, command::Change, record::Cause};

/// When all faults have ended for so long, an operator looks at what is stuck.
const OPERATOR_AFTER_US: u64 = 40_000 * MS;

impl World {
    /// The repository hangs; or the primary's disk is lost, with all that was on it.
    pub(crate) fn archive_fault(&mut self) {
        if self.rng.chance(400) {
            self.stats.count("fault: repository hangs");
            let lasts_ms = self.rng.range(200, 5_000);
            self.repository.hangs_until = self.now + lasts_ms * MS;
            self.log(|| format!("FAULT the repository hangs for {lasts_ms} ms"));
            return;
        }
        let record = self.newest().clone();
        let Some(primary) = record.primary.as_ref().map(|p| self.index_of(p)) else { return };
        let kept = record.phase == Phase::Serving
            && record.sync.k > 0
            && self.takes_clients(primary)
            && self.members[primary].db.sync.k > 0
            && self.members[primary].data.sync.k > 0
            && self.scenario.keeps_commits()
            // Not while a smaller sync set is on its way.
            && self.members.iter().all(|m| m.raft.log.len() <= self.committed.len());
        let spare = self.scenario.spare;
        let whole = (0..self.members.len())
            .filter(|m| self.members[*m].has_database && Some(*m) != spare)
            .all(|m| self.members[m].data.present);
        // Else it would take an operator: a former primary that was not compared cannot take over.
        let successor = record.policy.recover_from_backup
            || (0..self.members.len()).any(|m| {
                let data = &self.members[m].data;
                m != primary && data.present && !data.was_primary && !data.resting
            });
        if !kept || !whole || !successor {
            return;
        }
        self.stats.count("fault: primary's disk lost");
        self.log(|| format!("m{primary}: FAULT its data are lost"));
        self.power_cut(primary, 6_000);
        self.members[primary].data = Data::default();
        self.disk_lost = true;
    }

    /// The primary's disk was lost, and before anybody knew of it the sync set was given up for a
    /// standby that crashed: nobody is known to have every commit, and an operator has to say so.
    pub(crate) fn accept_loss(&mut self) {
        let record = self.newest().clone();
        let stuck = matches!(record.phase, Phase::Fencing { .. }) && record.sync.k == 0;
        let long = self.now - self.healing_since() > OPERATOR_AFTER_US;
        if self.disk_lost && stuck && long {
            self.stats.count("operator: loss of a disk accepted");
            self.ask_any(Change::BeginFailover {
                expect: record.generation,
                cause: Cause::Manual,
                target: None,
                allow_data_loss: true,
                served_until_unix_ms: self.unix_ms(),
                evidence: vec!["by hand".into()],
            });
        }
    }
}
