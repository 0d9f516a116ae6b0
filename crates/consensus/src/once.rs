//! A command is applied once, however often it arrives.
//!
//! A proposal whose answer was lost is given again, perhaps to another leader, while the first
//! may still be on its way or in somebody's log. Each proposal therefore carries an id, and the
//! outcomes of the newest ones are part of the state that the members agree on: whichever copy
//! comes first in the log counts, and the others get its outcome.

use sempre_model::{Command, Record, Rejected};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Outcomes remembered. A copy is late by seconds at the most (a call is worked on for ten), and
/// a cluster is given a few commands a second when much happens.
const OUTCOMES_MAX: usize = 512;

/// The id of a proposal: random, drawn by the member that proposes. 0: none.
pub(crate) type RequestId = u64;

/// Draws an id.
pub(crate) fn draw() -> RequestId {
    #[cfg(feature = "simulation")]
    if let Some(machine) = crate::simulation::machine() {
        return machine.random().max(1);
    }
    rand::random_range(1..=RequestId::MAX)
}

/// One outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Given {
    id: RequestId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rejected: Option<Rejected>,
}

/// The newest outcomes, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Outcomes(VecDeque<Given>);

impl Outcomes {
    /// Applies the command, unless one of this id came before: then says what came of that.
    pub fn apply(
        &mut self,
        record: &mut Record,
        id: RequestId,
        command: &Command,
    ) -> Result<(), Rejected> {
        if id == 0 {
            return record.apply(command);
        }
        if let Some(known) = self.0.iter().rev().find(|given| given.id == id) {
            return known.rejected.clone().map_or(Ok(()), Err);
        }
        let outcome = record.apply(command);
        if self.0.len() == OUTCOMES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Given { id, rejected: outcome.clone().err() });
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sempre_model::command::Change;

    fn pause(paused: bool) -> Command {
        Command { at_unix_ms: 1, change: Change::SetPaused(paused) }
    }

    #[test]
    fn the_first_copy_counts_and_the_others_get_its_outcome() {
        let (mut outcomes, mut record) = (Outcomes::default(), Record::default());
        outcomes.apply(&mut record, 7, &pause(true)).unwrap();
        outcomes.apply(&mut record, 8, &pause(false)).unwrap();
        outcomes.apply(&mut record, 7, &pause(true)).unwrap();
        assert_eq!((record.version, record.paused), (2, false));

        let cancel = Command { at_unix_ms: 1, change: Change::CancelSwitchover };
        let first = outcomes.apply(&mut record, 9, &cancel).unwrap_err();
        // Meanwhile it would make sense; it was refused all the same, and its owner told.
        record.switchover = Some(sempre_model::record::Switchover { to: None, at_unix_ms: None });
        assert_eq!(outcomes.apply(&mut record, 9, &cancel), Err(first));
        assert!(record.switchover.is_some());
    }

    #[test]
    fn only_so_many_are_remembered() {
        let (mut outcomes, mut record) = (Outcomes::default(), Record::default());
        for id in 1..=OUTCOMES_MAX as u64 + 1 {
            outcomes.apply(&mut record, id, &pause(true)).unwrap();
        }
        assert_eq!(outcomes.0.len(), OUTCOMES_MAX);
        assert_eq!(outcomes.0.front().map(|given| given.id), Some(2));
    }
}
