//! Folders that are backed up beside the databases: an application's uploads, its configuration.

use super::{BackupEnded, BackupMade, Backups, NAME_MAX, Repository, StoreAt};
use crate::{
    command::{Rejected, refused, stale},
    ids::MemberId,
    record::Record,
};
use serde::{Deserialize, Serialize};
use std::path::{Component, Path, PathBuf};

/// Sets of files a cluster may have.
pub const FILE_SETS_MAX: usize = 64;
/// Paths, and patterns, of one set.
const LINES_MAX: usize = 128;
/// The longest path or pattern.
const LINE_MAX: usize = 4096;

/// Folders that are backed up together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSet {
    /// Into this repository.
    pub repository: String,
    /// On this member.
    pub member: MemberId,
    /// Folders and files there.
    pub paths: Vec<PathBuf>,
    /// What is left out: patterns as in a `.gitignore` file, from each path on.
    #[serde(default)]
    pub excludes: Vec<String>,
}

/// A backup of a set that is to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesOrder {
    /// Read everything, even what looks unchanged.
    pub full: bool,
    /// The record version of the order: tells it from another one.
    pub version: u64,
    /// When it was ordered, ms since 1970.
    pub at_unix_ms: u64,
}

/// A set, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptFiles {
    /// What it is.
    pub set: FileSet,
    /// When it was added, ms since 1970.
    pub added_unix_ms: u64,
    /// A backup that is being made.
    #[serde(default)]
    pub order: Option<FilesOrder>,
    /// What came of the last one.
    #[serde(default)]
    pub ended: Option<BackupEnded>,
    /// When the newest that worked was made, ms since 1970.
    #[serde(default)]
    pub newest_unix_ms: Option<u64>,
}

/// A change of what is known of sets of files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FilesChange {
    /// A new set.
    Add(FileSet),
    /// It is backed up no longer; its snapshots stay.
    Remove,
    /// A backup is to be made.
    Order {
        /// Read everything, even what looks unchanged.
        full: bool,
    },
    /// It was made, or not.
    End {
        /// The order's.
        version: u64,
        /// The snapshot, or why there is none.
        outcome: Result<BackupMade, String>,
    },
}

/// Under which name heartbeats tell how far a backup of files is, among those of repositories: none of them
/// has a colon.
pub fn files_progress(set: &str) -> String {
    format!("files:{set}")
}

impl FileSet {
    fn check(&self, repository: &Repository) -> Result<(), Rejected> {
        if self.paths.is_empty() {
            return Err(refused("it has no paths"));
        }
        if self.paths.len() > LINES_MAX || self.excludes.len() > LINES_MAX {
            return Err(refused(format!("it may have {LINES_MAX} paths and patterns")));
        }
        for path in &self.paths {
            let shown = path.display();
            let is_plain = |part| !matches!(part, Component::ParentDir | Component::CurDir);
            if !path.is_absolute() || !path.components().all(is_plain) {
                return Err(refused(format!("{shown} is no absolute path, or has `..` in it")));
            }
            if path.to_str().is_none_or(|path| path.len() > LINE_MAX) {
                return Err(refused(format!("{shown} is too long, or no UTF-8")));
            }
            if path == Path::new("/") {
                return Err(refused("the whole system cannot be backed up: name its folders"));
            }
            let folder = match &repository.store {
                StoreAt::Folder(folder) => Some(folder),
                StoreAt::Member(on) if on.member == self.member => Some(&on.folder),
                _ => None,
            };
            if let Some(folder) = folder
                && (path.starts_with(folder) || folder.starts_with(path))
            {
                let folder = folder.display();
                return Err(refused(format!("{shown} and the repository in {folder} overlap")));
            }
        }
        let is_odd =
            |glob: &&String| glob.is_empty() || glob.len() > LINE_MAX || glob.contains('\n');
        match self.excludes.iter().find(is_odd) {
            Some(odd) => Err(refused(format!("`{odd}` cannot be used to exclude"))),
            None => Ok(()),
        }
    }
}

impl Backups {
    /// Is a backup of files being made in this repository? One at a time is.
    pub fn files_are_written(&self, repository: &str) -> bool {
        let mut sets = self.files.values();
        sets.any(|kept| kept.set.repository == repository && kept.order.is_some())
    }

    /// A member that is gone does not make what it was asked for.
    pub(crate) fn forget_orders_of(&mut self, member: &MemberId) {
        self.orders.retain(|_, order| order.member != *member);
        let sets = self.files.values_mut().filter(|kept| kept.set.member == *member);
        sets.for_each(|kept| kept.order = None);
    }
}

impl Record {
    pub(super) fn change_files(
        &mut self,
        at_unix_ms: u64,
        name: &str,
        change: &FilesChange,
    ) -> Result<Option<(String, String)>, Rejected> {
        let event = |text: String| Ok(Some(("backup".to_owned(), text)));
        let next_version = self.version + 1;
        if let FilesChange::Add(set) = change {
            self.check_set(name, set)?;
            let added = KeptFiles {
                set: set.clone(),
                added_unix_ms: at_unix_ms,
                order: None,
                ended: None,
                newest_unix_ms: None,
            };
            self.backups.files.insert(name.to_owned(), added);
            return event(format!("files {name} of {} go to {}", set.member, set.repository));
        }
        let Some(known) = self.backups.files.get(name).cloned() else {
            return Err(refused(format!("there are no files `{name}`")));
        };
        let member = known.set.member.clone();
        if matches!(change, FilesChange::Order { .. }) {
            self.known(&member)?;
            if self.backups.files_are_written(&known.set.repository) {
                let repository = &known.set.repository;
                return Err(refused(format!("files are being backed up in {repository} already")));
            }
        }
        let Some(kept) = self.backups.files.get_mut(name) else { return Ok(None) };
        match change {
            FilesChange::Add(_) => Ok(None),
            FilesChange::Remove => {
                self.backups.files.remove(name);
                event(format!("files {name} are no longer backed up; their snapshots stay"))
            }
            FilesChange::Order { full } => {
                kept.order = Some(FilesOrder { full: *full, version: next_version, at_unix_ms });
                event(format!("{member} backs up files {name}"))
            }
            FilesChange::End { version, outcome } => {
                if kept.order.as_ref().is_none_or(|order| order.version != *version) {
                    return Err(stale("the order is another one by now"));
                }
                kept.order = None;
                let text = match outcome {
                    Ok(made) => {
                        kept.newest_unix_ms = Some(at_unix_ms);
                        format!("files {name} backed up by {member}: snapshot {}", made.id)
                    }
                    Err(why) => format!("files {name} not backed up by {member}: {why}"),
                };
                kept.ended = Some(BackupEnded { member, at_unix_ms, outcome: outcome.clone() });
                event(text)
            }
        }
    }

    fn check_set(&self, name: &str, set: &FileSet) -> Result<(), Rejected> {
        let backups = &self.backups;
        if name.len() > NAME_MAX || MemberId::new(name).is_err() {
            return Err(refused(format!(
                "`{name}` is no name for files: small letters, digits and `-`, up to {NAME_MAX}"
            )));
        }
        if backups.files.contains_key(name) {
            return Err(refused(format!("there are files `{name}` already: remove them first")));
        }
        if backups.files.len() >= FILE_SETS_MAX {
            return Err(refused(format!("there are {FILE_SETS_MAX} sets of files already")));
        }
        let Some(repository) = backups.repositories.get(&set.repository) else {
            return Err(refused(format!("there is no repository `{}`", set.repository)));
        };
        self.known(&set.member)?;
        if !repository.is_reached_by(&set.member) {
            return Err(refused(format!("{} does not reach {}", set.member, set.repository)));
        }
        set.check(repository)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Member, MemberKind,
        backup::{BackupKey, OnMember},
        member::Ports,
    };

    fn record() -> Record {
        let mut record = Record::default();
        for name in ["m1", "m2"] {
            let name = MemberId::new(name).unwrap();
            let member = Member {
                name: name.clone(),
                node: 1,
                kind: MemberKind::Data,
                paths: Vec::new(),
                ports: Ports::default(),
                zone: None,
                tags: Default::default(),
                own_certificate: false,
            };
            record.members.insert(name, member);
        }
        let repository = Repository {
            store: StoreAt::Folder("/mnt/backup".into()),
            members: [MemberId::new("m1").unwrap()].into(),
            key: BackupKey("secret".into()),
            made_unix_ms: 1,
        };
        record.backups.repositories.insert("main".into(), repository);
        record
    }

    fn set(path: &str) -> FileSet {
        FileSet {
            repository: "main".into(),
            member: MemberId::new("m1").unwrap(),
            paths: vec![path.into()],
            excludes: Vec::new(),
        }
    }

    #[test]
    fn what_cannot_be_backed_up_is_refused() {
        let mut record = record();
        let mut add = |name: &str, set: FileSet| {
            record.change_files(1, name, &FilesChange::Add(set)).map_err(|error| error.to_string())
        };
        for path in ["uploads", "/", "/srv/../mnt", "/mnt", "/mnt/backup/packs"] {
            assert!(add("uploads", set(path)).is_err(), "{path}");
        }
        assert!(add("Uploads", set("/srv")).is_err(), "a name");
        assert!(add("u", FileSet { repository: "other".into(), ..set("/srv") }).is_err());
        let elsewhere = MemberId::new("m2").unwrap();
        assert!(add("u", FileSet { member: elsewhere, ..set("/srv") }).is_err(), "not reached");
        assert!(add("u", FileSet { excludes: vec!["a\nb".into()], ..set("/srv") }).is_err());
        assert!(add("u", FileSet { paths: Vec::new(), ..set("/srv") }).is_err());
        add("u", set("/srv/uploads")).unwrap();
        assert!(add("u", set("/srv/uploads")).is_err(), "there is one");
        // In a folder that a member serves: only there it is that folder.
        for (on, is_it) in [("m1", true), ("m2", false)] {
            let member = MemberId::new(on).unwrap();
            let at = OnMember { member, folder: "/mnt/backup".into() };
            let repositories = &mut record.backups.repositories;
            repositories.get_mut("main").unwrap().store = StoreAt::Member(at);
            let added = record.change_files(1, "v", &FilesChange::Add(set("/mnt/backup/packs")));
            assert_eq!(added.is_err(), is_it, "{on}");
        }
    }

    #[test]
    fn one_order_at_a_time_is_ended_once_and_goes_with_its_member() {
        let mut record = record();
        for name in ["a", "b"] {
            record.change_files(1, name, &FilesChange::Add(set("/srv"))).unwrap();
        }
        let order = FilesChange::Order { full: false };
        record.version = 6;
        record.change_files(2, "a", &order).unwrap();
        for name in ["a", "b"] {
            assert!(record.change_files(3, name, &order).is_err(), "one at a time");
        }
        let end = |version, outcome| FilesChange::End { version, outcome };
        assert!(record.change_files(4, "a", &end(6, Err("x".into()))).is_err(), "another order");
        record.change_files(4, "a", &end(7, Err("unreadable".into()))).unwrap();
        assert!(record.change_files(5, "a", &end(7, Err("again".into()))).is_err());
        let kept = &record.backups.files["a"];
        assert!(kept.order.is_none() && kept.newest_unix_ms.is_none() && kept.ended.is_some());
        record.change_files(6, "b", &order).unwrap();
        let made = BackupMade {
            id: "s".into(),
            bytes: 1,
            stored_bytes: 1,
            took_ms: 1,
            alarms: Vec::new(),
        };
        record.change_files(7, "b", &end(7, Ok(made))).unwrap();
        assert_eq!(record.backups.files["b"].newest_unix_ms, Some(7));
        record.change_files(8, "b", &order).unwrap();
        record.backups.forget_orders_of(&MemberId::new("m1").unwrap());
        assert!(!record.backups.files_are_written("main"));
        record.change_files(9, "b", &FilesChange::Remove).unwrap();
        assert!(record.change_files(9, "b", &FilesChange::Remove).is_err());
    }
}
