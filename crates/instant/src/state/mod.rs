//! What is kept beside the files while they are brought in, so that a process that was killed, or a machine
//! that lost its power, goes on where it was.
//!
//! In the folder [`STATE_DIR`] of the target:
//!
//! | file     | content                                                                         |
//! |----------|---------------------------------------------------------------------------------|
//! | `lock`   | locked while a process serves                                                   |
//! | `header` | JSON, [`Header`]; written last: without it nothing was ever served              |
//! | `files`  | [`files::RECORD_BYTES`] bytes a file: where its blocks are in the backup's list |
//! | `local`  | a bit a block: its content is in the local file, durably                        |
//! | `whole`  | empty; everything is local, only tidying up is left                             |
//!
//! A file that is not all local carries its number in the extended attribute [`MARK`]. So a file keeps what is
//! known of it when it is renamed or linked, and loses it when it is removed, at the same instant.

pub(crate) mod bits;
pub(crate) mod files;

use crate::{Error, Result};
use bits::Bits;
use files::Files;
use rustix::fs::{FlockOperation, XattrFlags, fgetxattr, flock, fremovexattr, fsetxattr};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

/// The folder with the state, in the target.
pub const STATE_DIR: &str = ".sempre-instant";
/// The attribute of files that are not all local.
pub(crate) const MARK: &str = "user.sempre.instant";
const MARK_BYTES: usize = 12;
const FORMAT: u16 = 1;

/// What a directory is restored from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) format: u16,
    /// The backup.
    pub(crate) backup: String,
    /// In every mark, so that a mark that was copied from elsewhere counts for nothing.
    pub(crate) token: u64,
    /// Where files are, by the number in their records; the first is the target itself.
    pub(crate) places: Vec<PlaceRecord>,
    /// Bytes of the backup's files.
    pub(crate) total_bytes: u64,
}

/// A directory with files of the backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlaceRecord {
    /// What its paths begin with in the backup, such as `base`.
    pub(crate) prefix: String,
    /// Where it is.
    pub(crate) at: PathBuf,
    /// It is mounted; what is not was brought in before the database started.
    pub(crate) mounted: bool,
}

impl Header {
    pub(crate) fn new(backup: &str) -> Self {
        let (backup, token) = (backup.to_owned(), rand::random());
        Self { format: FORMAT, backup, token, places: Vec::new(), total_bytes: 0 }
    }
}

/// The state of a directory that is being restored.
#[derive(Debug)]
pub(crate) struct State {
    dir: PathBuf,
    pub(crate) header: Header,
    pub(crate) files: Files,
    pub(crate) bits: Bits,
    _lock: File,
}

/// What is in a target directory.
pub(crate) enum Found {
    /// Nothing, or what a restore left that never served.
    Fresh(File),
    /// A restore that goes on.
    Begun(Box<State>),
    /// Everything is local.
    Whole(Box<State>),
}

impl State {
    /// Looks what there is, and keeps others out.
    pub(crate) fn find(target: &Path) -> Result<Found> {
        let dir = target.join(STATE_DIR);
        match fs::create_dir(&dir) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => made.map_err(Error::io("make", &dir))?,
        }
        let lock = lock(&dir.join("lock"))?;
        let path = dir.join("header");
        let json = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Fresh(lock)),
            json => json.map_err(Error::io("read", &path))?,
        };
        let damaged = |why: String| Error::Damaged { path: path.clone(), why };
        let header: Header = serde_json::from_slice(&json).map_err(|e| damaged(e.to_string()))?;
        if header.format > FORMAT {
            let why = format!("its format is {}, and known are up to {FORMAT}", header.format);
            return Err(damaged(why));
        }
        let files = Files::open(&dir.join("files"))?;
        let bits = Bits::open(&dir.join("local"), files.words())?;
        let whole = dir.join("whole").exists();
        let state = Box::new(Self { dir, header, files, bits, _lock: lock });
        Ok(if whole { Found::Whole(state) } else { Found::Begun(state) })
    }

    /// Of a directory whose files were just made. They are durable; so is this when it returns.
    pub(crate) fn begin(target: &Path, header: Header, files: Files, lock: File) -> Result<Self> {
        let dir = target.join(STATE_DIR);
        let bits = Bits::create(&dir.join("local"), files.words())?;
        let json = serde_json::to_vec(&header).expect("it has only what JSON can say");
        write_durably(&dir, "header", &json)?;
        Ok(Self { dir, header, files, bits, _lock: lock })
    }

    /// From now on nothing of the repository is needed.
    pub(crate) fn set_whole(&self) -> Result<()> {
        write_durably(&self.dir, "whole", b"")
    }

    /// The number of a file that is perhaps not all local.
    pub(crate) fn number(&self, file: impl AsFd) -> io::Result<Option<u32>> {
        let mut mark = [0; MARK_BYTES];
        match fgetxattr(file, MARK, &mut mark[..]) {
            Err(rustix::io::Errno::NODATA) => Ok(None),
            Err(error) => Err(error.into()),
            Ok(MARK_BYTES) if mark[..8] == self.header.token.to_le_bytes() => {
                let number = u32::from_le_bytes([mark[8], mark[9], mark[10], mark[11]]);
                Ok(Some(number).filter(|number| *number < self.files.count()))
            }
            Ok(_) => Ok(None),
        }
    }
}

/// Gives a file its number.
pub(crate) fn set_mark(file: impl AsFd, token: u64, number: u32) -> io::Result<()> {
    let mut mark = [0; MARK_BYTES];
    mark[..8].copy_from_slice(&token.to_le_bytes());
    mark[8..].copy_from_slice(&number.to_le_bytes());
    Ok(fsetxattr(file, MARK, &mark, XattrFlags::empty())?)
}

/// Takes it away.
pub(crate) fn remove_mark(file: impl AsFd) -> io::Result<()> {
    match fremovexattr(file, MARK) {
        Err(rustix::io::Errno::NODATA) => Ok(()),
        removed => Ok(removed?),
    }
}

/// Removes what is in the folder, the header first: what it describes is gone then.
pub(crate) fn remove(dir: &Path) -> Result<()> {
    let removed = match fs::remove_file(dir.join("header")) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    };
    removed.and_then(|()| fs::remove_dir_all(dir)).map_err(Error::io("remove", dir))
}

fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).map_err(Error::io("make", path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Refused(format!(
            "{} is locked: another process serves this directory",
            path.display()
        ))),
        locked => locked.map(|()| file).map_err(Error::io("lock", path)),
    }
}

fn write_durably(dir: &Path, name: &str, content: &[u8]) -> Result<()> {
    let (path, unfinished) = (dir.join(name), dir.join(format!("{name}.tmp")));
    let write = || {
        let mut file = File::create(&unfinished)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&unfinished, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(Error::io("write", &path))
}
