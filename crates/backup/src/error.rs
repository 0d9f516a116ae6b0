//! What can go wrong with a repository, in words an operator can act on.

use std::{io, path::PathBuf};

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An object that should be there is not.
    #[error("{key} is missing in the repository {repository}")]
    Missing {
        /// The object.
        key: String,
        /// Where.
        repository: String,
    },
    /// An object that must be new exists already.
    #[error("{key} exists already in the repository {repository}")]
    Exists {
        /// The object.
        key: String,
        /// Where.
        repository: String,
    },
    /// The store keeps an object for a while, whoever asks: see `docs/backup.md`.
    #[error("{key} stays in the repository {repository}: {why}")]
    TooEarly {
        /// The object.
        key: String,
        /// Where.
        repository: String,
        /// Until when, or for what.
        why: String,
    },
    /// The store cannot be used.
    #[error("could not {doing} {key} in the repository {repository}: {why}")]
    Store {
        /// The operation, as a verb.
        doing: &'static str,
        /// The object.
        key: String,
        /// Where.
        repository: String,
        /// Why not.
        why: String,
    },
    /// An object does not hold what was written.
    #[error("{key} is damaged: {why}")]
    Damaged {
        /// The object.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// The key does not open the repository.
    #[error(
        "the key given does not open the repository {repository}: it is another repository's, or was replaced by a newer one"
    )]
    WrongKey {
        /// Where.
        repository: String,
    },
    /// The key text cannot be read.
    #[error("this is not a backup key (`sempre-backup-key-1:` and 43 characters)")]
    BadKey,
    /// There is no repository.
    #[error("there is no repository in {repository}: make one with `sempre backup init`")]
    NoRepository {
        /// Where.
        repository: String,
    },
    /// A repository of something else.
    #[error("the repository {repository} belongs to {found}, not to {wanted}")]
    Foreign {
        /// Where.
        repository: String,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        wanted: String,
    },
    /// Made by a later version.
    #[error("{key} has format {found}; this version of sempre reads up to {known}")]
    Format {
        /// The object.
        key: String,
        /// Its format.
        found: u16,
        /// The newest known here.
        known: u16,
    },
    /// No such backup.
    #[error("there is no backup {wanted}{}", if .there.is_empty() { "; the repository has none".to_owned() } else { format!("; there are {}", .there.join(", ")) })]
    NoBackup {
        /// What was asked for.
        wanted: String,
        /// What there is.
        there: Vec<String>,
    },
    /// It was not forgotten, or is gone for good.
    #[error("no backup {wanted} is forgotten and still there{}", if .there.is_empty() { String::new() } else { format!("; there are {}", .there.join(", ")) })]
    NotForgotten {
        /// What was asked for.
        wanted: String,
        /// Those that are.
        there: Vec<String>,
    },
    /// A file operation outside of the repository.
    #[error("could not {doing} {}: {source}", .path.display())]
    Io {
        /// The operation, as a verb.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The backup was given up by the collection of garbage, because it had been silent for long.
    #[error(
        "backup {id} was given up: nothing was heard of its writer for longer than its lease ({lease_minutes} minutes). Nothing is lost but this attempt; start it again"
    )]
    Revoked {
        /// Which.
        id: String,
        /// How long a writer may be silent, minutes.
        lease_minutes: u64,
    },
    /// A failover has fenced off the writers of WAL of its time.
    #[error(
        "WAL of generation {generation} is no longer taken by the repository {repository}: a failover to generation {below} has fenced it off. The archiver of the new primary goes on"
    )]
    Fenced {
        /// Where.
        repository: String,
        /// Whose WAL it is.
        generation: u64,
        /// Nothing below is taken.
        below: u64,
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

    /// An object that does not hold what was written.
    pub(crate) fn damaged(key: &str, why: impl std::fmt::Display) -> Error {
        Error::Damaged { key: key.to_owned(), why: why.to_string() }
    }
}
