//! PostgreSQL's protocol, version 3.
//!
//! A connection begins with packets that have no type byte ([`first`]); after the start-up
//! message, both directions are streams of typed messages ([`frame`]), among them the errors
//! that routing has to say itself ([`error`]).

pub mod error;
pub mod first;
pub mod frame;

pub use error::{ErrorResponse, Severity, sqlstate};
pub use first::{FIRST_PACKET_MAX, FirstError, FirstHead, FirstPacket, Startup};
pub use frame::Framer;
