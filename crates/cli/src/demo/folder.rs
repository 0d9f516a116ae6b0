//! Where the demo lives, and as whom.

use crate::{fail::Fail, privileges};
use nix::unistd::{Uid, User};
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The system user the members run as when the demo is started as root.
const USER: &str = "postgres";

/// What leads from the folder that was named to the one that is used instead.
const LINK: &str = "cluster";

/// The folder of a demo.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Made by us, so to be removed.
    temporary: bool,
}

impl Folder {
    /// Makes it, and becomes the user that the members run as. To be called while the process
    /// has one thread.
    pub fn prepare(wished: Option<&Path>) -> Result<Self, Fail> {
        let user = if Uid::effective().is_root() { Some(privileges::find(USER)?) } else { None };
        let folder = match wished {
            Some(dir) => Self { path: Self::named(dir, user.as_ref())?, temporary: false },
            None => Self { path: Self::temporary(user.as_ref())?, temporary: true },
        };
        if let Some(user) = &user {
            privileges::hurry();
            privileges::become_user(user)?;
        }
        folder.check(user.as_ref())?;
        Ok(folder)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, if it was made for this demo alone.
    pub fn remove(self) -> Result<(), Fail> {
        if !self.temporary {
            return Ok(());
        }
        fs::remove_dir_all(&self.path).map_err(|error| {
            Fail::new(format!("cannot remove {}", self.path.display()), error.to_string(), "")
        })
    }

    /// Leaves it as it is.
    pub fn keep(self) {
        if self.temporary {
            eprintln!("the demo's files are kept in {}", self.path.display());
        }
    }

    fn named(dir: &Path, user: Option<&User>) -> Result<PathBuf, Fail> {
        let failed = |error: std::io::Error| {
            Fail::new(format!("cannot use {}", dir.display()), error.to_string(), "")
        };
        let path = std::path::absolute(dir).map_err(failed)?;
        match user {
            Some(user) => privileges::make(&path, user)?,
            None => fs::create_dir_all(&path).map_err(failed)?,
        }
        let mut entries = fs::read_dir(&path).map_err(failed)?;
        if entries.next().is_some() {
            return Err(Fail::usage(
                format!("{} is not empty", path.display()),
                "the demo makes a new cluster, and touches no files that are there",
                "Remove it, or name another folder with --dir.",
            ));
        }
        match user {
            Some(user) if !reaches(user, &path) => Self::elsewhere(&path, user),
            _ => Ok(path),
        }
    }

    /// A folder that the members' user can reach, with a link to it from the one that was named:
    /// scripts that run as root like to work below folders that are root's alone.
    fn elsewhere(named: &Path, user: &User) -> Result<PathBuf, Fail> {
        let path = Self::temporary(Some(user))?;
        let link = named.join(LINK);
        std::os::unix::fs::symlink(&path, &link).map_err(|error| {
            Fail::new(format!("cannot make {}", link.display()), error.to_string(), "")
        })?;
        eprintln!(
            "the system user `{}` cannot reach {}: the cluster is in {}, and {} leads there",
            user.name,
            named.display(),
            path.display(),
            link.display()
        );
        Ok(path)
    }

    fn temporary(user: Option<&User>) -> Result<PathBuf, Fail> {
        // Not below TMPDIR: the members' user may not be able to go there, and the paths of Unix
        // sockets must be short.
        let path = tempfile::Builder::new()
            .prefix("sempre-demo-")
            .tempdir_in("/tmp")
            .map_err(|error| Fail::new("cannot make a folder in /tmp", error.to_string(), ""))?
            .keep();
        if let Some(user) = user {
            privileges::make(&path, user)?;
        }
        Ok(path)
    }

    fn check(&self, user: Option<&User>) -> Result<(), Fail> {
        let probe = self.path.join(".probe");
        fs::write(&probe, b"").and_then(|()| fs::remove_file(&probe)).map_err(|error| {
            let who =
                user.map_or("this user".into(), |user| format!("the system user `{}`", user.name));
            Fail::new(
                format!("{who} cannot write to {}", self.path.display()),
                error.to_string(),
                "Name a folder that it can reach, such as one below /var/tmp.",
            )
        })
    }
}

/// May the user go through all folders above this one?
fn reaches(user: &User, path: &Path) -> bool {
    path.ancestors().skip(1).filter_map(|above| fs::metadata(above).ok()).all(|above| {
        let passes = match () {
            () if above.uid() == user.uid.as_raw() => 0o100,
            () if above.gid() == user.gid.as_raw() => 0o010,
            () => 0o001,
        };
        above.mode() & passes != 0
    })
}
