//! Backup and recovery of running PostgreSQL servers: keeping their WAL in a repository as it is written,
//! base backups of their files, and bringing a server back to any moment.

mod archive;
mod base;
mod choose;
mod clock;
mod drill;
mod error;
mod extend;
mod fill;
mod instant;
mod job;
mod locate;
mod place;
mod prove;
mod prune;
mod replay;
mod restore;
mod spool;

pub use archive::{Archive, Feed};
pub use base::{BaseBackup, back_up};
pub use choose::{Coverage, Goal, Window, choose, windows};
pub use drill::{Drill, spare_data, spare_folder};
pub use error::{Error, Result};
pub use extend::{Position, archived_end, archived_history, extend_wal};
pub use fill::{Fill, Filled};
pub use instant::{InstantServer, Listen};
pub use job::{Job, Said, Worked};
pub use place::{Place, Reach, new_store};
pub use prove::{Proved, prove};
pub use prune::{Pruned, plan_prune, prune, retention};
pub use restore::{Recovered, Restore};
pub use sempre_files::{Error as FilesError, Set as FileSet, Snapshot as FilesSnapshot};
pub use sempre_instant::Phase;
pub use spool::serve_segment;
