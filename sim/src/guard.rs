//! The guard's part: deadlines.

use crate::{clock::MS, database::Running, event::What, world::World};
use sempre_model::Generation;

impl World {
    /// A renewed deadline. An earlier one, or one of another generation, changes nothing.
    pub fn on_extend(&mut self, m: usize, generation: Generation, until: u64) {
        let machine = &mut self.members[m];
        let Some((armed, deadline)) = machine.guard.armed.as_mut() else { return };
        if !machine.guard.up || *armed != generation || until <= *deadline {
            return;
        }
        *deadline = until;
        let at = machine.clock.real(until);
        self.at_real(at, m, What::Deadline);
    }

    /// The first thing at any wake-up: is the lease over? Then the database is killed, which
    /// takes a moment, well within the lease's margin.
    pub fn on_deadline(&mut self, m: usize) {
        let now = self.clock(m);
        let machine = &self.members[m];
        let over = machine.guard.armed.is_some_and(|(_, deadline)| now >= deadline);
        if machine.guard.up && over && machine.db.running != Running::Down {
            let life = machine.db.life;
            let delay = self.rng.range(0, 20) * MS;
            self.at(delay, m, What::Killed { life });
        }
    }
}
