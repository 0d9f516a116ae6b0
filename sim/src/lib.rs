//! Deterministic simulation of whole clusters: the real `decide`, with everything around it
//! simulated, driven by one seeded generator. Simulated real time goes on from event to event; no
//! wall clock, thread or hash order has a say, so that a seed replays exactly.
//!
//! | piece | stands for | how it is harder than the real thing |
//! |---|---|---|
//! | [`raft`] | openraft (simulated for itself in [`record`]) | no PreVote, no leader stickiness: it changes leaders more often |
//! | [`agent`], [`observe`], [`deciding`], [`steps`] | the agent's loop and its executor | crashes and pauses between any two stages of a step |
//! | [`world::Guard`] | the guard | may be paused or killed by itself |
//! | [`database`], [`engine`] | PostgreSQL | reloads reach each walsender at another time; power cuts lose what is not flushed; timelines are numbered as PostgreSQL does, so two members can choose the same |
//! | [`archive`] | a repository and its archiver | the archiver outlives its agent, and goes on as long as it can |
//! | [`net`] | two networks | every direction of every path is cut, delayed, doubled by itself |
//! | [`clients`] | routing and its clients | some go past routing |
//! | [`oracle`] | | knows everything at one moment of real time |
//!
//! What the simulated shell keeps, and a real one has to keep as well (each was found by a seed
//! that failed without it):
//! * a member grants leases only while its own log and record say that it votes: one that was
//!   replaced has forgotten its promise, and knows it again once it has applied its own entry;
//! * from the moment a change of the sync set is handed out until every process of the database
//!   is known to enforce it, `sync_since_lsn` is `u64::MAX`;
//! * a new upstream counts as configured only once the reload is done;
//! * a leader decides only when its whole log is applied, its own first entry among it;
//! * the timeline of a promotion is not chosen by two members alike ([`Bug::OwnTimelines`]).
//!
//! Known limits: a Raft node whose disk fails is only slow here (in [`record`] it stops); a database
//! that is killed is gone within the lease's margin.

pub mod agent;
pub mod archive;
pub mod archive_faults;
pub mod clients;
pub mod clock;
pub mod database;
pub mod deciding;
pub mod engine;
pub mod event;
pub mod faults;
pub mod guard;
pub mod net;
pub mod observe;
pub mod oracle;
pub mod raft;
pub mod record;
pub mod rng;
pub mod run;
pub mod scenario;
pub mod stats;
pub mod steps;
pub mod trace;
pub mod world;

pub use run::{Outcome, run, run_many};
pub use scenario::{Bug, Scenario};
