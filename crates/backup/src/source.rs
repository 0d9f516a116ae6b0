//! What of a data directory is backed up: the rules of PostgreSQL's own base backup.

use crate::{Error, Result, manifest::Stamp};
use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Copied last, so that the copy never claims to be further than its files.
pub const CONTROL_FILE: &str = "global/pg_control";

/// Folders whose contents belong to the running server. They are kept, empty.
const EMPTIED: &[&str] = &[
    "pg_wal",
    "pg_dynshmem",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
];

/// Files of the running server, or of an earlier backup.
const LEFT_OUT: &[&str] = &[
    ".sempre-instant",
    "backup_label",
    "backup_label.old",
    "backup_manifest",
    "current_logfiles",
    "postgresql.auto.conf.tmp",
    "postmaster.opts",
    "postmaster.pid",
    "recovery.signal",
    "standby.signal",
    "tablespace_map",
    "tablespace_map.old",
];

/// Something that is to be copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Below the data directory; tablespaces are below `pg_tblspc/`.
    pub path: String,
    /// Where it is.
    pub from: PathBuf,
    /// Permissions.
    pub mode: u32,
    /// What it is.
    pub what: SourceWhat,
}

/// What a source is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceWhat {
    /// A folder.
    Dir,
    /// A symbolic link.
    Link(String),
    /// A file, with its size in bytes when it was listed.
    File(u64, Stamp),
}

/// Lists what is to be copied of a data directory, in the order of the paths, without
/// [`CONTROL_FILE`]. Files that go away meanwhile are left out: their removal is in the WAL.
pub fn list(data_dir: &Path) -> Result<Vec<Source>> {
    let mut found = Vec::new();
    walk(data_dir, "", &mut found)?;
    found.sort_by(|a, b| a.path.cmp(&b.path));
    leave_out_unlogged(&mut found);
    Ok(found)
}

fn walk(dir: &Path, below: &str, found: &mut Vec<Source>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let entry = entry.map_err(Error::io("list", dir))?;
        let name = entry.file_name().into_string().map_err(|name| {
            Error::Refused(format!(
                "{} cannot be backed up: the name {name:?} is not UTF-8",
                dir.display()
            ))
        })?;
        let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
        if is_left_out(&path, &name) {
            continue;
        }
        let mut from = entry.path();
        let metadata = match fs::symlink_metadata(&from) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata.map_err(Error::io("look at", &from))?,
        };
        let mode = metadata.permissions().mode() & 0o7777;
        let what = if metadata.is_dir() {
            SourceWhat::Dir
        } else if metadata.is_file() {
            SourceWhat::File(metadata.len(), stamp(&metadata))
        } else if metadata.is_symlink() {
            let target = fs::read_link(&from).map_err(Error::io("look at", &from))?;
            let target = target.to_str().ok_or_else(|| {
                Error::Refused(format!("the target of {} is not UTF-8", from.display()))
            })?;
            SourceWhat::Link(target.to_owned())
        } else {
            // Sockets and pipes are nobody's data.
            continue;
        };
        let link = matches!(what, SourceWhat::Link(_));
        let followed = link && (below == "pg_tblspc" || path == "pg_wal");
        found.push(Source { path: path.clone(), from: from.clone(), mode, what });
        if EMPTIED.contains(&path.as_str()) {
            if link {
                // Elsewhere here; in the copy it is a folder again.
                let last = found.last_mut().expect("it was just put there");
                (last.what, last.mode) = (SourceWhat::Dir, 0o700);
            }
            if path == "pg_wal" {
                let archive_status = format!("{path}/archive_status");
                let what = SourceWhat::Dir;
                found.push(Source { path: archive_status, from, mode: 0o700, what });
            }
            continue;
        }
        if followed {
            from = fs::canonicalize(&from).map_err(Error::io("follow", &from))?;
        }
        if metadata.is_dir() || followed {
            walk(&from, &path, found)?;
        }
    }
    Ok(())
}

pub(crate) fn stamp(metadata: &fs::Metadata) -> Stamp {
    let ns = |s: i64, ns: i64| s.saturating_mul(1_000_000_000).saturating_add(ns);
    Stamp {
        inode: metadata.ino(),
        mtime_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
        ctime_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
    }
}

fn is_left_out(path: &str, name: &str) -> bool {
    path == CONTROL_FILE
        || LEFT_OUT.contains(&path)
        || name.starts_with("pgsql_tmp")
        || name.starts_with("pg_internal.init")
        || is_temporary_relation(path, name)
}

/// Files of temporary tables: `t3_16384`, in a database's folder.
fn is_temporary_relation(path: &str, name: &str) -> bool {
    let in_database = path.starts_with("base/") || path.starts_with("pg_tblspc/");
    let numbers = name.strip_prefix('t').and_then(|rest| rest.split_once('_'));
    in_database
        && numbers.is_some_and(|(backend, relation)| {
            let digit = |c: char| c.is_ascii_digit();
            !backend.is_empty() && backend.chars().all(digit) && relation.starts_with(digit)
        })
}

/// The relation a file belongs to, and whether the file is its init fork: `16384`, `16384.1`,
/// `16384_vm`, `16384_init`.
fn relation(path: &str) -> Option<(&str, bool)> {
    let begin = path.rfind('/')? + 1;
    let digits = path[begin..].chars().take_while(char::is_ascii_digit).count();
    let rest = &path[begin + digits..];
    (digits > 0 && (rest.is_empty() || rest.starts_with(['.', '_'])))
        .then(|| (&path[..begin + digits], rest == "_init"))
}

/// Unlogged relations are emptied by recovery: only their init forks are needed.
fn leave_out_unlogged(found: &mut Vec<Source>) {
    let unlogged: BTreeSet<String> = found
        .iter()
        .filter_map(|source| relation(&source.path))
        .filter(|(_, init)| *init)
        .map(|(relation, _)| relation.to_owned())
        .collect();
    found.retain(|source| {
        let relation = relation(&source.path);
        relation.is_none_or(|(relation, init)| init || !unlogged.contains(relation))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_servers_own_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let put = |path: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        };
        for path in [
            "PG_VERSION",
            "postmaster.pid",
            "backup_label",
            "global/pg_control",
            "global/1262",
            "global/pg_internal.init",
            "pg_wal/000000010000000000000001",
            "pg_replslot/a/state",
            "base/5/16384",
            "base/5/16384.1",
            "base/5/16384_init",
            "base/5/16384_fsm",
            "base/5/163845",
            "base/5/t3_16390",
            "base/5/t3_16390_vm",
            "base/pgsql_tmp/x",
            "pg_stat/pgstat.stat",
            "standby.signal",
        ] {
            put(path);
        }
        fs::create_dir_all(outside.path().join("PG_15_202209061/5")).unwrap();
        fs::write(outside.path().join("PG_15_202209061/5/16400"), "x").unwrap();
        fs::create_dir(dir.path().join("pg_tblspc")).unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("pg_tblspc/16399")).unwrap();
        let found = list(dir.path()).unwrap();
        let paths: Vec<_> = found.iter().map(|source| source.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "PG_VERSION",
                "base",
                "base/5",
                "base/5/163845",
                "base/5/16384_init",
                "global",
                "global/1262",
                "pg_replslot",
                "pg_stat",
                "pg_stat/pgstat.stat",
                "pg_tblspc",
                "pg_tblspc/16399",
                "pg_tblspc/16399/PG_15_202209061",
                "pg_tblspc/16399/PG_15_202209061/5",
                "pg_tblspc/16399/PG_15_202209061/5/16400",
                "pg_wal",
                "pg_wal/archive_status",
            ]
        );
    }
}
