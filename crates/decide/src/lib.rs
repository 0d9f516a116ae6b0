//! Every decision of `sempre`, as pure functions: no async, no clock, no IO, no randomness.
//!
//! * [`lease`]: the primary's right to serve, granted by a majority of voters (rule 2);
//! * [`sync`]: which changes of the sync set lose nothing, and in which order (rule 1);
//! * [`detect`]: is the primary lost?
//! * [`promote`]: who may be promoted, and when (rules 1 and 2);
//! * [`leader`]: what the Raft leader proposes, as one ordered table;
//! * [`restart`]: which restarts wait for others, and for their time;
//! * [`member`]: what a member does to its own database, as one ordered table.
//!
//! Times are [`Millis`]: milliseconds of the deciding member's own monotonic clock.

pub mod archive;
pub mod detect;
pub mod drill;
pub mod files;
pub mod leader;
pub mod lease;
pub mod member;
pub mod promote;
pub mod restart;
pub mod sync;
pub mod view;

pub use view::{Heard, LeaderView};

/// Milliseconds of one member's own monotonic clock (it counts suspended time, too).
pub type Millis = u64;
