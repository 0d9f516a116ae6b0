//! Raft's metrics, told as a [`Standing`].

use crate::api::Standing;
use openraft::{EmptyNode, RaftMetrics};
use sempre_model::NodeId;

type Metrics = RaftMetrics<NodeId, EmptyNode>;

/// The standing that these metrics tell of.
pub(crate) fn standing_of(metrics: &Metrics) -> Standing {
    let membership = metrics.membership_config.membership();
    Standing {
        leader: metrics.current_leader,
        term: metrics.current_term,
        voters: membership.voter_ids().collect(),
        learners: membership.learner_ids().collect(),
        changing: membership.get_joint_config().len() > 1,
        last_log_index: metrics.last_log_index.unwrap_or(0),
        applied_index: metrics.last_applied.map_or(0, |id| id.index),
        fault: metrics.running_state.as_ref().err().map(ToString::to_string),
    }
}
