//! The database cannot be started on files that are not served.
//!
//! Without the mounts, as after the machine was started again, the local files have holes, and PostgreSQL would
//! take them for empty pages. So the file it looks at first, `PG_VERSION`, says in the local directory that the
//! database cannot start; what it should say is mounted over it, last of all, and goes with the process.

use crate::{Error, Result, place::Place, state::STATE_DIR};
use rustix::fs::{CWD, Mode, OFlags, openat};
use std::{
    fs::{self, File},
    io::Write,
    path::Path,
};

/// PostgreSQL reads it before anything else, and only then.
pub(crate) const FILE: &str = "PG_VERSION";
/// No version.
pub(crate) const NOTICE: &str = "This database is being restored by `sempre restore --instant`, and parts of \
its files are not here yet. Run the same command again; the database can be started then.\n";

/// What is mounted over the file; none when the backup has no such file.
pub(crate) fn place(target: &Path) -> Result<Option<Place>> {
    let file = target.join(STATE_DIR).join(FILE);
    let dir = match openat(CWD, &file, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        opened => opened.map_err(Error::io("open", &file))?,
    };
    Ok(Some(Place { prefix: FILE.to_owned(), at: target.join(FILE), mounted: true, dir }))
}

/// Keeps what the file should say, and writes that it does not.
pub(crate) fn close(mut file: File, target: &Path, content: &[u8]) -> Result<()> {
    let kept = target.join(STATE_DIR).join(FILE);
    let mut write = || {
        file.write_all(NOTICE.as_bytes())?;
        let mut kept = File::create_new(&kept)?;
        kept.write_all(content)?;
        kept.set_permissions(file.metadata()?.permissions())
    };
    write().map_err(Error::io("write", &kept))
}

/// From now on the database can be started on its own. The mount is gone.
pub(crate) fn open(target: &Path) -> Result<()> {
    let (kept, file) = (target.join(STATE_DIR).join(FILE), target.join(FILE));
    let moved = fs::rename(&kept, &file).and_then(|()| File::open(target)?.sync_all());
    match moved {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        moved => moved.map_err(Error::io("replace", &file)),
    }
}
