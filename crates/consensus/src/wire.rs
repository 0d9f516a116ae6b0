//! What members say to each other. Framed as in `format`, with the call's name as the place.

use crate::{
    api::CallKind,
    error::ServeError,
    format::{self, StoredEntry, StoredLogId, StoredSnapshot, StoredVote},
    once::RequestId,
};
use sempre_model::{Command, NodeId, Record, Rejected};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// A longer call is refused unread. The longest is a snapshot: a record of a few hundred KB.
pub const BODY_BYTES_MAX: usize = 16 << 20;

/// A longer command is refused: it would make every call and the record itself large.
pub const COMMAND_BYTES_MAX: usize = 256 << 10;

/// A call, and for whom it is: a member that comes back under a new node id must not answer for
/// its old one.
#[derive(Serialize, Deserialize)]
pub(crate) struct Call<T> {
    pub to: NodeId,
    pub from: NodeId,
    pub call: T,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Append {
    pub vote: StoredVote,
    pub previous: Option<StoredLogId>,
    pub entries: Vec<StoredEntry>,
    pub committed: Option<StoredLogId>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AppendAnswer {
    Success,
    Partial(Option<StoredLogId>),
    Conflict,
    HigherVote(StoredVote),
}

#[derive(Serialize, Deserialize)]
pub(crate) struct AskVote {
    pub vote: StoredVote,
    pub last: Option<StoredLogId>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct VoteAnswer {
    pub vote: StoredVote,
    pub granted: bool,
    pub last: Option<StoredLogId>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Install {
    pub vote: StoredVote,
    pub snapshot: StoredSnapshot,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct InstallAnswer {
    pub vote: StoredVote,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Propose {
    pub id: RequestId,
    pub command: Command,
    /// How long the asker waits, ms.
    pub within_ms: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ProposeAnswer {
    Applied(Box<Record>),
    Rejected(Rejected),
    /// Certainly not taken.
    NotLeader,
    /// Taken, and no outcome in time.
    Unknown(String),
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Barrier {
    /// How long the asker waits, ms.
    pub within_ms: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BarrierAnswer {
    /// Whoever has applied up to here may read.
    ReadAt(u64),
    /// Not the leader, or a majority did not confirm that it is.
    Unconfirmed,
}

/// The bytes of a call or an answer.
pub(crate) fn encode<T: Serialize>(kind: CallKind, value: &T) -> Result<Vec<u8>, String> {
    let bytes = format::encode(kind.as_str(), &[], value)?;
    match bytes.len() > BODY_BYTES_MAX {
        true => Err(format!("{} bytes, more than {BODY_BYTES_MAX}", bytes.len())),
        false => Ok(bytes),
    }
}

/// Reads a call or an answer.
pub(crate) fn decode<T: DeserializeOwned>(kind: CallKind, bytes: &[u8]) -> Result<T, ServeError> {
    if bytes.len() > BODY_BYTES_MAX {
        let why = format!("{} bytes, more than {BODY_BYTES_MAX}", bytes.len());
        return Err(ServeError::BadBody { why });
    }
    format::decode(kind.as_str(), &[], bytes).map_err(|why| ServeError::BadBody { why })
}
