//! What can go wrong while a database runs on its backup.

use std::{io, path::PathBuf};

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The repository cannot be read.
    #[error(transparent)]
    Backup(#[from] sempre_backup::Error),
    /// A file operation.
    #[error("could not {doing} {}: {source}", .path.display())]
    Io {
        /// The operation, as a verb.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Mounting.
    #[error(
        "could not mount {}: {source} (it takes root, or the program fusermount3 of the package fuse3, and /dev/fuse)",
        .path.display()
    )]
    Mount {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What is written beside the files is not what was written there.
    #[error("{} is damaged: {why}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// What was asked for makes no sense here.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// For `map_err` on a file operation.
    pub(crate) fn io<E: Into<io::Error>>(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Error {
        let path = path.into();
        move |source| Error::Io { doing, path, source: source.into() }
    }
}
