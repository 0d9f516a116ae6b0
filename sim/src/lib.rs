//! Deterministic simulation of whole clusters: the real `decide`, with everything around it
//! simulated, driven by one seeded generator. Simulated real time goes on from event to event; no
//! wall clock, thread or hash order has a say, so that a seed replays exactly.
//!
//! | piece | stands for | how it is harder than the real thing |
//! |---|---|---|
//! | [`raft`] | openraft (tested for itself in `crates/consensus`) | no PreVote, no leader stickiness: it changes leaders more often |
//! | [`agent`], [`steps`] | the agent's loop and its executor | crashes and pauses between any two stages of a step |
//! | [`world::Guard`] | the guard | may be paused or killed by itself |
//! | [`database`], [`engine`] | PostgreSQL | reloads reach each walsender at another time; power cuts lose what is not flushed; timelines are numbered as PostgreSQL does, so two members can choose the same |
//! | [`net`] | two networks | every direction of every path is cut, delayed, doubled by itself |
//! | [`clients`] | routing and its clients | some go past routing |
//! | [`oracle`] | | knows everything at one moment of real time |
//!
//! Known limits: the disk of Raft and of promises does not fail; a database that is killed is
//! gone within the lease's margin; members are replaced, but their number stays.

pub mod agent;
pub mod clients;
pub mod clock;
pub mod database;
pub mod engine;
pub mod event;
pub mod faults;
pub mod guard;
pub mod net;
pub mod oracle;
pub mod raft;
pub mod rng;
pub mod run;
pub mod scenario;
pub mod stats;
pub mod steps;
pub mod trace;
pub mod world;

pub use run::{Outcome, run, run_many};
pub use scenario::{Bug, Scenario};
