//! What members say to each other on every path, each heartbeat.

use sempre_model::{Generation, Observation};
use serde::{Deserialize, Serialize};

/// The peer call that carries it.
pub const HELLO: &str = "hello";

/// A renewal of the primary's lease, asked of one voter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewal {
    /// The holder's own number for it; comes back with the grant.
    pub id: u64,
    /// Of which generation.
    pub generation: Generation,
    /// For how long, ms, counted from its sending.
    pub ttl_ms: u64,
}

/// A heartbeat.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// On which path it was sent.
    pub path: usize,
    /// What the sender sees. Only on the best path: the others prove that they work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observation: Option<Box<Observation>>,
    /// It was not due, but sent at once because something changed.
    #[serde(default)]
    pub news: bool,
    /// The sender is primary and wants to stay so.
    pub renewal: Option<Renewal>,
}

/// The answer to a heartbeat.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The renewal that is granted.
    pub granted: Option<u64>,
    /// What the voter has promised: tells a stale primary why it is refused.
    pub promised: Generation,
}
