//! The record, agreed on by the members through Raft and kept on disk.
//!
//! The agent sees the narrow trait [`Consensus`] only: propose a [`Command`], watch the applied
//! [`Record`], ask for a linearizable read, change who votes. [`RaftConsensus`] implements it with
//! embedded Raft; another coordination service can implement the same trait.
//!
//! # Files
//! In [`ConsensusConfig::dir`]:
//!
//! | file | content |
//! |---|---|
//! | `record.redb` | log, vote, snapshot, promise; its keys are documented in `store` |
//! | `record.seal` | how many commits `record.redb` must hold at least; see `store` |
//! | `record.redb.corrupt-<n>` | a store moved aside by [`quarantine`] |
//!
//! # Durability
//! A vote, a log entry and a promise are on disk (fsync) before anyone hears of them. The applied
//! record itself is kept in memory: it is rebuilt at open from the last snapshot and the log up to
//! the committed position, which is on disk *before* an entry is applied. So a member restarts
//! with a record at least as new as any it has acted on.
//!
//! # Limits
//! - The store is checked whole at open; while it runs, only the rows that are read are checked.
//! - Damage that takes back the newest commits is found by the seal, unless a power cut took back
//!   the seal too: the seal is written, but not forced to disk, at each commit.
//! - Timings cannot be changed while it runs: shut down and open again, which takes a moment.
//! - A member that does not understand a command (an older version) refuses it and falls behind.
//!
//! [`Command`]: sempre_model::Command
//! [`Record`]: sempre_model::Record

mod api;
mod blocking;
mod check;
mod config;
mod error;
mod format;
mod log_store;
mod machine;
mod membership;
mod network;
mod once;
mod propose;
mod raft;
mod repair;
mod running;
mod serve;
#[cfg(feature = "simulation")]
pub mod simulation;
mod standing;
mod store;
mod types;
mod wire;

pub use api::{CallKind, Consensus, Standing, Transport};
pub use config::{BadConfig, ConsensusConfig};
pub use error::{
    FormError, MembershipError, OpenError, ProposeError, ServeError, StoreError, TransportError,
};
pub use raft::RaftConsensus;
pub use repair::{StoreSummary, inspect, quarantine, reform};
pub use wire::{BODY_BYTES_MAX, COMMAND_BYTES_MAX};
