//! Backups of folders: an application's uploads, its configuration. They are kept in the format of the
//! `restic` program, which reads and restores them without us.
//!
//! `rustic_core` knows the format. What it does not give, and this crate does:
//!
//! - It skips what it cannot read, and says so in a log only. Here every error of the sources is remembered
//!   (`source`), and the repository refuses to take the snapshot then (`backend`): a snapshot is whole,
//!   or is not there.
//! - Its restore ends the program where a repository is damaged, and only logs what it could not set. Ours
//!   (`restore`) says all of it.
//! - Objects go through [`sempre_backup::Store`], so that they are wherever a repository can be.

mod back_up;
mod backend;
mod error;
mod repository;
mod restore;
mod retention;
mod source;

pub use back_up::{How, Made, Set};
pub use error::{Error, Result};
pub use repository::{Checked, Files, Snapshot};
pub use restore::Restored;
pub use retention::Pruned;

/// In front of the keys of all objects: a folder beside the databases' own objects, that `restic` takes for
/// its repository.
pub const PREFIX: &str = "files/";
