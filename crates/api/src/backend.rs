//! What the REST server needs of the agent.

use crate::{
    action::{Action, Done},
    backup::BackupRequest,
    codes::ActionError,
    snapshot::{PoolView, Snapshot},
};
use std::time::Duration;

/// The agent, as REST sees it.
#[async_trait::async_trait]
pub trait Backend: Send + Sync + 'static {
    /// What the agent knows now. Called once a request: it must not block, and should be cheap.
    fn snapshot(&self) -> Snapshot;

    /// The pools of server connections here. Counting them takes longer: for metrics alone.
    fn pools(&self) -> Vec<PoolView>;

    /// Does what an operator asked for. Returns once it is agreed (in the record) or, for what is
    /// not in the record, done. It may be called on any member: the agent passes it on to
    /// whoever can do it.
    async fn act(&self, action: Action) -> Result<Done, ActionError>;

    /// Answers what is asked about backups, or has it done.
    async fn backups(&self, request: BackupRequest) -> Result<serde_json::Value, ActionError>;

    /// The routing table, once it is newer than `after`, or after `wait` as it is. `warming`: who
    /// asks still logs sessions in to the target of a switchover.
    async fn route(&self, after: u64, wait: Duration, warming: bool) -> serde_json::Value;

    /// Is this member, at this very moment, the lease-holding primary of `generation`, with
    /// clients let in?
    fn verify_route(&self, generation: u64) -> bool;
}
