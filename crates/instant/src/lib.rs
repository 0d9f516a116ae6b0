//! Instant recovery: a database starts on its backup at once, whatever its size, and reads and writes while
//! its files are brought in behind it.
//!
//! # How it works
//!
//! 1. Every file of the backup is made in the target directory with its length and nothing in it ([the
//!    skeleton](Instant::mount)); small directories are filled at once. Over each large one (`base`, places
//!    of tablespaces) a file system is mounted that shows the local directory below it. A block that is read
//!    or written is first brought into the local file; a bit says that it is there.
//! 2. Threads bring in the rest, giving way to what the database waits for.
//! 3. When all is local, the mounts are detached ([`Serving::switch`]). PostgreSQL names files relative to
//!    the data directory, which was never a mount: from then on it opens local files. Files that it holds
//!    open by the mount go on being served, from the same local files, until it closes them.
//!
//! # Durability
//!
//! `fsync` syncs the local file and then the bits of its blocks. On disk a bit is never set before the block is
//! durable. A process that is killed, or a machine without power, goes on with [`Instant::mount`] on the same
//! directory; the database recovers from its WAL as from any crash.
//!
//! # Limits
//!
//! - Starting takes the time to read the backup's list of files (measured: 0.1 s for 100 GiB in files of 1 GiB)
//!   and to make the files: it grows with their number.
//! - Memory: 1 MiB for bits a TiB; 16 segments of the list of files (about 50 MiB); a run of 2 MiB for each
//!   thread that brings in.
//! - The process needs a descriptor for each file that the kernel has in mind.
//! - The local file system needs extended attributes (`user.*`): ext4, XFS, btrfs, ZFS have them.
//! - The process that serves must live until [`Serving::unused`] returns after the switch: who holds a file
//!   open by a mount without a process gets errors.

mod background;
mod begin;
mod error;
mod file;
mod gate;
mod mounts;
mod place;
mod serve;
mod serving;
mod shared;
mod skeleton;
mod source;
mod state;

pub use error::{Error, Result};
pub use serving::{Instant, Options, Phase, Progress, Serving};
pub use state::STATE_DIR;
