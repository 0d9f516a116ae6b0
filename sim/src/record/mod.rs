//! The record by itself: the real `sempre-consensus` (openraft, redb, our log store and calls) on
//! machines that are made up. Its neighbour, [`crate::world`], simulates whole clusters on a small
//! Raft of its own; here that stand-in is not needed, and the real one is what is tested.
//!
//! | piece | stands for | how it is harder than the real thing |
//! |---|---|---|
//! | [`disk`] | the disk | a power cut loses or tears, page by page, what was not synced; writes fail; work takes seconds |
//! | [`boot`] | the process | dies in the middle of a commit, or between any two messages |
//! | [`net`] | the peer network | every call and every answer is lost, late, doubled by itself; cuts in one direction |
//! | [`members`] | joining and leaving | voters grow, shrink and are replaced while all this goes on; removed members go on running |
//! | [`clients`] | agents | any member proposes, reads through the barrier, reads what it has, promises |
//! | [`oracle`] | | what was acknowledged, read and promised, in real order |
//!
//! What is promised, and checked after each operation: see [`oracle`].
//!
//! # The same seed, the same trace
//! One thread, tokio's paused clock, one generator. Election times, request ids, tasks and the
//! disk come from the seam `sempre_consensus::simulation`. What is left is tokio's own chance
//! (`select!`, which waiter of a `watch` is woken first): it is seeded where tokio is built with
//! `--cfg tokio_unstable`, as `sim/.cargo/config.toml` says. Cargo reads that file when it is run
//! in `sim/`; built from elsewhere all checks hold as well, but a replay may differ.

pub mod boot;
pub mod clients;
pub mod cluster;
pub mod disk;
pub mod faults;
pub mod members;
pub mod net;
pub mod oracle;
pub mod run;

pub use run::{Bug, Outcome, Shape, run, run_many};
