//! The backup repository: what is kept, in which form, and how it is brought back.

mod error;
mod key;
mod manifest;
mod marks;
mod names;
mod progress;
mod repository;
mod restore;
mod seal;
mod source;
mod store;
mod write;
mod writer;

pub use error::{Error, Result};
pub use key::{Keys, Secret};
pub use manifest::{Backup, Block, Entry, PackRef, Segment, Stamp, Stats, What};
pub use progress::{Progress, Snapshot};
pub use repository::{Identity, Repository};
pub use restore::{Fetcher, RestoreOptions, Restored};
pub use source::{CONTROL_FILE, Source, SourceWhat, list};
pub use store::{Append, Folder, Listed, Store};
pub use write::{BLOCK_BYTES, Options, Writing};
pub use writer::{LEASE, Writer};
