//! What can go wrong, in words an operator can act on.

use rustic_core::RusticError;
use std::{io, path::PathBuf};

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong with a backup of folders.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// With the store.
    #[error(transparent)]
    Store(#[from] sempre_backup::Error),
    /// With the repository of files.
    #[error("could not {doing} in {repository}: {why}")]
    Repository {
        /// The operation, as a verb.
        doing: &'static str,
        /// Where.
        repository: String,
        /// Why not.
        why: String,
    },
    /// The key is another one.
    #[error(
        "the key does not open the files in {repository}: they were begun with another one, or it was replaced"
    )]
    WrongKey {
        /// Where.
        repository: String,
    },
    /// What should have been backed up could not be read.
    #[error(
        "{count} files or folders could not be read, and no snapshot was published: {}{}. Let the members' system user read them, or exclude them",
        .first.join("; "),
        if *.count > .first.len() { "; ..." } else { "" }
    )]
    Unreadable {
        /// How many.
        count: usize,
        /// The first of them, each with its reason.
        first: Vec<String>,
    },
    /// No such snapshot.
    #[error("there is no snapshot {wanted}{}", if .there.is_empty() { "; there is none at all".to_owned() } else { format!("; there are {}", .there.join(", ")) })]
    NoSnapshot {
        /// What was asked for.
        wanted: String,
        /// What there is.
        there: Vec<String>,
    },
    /// Something does not hold what was written.
    #[error("the files in {repository} are damaged: {why}")]
    Damaged {
        /// Where.
        repository: String,
        /// What is wrong.
        why: String,
    },
    /// A restore came to its end, but not everything is as it was.
    #[error(
        "all contents were restored, but of {count} files or folders something else was not: {}{}",
        .first.join("; "),
        if *.count > .first.len() { "; ..." } else { "" }
    )]
    Incomplete {
        /// How many.
        count: usize,
        /// The first of them, each with its reason.
        first: Vec<String>,
    },
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
    /// What was asked for makes no sense here.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// For `map_err` on a file operation.
    pub(crate) fn io(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { doing, path, source }
    }

    /// For `map_err` on what the library says.
    pub(crate) fn library(
        doing: &'static str,
        repository: &str,
    ) -> impl FnOnce(Box<RusticError>) -> Error {
        let repository = repository.to_owned();
        move |error| match error.is_incorrect_password() {
            true => Error::WrongKey { repository },
            false => Error::Repository { doing, repository, why: words(&error) },
        }
    }
}

/// What the library says, with the innermost reason.
fn words(error: &RusticError) -> String {
    let mut text = error.display_log();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !inner_text.is_empty() && !text.contains(&inner_text) {
            text += ": ";
            text += &inner_text;
        }
        source = inner.source();
    }
    text
}
