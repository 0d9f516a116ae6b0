//! What the agent sees of consensus, and what consensus asks of the agent.

use crate::error::{
    FormError, MembershipError, ProposeError, ServeError, StoreError, TransportError,
};
use async_trait::async_trait;
use sempre_model::{Command, Generation, NodeId, Record};
use std::{collections::BTreeSet, fmt, str::FromStr, sync::Arc, time::Duration};
use tokio::sync::watch;

/// Which call one member makes to another. The names are part of the peer protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CallKind {
    /// Raft: log entries or a heartbeat.
    AppendEntries,
    /// Raft: a candidate asks for a vote.
    Vote,
    /// Raft: the whole record, for a member that is far behind.
    InstallSnapshot,
    /// A follower hands a command to the leader.
    Propose,
    /// A follower asks the leader up to where it must have applied before it reads.
    ReadBarrier,
}

impl CallKind {
    /// Every kind.
    pub const ALL: [CallKind; 5] = [
        CallKind::AppendEntries,
        CallKind::Vote,
        CallKind::InstallSnapshot,
        CallKind::Propose,
        CallKind::ReadBarrier,
    ];

    /// The stable name, fit for a URL path.
    pub fn as_str(self) -> &'static str {
        match self {
            CallKind::AppendEntries => "append_entries",
            CallKind::Vote => "vote",
            CallKind::InstallSnapshot => "install_snapshot",
            CallKind::Propose => "propose",
            CallKind::ReadBarrier => "read_barrier",
        }
    }
}

impl fmt::Display for CallKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for CallKind {
    type Err = ServeError;
    fn from_str(name: &str) -> Result<Self, ServeError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == name)
            .ok_or_else(|| ServeError::UnknownCall(name.chars().take(40).collect()))
    }
}

/// How members reach each other. The agent implements it over the peer network.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Hands `body` to [`Consensus::serve`] of node `to` and brings back its answer, within
    /// `timeout`.
    ///
    /// The error must say truly whether the call may have arrived: see [`TransportError`]. A
    /// [`ServeError`] at the other side is a [`TransportError::Failed`] here.
    async fn call(
        &self,
        to: NodeId,
        kind: CallKind,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, TransportError>;
}

/// Where this node stands, for status pages and for the leader's duties.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The leader as far as this node knows. A node that is cut off goes on naming the old one:
    /// ask [`Consensus::read_barrier`] before relying on it.
    pub leader: Option<NodeId>,
    /// The Raft term.
    pub term: u64,
    /// Who votes. While a change is under way: everyone of the old and the new set.
    pub voters: BTreeSet<NodeId>,
    /// Who receives the log without a vote.
    pub learners: BTreeSet<NodeId>,
    /// A change of voters has begun and is not complete; `set_voters` again completes it.
    pub changing: bool,
    /// The newest entry in this node's log.
    pub last_log_index: u64,
    /// The newest entry in this node's record.
    pub applied_index: u64,
    /// Consensus has stopped here, and why. Only reopening helps.
    pub fault: Option<String>,
}

/// The record, agreed on by the members.
#[async_trait]
pub trait Consensus: Send + Sync {
    /// This node.
    fn node(&self) -> NodeId;

    /// The applied record. Always readable at once, never blocked by an election.
    fn record(&self) -> watch::Receiver<Arc<Record>>;

    /// Where this node stands.
    fn standing(&self) -> watch::Receiver<Standing>;

    /// Changes the record, and returns it as it was right after the change. On a follower the
    /// command is handed to the leader, and [`Consensus::record`] here follows a moment later.
    /// Waits for a leader, and for the outcome, about three seconds in all. While its outcome is
    /// not known the command is given again, to whoever leads then; it is applied once.
    async fn propose(&self, command: Command) -> Result<Arc<Record>, ProposeError>;

    /// The record, at least as new as every change acknowledged before this call began.
    async fn read_barrier(&self) -> Result<Arc<Record>, ProposeError>;

    /// Makes a new cluster of this node alone. For the very first member.
    async fn form(&self) -> Result<(), FormError>;

    /// Sends the log to `node` from now on, without a vote. Only on the leader.
    async fn add_learner(&self, node: NodeId) -> Result<(), MembershipError>;

    /// Waits until `node` has all of the log that was there at the call. Only on the leader.
    async fn wait_caught_up(&self, node: NodeId, within: Duration) -> Result<(), MembershipError>;

    /// Makes `voters`, all of them voters or learners already, the voters. A voter left out is
    /// forgotten. Only on the leader; if it fails midway, call it again.
    async fn set_voters(&self, voters: BTreeSet<NodeId>) -> Result<(), MembershipError>;

    /// Forgets a learner. Only on the leader.
    async fn remove_learner(&self, node: NodeId) -> Result<(), MembershipError>;

    /// Answers a call of another member's [`Transport`].
    async fn serve(&self, kind: CallKind, body: &[u8]) -> Result<Vec<u8>, ServeError>;

    /// The highest generation ever promised.
    fn promised(&self) -> Generation;

    /// Promises, on disk before it returns, to grant nothing to an older generation. A lower
    /// promise than the present one changes nothing.
    async fn promise(&self, generation: Generation) -> Result<(), StoreError>;

    /// The longest lease, ms, that this member may ever have granted; 0 if none was written.
    fn longest_grant_ms(&self) -> u64;

    /// Writes the longest lease, ms, that this member grants from now on. It is on disk when this
    /// returns. It may be lowered: the caller knows what is still outstanding.
    async fn set_longest_grant_ms(&self, longest_ms: u64) -> Result<(), StoreError>;

    /// Stops, and closes the files: they can be opened again once it returns.
    async fn shutdown(&self);
}
