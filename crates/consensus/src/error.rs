//! What can go wrong, one enum an operation.

use sempre_model::{NodeId, Rejected};
use std::path::PathBuf;

/// A call to another member brought no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// It certainly did not arrive (connection refused, no path, name unknown). Safe to retry.
    #[error("node {to} cannot be reached: {why}")]
    Unreachable {
        /// Who was called.
        to: NodeId,
        /// In words.
        why: String,
    },
    /// No answer in time. It may have arrived.
    #[error("node {to} did not answer within {waited_ms} ms")]
    TimedOut {
        /// Who was called.
        to: NodeId,
        /// How long.
        waited_ms: u64,
    },
    /// It broke off midway, or was refused. It may have arrived.
    #[error("the call to node {to} failed: {why}")]
    Failed {
        /// Who was called.
        to: NodeId,
        /// In words.
        why: String,
    },
}

/// A change or a linearizable read did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Everyone agreed on the command, and it was refused. Nothing changed.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// There is no leader that can be reached. Nothing changed; try again later.
    #[error(
        "no leader was found within {waited_ms} ms: a majority of the voters must run and reach \
         each other"
    )]
    NoLeader {
        /// How long it was looked for.
        waited_ms: u64,
    },
    /// The outcome is unknown: the change may yet happen. Read the record before trying again.
    #[error("no answer from a majority in time; the change may or may not happen: {why}")]
    TimedOut {
        /// In words.
        why: String,
    },
    /// Consensus has stopped on this member.
    #[error("consensus has stopped on this member: {what}; restart it, or see `fault` in status")]
    Fault {
        /// In words.
        what: String,
    },
}

/// The first member could not make the cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// It is one, or part of one.
    #[error("this member is part of a cluster already (voters {voters:?}); it cannot form another")]
    AlreadyFormed {
        /// The voters it knows.
        voters: Vec<NodeId>,
    },
    /// It stays without a leader.
    #[error("the new cluster of this member alone found no leader within {waited_ms} ms")]
    TimedOut {
        /// How long.
        waited_ms: u64,
    },
    /// Consensus has stopped on this member.
    #[error("consensus has stopped on this member: {what}")]
    Fault {
        /// In words.
        what: String,
    },
}

/// A change of who votes or learns did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// Only the leader can.
    #[error("this node is not the leader (it is {leader:?}); ask the leader")]
    NotLeader {
        /// The leader, if known.
        leader: Option<NodeId>,
    },
    /// Another change is under way.
    #[error("another change of voters is under way; try again in a moment")]
    InProgress,
    /// A voter must be a learner first.
    #[error("node {node} is not known; add it as a learner first")]
    UnknownNode {
        /// Who.
        node: NodeId,
    },
    /// Nobody would vote.
    #[error("at least one voter is needed")]
    NoVoters,
    /// It took too long. A change of voters may yet happen; look at the standing.
    #[error("not done within {waited_ms} ms: {what}")]
    TimedOut {
        /// How long.
        waited_ms: u64,
        /// What was waited for.
        what: String,
    },
    /// Consensus has stopped on this member.
    #[error("consensus has stopped on this member: {what}")]
    Fault {
        /// In words.
        what: String,
    },
}

/// A call of another member was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServeError {
    /// No such call.
    #[error("there is no call `{0}`")]
    UnknownCall(String),
    /// It is meant for someone else, such as this member's former node id.
    #[error("the call is for node {wanted}, this is node {here}")]
    WrongNode {
        /// To whom it was addressed.
        wanted: NodeId,
        /// Who is here.
        here: NodeId,
    },
    /// Garbage, or a version not understood.
    #[error("the call cannot be read: {why}")]
    BadBody {
        /// In words.
        why: String,
    },
    /// Consensus has stopped on this member.
    #[error("consensus has stopped on this member: {what}")]
    Fault {
        /// In words.
        what: String,
    },
}

/// Reading or writing the store failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The file's content is damaged.
    #[error("{file} is corrupt: {what}", file = .file.display())]
    Corrupt {
        /// Which file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The disk refused (full, read-only, broken).
    #[error("cannot {doing} {file}: {why}", file = .file.display())]
    Io {
        /// Which file.
        file: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// The system's answer.
        why: String,
    },
    /// It was shut down.
    #[error("{file} is closed", file = .file.display())]
    Closed {
        /// Which file.
        file: PathBuf,
    },
}

/// The store could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The file is damaged. Move it aside with [`crate::quarantine`] and join again under a new
    /// node id; or restore it.
    #[error(
        "{file} is corrupt: {what}; the member must set it aside and join again as a new node",
        file = .file.display()
    )]
    Corrupt {
        /// Which file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Another process has it open.
    #[error("{file} is in use by another process; stop that first", file = .file.display())]
    Busy {
        /// Which file.
        file: PathBuf,
    },
    /// It belongs to another node id.
    #[error(
        "{file} belongs to node {found}, not to node {wanted}; check the configured folder",
        file = .file.display()
    )]
    WrongNode {
        /// Which file.
        file: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// Who was to open it.
        wanted: NodeId,
    },
    /// There is none.
    #[error("{file} does not exist", file = .file.display())]
    Missing {
        /// Which file.
        file: PathBuf,
    },
    /// The disk refused (full, read-only, no permission).
    #[error("cannot {doing} {file}: {why}", file = .file.display())]
    Io {
        /// Which file.
        file: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// The system's answer.
        why: String,
    },
    /// The timings do not fit together.
    #[error(transparent)]
    Config(#[from] crate::config::BadConfig),
    /// Raft would not start.
    #[error("consensus did not start: {0}")]
    Start(String),
}

impl From<StoreError> for OpenError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Corrupt { file, what } => OpenError::Corrupt { file, what },
            StoreError::Io { file, doing, why } => OpenError::Io { file, doing, why },
            StoreError::Closed { file } => {
                OpenError::Io { file, doing: "use", why: "it is closed".into() }
            }
        }
    }
}
