//! The backup repository: what is kept, in which form, and how it is brought back.

mod alarm;
mod catalog;
mod collect;
mod error;
mod key;
mod manifest;
mod marks;
mod names;
mod progress;
mod repository;
mod restore;
mod retention;
mod rotate;
mod seal;
mod source;
mod store;
mod verify;
mod wal;
mod write;
mod writer;

pub use alarm::{COMPARED, alarms};
pub use catalog::Catalog;
pub use collect::{Plan, Silent};
pub use error::{Error, Result};
pub use key::{Keys, Secret};
pub use manifest::{Backup, Block, Entry, PackRef, Segment, Stamp, Stats, What};
pub use progress::{Progress, Snapshot};
pub use repository::{Identity, Repository};
pub use restore::{Fetcher, RestoreOptions, Restored};
pub use retention::{Reason, Retention, Verdict, oldest_needed_wal};
pub use source::{CONTROL_FILE, Source, SourceWhat, list};
pub use store::{Append, Folder, Listed, Patience, S3, S3Config, Store};
pub use verify::{Damage, Harm, Verified, VerifyOptions};
pub use wal::{Fetched, Piece, SegmentName, WalList, WalWriter, segment_name};
pub use write::{BLOCK_BYTES, Options, Writing};
pub use writer::{LEASE, Writer};
