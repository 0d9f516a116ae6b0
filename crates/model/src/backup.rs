//! What the record knows of backups: where the repositories are, what was ordered, what came of it.

mod files;

pub use files::{FILE_SETS_MAX, FileSet, FilesChange, FilesOrder, KeptFiles, files_progress};

use crate::{
    care::BackupAlarm,
    command::{Rejected, refused, stale},
    ids::{Lsn, MemberId, Timeline},
    record::{Phase, Record, SyncSet},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
};

/// Repositories a cluster may have.
pub const REPOSITORIES_MAX: usize = 8;
/// In front of a repository's name in the name of its replication slots.
pub(crate) const ARCHIVER_PREFIX: &str = "archive-";
/// The longest name of a repository.
const NAME_MAX: usize = 32;

/// Where a repository's objects are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreAt {
    /// In a folder, at the same path for every member that can reach it.
    Folder(PathBuf),
    /// In a bucket of an S3-compatible store.
    S3(Box<Bucket>),
    /// In a folder of a member, which serves it to the others.
    Member(OnMember),
}

/// A folder of a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnMember {
    /// Who serves it.
    pub member: MemberId,
    /// Where it is there.
    pub folder: PathBuf,
}

/// A bucket of an S3-compatible store, a place in it, and who we are to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// Such as `https://s3.example.org:9000`; none: Amazon's own, of the region.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The region; many stores take any.
    #[serde(default)]
    pub region: Option<String>,
    /// The bucket.
    pub bucket: String,
    /// In front of every key; empty: the repository has the bucket for itself.
    #[serde(default)]
    pub prefix: String,
    /// Name of the key.
    pub access_key_id: String,
    /// The key. Never shown.
    pub secret_access_key: BackupKey,
    /// Whom to trust, in PEM, beside those the machine trusts.
    #[serde(default)]
    pub ca_pem: Option<String>,
    /// Allow an endpoint without encryption. (What is stored is sealed in any case.)
    #[serde(default)]
    pub allow_http: bool,
}

impl fmt::Display for StoreAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreAt::Folder(path) => write!(f, "{}", path.display()),
            StoreAt::Member(at) => write!(f, "{}:{}", at.member, at.folder.display()),
            StoreAt::S3(at) => {
                let endpoint = at.endpoint.as_deref().unwrap_or("s3:/");
                write!(f, "{endpoint}/{}", at.bucket)?;
                if at.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", at.prefix) }
            }
        }
    }
}

/// A secret as text, such as the key that opens a repository. Never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BackupKey(pub String);

impl fmt::Debug for BackupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BackupKey(..)")
    }
}

/// A repository of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repository {
    /// Where it is.
    pub store: StoreAt,
    /// Who can reach it; empty: everybody.
    #[serde(default)]
    pub members: BTreeSet<MemberId>,
    /// What opens it.
    pub key: BackupKey,
    /// When it was made, ms since 1970.
    pub made_unix_ms: u64,
}

impl Repository {
    /// Can this member reach it?
    pub fn is_reached_by(&self, member: &MemberId) -> bool {
        self.members.is_empty() || self.members.contains(member)
    }
}

/// A base backup that is to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupOrder {
    /// By whom.
    pub member: MemberId,
    /// Compared with nothing.
    pub full: bool,
    /// The record version of the order: tells it from another one.
    pub version: u64,
    /// When it was ordered, ms since 1970.
    pub at_unix_ms: u64,
}

/// A restore that is to be tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillOrder {
    /// By whom.
    pub member: MemberId,
    /// The record version of the order: tells it from another one.
    pub version: u64,
    /// When it was ordered, ms since 1970.
    pub at_unix_ms: u64,
}

/// A base backup that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupMade {
    /// Its name.
    pub id: String,
    /// Bytes of the files.
    pub bytes: u64,
    /// What it came to in the repository, bytes.
    pub stored_bytes: u64,
    /// How long it took, ms.
    pub took_ms: u64,
    /// What is odd about it, in words.
    #[serde(default)]
    pub alarms: Vec<String>,
}

/// What came of the last order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupEnded {
    /// By whom.
    pub member: MemberId,
    /// When, ms since 1970.
    pub at_unix_ms: u64,
    /// The backup, or why there is none.
    pub outcome: Result<BackupMade, String>,
}

/// What the record knows of backups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Backups {
    /// Repositories by name.
    pub repositories: BTreeMap<String, Repository>,
    /// Base backups that are being made, by repository.
    pub orders: BTreeMap<String, BackupOrder>,
    /// What came of the last one, by repository.
    pub ended: BTreeMap<String, BackupEnded>,
    /// The newest that worked, by repository: when it was made, ms since 1970.
    pub newest_unix_ms: BTreeMap<String, u64>,
    /// The last restore that was tried, by repository.
    pub proved: BTreeMap<String, Result<Proof, String>>,
    /// When a restore was last tried, by repository, ms since 1970.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub drilled_unix_ms: BTreeMap<String, u64>,
    /// Restores that are being tried, by repository.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub drills: BTreeMap<String, DrillOrder>,
    /// Members whose next copy of the data comes from a repository, and from which.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub fills: BTreeMap<MemberId, String>,
    /// Alarms that nobody has accepted, by repository; the first ones.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub alarms: BTreeMap<String, Vec<BackupAlarm>>,
    /// Keys that are about to replace a repository's: until that is done, one of both opens it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub next_keys: BTreeMap<String, BackupKey>,
    /// Sets of files that are backed up too, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, KeptFiles>,
}

impl Backups {
    /// The repository of this name, or the only one, that this member reaches.
    pub fn reached_by(&self, member: &MemberId, name: Option<&str>) -> Result<&str, Rejected> {
        let reached = |(_, known): &(&String, &Repository)| known.is_reached_by(member);
        let fitting = |(known, _): &(&String, &Repository)| name.is_none_or(|name| *known == name);
        let mut found = self.repositories.iter().filter(reached).filter(fitting);
        match (found.next(), found.next()) {
            (Some((known, _)), None) => Ok(known),
            (None, _) => Err(refused(match name {
                Some(name) => format!("there is no repository `{name}` that {member} reaches"),
                None => format!("there is no repository that {member} reaches"),
            })),
            (Some(_), Some(_)) => {
                Err(refused(format!("{member} reaches several repositories: name one")))
            }
        }
    }
}

/// How far the WAL is in a repository, as its archiver says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveView {
    /// The timeline.
    pub timeline: Timeline,
    /// Durable there.
    pub flushed: Lsn,
    /// The primary's end, as the archiver last heard.
    pub server: Lsn,
    /// Where WAL is missing before.
    pub gap: Option<(Lsn, Lsn)>,
    /// For how long it has not been up to the primary's end, ms: what would be lost with the primary.
    #[serde(default)]
    pub behind_ms: u64,
}

/// How far a base backup is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupProgress {
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes in all; 0 while not known.
    pub total_bytes: u64,
    /// Bytes a second.
    pub bytes_per_s: u64,
    /// Left at this rate, ms.
    pub left_ms: Option<u64>,
}

/// A restore that was tried, and worked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Of this backup, with the WAL behind it.
    pub backup: String,
    /// When, ms since 1970; set when it is agreed.
    #[serde(default)]
    pub at_unix_ms: u64,
    /// From the beginning to a server that answers, ms.
    pub rto_ms: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// What was checked, in words.
    pub checks: Vec<String>,
    /// WAL that the primary had when it began, and that was not restored, bytes; none: it was not measured.
    #[serde(default)]
    pub lost_bytes: Option<u64>,
    /// The same as a time, ms of commits.
    #[serde(default)]
    pub rpo_ms: Option<u64>,
}

/// A change of what the record knows of backups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackupChange {
    /// A new repository, or another key of a known one.
    PutRepository {
        /// Its name.
        name: String,
        /// All of it.
        repository: Repository,
    },
    /// The cluster has it no longer; what is in it stays.
    RemoveRepository {
        /// Its name.
        name: String,
    },
    /// A base backup is to be made.
    Order {
        /// Where to.
        repository: String,
        /// By whom.
        member: MemberId,
        /// Compared with nothing.
        full: bool,
    },
    /// It was made, or not.
    End {
        /// Where to.
        repository: String,
        /// The order's.
        version: u64,
        /// The backup, or why there is none.
        outcome: Result<BackupMade, String>,
    },
    /// Somebody has looked into the alarms of a backup.
    Accept {
        /// Where.
        repository: String,
        /// The backup.
        backup: String,
    },
    /// Another key is about to replace a repository's.
    Rotate {
        /// Which.
        repository: String,
        /// The new key.
        next: BackupKey,
    },
    /// It has done so.
    Rotated {
        /// Which.
        repository: String,
        /// The new key.
        key: BackupKey,
    },
    /// A restore was tried.
    Prove {
        /// From where.
        repository: String,
        /// What was measured, or why it did not work.
        outcome: Result<Proof, String>,
    },
    /// A restore is to be tried. One that was ordered before is given up.
    Drill {
        /// From where.
        repository: String,
        /// By whom.
        member: MemberId,
    },
    /// The next copy of the data that this member gets comes from a repository.
    Fill {
        /// Who.
        member: MemberId,
        /// Which; none: the only one that it reaches.
        repository: Option<String>,
    },
    /// It came from there, or not.
    Filled {
        /// Who.
        member: MemberId,
        /// In words.
        outcome: Result<String, String>,
    },
    /// Of a set of files.
    Files {
        /// Its name.
        name: String,
        /// What.
        change: FilesChange,
    },
}

/// The name under which a repository's archiver has a replication slot on each member, so that the next
/// primary still has what was not archived.
pub fn archiver_of(repository: &str) -> Result<MemberId, crate::ids::BadMemberId> {
    MemberId::new(format!("{ARCHIVER_PREFIX}{repository}"))
}

impl Record {
    /// The repository whose archiver goes by this name, if it is one's.
    pub fn archive(&self, name: &MemberId) -> Option<&str> {
        let repository = name.as_str().strip_prefix(ARCHIVER_PREFIX)?;
        let (known, _) = self.backups.repositories.get_key_value(repository)?;
        // An older cluster may have a member of such a name.
        (!self.members.contains_key(name)).then_some(known)
    }

    /// Does a commit wait for this repository, or rely on it?
    fn waits_for(&self, repository: &str) -> bool {
        let of = |sync: &SyncSet| sync.members.iter().any(|m| self.archive(m) == Some(repository));
        let first = matches!(&self.phase, Phase::Promoting { sync, .. } if of(sync));
        first || of(&self.sync) || of(&self.sync_wanted)
    }

    pub(crate) fn change_backups(
        &mut self,
        at_unix_ms: u64,
        change: &BackupChange,
    ) -> Result<Option<(String, String)>, Rejected> {
        if let BackupChange::Files { name, change } = change {
            return self.change_files(at_unix_ms, name, change);
        }
        let event = |text: String| Ok(Some(("backup".to_owned(), text)));
        let waited_for =
            matches!(change, BackupChange::RemoveRepository { name } if self.waits_for(name));
        let backups = &mut self.backups;
        match change {
            // Above.
            BackupChange::Files { .. } => Ok(None),
            BackupChange::PutRepository { name, repository } => {
                if name.len() > NAME_MAX || MemberId::new(name.as_str()).is_err() {
                    return Err(refused(format!(
                        "`{name}` is no name for a repository: small letters, digits and `-`, up to {NAME_MAX}"
                    )));
                }
                let known = backups.repositories.contains_key(name);
                if !known && backups.repositories.len() >= REPOSITORIES_MAX {
                    return Err(refused(format!(
                        "there are {REPOSITORIES_MAX} repositories already"
                    )));
                }
                backups.repositories.insert(name.clone(), repository.clone());
                event(format!("repository {name} in {}", repository.store))
            }
            BackupChange::RemoveRepository { name } => {
                if waited_for {
                    return Err(refused(format!(
                        "commits wait for {name}: `sempre config set archive_in_sync_set=false` first, or let enough standbys come back"
                    )));
                }
                if backups.repositories.remove(name).is_none() {
                    return Err(refused(format!("there is no repository `{name}`")));
                }
                backups.orders.remove(name);
                backups.ended.remove(name);
                backups.newest_unix_ms.remove(name);
                backups.proved.remove(name);
                backups.drilled_unix_ms.remove(name);
                backups.drills.remove(name);
                backups.fills.retain(|_, from| from != name);
                backups.alarms.remove(name);
                backups.next_keys.remove(name);
                backups.files.retain(|_, kept| kept.set.repository != *name);
                event(format!("repository {name} is no longer used; what is in it stays"))
            }
            BackupChange::Order { repository, member, full } => {
                let Some(known) = backups.repositories.get(repository) else {
                    return Err(refused(format!("there is no repository `{repository}`")));
                };
                if !known.is_reached_by(member) {
                    return Err(refused(format!("{member} does not reach {repository}")));
                }
                if let Some(order) = backups.orders.get(repository) {
                    return Err(refused(format!(
                        "{} is making a backup in {repository} already",
                        order.member
                    )));
                }
                let order = BackupOrder {
                    member: member.clone(),
                    full: *full,
                    version: self.version + 1,
                    at_unix_ms,
                };
                backups.orders.insert(repository.clone(), order);
                self.known(member)?;
                event(format!("{member} makes a backup in {repository}"))
            }
            BackupChange::End { repository, version, outcome } => {
                let Some(order) = backups.orders.get(repository).filter(|o| o.version == *version)
                else {
                    return Err(stale("the order is another one by now"));
                };
                let member = order.member.clone();
                backups.orders.remove(repository);
                let text = match outcome {
                    Ok(made) => {
                        backups.newest_unix_ms.insert(repository.clone(), at_unix_ms);
                        let alarm = backups.raise(repository, made, at_unix_ms);
                        format!("backup {} made by {member} in {repository}{alarm}", made.id)
                    }
                    Err(why) => format!("no backup by {member} in {repository}: {why}"),
                };
                let ended = BackupEnded { member, at_unix_ms, outcome: outcome.clone() };
                backups.ended.insert(repository.clone(), ended);
                event(text)
            }
            BackupChange::Accept { repository, backup } => {
                event(backups.accept(repository, backup)?)
            }
            BackupChange::Rotate { repository, next } => event(backups.rotate(repository, next)?),
            BackupChange::Rotated { repository, key } => event(backups.rotated(repository, key)?),
            BackupChange::Prove { repository, outcome } => {
                if !backups.repositories.contains_key(repository) {
                    return Err(refused(format!("there is no repository `{repository}`")));
                }
                let outcome = outcome.clone().map(|proof| Proof { at_unix_ms, ..proof });
                let text = match &outcome {
                    Ok(proof) => {
                        format!("restore from {repository} proved: {} ms", proof.rto_ms)
                    }
                    Err(why) => format!("a restore from {repository} did not work: {why}"),
                };
                backups.proved.insert(repository.clone(), outcome);
                backups.drilled_unix_ms.insert(repository.clone(), at_unix_ms);
                backups.drills.remove(repository);
                event(text)
            }
            BackupChange::Drill { repository, member } => {
                let name = backups.reached_by(member, Some(repository))?.to_owned();
                let (member, version) = (member.clone(), self.version + 1);
                let text = format!("{member} tries a restore from {name}");
                backups
                    .drills
                    .insert(name, DrillOrder { member: member.clone(), version, at_unix_ms });
                self.known(&member)?;
                event(text)
            }
            BackupChange::Fill { member, repository } => {
                let name = backups.reached_by(member, repository.as_deref())?.to_owned();
                let text = format!("{member} gets its copy of the data from {name}");
                backups.fills.insert(member.clone(), name);
                self.known(member)?;
                event(text)
            }
            BackupChange::Filled { member, outcome } => {
                let Some(name) = backups.fills.remove(member) else {
                    return Err(stale(format!("{member} was not to be filled")));
                };
                event(match outcome {
                    Ok(with) => format!("{member} got its data from {name}: {with}"),
                    Err(why) => format!("{member} did not get its data from {name}: {why}"),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository() -> Repository {
        Repository {
            store: StoreAt::Folder("/backup".into()),
            members: BTreeSet::new(),
            key: BackupKey("secret".into()),
            made_unix_ms: 1,
        }
    }

    #[test]
    fn keys_are_not_shown_and_names_are_checked() {
        assert!(!format!("{:?}", repository()).contains("secret"));
        let mut record = Record::default();
        for name in ["", "A", "a b", &"x".repeat(33)] {
            let change =
                BackupChange::PutRepository { name: name.into(), repository: repository() };
            assert!(record.change_backups(1, &change).is_err(), "{name}");
        }
    }

    #[test]
    fn an_order_is_ended_once_and_by_itself_only() {
        let mut record = Record::default();
        let put = BackupChange::PutRepository { name: "main".into(), repository: repository() };
        record.change_backups(1, &put).unwrap();
        let member = MemberId::new("m1").unwrap();
        let order =
            BackupChange::Order { repository: "main".into(), member: member.clone(), full: false };
        assert!(record.clone().change_backups(2, &order).is_err(), "there is no such member");
        let order_of = BackupOrder { member, full: false, version: 7, at_unix_ms: 2 };
        record.backups.orders.insert("main".into(), order_of);
        assert!(record.change_backups(3, &order).is_err(), "one at a time");
        let end =
            |version, outcome| BackupChange::End { repository: "main".into(), version, outcome };
        assert!(record.change_backups(3, &end(6, Err("x".into()))).is_err(), "another order");
        record.change_backups(4, &end(7, Err("no space".into()))).unwrap();
        assert!(record.backups.orders.is_empty() && record.backups.newest_unix_ms.is_empty());
        assert!(record.change_backups(5, &end(7, Err("again".into()))).is_err());
    }
}
