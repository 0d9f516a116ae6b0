//! What can go wrong, on both sides.

use crate::protocol::Refusal;
use std::{io, path::PathBuf, time::Duration};

/// Longest path of a Unix socket, in bytes: the kernel's `sun_path` less its final zero.
pub const SOCKET_PATH_MAX: usize = 107;

/// A request to the guard did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The guard's directory has too long a path.
    #[error(
        "the guard's socket path {path} has {length} bytes, and a Unix socket may have at most {SOCKET_PATH_MAX}: use a directory with a shorter path"
    )]
    PathTooLong {
        /// The socket.
        path: PathBuf,
        /// Its length, bytes.
        length: usize,
    },
    /// The socket exists but cannot be used.
    #[error("cannot reach the guard at {path}: {source}; is it of another user?")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No guard process could be made.
    #[error("cannot start the guard with {program}: {source}")]
    Spawn {
        /// The binary.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A guard was started, but does not listen.
    #[error("the guard was started, but does not listen at {path}: {reason}")]
    NotListening {
        /// The socket.
        path: PathBuf,
        /// What it said, or how long was waited.
        reason: String,
    },
    /// The guard took the connection or the request, but does not answer. It may be stopped.
    #[error(
        "the guard (process {pid}) did not answer `{request}` within {within:?}: is it stopped?"
    )]
    NoAnswer {
        /// Its process.
        pid: i32,
        /// What was asked.
        request: &'static str,
        /// How long was waited.
        within: Duration,
    },
    /// The guard is gone, or closed the connection.
    #[error("the guard is not connected (`{request}`): connect again, or start another")]
    Disconnected {
        /// What was asked.
        request: &'static str,
    },
    /// Too many requests wait for answers.
    #[error("the guard has not answered {waiting} requests yet; `{request}` was not sent")]
    TooManyRequests {
        /// What was asked.
        request: &'static str,
        /// How many wait.
        waiting: usize,
    },
    /// The request is longer than the guard reads.
    #[error(
        "`{request}` has {length} bytes, more than a guard reads: shorten its arguments or environment"
    )]
    TooLong {
        /// What was asked.
        request: &'static str,
        /// Its length, bytes.
        length: usize,
    },
    /// The guard said no.
    #[error("the guard refused `{request}`: {refusal}")]
    Refused {
        /// What was asked.
        request: &'static str,
        /// Why.
        refusal: Refusal,
    },
    /// The guard speaks another protocol.
    #[error(
        "the guard speaks protocol {theirs}, this agent {ours}: restart the guard when the database may be down"
    )]
    Protocol {
        /// The guard's.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// The request cannot be written down (a path that is not UTF-8).
    #[error("`{request}` cannot be sent: {reason}")]
    NotEncodable {
        /// What was asked.
        request: &'static str,
        /// Why.
        reason: String,
    },
}

impl GuardError {
    /// The guard's refusal, if it was one.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            GuardError::Refused { refusal, .. } => Some(refusal),
            _ => None,
        }
    }
}

/// The guard could not begin to serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another guard does.
    #[error("another guard serves {0} already")]
    Locked(PathBuf),
    /// The socket's path is too long.
    #[error(
        "the guard's socket path {path} has {length} bytes, and a Unix socket may have at most {SOCKET_PATH_MAX}: use a directory with a shorter path"
    )]
    PathTooLong {
        /// The socket.
        path: PathBuf,
        /// Its length, bytes.
        length: usize,
    },
    /// A file or directory of the guard cannot be used.
    #[error("cannot {what} {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The state file is damaged.
    #[error(
        "{path} is damaged ({reason}): which generation was fenced is not known. Make sure that this member is not to be primary, then delete the file"
    )]
    DamagedState {
        /// The file.
        path: PathBuf,
        /// How.
        reason: String,
    },
    /// The system refused something that the guard cannot do without.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}
