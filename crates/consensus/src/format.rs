//! The bytes of a row in the store, and of a call between members.
//!
//! ```text
//! byte 0      format version, 1
//! bytes 1..5  crc32c, little endian, over: place, 0, key, 0, JSON
//! bytes 5..   JSON of one of the structs below
//! ```
//!
//! Place and key (the table and the row's key, or the name of the call) are under the checksum, so
//! that a row found in another's place is noticed. The structs here are the format: they are not
//! Raft's, and a field is never given another meaning. Fields may be added with a default.

use crate::once::{Outcomes, RequestId};
use sempre_model::{Command, NodeId, Record};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeSet;

/// The version written, and the only one read.
const VERSION: u8 = 1;
const HEADER: usize = 5;

/// A position in the log: which leader wrote it, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct StoredLogId {
    pub term: u64,
    pub node: NodeId,
    pub index: u64,
}

/// Whom this node voted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredVote {
    pub term: u64,
    pub node: NodeId,
    /// A majority voted so: the leader is established.
    pub committed: bool,
}

/// Who votes and who learns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredMembers {
    /// One set, or the old and the new one while a change is under way.
    pub voters: Vec<BTreeSet<NodeId>>,
    /// Voters and learners.
    pub nodes: BTreeSet<NodeId>,
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredEntry {
    pub id: StoredLogId,
    pub body: StoredBody,
}

/// What an entry says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StoredBody {
    /// A new leader's first entry.
    Blank,
    /// A change of the record, of before there were ids.
    Command(Command),
    /// A change of the record, applied once for each id.
    Request { id: RequestId, command: Command },
    /// A change of who votes and learns.
    Members(StoredMembers),
}

/// The record at a position of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredSnapshot {
    /// The last entry in it.
    pub last: Option<StoredLogId>,
    /// The entry that set `members`.
    pub members_at: Option<StoredLogId>,
    pub members: StoredMembers,
    pub record: Record,
    /// Of the newest requests.
    #[serde(default)]
    pub outcomes: Outcomes,
}

fn checksum(place: &str, key: &[u8], json: &[u8]) -> u32 {
    let mut sum = crc32c::crc32c(place.as_bytes());
    for part in [&[0][..], key, &[0], json] {
        sum = crc32c::crc32c_append(sum, part);
    }
    sum
}

/// Makes the bytes of `value` for this place and key.
pub(crate) fn encode<T: Serialize>(place: &str, key: &[u8], value: &T) -> Result<Vec<u8>, String> {
    let mut bytes = vec![0; HEADER];
    serde_json::to_writer(&mut bytes, value).map_err(|e| format!("cannot be encoded: {e}"))?;
    let sum = checksum(place, key, &bytes[HEADER..]);
    bytes[0] = VERSION;
    bytes[1..HEADER].copy_from_slice(&sum.to_le_bytes());
    Ok(bytes)
}

/// Reads what [`encode`] made, or says what is wrong.
pub(crate) fn decode<T: DeserializeOwned>(
    place: &str,
    key: &[u8],
    bytes: &[u8],
) -> Result<T, String> {
    let Some((header, json)) = bytes.split_at_checked(HEADER) else {
        return Err(format!("only {} bytes long", bytes.len()));
    };
    if header[0] != VERSION {
        return Err(format!("format version {} is not known (only {VERSION} is)", header[0]));
    }
    let stored = u32::from_le_bytes([header[1], header[2], header[3], header[4]]);
    let computed = checksum(place, key, json);
    if stored != computed {
        return Err(format!("checksum is {computed:08x}, not {stored:08x}"));
    }
    serde_json::from_slice(json).map_err(|e| format!("not understood: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_comes_back() {
        let id = StoredLogId { term: 3, node: 2, index: 77 };
        let bytes = encode("log", b"k", &id).unwrap();
        assert_eq!(decode::<StoredLogId>("log", b"k", &bytes), Ok(id));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let bytes = encode("log", b"k", &StoredLogId { term: 3, node: 2, index: 77 }).unwrap();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                assert!(decode::<StoredLogId>("log", b"k", &bad).is_err(), "byte {at} bit {bit}");
            }
            assert!(decode::<StoredLogId>("log", b"k", &bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_row_in_another_place_is_noticed() {
        let bytes = encode("log", b"k", &7u64).unwrap();
        assert!(decode::<u64>("meta", b"k", &bytes).is_err());
        assert!(decode::<u64>("log", b"l", &bytes).is_err());
    }
}
