//! Names and counters. Each is a type of its own, so that they cannot be mixed up.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The name of a member: unique in its cluster, stable for life.
///
/// It is also the member's `application_name` towards PostgreSQL, so it is limited to lower-case
/// letters, digits, `_` and `-`, and to [`MemberId::MAX_LEN`] characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MemberId(String);

/// A name that cannot be a member's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a member name: use 1 to {max} lower-case letters, digits, `_` or `-`, starting with a letter",
    max = MemberId::MAX_LEN
)]
pub struct BadMemberId(pub String);

impl MemberId {
    /// Slot names (`sempre_<name>`) must fit PostgreSQL's 63 bytes.
    pub const MAX_LEN: usize = 48;

    /// Checks and makes a name.
    pub fn new(name: impl Into<String>) -> Result<Self, BadMemberId> {
        let name = name.into();
        let fits = !name.is_empty()
            && name.len() <= Self::MAX_LEN
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-');
        if fits { Ok(Self(name)) } else { Err(BadMemberId(name)) }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The physical replication slot every possible upstream keeps for this member.
    /// Slot names allow no `-`, so it becomes `_`.
    pub fn slot_name(&self) -> String {
        format!("sempre_{}", self.0.replace('-', "_"))
    }
}

impl TryFrom<String> for MemberId {
    type Error = BadMemberId;
    fn try_from(name: String) -> Result<Self, BadMemberId> {
        Self::new(name)
    }
}

impl FromStr for MemberId {
    type Err = BadMemberId;
    fn from_str(name: &str) -> Result<Self, BadMemberId> {
        Self::new(name)
    }
}

impl From<MemberId> for String {
    fn from(id: MemberId) -> String {
        id.0
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A Raft node. A member whose Raft state was lost comes back under a new node id, because a
/// voter that forgot its vote must never vote again under the old one.
pub type NodeId = u64;

/// Raised at every change of primary. Whoever acts on a stale one is refused.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A PostgreSQL timeline.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A position in the write-ahead log, in bytes. Shown as PostgreSQL shows it: `16/B374D848`.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Bytes from `earlier` to this position; 0 when this one is not ahead.
    pub fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Text that is not a WAL position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a WAL position such as 16/B374D848")]
pub struct BadLsn(pub String);

impl FromStr for Lsn {
    type Err = BadLsn;
    fn from_str(text: &str) -> Result<Self, BadLsn> {
        let bad = || BadLsn(text.to_owned());
        let (high, low) = text.trim().split_once('/').ok_or_else(bad)?;
        let high = u32::from_str_radix(high, 16).map_err(|_| bad())?;
        let low = u32::from_str_radix(low, 16).map_err(|_| bad())?;
        Ok(Self(u64::from(high) << 32 | u64::from(low)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_reads_back_what_it_shows() {
        for raw in [0, 1, 0x16_B374_D848, u64::MAX] {
            assert_eq!(Lsn(raw).to_string().parse(), Ok(Lsn(raw)));
        }
        for bad in ["", "16", "G/1", "1/2/3", "1/100000000"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
    }

    #[test]
    fn member_names_are_checked() {
        assert_eq!(MemberId::new("db-1").unwrap().slot_name(), "sempre_db_1");
        for bad in ["", "1a", "A", "a b", "a\"", "ä"] {
            assert!(MemberId::new(bad).is_err(), "{bad}");
        }
        assert!(MemberId::new("a".repeat(49)).is_err());
    }
}
