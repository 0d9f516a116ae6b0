//! The Raft leader's duty to make voters of the members in the record, and to forget those that
//! left: one at a time, so that majorities before and after always meet.

use crate::state::State;
use sempre_consensus::Consensus;
use sempre_decide::Millis;
use sempre_model::NodeId;
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Between two looks, ms.
const INTERVAL_MS: u64 = 500;
/// How long a new member may take to get the whole log before it is tried again.
const CATCH_UP: Duration = Duration::from_secs(10);

/// Remembers whether a change is under way.
#[derive(Default)]
pub struct Duty {
    last: Millis,
    under_way: Arc<AtomicBool>,
}

/// One change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Add { node: NodeId, known: bool },
    Drop(NodeId),
    Forget(NodeId),
    Complete,
}

impl Duty {
    /// Begins the next change, if there is one and nothing speaks against it.
    pub fn check(&mut self, state: &State, consensus: &Arc<dyn Consensus>, now: Millis) {
        if now < self.last + INTERVAL_MS || self.under_way.load(Ordering::Acquire) {
            return;
        }
        self.last = now;
        let Some(next) = next(state, now) else { return };
        let consensus = consensus.clone();
        let voters = state.standing.voters.clone();
        let under_way = self.under_way.clone();
        under_way.store(true, Ordering::Release);
        tokio::spawn(async move {
            if let Err(error) = change(&*consensus, next, voters).await {
                tracing::warn!(?next, %error, "the voters could not be changed; trying again");
            }
            under_way.store(false, Ordering::Release);
        });
    }
}

fn next(state: &State, now: Millis) -> Option<Next> {
    let standing = &state.standing;
    if standing.changing {
        return Some(Next::Complete);
    }
    let wanted: BTreeSet<NodeId> = state.record.members.values().map(|m| m.node).collect();
    if let Some(node) = standing.learners.difference(&wanted).next() {
        return Some(Next::Forget(*node));
    }
    let add = wanted.difference(&standing.voters).next();
    let drop = standing.voters.difference(&wanted).find(|n| **n != state.node());
    if add.is_none() && drop.is_none() {
        return None;
    }
    // The primary counts its grants among the voters that it knows. It must know the last change
    // before the next one, or its majority and ours might not meet.
    if let Some(primary) = &state.record.primary {
        let heard = state.heard.get(primary)?;
        let fresh = now.saturating_sub(heard.at) < state.record.policy.detect_ms;
        if !fresh || heard.observation.voters != standing.voters {
            return None;
        }
    }
    // Who left goes first: a dead voter makes every majority dearer.
    drop.map(|node| Next::Drop(*node)).or_else(|| {
        add.map(|node| Next::Add { node: *node, known: standing.learners.contains(node) })
    })
}

async fn change(
    consensus: &dyn Consensus,
    next: Next,
    mut voters: BTreeSet<NodeId>,
) -> Result<(), sempre_consensus::MembershipError> {
    match next {
        Next::Add { node, known } => {
            if !known {
                consensus.add_learner(node).await?;
            }
            consensus.wait_caught_up(node, CATCH_UP).await?;
            voters.insert(node);
            consensus.set_voters(voters).await
        }
        Next::Drop(node) => {
            voters.remove(&node);
            consensus.set_voters(voters).await
        }
        Next::Forget(node) => consensus.remove_learner(node).await,
        Next::Complete => consensus.set_voters(voters).await,
    }
}
