//! Plain data shared by every part of `sempre`.
//!
//! Nothing in this crate does IO, reads a clock or draws a random number. The types fall into
//! six groups:
//!
//! * [`ids`]: names and counters (member, generation, LSN, timeline);
//! * [`policy`] and [`member`]: what an operator decides;
//! * [`record`] and [`command`] (and of it [`restart`]): what the members agree on through Raft,
//!   and the only ways to change it;
//! * [`observation`]: what a member says of itself and of the others;
//! * [`backup`]: where backups are, and what came of them;
//! * [`patience`]: how long a path may be silent before it counts as dead.

pub mod backup;
pub mod care;
pub mod command;
pub mod ids;
mod joining;
pub mod member;
pub mod observation;
pub mod patience;
pub mod policy;
pub mod record;
pub mod restart;

pub use command::{Command, Rejected};
pub use ids::{Generation, Lsn, MemberId, NodeId, Timeline};
pub use member::{Member, MemberKind, Path, Tags};
pub use observation::Observation;
pub use patience::Patience;
pub use policy::Policy;
pub use record::{Phase, Record, SyncSet};
