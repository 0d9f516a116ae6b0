//! Raft's metrics, told as a [`Standing`].

use crate::api::Standing;
use openraft::{EmptyNode, RaftMetrics};
use sempre_model::NodeId;
use tokio::{sync::watch, task::JoinHandle};

type Metrics = RaftMetrics<NodeId, EmptyNode>;

fn standing_of(metrics: &Metrics) -> Standing {
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

/// Keeps a standing up to date until Raft ends.
pub(crate) fn follow(
    mut metrics: watch::Receiver<Metrics>,
) -> (watch::Receiver<Standing>, JoinHandle<()>) {
    let (sender, receiver) = watch::channel(standing_of(&metrics.borrow_and_update()));
    let task = tokio::spawn(async move {
        while metrics.changed().await.is_ok() {
            let now = standing_of(&metrics.borrow_and_update());
            sender.send_if_modified(|shown| {
                let changed = *shown != now;
                *shown = now;
                changed
            });
        }
        sender.send_if_modified(|shown| {
            let first = shown.fault.is_none();
            shown.fault.get_or_insert_with(|| "it was shut down".into());
            first
        });
    });
    (receiver, task)
}
