//! Looks at a data directory without touching it.

use crate::{ControlData, Instance};
use std::{
    fmt, fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
};

/// What a data directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataDir {
    /// There is none.
    Missing,
    /// There is one, with nothing in it.
    Empty,
    /// There is something that cannot be used.
    Foreign(Foreign),
    /// A PostgreSQL cluster.
    Present(Box<ControlData>),
}

/// Why a data directory cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// Not a directory, or it cannot be looked into; why, in words.
    Unreadable(String),
    /// It belongs to another user.
    Owner {
        /// Whose it is.
        uid: u32,
        /// Who we are.
        me: u32,
    },
    /// Others may write to it, or read it: PostgreSQL would refuse it.
    Permissions {
        /// Its mode.
        mode: u32,
    },
    /// It holds other things than a PostgreSQL cluster.
    NotData,
    /// Of another major version.
    Version {
        /// As its `PG_VERSION` says.
        found: String,
        /// That of the installation.
        wanted: u32,
    },
    /// A rewind began and did not end. A fresh copy is needed.
    Unfinished,
    /// Its control file cannot be read; why, in words.
    Damaged(String),
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(why) => write!(f, "it cannot be read: {why}"),
            Self::Owner { uid, me } => {
                write!(f, "it belongs to user id {uid}, but sempre runs as user id {me}")
            }
            Self::Permissions { mode } => write!(
                f,
                "its permissions are {mode:o}, and PostgreSQL wants 0700 or 0750 (chmod 0700)"
            ),
            Self::NotData => write!(f, "it is not empty, and no PostgreSQL data directory"),
            Self::Version { found, wanted } => write!(
                f,
                "it is of PostgreSQL {found}, but the installation in use is PostgreSQL {wanted}"
            ),
            Self::Unfinished => {
                write!(f, "a rewind of it began and did not end; it needs a fresh copy")
            }
            Self::Damaged(why) => write!(f, "it is damaged: {why}"),
        }
    }
}

impl Instance {
    /// Looks at the data directory. A copy or `initdb` that was interrupted does not show here:
    /// both work beside it until they are complete.
    pub fn inspect(&self) -> DataDir {
        match self.look() {
            Ok(found) => found,
            Err(foreign) => DataDir::Foreign(foreign),
        }
    }

    fn look(&self) -> Result<DataDir, Foreign> {
        let dir = &self.layout.data_dir;
        let unreadable = |e: std::io::Error| Foreign::Unreadable(e.to_string());
        let meta = match fs::metadata(dir) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(DataDir::Missing),
            other => other.map_err(unreadable)?,
        };
        if !meta.is_dir() {
            return Err(Foreign::Unreadable("it is not a directory".into()));
        }
        let me = nix::unistd::geteuid().as_raw();
        if meta.uid() != me {
            return Err(Foreign::Owner { uid: meta.uid(), me });
        }
        if fs::read_dir(dir).map_err(unreadable)?.next().is_none() {
            return Ok(DataDir::Empty);
        }
        let Ok(version) = fs::read_to_string(dir.join("PG_VERSION")) else {
            return Err(Foreign::NotData);
        };
        let (found, wanted) = (version.trim(), self.installation.major);
        if found != wanted.to_string() {
            return Err(Foreign::Version { found: found.to_owned(), wanted });
        }
        let mode = meta.permissions().mode() & 0o777;
        if mode & 0o027 != 0 {
            return Err(Foreign::Permissions { mode });
        }
        if self.rewind_marker().exists() {
            return Err(Foreign::Unfinished);
        }
        let control = self.control_data().map_err(|e| Foreign::Damaged(e.to_string()))?;
        Ok(DataDir::Present(Box::new(control)))
    }
}
