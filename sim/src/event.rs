//! What can happen, and to whom.

use crate::{database::Rec, raft::RaftMsg};
use sempre_model::{Generation, NodeId, Observation, command::Change};
use std::{cmp::Ordering, rc::Rc};

/// A process that can be paused, crash and restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    /// The agent, with its Raft node.
    Agent,
    /// The guard.
    Guard,
    /// The database.
    Database,
}

/// Messages between members.
#[derive(Clone, Debug)]
pub enum Msg {
    /// A heartbeat, with a renewal of the lease in it if the sender is the primary.
    Hello {
        /** On which path. */
        path: usize,
        /** Its words. */
        says: Rc<Observation>,
        /** Id, generation, ttl. */
        renewal: Option<(u64, Generation, u64)>,
        /** Something changed. */
        urgent: bool,
    },
    /// A renewal was granted.
    Grant {
        /** The renewal's. */
        id: u64,
        /** To which life of the agent. */
        incarnation: u64,
    },
    /// Between Raft nodes.
    Raft {
        /** Sender. */
        from: NodeId,
        /** Receiver. */
        to: NodeId,
        /** What. */
        msg: RaftMsg,
    },
    /// For the Raft leader to propose.
    Propose(Change),
    /// A standby wants to stream from position (timeline, lsn).
    Connect {
        /** Of the receiver. */
        session: u64,
        /** Timeline. */
        timeline: u32,
        /** Position. */
        lsn: u64,
        /** Records it has. */
        len: usize,
        /** Hash of the last. */
        hash: u64,
    },
    /// Not possible from there.
    Refuse {
        /** Of the receiver. */
        session: u64,
    },
    /// Log records, beginning at index `start`; none: only a sign of life.
    Wal {
        /** Of the receiver. */
        session: u64,
        /** Index. */
        start: usize,
        /** Records. */
        records: Vec<Rec>,
        /** Sender's newest timeline. */
        timeline: u32,
    },
    /// An archiver wants to stream.
    ConnectArchive {
        /** Of the archiver. */
        session: u64,
    },
    /// As `Wal`, for an archiver.
    ArchiveWal {
        /** Of the archiver. */
        session: u64,
        /** Index. */
        start: usize,
        /** Records. */
        records: Vec<Rec>,
        /** Sender's newest timeline. */
        timeline: u32,
    },
    /// The repository has it, up to here.
    ArchiveFlushed {
        /** Of the archiver. */
        session: u64,
        /** Position. */
        lsn: u64,
    },
    /// Flushed up to here.
    Flushed {
        /** Of the receiver. */
        session: u64,
        /** Position. */
        lsn: u64,
    },
}

impl Msg {
    /// Which process it is for, if it can be paused.
    pub fn process(&self) -> Option<Process> {
        match self {
            Msg::Hello { .. } | Msg::Grant { .. } | Msg::Raft { .. } | Msg::Propose(_) => {
                Some(Process::Agent)
            }
            Msg::ArchiveWal { .. } => None,
            _ => Some(Process::Database),
        }
    }
}

/// What happens.
#[derive(Clone, Debug)]
pub enum What {
    /// A message arrives.
    Deliver {
        /** From. */
        from: usize,
        /** Path. */
        path: usize,
        /** What. */
        msg: Msg,
    },
    /// The agent's heartbeat.
    Beat {
        /** Life. */
        life: u64,
    },
    /// The Raft node's timer.
    RaftTick {
        /** Life. */
        life: u64,
    },
    /// Committed entries are applied.
    Apply {
        /** Life. */
        life: u64,
    },
    /// The voter's disk has it.
    Written {
        /// Life.
        life: u64,
        /// What.
        write: Write,
    },
    /// The step in progress goes on.
    Step {
        /** Life. */
        life: u64,
        /** Which step. */
        id: u64,
    },
    /// The fence in progress goes on.
    Fence {
        /** Life. */
        life: u64,
        /** Below. */
        below: Generation,
    },
    /// The agent starts again.
    AgentStarts,
    /// A renewed deadline reaches the guard.
    Extend {
        /** Of. */
        generation: Generation,
        /** Guard's clock. */
        until: u64,
    },
    /// The guard looks at its deadline.
    Deadline,
    /// The guard's kill has taken effect.
    Killed {
        /** The database's life. */
        life: u64,
    },
    /// WAL is on disk.
    Flush {
        /** The database's life. */
        life: u64,
        /** Records. */
        upto: usize,
    },
    /// The database's own timer: keep-alives, reconnects.
    DatabaseTick {
        /** The database's life. */
        life: u64,
    },
    /// A reload reaches one process of the database (none: the checkpointer).
    Reloaded {
        /** The database's life. */
        life: u64,
        /** The walsender's standby. */
        sender: Option<usize>,
    },
    /// The archiver's own timer.
    ArchiverTick {
        /** Of the archiver. */
        session: u64,
    },
    /// WAL is in the repository; or it is known that it may be said.
    Archived {
        /** Of the archiver. */
        session: u64,
        /** Records. */
        upto: usize,
        /** It is there. */
        durable: bool,
    },
    /// A member fences the repository (`put`), or reads how far it has come.
    FenceArchive {
        /** Life. */
        life: u64,
        /** For which. */
        generation: Generation,
        /** The fence; else reading. */
        put: bool,
    },
    /// A client's next move.
    Client {
        /** Which. */
        client: usize,
    },
    /// A fault begins.
    Fault,
    /// A fault ends.
    Mend(Mend),
    /// All faults end.
    Heal,
    /// A process goes on.
    Resume(Process),
}

/// What a voter keeps on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Its promise.
    Promise(Generation),
    /// No grant of it is longer, ms.
    Longest(u64),
}

/// The end of a fault.
#[derive(Clone, Debug)]
pub enum Mend {
    /// Power is back.
    Power,
    /// The network's directions (from, to, path) are back.
    Cuts(Vec<(usize, usize, usize)>),
    /// Not an end: what the member says is heard no more (the second half of a fault).
    Silence,
    /// No more loss, delay, duplicates.
    Weather,
    /// The primary is cut off and its successor serves: a standby is replaced, and meets only the
    /// old one.
    Strand {
        /// The one that is cut off.
        old: usize,
        /// The generation it had.
        generation: Generation,
        /// How often this may still be looked at.
        tries: u32,
    },
    /// Whoever is promoted next is cut off before anybody hears of it.
    Unheard {
        /// How often this may still be looked at.
        tries: u32,
    },
    /// A member that was taken out comes back as a new one.
    Rejoin,
    /// The disk works.
    Disk,
    /// Automatic again.
    Unpause,
}

/// A thing in the queue.
#[derive(Clone, Debug)]
pub struct Event {
    /// When, real time, µs.
    pub at: u64,
    /// Order among simultaneous ones.
    pub seq: u64,
    /// To whom.
    pub member: usize,
    /// What.
    pub what: What,
}

impl Event {
    /// The process that handles it, if it can be paused.
    pub fn process(&self) -> Option<Process> {
        match &self.what {
            What::Deliver { msg, .. } => msg.process(),
            What::Beat { .. }
            | What::RaftTick { .. }
            | What::Apply { .. }
            | What::Written { .. }
            | What::Step { .. }
            | What::FenceArchive { .. }
            | What::Fence { .. } => Some(Process::Agent),
            What::Extend { .. } | What::Deadline => Some(Process::Guard),
            What::Flush { .. } | What::DatabaseTick { .. } | What::Reloaded { .. } => {
                Some(Process::Database)
            }
            _ => None,
        }
    }
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.seq == other.seq
    }
}
impl Eq for Event {}
impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Event {
    /// The earliest is the greatest, as `BinaryHeap` wants it.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.seq).cmp(&(self.at, self.seq))
    }
}
