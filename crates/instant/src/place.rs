//! Which directories are mounted, and the way to the files below them.
//!
//! PostgreSQL names its files relative to the data directory it has changed to when it was started. So the data
//! directory itself is never a mount: the large directories in it are (`base`, and places of tablespaces), and
//! when such a mount is detached the same names lead to the local files below it.

use std::{
    collections::BTreeMap,
    os::fd::{AsRawFd, OwnedFd},
    path::PathBuf,
};

/// Tablespaces are below this, each a directory elsewhere.
pub(crate) const TABLESPACES: &str = "pg_tblspc";

/// A directory with files of the backup, opened before anything was mounted over it.
#[derive(Debug)]
pub(crate) struct Place {
    /// What its paths begin with in the backup; empty for the target itself.
    pub(crate) prefix: String,
    /// Where it is.
    pub(crate) at: PathBuf,
    /// It is mounted.
    pub(crate) mounted: bool,
    /// The local directory.
    pub(crate) dir: OwnedFd,
}

impl Place {
    /// The local directory, whatever is mounted over it.
    pub(crate) fn local_path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.dir.as_raw_fd()).into()
    }

    /// The rest of a path of the backup that is in this place.
    pub(crate) fn below<'a>(&self, path: &'a str) -> &'a str {
        path.strip_prefix(&self.prefix).unwrap_or(path).trim_start_matches('/')
    }
}

/// The prefix of the directory that would be mounted for `path`; none for files beside the directories.
pub(crate) fn prefix_of(path: &str) -> Option<&str> {
    let (first, rest) = path.split_once('/')?;
    if first != TABLESPACES {
        return Some(first);
    }
    let (oid, _) = rest.split_once('/')?;
    Some(&path[..first.len() + 1 + oid.len()])
}

/// Is this the link to a tablespace's place?
pub(crate) fn is_tablespace(path: &str) -> bool {
    path.split_once('/').is_some_and(|(first, oid)| first == TABLESPACES && !oid.contains('/'))
}

/// Which of these are mounted: those that would take long to bring in.
pub(crate) fn mounted(bytes_of: &BTreeMap<String, u64>, above_bytes: u64) -> Vec<String> {
    bytes_of.iter().filter(|(_, bytes)| **bytes > above_bytes).map(|(p, _)| p.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_directories_are_mounted_and_tablespaces_by_themselves() {
        let paths = ["PG_VERSION", "base/1/2", "pg_tblspc/9/PG_15/1/2", "global/1"];
        let expected = [None, Some("base"), Some("pg_tblspc/9"), Some("global")];
        assert_eq!(paths.map(prefix_of), expected);
        assert!(is_tablespace("pg_tblspc/9") && !paths.into_iter().any(is_tablespace));
        let bytes = [("base", 101), ("global", 100), ("pg_tblspc/9", 500)];
        let bytes = bytes.map(|(prefix, bytes)| (prefix.to_owned(), bytes)).into();
        assert_eq!(mounted(&bytes, 100), ["base", "pg_tblspc/9"]);
    }
}
