//! What can go wrong.

use std::{io, path::PathBuf};

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong with a backup or a recovery.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// With the repository.
    #[error(transparent)]
    Repository(#[from] sempre_backup::Error),
    /// With files.
    #[error(transparent)]
    Files(#[from] sempre_files::Error),
    /// With serving a backup that is not there yet.
    #[error(transparent)]
    Instant(#[from] sempre_instant::Error),
    /// With PostgreSQL.
    #[error(transparent)]
    Postgres(#[from] sempre_postgres::Error),
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
    /// The repository is ahead of the server.
    #[error(
        "the repository has WAL up to {archived} of timeline {timeline}, the server only up to {server}: the server has lost what was acknowledged. Nothing is archived, so that nothing of it is lost; restore from the repository"
    )]
    ServerBehind {
        /// Of which.
        timeline: sempre_model::Timeline,
        /// What the repository has.
        archived: sempre_model::Lsn,
        /// What the server has.
        server: sempre_model::Lsn,
    },
    /// The WAL of a base backup does not come.
    #[error(
        "the WAL up to {stop} is not in the repository {repository} after {seconds} s: a base backup is of no use without it. Is it being archived? (`sempre status` says)"
    )]
    NoWal {
        /// Up to where it is needed.
        stop: sempre_model::Lsn,
        /// Where.
        repository: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The database is damaged.
    #[error(
        "{0}: the policy wants no backup then (backup_refuse_wrong_pages). Find out what damaged them; the backups before are untouched"
    )]
    WrongPages(String),
    /// The server's WAL went another way.
    #[error(
        "the WAL up to {have} on timeline {timeline} is no part of timeline {of} in the repository: this server went another way"
    )]
    Diverged {
        /// The server's end.
        have: sempre_model::Lsn,
        /// Its timeline.
        timeline: sempre_model::Timeline,
        /// The repository's.
        of: sempre_model::Timeline,
    },
    /// The server's WAL is not the repository's.
    #[error("{} has other WAL than the repository: nothing was written", .path.display())]
    OtherWal {
        /// The file.
        path: PathBuf,
    },
    /// A gap.
    #[error(
        "the WAL segment {name} is not in the repository up to {end}: it was not archived, or removed"
    )]
    WalMissing {
        /// Its name.
        name: String,
        /// How far it is needed.
        end: sempre_model::Lsn,
    },
    /// It cannot be restored to this.
    #[error("{0}")]
    Unreachable(String),
    /// A check of a restored database found something.
    #[error("the check `{name}` failed ({status}): {said}")]
    Check {
        /// Its name.
        name: String,
        /// How it ended.
        status: String,
        /// Its first lines.
        said: String,
    },
    /// Recovery ended otherwise than it should.
    #[error("recovery failed: {why}{}", if .log.is_empty() { String::new() } else { format!("; PostgreSQL says:\n{}", .log) })]
    Replay {
        /// In words.
        why: String,
        /// The server's last lines.
        log: String,
    },
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
}
