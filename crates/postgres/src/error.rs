//! What can go wrong, in words an operator can act on.

use std::{io, path::PathBuf, time::Duration};

/// The result of this crate's operations.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong with a PostgreSQL installation, data directory or server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing to run.
    #[error(
        "no PostgreSQL found (looked in {}): install PostgreSQL 14 to 18, or name its bin folder in SEMPRE_PG_BIN or in the configuration",
        .looked.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
    )]
    NoInstallation {
        /// Where it was looked for.
        looked: Vec<PathBuf>,
    },
    /// A folder was named, and there is no (usable) PostgreSQL in it.
    #[error("{} is not the bin folder of a PostgreSQL installation: {why}", .bin_dir.display())]
    BadInstallation {
        /// The folder.
        bin_dir: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A version this crate does not know.
    #[error("PostgreSQL {found} in {} is not supported: sempre works with PostgreSQL 14 to 18", .bin_dir.display())]
    UnsupportedVersion {
        /// As the server prints it.
        found: String,
        /// The folder.
        bin_dir: PathBuf,
    },
    /// PostgreSQL refuses to run as root.
    #[error(
        "PostgreSQL refuses to run as root: run this as the system user that owns the data directory (for example `postgres`)"
    )]
    Root,
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
    /// One of PostgreSQL's programs failed.
    #[error("{program} failed ({status}): {output}")]
    Tool {
        /// Its name.
        program: String,
        /// How it ended.
        status: String,
        /// The last lines it printed.
        output: String,
    },
    /// Something took too long.
    #[error("{what} did not end within {} ms", .after.as_millis())]
    TimedOut {
        /// What.
        what: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The server cannot be reached.
    #[error("cannot connect to PostgreSQL at {at}: {why}")]
    Connect {
        /// Socket or address.
        at: String,
        /// Why, as the server or the system says.
        why: String,
    },
    /// The server refused a statement.
    #[error("PostgreSQL refused to {doing}: {why}")]
    Query {
        /// What it was to do.
        doing: &'static str,
        /// Its own words.
        why: String,
        /// SQLSTATE, if the server gave one.
        code: Option<String>,
    },
    /// The data directory is in a state that does not allow the operation.
    #[error("cannot {doing} {}: {why}", .data_dir.display())]
    DataDir {
        /// The operation.
        doing: &'static str,
        /// The data directory.
        data_dir: PathBuf,
        /// Why not, and what to do.
        why: String,
    },
    /// Text of a file or program that does not look as it should.
    #[error("cannot understand {what}: {why}")]
    Format {
        /// What was read.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A setting that cannot be written.
    #[error(transparent)]
    Parameter(#[from] crate::parameters::BadParameter),
}

impl Error {
    /// For `map_err` on file operations.
    pub(crate) fn io(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { doing, path, source }
    }

    /// From the driver's error, with the server's own message.
    pub(crate) fn query(doing: &'static str, error: &tokio_postgres::Error) -> Error {
        let (why, code) = driver_words(error);
        Error::Query { doing, why, code }
    }

    /// Did the server not answer in time (it may be hung)?
    pub fn is_timeout(&self) -> bool {
        matches!(self, Error::TimedOut { .. })
    }
}

/// The driver's error in words: the server's message where there is one.
pub(crate) fn driver_words(error: &tokio_postgres::Error) -> (String, Option<String>) {
    match error.as_db_error() {
        Some(db) => {
            let detail = db.detail().map(|d| format!(" ({d})")).unwrap_or_default();
            (format!("{}{detail}", db.message()), Some(db.code().code().to_owned()))
        }
        None => {
            let mut words = error.to_string();
            let mut source = std::error::Error::source(error);
            while let Some(inner) = source {
                words = format!("{words}: {inner}");
                source = inner.source();
            }
            (words, None)
        }
    }
}
