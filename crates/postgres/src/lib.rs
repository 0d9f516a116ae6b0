//! Everything sempre does with a PostgreSQL installation, its data directory and its server,
//! versions 14 to 18.
//!
//! Three kinds of things are here:
//! - files: finding an [`Installation`], making, inspecting, copying and rewinding the data
//!   directory of an [`Instance`], writing its configuration ([`Settings`]), reading its WAL;
//! - words: parsing and rendering what PostgreSQL reads and prints ([`ControlData`],
//!   [`History`], `synchronous_standby_names`), without any IO;
//! - the running server: a [`Session`], one kept connection over a private Unix socket.
//!
//! The server process itself belongs to the guard: this crate only says how it is started
//! ([`Instance::start_command`]). All of it runs as the user that owns the data directory;
//! PostgreSQL refuses to run as root.

mod adopt;
mod base_backup;
mod clone;
mod command;
mod config;
mod control;
mod encryption;
mod error;
mod fence;
mod files;
mod fill;
mod hba;
mod init;
mod inspect;
mod installation;
mod instance;
mod log;
mod logical;
mod observe;
mod parameters;
mod replication;
mod rewind;
mod roles;
mod salvage;
mod session;
mod settings;
mod slot_copy;
mod slots;
mod timeline;
mod tls;
mod wal;

pub use adopt::ServerFiles;
pub use base_backup::{BackupBegun, BackupEnded};
pub use clone::{CloneOptions, Progress};
pub use config::Changed;
pub use control::{ControlData, ControlState};
pub use encryption::Encryption;
pub use error::{Error, Result};
pub use hba::{BadLine, check_hba_line};
pub use inspect::{DataDir, Foreign};
pub use installation::{Installation, VERSIONS};
pub use instance::{Base, Instance, Layout, StartCommand, Upstream};
pub use logical::{LogicalSlot, Xid};
pub use parameters::{BadParameter, check_parameter, is_managed};
pub use replication::{Identified, Replication, Streamed};
pub use roles::{ADMIN_ROLE, REPLICATION_ROLE};
pub use session::Session;
pub use settings::{ServerRole, Settings, parse_sync, render_sync};
pub use slot_copy::SlotCopy;
pub use slots::Slot;
pub use timeline::{Divergence, History, divergence};
