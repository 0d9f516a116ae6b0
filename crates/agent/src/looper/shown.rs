//! What the loop shows to REST and routing: a copy, so that nobody waits for it.

use crate::state::State;
use sempre_decide::Millis;
use sempre_guard::GuardStatus;
use sempre_model::{MemberId, Record};
use std::{collections::BTreeMap, sync::Arc};

/// What others of this process may look at: a copy of the state's facts, made after each event.
#[derive(Clone)]
pub struct Shown {
    pub me: MemberId,
    pub record: Arc<Record>,
    pub standing: sempre_consensus::Standing,
    pub heard: BTreeMap<MemberId, sempre_decide::Heard>,
    pub paths: BTreeMap<MemberId, Vec<sempre_model::observation::PathView>>,
    pub guard: GuardStatus,
    pub lease_until: Option<Millis>,
    pub since: Millis,
    pub since_before_start: bool,
    pub started: Millis,
}

impl Shown {
    /// Before the first event.
    pub fn empty(state: &State) -> Self {
        Self {
            me: state.me.clone(),
            record: state.record.clone(),
            standing: state.standing.clone(),
            heard: BTreeMap::new(),
            paths: BTreeMap::new(),
            guard: GuardStatus::default(),
            lease_until: None,
            since: state.since,
            since_before_start: state.since_before_start,
            started: state.started,
        }
    }
}
