//! Client routing: leads PostgreSQL clients to the right member, and holds them while there is none.
//!
//! - [`Router`] listens on one port in one [`Mode`] and obeys a [`Table`].
//! - The [`Verifier`] is asked before a client reaches a primary, each time.
//! - [`Follower`] is table and verifier for a router that runs beside an application.
//!
//! TLS is never ended here: it passes through, and such a session is opaque.

mod answer;
mod choose;
mod connect;
mod copy;
mod farewell;
mod first;
mod follower;
mod gate;
mod hold;
mod http;
mod router;
mod session;
mod sessions;
mod socket;
mod stats;
mod table;
mod verify;

pub use answer::{
    TABLE_PATH, TableAnswer, TableQuery, VERIFY_PATH, VerifyAnswer, VerifyQuery, WAIT_MAX_MS,
};
pub use follower::Follower;
pub use router::{Mode, RouteError, Router};
pub use stats::RouteStats;
pub use table::{CutReason, Limits, Role, Standby, Table, Target};
pub use verify::Verifier;

use std::time::Duration;

/// A verifier that has not answered by then has said no.
pub const VERIFY_TIMEOUT: Duration = Duration::from_secs(1);
