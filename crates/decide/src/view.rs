//! What the Raft leader sees when it decides.

use crate::Millis;
use sempre_model::{MemberId, Observation, Record, observation::Database};
use std::collections::{BTreeMap, BTreeSet};

/// The newest observation of a member, and when it was heard.
#[derive(Clone, Debug)]
pub struct Heard {
    /// When this observation came (by any path), my clock.
    pub at: Millis,
    /// What it says.
    pub observation: Observation,
}

/// All that the leader's decision depends on.
#[derive(Clone, Debug)]
pub struct LeaderView<'a> {
    /// The record, read through a barrier or newer.
    pub record: &'a Record,
    /// The deciding member.
    pub me: &'a MemberId,
    /// My clock.
    pub now: Millis,
    /// The wall clock, for display only.
    pub now_unix_ms: u64,
    /// When my agent started, my clock.
    pub started: Millis,
    /// When my agent first saw the record's present generation and phase, my clock.
    pub since: Millis,
    /// The present generation and phase are older than my agent.
    pub since_before_start: bool,
    /// Who votes, in Raft and for leases. A member that is still joining does not yet.
    pub voters: &'a BTreeSet<MemberId>,
    /// Everyone heard since then, me included.
    pub heard: &'a BTreeMap<MemberId, Heard>,
}

impl LeaderView<'_> {
    /// How old the newest word of `member` is, ms.
    pub fn age(&self, member: &MemberId) -> Option<u64> {
        self.heard.get(member).map(|h| self.now.saturating_sub(h.at))
    }

    /// Voters needed to agree.
    pub fn majority(&self) -> usize {
        self.voters.len() / 2 + 1
    }

    /// Heard within the detection time?
    pub fn fresh(&self, member: &MemberId) -> bool {
        self.age(member).is_some_and(|age| age < self.record.policy.detect_ms)
    }

    /// The newest observation of `member`, if it is fresh.
    pub fn observation(&self, member: &MemberId) -> Option<&Observation> {
        self.heard.get(member).filter(|_| self.fresh(member)).map(|h| &h.observation)
    }

    /// The newest word of `member`'s database, if it is fresh.
    pub fn database(&self, member: &MemberId) -> Option<&Database> {
        self.observation(member)?.database.as_ref()
    }
}
