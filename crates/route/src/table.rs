//! Where clients are led to: made by the agent (or fetched by the follower), obeyed by the router.

use sempre_model::{Generation, MemberId, Policy};
use serde::{Deserialize, Serialize};

/// A member's database, as clients are led to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Who.
    pub member: MemberId,
    /// Addresses (or names) in order of preference: living paths first.
    pub hosts: Vec<String>,
    /// The database's port.
    pub port: u16,
    /// The port of the member's REST endpoint on the same hosts. The stand-alone follower
    /// verifies there; without it, only members it was told of can be verified.
    #[serde(default)]
    pub rest_port: Option<u16>,
}

/// A standby that may serve read-only clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standby {
    /// Its database.
    pub target: Target,
    /// How far its replay is behind the primary, bytes.
    pub lag_bytes: u64,
    /// It streams the history of the primary that the table names, and no other: then positions of
    /// the two can be compared. Read/write split uses no others.
    #[serde(default)]
    pub follows: bool,
}

/// The part of the policy that routing obeys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// How many connections may be held while there is nothing to lead them to.
    pub hold_max: usize,
    /// How long a connection is held, ms.
    pub hold_timeout_ms: u64,
    /// How far behind, in bytes, a standby may be to get read-only clients.
    pub max_lag_bytes: u64,
    /// Read-only: lead to the primary when no standby fits.
    pub read_only_fallback: bool,
    /// Offer TLS to clients. The members' databases always speak it, as they replicate encrypted;
    /// without this a client that asks is answered `N`, as if they did not (ADR 10).
    #[serde(default)]
    pub client_tls: bool,
    /// The databases' certificate is the administrator's: clients expect that one.
    #[serde(default)]
    pub database_tls: bool,
}

impl From<&Policy> for Limits {
    fn from(policy: &Policy) -> Self {
        Self {
            hold_max: policy.route_hold_max,
            hold_timeout_ms: policy.route_hold_timeout_ms,
            max_lag_bytes: policy.route_max_lag_bytes,
            read_only_fallback: policy.route_read_only_fallback,
            client_tls: policy.client_tls,
            database_tls: false,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::from(&Policy::default())
    }
}

/// Who serves what, at one moment.
///
/// *No news is no table:* a source that lost contact publishes nothing new. Sessions that are
/// open then stay open, and new ones are let in only where the verifier says yes. Sessions are cut
/// only by what a table says explicitly: [`Table::cut_below`], [`Table::primary_stopped`],
/// [`Table::lost`], [`Table::dead_hosts`], or a standby having become the primary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Counts the tables of its source.
    pub version: u64,
    /// The newest generation the source knows.
    pub generation: Generation,
    /// The primary of `generation`, only while it serves and admits clients.
    pub primary: Option<Target>,
    /// The primary of `generation` is known to have stopped (not just unheard): read-write
    /// sessions of this generation are cut.
    #[serde(default)]
    pub primary_stopped: bool,
    /// The primary is about to hand over (a switchover was asked for). No new session is led to
    /// it. Sessions that are carried begin no new transaction there, and leave it when they are idle.
    #[serde(default)]
    pub draining: bool,
    /// The standby that a switchover goes to, from when it was asked for until it is the primary.
    /// Sessions that are carried may log in there ahead of it; nothing is led there.
    #[serde(default)]
    pub warm: Option<Target>,
    /// Read-write sessions of earlier generations are cut. The source sets it to the record's
    /// generation as soon as that is raised: an older primary cannot acknowledge commits any more.
    #[serde(default)]
    pub cut_below: Generation,
    /// Routable standbys (none with the tag `no_route`). The router itself leaves out those
    /// behind by more than `limits.max_lag_bytes`.
    #[serde(default)]
    pub standbys: Vec<Standby>,
    /// Members whose database is known to be gone for read-only clients: dead, removed, or being
    /// rewound. Read-only sessions on them are cut. (A member just absent from `standbys`, say
    /// because it lags, keeps its sessions and gets no new ones.)
    #[serde(default)]
    pub lost: Vec<MemberId>,
    /// Addresses that cannot be reached *from here* at the moment while their member lives:
    /// sessions that are connected by them are cut, so that clients come back by another path
    /// instead of waiting for TCP. It says nothing to anybody elsewhere, so it is never sent.
    #[serde(skip)]
    pub dead_hosts: Vec<String>,
    /// Why `primary` is none, in words for the client's error.
    #[serde(default)]
    pub why_no_primary: String,
    /// The policy's limits.
    #[serde(default)]
    pub limits: Limits,
}

/// As what a session was led to a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// As the primary, verified.
    Primary,
    /// As a standby.
    Standby,
    /// As the primary that it is to become. Of no use before it is, and that is verified.
    Warm,
}

/// Why a session is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CutReason {
    /// Another generation began.
    Failover {
        /// The new one.
        generation: Generation,
    },
    /// The primary stopped.
    Stopped,
    /// The standby is gone.
    Lost,
    /// The standby became the primary.
    Promoted,
    /// It was to become the primary, and does not.
    Elsewhere,
    /// The address it was connected by is not reachable any more.
    PathLost,
    /// Routing itself stops.
    Shutdown,
}

impl Table {
    /// Does this table end a session that was led to `member` in `role` at `generation`?
    pub fn cuts(&self, member: &MemberId, role: Role, generation: Generation) -> Option<CutReason> {
        match role {
            Role::Primary if generation < self.cut_below => {
                Some(CutReason::Failover { generation: self.cut_below })
            }
            Role::Primary if generation == self.generation && self.primary_stopped => {
                Some(CutReason::Stopped)
            }
            Role::Primary => None,
            Role::Standby if self.lost.contains(member) => Some(CutReason::Lost),
            Role::Standby if self.primary.as_ref().is_some_and(|p| p.member == *member) => {
                Some(CutReason::Promoted)
            }
            Role::Standby => None,
            Role::Warm if self.lost.contains(member) => Some(CutReason::Lost),
            Role::Warm => {
                // While there is no primary nobody knows better than before.
                let next = self.warm.as_ref().or(self.primary.as_ref());
                let elsewhere = |other: &Target| other.member != *member;
                (next.is_some_and(elsewhere)).then_some(CutReason::Elsewhere)
            }
        }
    }
}
