//! The guard: a small process beside the database that outlives the agent.
//!
//! It starts PostgreSQL as its child, holds the deadline of the primary's lease, and kills the
//! database, all of its processes, when the deadline passes. An agent may be killed, upgraded or
//! stuck: the database goes on while the lease lasts, and not longer.
//!
//! ```text
//! agent --- guard.sock, JSON lines ---> guard --- child, dies with its parent ---> postmaster
//!                                         | parent                                   |
//!                                       warden  <--- orphans become the guard's, ----+-- backends
//!                                                    or the warden's, children
//! ```
//!
//! What holds, and by what:
//! - *The deadline.* A timer on [`boot_now`]'s clock wakes the loop, and on every wake-up, whatever
//!   the reason, the deadline is looked at first. The loop never waits for a disk: logs and state
//!   are written by a thread of their own.
//! - *Killed means gone.* The guard is a child subreaper: whatever the database started is its
//!   descendant. It kills until it has no child left, and reports the end only then.
//! - *A killed guard takes the database along*: the kernel kills the postmaster
//!   (`PR_SET_PDEATHSIG`), the warden the backends. If both were killed, the next guard finds what
//!   they left ([`stray_processes`]) and kills it before it starts anything, and before it answers a
//!   fence.
//! - *A stopped guard does not prolong the lease*: the warden, a process that does nothing else,
//!   looks at the same deadline.
//! - *A fence survives restarts*: it is on disk before it is answered.
//!
//! Known limits: when guard and warden are both stopped (a frozen cgroup freezes the database
//! with them, two SIGSTOPs do not), nobody enforces the deadline until one of them goes on. When
//! both are killed, a backend that computes without looking around lives until the agent starts the
//! next guard. A process in an uninterruptible wait for a disk runs no code after its kill, but is
//! reported as gone only when the wait ends. All of them must run in the same pid namespace.

mod boot;
mod client;
mod connection;
mod database;
mod disk;
mod error;
mod guard;
mod processes;
mod protocol;
mod run;
mod server;
mod spawn;
mod state;
mod strays;
mod warden;

pub use boot::{BootTime, boot_now};
pub use client::{GuardClient, SOCKET_NAME};
pub use error::{GuardError, SOCKET_PATH_MAX, ServeError};
pub use protocol::{
    GuardStatus, LEASE_MAX, LastExit, Lease, PROTOCOL, Postmaster, REQUEST_MAX, Refusal,
    RefusalCode, Request, Role, StartRequest, StopMode,
};
pub use run::{EXIT_LOCKED, main};
pub use spawn::SpawnBinary;
pub use strays::{kill_strays, stray_processes};
