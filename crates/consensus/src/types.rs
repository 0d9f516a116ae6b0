//! What Raft is told our types are, and the way between its structs and our stored ones.

use crate::{
    format::{StoredBody, StoredEntry, StoredLogId, StoredMembers, StoredVote},
    once::RequestId,
};
use openraft::{CommittedLeaderId, EmptyNode, Entry, EntryPayload, LogId, Membership, Vote};
use sempre_model::{Command, NodeId, Record, Rejected};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io::Cursor,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

#[cfg(feature = "simulation")]
use crate::simulation::Runtime;
#[cfg(not(feature = "simulation"))]
use openraft::TokioRuntime as Runtime;

openraft::declare_raft_types!(
    /// Our types in Raft.
    pub(crate) Types:
        D = Proposal,
        R = Outcome,
        NodeId = NodeId,
        Node = EmptyNode,
        Entry = Entry<Types>,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = Runtime,
);

/// Raft with our types.
pub(crate) type Raft = openraft::Raft<Types>;
/// Raft's error of a store.
pub(crate) type RaftStorageError = openraft::StorageError<NodeId>;

/// A command on its way into the log.
///
/// Raft answers "not the leader" both before it took a command and after it had to drop one that
/// a minority may still hold. Only the first is safe to retry, so the log store sets a mark.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Proposal {
    pub id: RequestId,
    pub command: Command,
    #[serde(skip)]
    appended: Arc<AtomicBool>,
}

impl Proposal {
    pub fn new(id: RequestId, command: Command) -> Self {
        Self { id, command, appended: Arc::default() }
    }

    /// To be asked later whether this proposal came as far as this node's log.
    pub fn mark(&self) -> Arc<AtomicBool> {
        self.appended.clone()
    }

    /// The log store is about to write it.
    pub fn set_appended(&self) {
        self.appended.store(true, Ordering::SeqCst);
    }
}

/// What applying an entry came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// The record right after.
    #[serde(skip)]
    pub record: Arc<Record>,
    pub rejected: Option<Rejected>,
}

impl From<LogId<NodeId>> for StoredLogId {
    fn from(id: LogId<NodeId>) -> Self {
        Self { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
    }
}

impl From<StoredLogId> for LogId<NodeId> {
    fn from(id: StoredLogId) -> Self {
        LogId::new(CommittedLeaderId::new(id.term, id.node), id.index)
    }
}

impl From<Vote<NodeId>> for StoredVote {
    fn from(vote: Vote<NodeId>) -> Self {
        Self { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
    }
}

impl From<StoredVote> for Vote<NodeId> {
    fn from(vote: StoredVote) -> Self {
        match vote.committed {
            true => Vote::new_committed(vote.term, vote.node),
            false => Vote::new(vote.term, vote.node),
        }
    }
}

impl From<&Membership<NodeId, EmptyNode>> for StoredMembers {
    fn from(membership: &Membership<NodeId, EmptyNode>) -> Self {
        Self {
            voters: membership.get_joint_config().clone(),
            nodes: membership.nodes().map(|(id, _)| *id).collect(),
        }
    }
}

impl From<StoredMembers> for Membership<NodeId, EmptyNode> {
    fn from(members: StoredMembers) -> Self {
        let nodes: BTreeMap<_, _> =
            members.nodes.into_iter().map(|id| (id, EmptyNode::new())).collect();
        Membership::new(members.voters, nodes)
    }
}

impl From<&Entry<Types>> for StoredEntry {
    fn from(entry: &Entry<Types>) -> Self {
        let body = match &entry.payload {
            EntryPayload::Blank => StoredBody::Blank,
            EntryPayload::Normal(proposal) => {
                StoredBody::Request { id: proposal.id, command: proposal.command.clone() }
            }
            EntryPayload::Membership(membership) => StoredBody::Members(membership.into()),
        };
        Self { id: entry.log_id.into(), body }
    }
}

impl From<StoredEntry> for Entry<Types> {
    fn from(entry: StoredEntry) -> Self {
        let payload = match entry.body {
            StoredBody::Blank => EntryPayload::Blank,
            StoredBody::Command(command) => EntryPayload::Normal(Proposal::new(0, command)),
            StoredBody::Request { id, command } => EntryPayload::Normal(Proposal::new(id, command)),
            StoredBody::Members(members) => EntryPayload::Membership(members.into()),
        };
        Entry { log_id: entry.id.into(), payload }
    }
}
