//! The peer network: members call each other over every network path they share.
//!
//! A member has one address a network (a *path*) and the same peer port on each. Calls are HTTP/2
//! over TLS 1.3, and both sides prove with a certificate of the cluster's own authority *which
//! member* they are; addresses prove nothing and may change.
//!
//! - [`Authority`] signs, [`Identity`] is a member's key and certificate, [`JoinToken`] is what a
//!   newcomer needs before it has one.
//! - [`PeerServer`] answers calls with a [`Handler`].
//! - [`Peers`] calls others: [`Peers::call`] by any path that works, [`Peers::call_on`] by exactly
//!   one (heartbeats). [`call_stranger`] is the newcomer's first call.
//! - [`Link`] asks one member for what has bodies of any length ([`Streamed`] serves it): the
//!   objects of a repository.
//!
//! Limits: every call must be idempotent, since it may arrive twice (once a path). A certificate
//! cannot be revoked; a removed member is refused by its name instead.

mod authority;
mod connect;
mod files;
mod identity;
mod link;
mod log_limit;
mod names;
mod path;
mod peers;
mod rpc;
mod server;
mod stranger;
mod tls;
mod token;
mod vouch;

pub use authority::{Authority, CA_LIFETIME, CertError, MEMBER_LIFETIME, fingerprint_of_pem};
pub use identity::{CA_FILE, Identity, IdentityError, MEMBER_FILE, create_request};
pub use link::{Answer, Link, LinkError, Linked};
pub use path::PathState;
pub use peers::{CallError, Peers};
pub use rpc::{BODY_MAX, Caller, Handler, METHOD_JOIN, RpcError, STREAMED, Streamed, StreamedBody};
pub use server::{IsMember, PeerServer, ServerError};
pub use stranger::{StrangerError, call_stranger};
pub use tls::{
    FOREIGN_AUTHORITY, TrustError, https_client, https_client_by, https_server, https_server_with,
    provider, server_for,
};
pub use token::{BadToken, JoinToken, hash_secret};
pub use vouch::common_name;
