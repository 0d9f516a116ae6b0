//! What an operator says of one member.

use crate::ids::{MemberId, NodeId};
use serde::{Deserialize, Serialize};

/// Whether a member has a database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberKind {
    /// Has a database, and votes.
    #[default]
    Data,
    /// Only votes.
    Witness,
}

/// One network address of a member. Members list them in the same order everywhere, so that
/// "path 0" is the same network for all of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Path {
    /// An IP address or a host name, without a port.
    pub host: String,
}

/// The ports of a member, the same on each of its paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ports {
    /// PostgreSQL itself.
    pub database: u16,
    /// Routed connections to the primary.
    pub read_write: u16,
    /// Routed connections to the standbys.
    pub read_only: u16,
    /// REST, metrics, dashboard.
    pub rest: u16,
    /// Other members.
    pub peer: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self { database: 5432, read_write: 6432, read_only: 6433, rest: 8008, peer: 8009 }
    }
}

/// Wishes about one member, set by its operator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tags {
    /// Never promote it, and never count it in the sync set.
    pub never_primary: bool,
    /// Among equally advanced candidates the highest is promoted.
    pub priority: i32,
    /// Never count it in the sync set.
    pub no_sync: bool,
    /// Route no clients to it while it is a standby.
    pub no_route: bool,
    /// Stream from this member instead of from the primary (cascading).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replicate_from: Option<MemberId>,
    /// Prefer it as the source of fresh copies for others.
    pub clone_from: bool,
    /// It has no copy of the database, until it is needed to restore one (policy
    /// `recover_from_backup`).
    pub spare: bool,
}

/// One member, as the record knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    pub name: MemberId,
    /// Its present Raft node id.
    pub node: NodeId,
    /// Whether it has a database.
    pub kind: MemberKind,
    /// Its addresses, at least one.
    pub paths: Vec<Path>,
    /// Its ports.
    pub ports: Ports,
    /// The failure domain it stands in, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Wishes about it.
    #[serde(default)]
    pub tags: Tags,
    /// Its database shows a certificate of its administrator's, not the one of the cluster.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_certificate: bool,
}

impl Member {
    /// Does it only vote?
    pub fn database_less(&self) -> bool {
        self.kind == MemberKind::Witness
    }

    /// May it ever be promoted?
    pub fn can_lead(&self) -> bool {
        self.kind == MemberKind::Data && !self.tags.never_primary
    }

    /// May its flush count towards acknowledging a commit?
    ///
    /// A member that can never lead is left out: it could be the most advanced one after a
    /// failure, and then nobody could be promoted.
    pub fn can_sync(&self) -> bool {
        self.can_lead() && !self.tags.no_sync
    }
}
