//! Client routing: leads PostgreSQL clients to the right member, and holds them while there is none.
//!
//! - [`Router`] listens on one port in one [`Mode`] and obeys a [`Table`].
//! - The [`Verifier`] is asked before a client reaches a primary, each time.
//! - [`Follower`] is table and verifier for a router that runs beside an application.
//!
//! # What a client sees
//!
//! - *No server:* the connection is held. After [`Limits::hold_timeout_ms`], or when
//!   [`Limits::hold_max`] are waiting already, it gets FATAL 57P03 with the reason. A server that
//!   answers 57P03 itself (starting, in recovery, stopping) counts as no server, as long as the
//!   log-in is not encrypted.
//! - *The table ends the session* ([`Table::cuts`]): FATAL 57P01. *The server breaks off without
//!   a word:* FATAL 57P02. Either is said only between two messages of the server; inside a message
//!   (a client that was not reading) the connection is just closed.
//! - *TLS* is offered only where [`Limits::client_tls`] says so: whoever asks otherwise is answered
//!   that there is none, and with `sslmode=prefer` goes on without.
//! - *TLS and GSSAPI encryption* pass through and are never ended here. Nothing can be said in such
//!   a session, so it is just closed. An error instead of an answer to SSLRequest would not be
//!   shown by libpq (it is not authenticated), so a client that was held in vain is answered `N`:
//!   with `sslmode=prefer` (the default) or less it goes on and reads the error; with `require`
//!   or more it reports that the server does not support SSL.
//! - *Cancel requests* go to the primary, on a read-only port to all standbys too. One that is
//!   itself encrypted goes where a new session would go.
//! - *Read-only sessions* stay on a standby that lags or leaves the table; they end when it is
//!   lost or promoted.
//!
//! # Limits and known gaps
//!
//! - An established session does not move to another path when its path fails: it is cut when the
//!   table says so ([`Table::dead_hosts`]). There is no `TCP_USER_TIMEOUT`: it also ends connections whose peer is alive but does not read for a while
//!   (a pager; a COPY that waits for a lock). Keep-alive finds dead idle peers in about 20 s, and
//!   a lost primary is cut by the table.
//! - Whoever is held is let in together with all others: the server's `max_connections` applies.

mod answer;
mod choose;
mod connect;
mod copy;
mod credentials;
mod farewell;
mod first;
mod follower;
mod gate;
mod hold;
mod http;
mod pooling;
mod probe;
mod proxy;
mod router;
mod session;
mod sessions;
mod settings;
mod socket;
mod splitting;
mod stats;
mod table;
mod verify;

pub use answer::{
    TABLE_PATH, TableAnswer, TableQuery, VERIFY_PATH, VerifyAnswer, VerifyQuery, WAIT_MAX_MS,
};
pub use credentials::QueryCredentials;
pub use follower::Follower;
pub use pooling::{PoolMode, PoolSettings};
pub use proxy::PoolInfo;
pub use router::{Mode, RouteError, Router};
pub use sempre_wire::pg::ALPN;
pub use settings::{
    ADMIN_DATABASE, ClientTls, Credentials, ProxySettings, ServerTls, Style, Vouching,
};
pub use splitting::{Split, SplitSettings};
pub use stats::RouteStats;
pub use table::{CutReason, Limits, Role, Standby, Table, Target};
pub use verify::Verifier;

use std::time::Duration;

/// A verifier that has not answered by then has said no.
pub const VERIFY_TIMEOUT: Duration = Duration::from_secs(1);
