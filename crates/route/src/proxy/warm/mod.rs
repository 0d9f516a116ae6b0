//! Warm connections: before a switchover, sessions log in to the standby that is to take over.
//!
//! After a promotion every session needs a connection to the new primary at the same moment. A
//! log-in takes a process and some milliseconds of processor time; hundreds of them take longer
//! than the promotion. So while the old primary still serves, each session gets a second
//! connection, in its own state as far as a standby can have it ([`make`]). A server keeps its
//! sessions when it is promoted. Then the session only has to make up for the rest ([`adopt`]).
//!
//! - A [`Campaign`] is the warm-up for one standby. It calls the sessions that have a connection to
//!   the primary, few at a time, as long as the table says so and nothing is handed over yet.
//! - *What a session had before* is what it gets: what it has is noted, then the primary is asked
//!   for its position, and only when the standby has replayed that does anybody log in for good
//!   ([`locate`]). So the catalogs that a log-in or a prepared statement sees there are not older
//!   than those it saw on the primary.
//! - *A warm connection is used only* once its member was verified as the primary, as any other
//!   connection is, and says itself that it is not in recovery any more. It is closed when the
//!   table leads elsewhere, or when nobody wanted it for [`UNUSED_FOR`].
//!
//! # Limits and known gaps
//!
//! - Sessions without a server connection (idle ones with transaction pooling) need none here.
//! - On a standby without room (`max_connections`) the warm-up ends; the rest logs in afterwards.
//! - Nothing is warmed up for a failover: nobody knows where it goes to.

mod adopt;
mod campaign;
mod locate;
mod make;

pub(crate) use campaign::Campaigns;
pub(crate) use make::{Made, Warm};

use std::time::Duration;

/// Warm connections of a router at most: what more sessions need is made afterwards.
const WARM_MAX: usize = 2_000;
/// What prepared statements of all of them may take here meanwhile, bytes.
const STATEMENTS_BYTES_MAX: usize = 64 << 20;
/// Log-ins under way at once, so that those who work are not slowed much.
const AT_ONCE: usize = 4;
/// Between the beginnings of two log-ins.
const PACE: Duration = Duration::from_millis(4);
/// How long sessions may take to say what they have. Who is later comes with the next round.
const NOTE_WITHIN: Duration = Duration::from_millis(50);
/// How long it may take to find a session between two transactions, to ask the primary through it.
const LOCATE_WITHIN: Duration = Duration::from_secs(1);
/// How long the standby may take to replay up to there.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(2);
/// Between two looks at how far it is.
const CATCH_UP_EVERY: Duration = Duration::from_millis(10);
/// How long a log-in may take, and bringing the connection to the session's state.
const MAKE_WITHIN: Duration = Duration::from_secs(5);
/// How long a warm connection may take to become a session's own. It takes one exchange.
const ADOPT_WITHIN: Duration = Duration::from_secs(2);
/// How long after the promotion a warm connection is kept that nobody has used.
const UNUSED_FOR: Duration = Duration::from_secs(10);
/// Sessions that cannot log in before nobody tries any more: the standby is full, most likely.
const FAILURES_MAX: usize = 8;
/// Rounds of one campaign: sessions that came, or were too late, in the rounds before.
const ROUNDS_MAX: u32 = 4;
