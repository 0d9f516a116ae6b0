//! The question that is asked before a client is let in to a primary.

use sempre_model::{Generation, MemberId};
use tokio::sync::watch;

/// Asks a member's agent.
#[async_trait::async_trait]
pub trait Verifier: Send + Sync {
    /// "Do you hold the lease of this generation right now, and does your database admit
    /// clients?" No answer is a no. The router gives up on its own after
    /// [`crate::VERIFY_TIMEOUT`].
    ///
    /// The router connects to the database first and asks then. So the connection leads to a
    /// database process that belonged to the lease-holding primary when the question was
    /// answered; if the lease ends later, the guard kills that process, and the connection with it.
    async fn verify(&self, member: &MemberId, generation: Generation) -> bool;

    /// A router that carries sessions says for whom they are warmed up: see
    /// [`crate::Router::warmed`].
    fn warmed(&self, _: watch::Receiver<Option<MemberId>>) {}
}
