//! The async shell of a member: one loop owns the state, gathers events, decides, and has steps
//! executed.
//!
//! ```text
//!   peers ──hello──▶ ┌───────────────┐ ──propose──▶ consensus (the record)
//!   guard ──status─▶ │ one loop      │ ──step─────▶ executor (guard, PostgreSQL)
//!   database watcher▶│ observe-decide│ ──table────▶ routing
//!   the record ─────▶└───────────────┘ ──shown────▶ REST, CLI
//! ```
//!
//! * [`config`]: the member's TOML file; [`member_dir`]: its folder;
//! * [`setup`]: `init` and `join`;
//! * [`run`]: the daemon.

mod backups;
mod certificate;
pub mod clock;
pub mod config;
mod credentials;
pub mod data_plane;
mod database;
mod disk;
mod executor;
mod hello;
mod logical_slots;
mod looper;
mod majority;
pub mod member_dir;
mod membership;
mod notify;
mod peers;
pub mod recover;
mod rest_tls;
mod route_style;
mod route_view;
mod routing;
pub mod run;
mod service;
pub mod setup;
mod state;
mod vouching;
mod warmth;

pub use config::Config;
