//! Everything below the folders of a set, in the order the format wants: names as bytes, each folder before
//! what is in it.
//!
//! Files are opened here, and described by what was opened: a file that is replaced meanwhile is the old one
//! or the new one, never the size of one and the contents of the other. Few are open at a time: the library
//! reads a few ahead of its threads.

use super::{Reading, Watch, metadata};
use ignore::gitignore::Gitignore;
use rustic_core::{ReadSourceEntry, RusticResult};
use std::{
    collections::VecDeque,
    ffi::OsString,
    fs::{self, OpenOptions},
    io::{self, ErrorKind},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

type Entry = ReadSourceEntry<Reading>;

/// A walk.
pub(crate) struct Walk {
    roots: VecDeque<(PathBuf, usize)>,
    excludes: Arc<Vec<Gitignore>>,
    /// Which of them.
    current: usize,
    stack: Vec<Folder>,
    ready: VecDeque<Entry>,
    /// Folders above roots that were told already.
    told: Vec<PathBuf>,
    watch: Arc<Watch>,
}

struct Folder {
    path: PathBuf,
    /// Last one first; with whether it is a folder.
    left: Vec<(OsString, bool)>,
}

impl Walk {
    pub(super) fn new(
        paths: Vec<PathBuf>,
        excludes: Arc<Vec<Gitignore>>,
        watch: Arc<Watch>,
    ) -> Self {
        let mut roots: Vec<_> = paths.into_iter().enumerate().map(|(n, path)| (path, n)).collect();
        roots.sort();
        // What lies in another one is told with it.
        roots.dedup_by(|(later, _), (earlier, _)| later.starts_with(earlier));
        let (stack, ready, told) = Default::default();
        Self { roots: roots.into(), excludes, current: 0, stack, ready, told, watch }
    }

    /// Bytes of all files.
    pub(super) fn bytes(mut self) -> u64 {
        let mut bytes = 0;
        loop {
            match self.step(true) {
                None => return bytes,
                Some(found) => bytes += found,
            }
            self.ready.clear();
        }
    }

    /// Goes on by one entry; what is to be told is in `ready`. Returns its bytes.
    fn step(&mut self, only_count: bool) -> Option<u64> {
        let Some(folder) = self.stack.last_mut() else {
            let (path, index) = self.roots.pop_front()?;
            self.current = index;
            return Some(self.begin(&path, only_count));
        };
        let Some((name, is_dir)) = folder.left.pop() else {
            self.stack.pop();
            return Some(0);
        };
        let path = folder.path.join(name);
        let excluded = self.excludes[self.current].matched(&path, is_dir).is_ignore();
        Some(if excluded { 0 } else { self.visit(&path, only_count, false) })
    }

    /// A root, and the folders above it, so that they come back as they are too.
    fn begin(&mut self, root: &Path, only_count: bool) -> u64 {
        let mut above: Vec<_> = root.ancestors().skip(1).collect();
        above.reverse();
        for path in above.into_iter().filter(|path| path.file_name().is_some()) {
            if self.told.iter().any(|told| told == path) || only_count {
                continue;
            }
            self.told.push(path.to_owned());
            match self.describe(path) {
                Ok((entry, _)) => self.ready.push_back(entry),
                Err(error) => self.watch.trouble(path, error),
            }
        }
        // A link would be all that is kept.
        match fs::symlink_metadata(root) {
            Ok(found) if found.is_symlink() => {
                self.watch.trouble(root, "it is a symbolic link: name what it points to");
                0
            }
            _ => self.visit(root, only_count, true),
        }
    }

    fn visit(&mut self, path: &Path, only_count: bool, is_root: bool) -> u64 {
        if only_count {
            let Ok(found) = fs::symlink_metadata(path) else { return 0 };
            if found.is_dir() {
                self.descend(path);
            }
            return if found.is_file() { found.len() } else { 0 };
        }
        match self.describe(path) {
            Ok((entry, bytes)) => {
                let is_dir = entry.node.is_dir();
                if !is_dir {
                    Watch::count(&self.watch.entries);
                }
                self.ready.push_back(entry);
                if is_dir {
                    self.descend(path);
                }
                bytes
            }
            Err(error) if error.kind() == ErrorKind::NotFound && !is_root => {
                Watch::count(&self.watch.vanished);
                0
            }
            Err(error) => {
                self.watch.trouble(path, error);
                0
            }
        }
    }

    fn describe(&self, path: &Path) -> io::Result<(Entry, u64)> {
        let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
        let found = fs::symlink_metadata(path)?;
        if !found.is_file() {
            let link = if found.is_symlink() { Some(fs::read_link(path)?) } else { None };
            let node = metadata::node(name, path, &found, link.as_deref(), None)?;
            return Ok((ReadSourceEntry { path: path.to_owned(), node, open: None }, 0));
        }
        // Should it be replaced by now, a link is not followed, and nobody is waited for.
        let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        let found = file.metadata()?;
        if !found.is_file() {
            return Err(io::Error::other("it was replaced by something that is no file"));
        }
        let node = metadata::node(name, path, &found, None, Some(&file))?;
        let bytes = found.len();
        let open = Some(Reading::new(file, path.to_owned(), found, self.watch.clone()));
        Ok((ReadSourceEntry { path: path.to_owned(), node, open }, bytes))
    }

    fn descend(&mut self, path: &Path) {
        let list = || -> io::Result<Vec<(OsString, bool)>> {
            let mut names = Vec::new();
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                names.push((entry.file_name(), entry.file_type()?.is_dir()));
            }
            names.sort();
            names.reverse();
            Ok(names)
        };
        match list() {
            Ok(left) => self.stack.push(Folder { path: path.to_owned(), left }),
            // It is told, as empty; it was deleted meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => Watch::count(&self.watch.vanished),
            Err(error) => self.watch.trouble(path, error),
        }
    }
}

impl Iterator for Walk {
    type Item = RusticResult<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                return Some(Ok(entry));
            }
            self.step(false)?;
        }
    }
}
