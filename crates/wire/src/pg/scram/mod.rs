//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, 7677, 5929), both ends, as PostgreSQL plays
//! them.
//!
//! | what | where |
//! |---|---|
//! | what a server keeps of a password (`pg_authid.rolpassword`) | [`Verifier`]; [`Verifier::mock`] for users that there are not |
//! | the server's end; ends in the client's key | [`Server::first`], then [`Server::last`] |
//! | the client's end, with a password or with keys | [`Client::first`], [`Client::answer`], [`Client::finish`] |
//! | channel binding | [`end_point`] |
//!
//! Who has seen one exchange succeed as the server knows the [`ClientKey`], which is all it takes
//! to log in elsewhere as that user, where the same verifier is kept. The password stays unknown.
//!
//! Nonces are the caller's: [`NONCE_BYTES`] random bytes each, never used twice.

mod binding;
mod client;
mod keys;
mod message;
mod server;
mod verifier;

pub use binding::end_point;
pub use client::{Client, ClientBinding, Secret};
pub use keys::{ClientKey, ServerKey};
pub use server::{Accepted, Server};
pub use verifier::{Verifier, VerifierError};

/// The mechanism without channel binding.
pub const MECHANISM: &str = "SCRAM-SHA-256";
/// The mechanism with it.
pub const MECHANISM_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// Random bytes in a nonce; PostgreSQL's number.
pub const NONCE_BYTES: usize = 18;

/// The longest SASL message that is taken, bytes; PostgreSQL's number.
pub const MESSAGE_MAX: usize = 1_024;

/// The most iterations a client goes through: each costs a hash, and the server names the number
/// before it has shown who it is. PostgreSQL's default is 4,096; a million takes half a second.
pub const ITERATIONS_MAX: u32 = 1_000_000;

/// Why an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// A message that breaks the protocol; as PostgreSQL, say `malformed SCRAM message` (08P01).
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    /// A wrong password, or no such user: as PostgreSQL, say
    /// `password authentication failed for user` (28P01).
    #[error("the proof is wrong")]
    Refused,
    /// What the client says about channel binding does not fit what was offered: someone may
    /// stand in between (28000).
    #[error("channel binding check failed: {0}")]
    Binding(&'static str),
    /// (Client's end.) The server did not show that it knows the user's verifier.
    #[error("the server did not prove that it knows the password's verifier")]
    Impostor,
    /// (Client's end.) The server asks for more iterations than [`ITERATIONS_MAX`].
    #[error("the server asks for {0} iterations, at most {ITERATIONS_MAX} are taken")]
    Iterations(u32),
}
