//! What operators, load balancers and monitoring see of `sempre`.
//!
//! Everything shown is computed from one [`Snapshot`], plain data that the agent fills once a
//! request:
//!
//! * [`status`] turns it into a [`Status`], with the reason for anything odd; [`render`] draws
//!   that for a terminal;
//! * [`metrics`] turns it into Prometheus text;
//! * [`http`] answers the REST endpoints of this field, and sempre's own below `/v1/`;
//! * [`policy_edit`] checks changes of the policy, key by key and as a whole;
//! * [`codes`] is the one table of error codes; each has a page below `docs/errors/`;
//! * [`client`] is how the CLI talks to the members;
//! * [`mod@backup`] is what is asked and told about backups.
//!
//! Only [`http`] and [`client`] do IO. What changes something goes through [`Backend::act`].

pub mod action;
pub mod backend;
pub mod backup;
pub mod client;
pub mod codes;
pub mod http;
pub mod metrics;
pub mod policy_edit;
pub mod render;
pub mod snapshot;
pub mod status;
pub mod units;
mod words;

pub use action::{Action, Done};
pub use backend::Backend;
pub use backup::BackupRequest;
pub use client::{Client, ClientError};
pub use codes::{ActionError, Code};
pub use http::{ApiError, ApiServer, Clear, Transport, serve, serve_with};
pub use policy_edit::apply_policy_changes;
pub use snapshot::{AgentView, PoolView, RaftView, RouteCounters, Seen, Snapshot};
pub use status::{Oddity, Status};
