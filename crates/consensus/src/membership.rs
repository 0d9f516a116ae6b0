//! Who votes and who learns.

use crate::{api::Consensus, error::MembershipError, raft::RaftConsensus, types::Types};
use openraft::{
    ChangeMembers, EmptyNode,
    error::{ChangeMembershipError, ClientWriteError, RaftError},
    raft::ClientWriteResponse,
};
use sempre_model::NodeId;
use std::{collections::BTreeSet, future::Future, time::Duration};
use tokio::time::{Instant, timeout, timeout_at};

/// A change needs two rounds to a majority; longer means that there is none.
const CHANGE_WITHIN: Duration = Duration::from_secs(10);

type Changed =
    Result<ClientWriteResponse<Types>, RaftError<NodeId, ClientWriteError<NodeId, EmptyNode>>>;

async fn change(
    what: &'static str,
    changing: impl Future<Output = Changed>,
) -> Result<(), MembershipError> {
    let Ok(changed) = timeout(CHANGE_WITHIN, changing).await else {
        let waited_ms = CHANGE_WITHIN.as_millis() as u64;
        return Err(MembershipError::TimedOut { waited_ms, what: what.into() });
    };
    match changed {
        Ok(_) => Ok(()),
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
            Err(MembershipError::NotLeader { leader: forward.leader_id })
        }
        Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => {
            Err(match error {
                ChangeMembershipError::InProgress(_) => MembershipError::InProgress,
                ChangeMembershipError::EmptyMembership(_) => MembershipError::NoVoters,
                ChangeMembershipError::LearnerNotFound(missing) => {
                    MembershipError::UnknownNode { node: missing.node_id }
                }
            })
        }
        Err(RaftError::Fatal(error)) => Err(MembershipError::Fault { what: error.to_string() }),
    }
}

impl RaftConsensus {
    pub(crate) async fn begin_learner(&self, node: NodeId) -> Result<(), MembershipError> {
        let known = {
            let standing = Consensus::standing(self);
            let standing = standing.borrow();
            standing.voters.contains(&node) || standing.learners.contains(&node)
        };
        if known && self.standing().borrow().leader == Some(self.node) {
            return Ok(());
        }
        let raft = self.running.current().await.raft;
        change("a majority to add the learner", raft.add_learner(node, EmptyNode::new(), false))
            .await
    }

    pub(crate) async fn forget_learner(&self, node: NodeId) -> Result<(), MembershipError> {
        let remove = ChangeMembers::RemoveNodes(BTreeSet::from([node]));
        let raft = self.running.current().await.raft;
        change("a majority to forget the learner", raft.change_membership(remove, false)).await
    }

    pub(crate) async fn replace_voters(
        &self,
        voters: BTreeSet<NodeId>,
    ) -> Result<(), MembershipError> {
        if voters.is_empty() {
            return Err(MembershipError::NoVoters);
        }
        let raft = self.running.current().await.raft;
        change("a majority to change the voters", raft.change_membership(voters, false)).await
    }

    pub(crate) async fn wait_replicated(
        &self,
        node: NodeId,
        within: Duration,
    ) -> Result<(), MembershipError> {
        let deadline = Instant::now() + within;
        let mut metrics = self.running.current().await.raft.metrics();
        let target = metrics.borrow().last_log_index;
        let over = metrics.wait_for(|m| {
            m.running_state.is_err()
                || match &m.replication {
                    None => true,
                    Some(replication) => match replication.get(&node) {
                        None => node == self.node,
                        Some(matched) => matched.map(|id| id.index) >= target,
                    },
                }
        });
        match timeout_at(deadline, over).await {
            Ok(Ok(metrics)) => match (&metrics.running_state, &metrics.replication) {
                (Err(error), _) => Err(MembershipError::Fault { what: error.to_string() }),
                (Ok(()), None) => {
                    Err(MembershipError::NotLeader { leader: metrics.current_leader })
                }
                (Ok(()), Some(_)) => Ok(()),
            },
            Ok(Err(_)) => Err(MembershipError::Fault { what: "it was shut down".into() }),
            Err(_) => Err(MembershipError::TimedOut {
                waited_ms: within.as_millis() as u64,
                what: format!("node {node} to have entry {}", target.unwrap_or(0)),
            }),
        }
    }
}
