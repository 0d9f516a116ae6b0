//! PostgreSQL's protocol, version 3 (3.0 and 3.2), without IO.
//!
//! A connection begins with packets that have no type byte ([`first`]); after the start-up
//! message, both directions are streams of typed messages.
//!
//! | what | where |
//! |---|---|
//! | the packets before the start-up message | [`first`]: [`FirstHead::read`], [`FirstPacket::parse`] |
//! | where messages begin and end, streaming | [`scan`]: `scanner.next(&buffer)? -> Option<Piece>`, then go on by `piece.size()` |
//! | the same, only "are we between two messages" | [`frame`]: [`Framer`] |
//! | a client's message, decoded | [`frontend`]: `Frontend::decode(tag, body)`, [`Parse`], [`Bind`], [`BindNames`] |
//! | a server's message, decoded | [`backend`]: `Backend::decode(tag, body)`, [`Fields`] of errors and notices |
//! | messages made here | [`mod@write`]: one function a message, appending to a `Vec<u8>` |
//! | what is in flight, in which transaction, with what prepared; what became of it when the server is lost, and answers in its place | [`track`]: [`track::Tracker`] |
//! | SCRAM-SHA-256(-PLUS), both ends; a client's key | [`scram`]: [`scram::Server`], [`scram::Client`], [`scram::Verifier`] |
//! | md5 passwords | [`md5`] |
//! | errors made here | [`error`]: [`ErrorResponse`] |

pub mod backend;
pub mod error;
pub mod first;
pub mod frame;
pub mod frontend;
pub mod md5;
mod read;
pub mod scan;
pub mod scram;
pub mod track;
pub mod write;

pub use backend::{Authentication, Backend, Fields, Mechanisms, TransactionStatus};
pub use error::{ErrorResponse, Severity, sqlstate};
pub use first::{ALPN, FIRST_PACKET_MAX, FirstError, FirstHead, FirstPacket, Startup};
pub use frame::Framer;
pub use frontend::{Bind, BindNames, Frontend, Parse, SaslInitialResponse, Target};
pub use read::{DecodeError, List, Values};
pub use scan::{BUFFER_MIN, Message, Piece, ScanError, Scanner, Side, WHOLE_MAX};
