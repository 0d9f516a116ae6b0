//! The member's folder.
//!
//! | path | content |
//! |---|---|
//! | `member.json` | who this member is: name, Raft node, cluster id (format 1) |
//! | `tls/` | its key and certificate, the cluster's CA certificate |
//! | `record/` | the record (Raft log and state) |
//! | `data/` | the database, unless the config names another folder |
//! | `run/` | private sockets: PostgreSQL's and the guard's |
//! | `members.json` | everyone's addresses, for when the record is damaged |
//! | `rest.token` | lets commands on this machine change things over REST |
//! | `applied.json` | what was last written into PostgreSQL's configuration |
//! | `logical-slots.json` | which copies of the primary's logical slots are usable |
//! | `log/` | PostgreSQL's log |
//! | `served/` | the time, as noted for each folder that is served as a repository |
//! | `salvage/` | diverged WAL, saved before a rewind |

use crate::{Config, logical_slots::SlotNotes};
use sempre_model::{Generation, Lsn, Member, MemberId, NodeId, SyncSet};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// The version of both JSON files.
const FORMAT: u16 = 1;

/// The member's folder.
#[derive(Clone, Debug)]
pub struct MemberDir {
    root: PathBuf,
    data: PathBuf,
}

/// Who this member is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// Version of the file.
    pub format: u16,
    /// Its name.
    pub name: MemberId,
    /// Its Raft node.
    pub node: NodeId,
    /// The cluster.
    pub cluster_id: String,
    /// It made the cluster, so it makes (or adopts) the first data directory.
    #[serde(default)]
    pub first: bool,
}

impl Who {
    /// With the present format.
    pub fn new(name: MemberId, node: NodeId, cluster_id: String, first: bool) -> Self {
        Self { format: FORMAT, name, node, cluster_id, first }
    }
}

/// What PostgreSQL's configuration says, as last written by us: an agent that restarts goes on
/// from here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Version of the file.
    #[serde(default)]
    pub format: u16,
    /// A standby's upstream.
    pub upstream: Option<MemberId>,
    /// What a primary enforces.
    pub sync: SyncSet,
    /// Flush position sampled after `sync` took effect; none: not sampled yet.
    pub sync_since: Option<Lsn>,
    /// Clients are let in.
    pub admitted: bool,
    /// Primary: of which generation.
    pub generation: Generation,
    /// Primary: end of WAL when it was started or promoted.
    pub recovered: Option<Lsn>,
    /// The WAL was compared with the primary of this generation, and fits.
    pub checked_for: Generation,
    /// The data are a primary's, and run (or last ran) as a standby of nobody, to be read.
    #[serde(default)]
    pub resting: bool,
}

/// A file of the member's folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// The system says no.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It does not hold what it should.
    #[error("{path} is damaged: {why}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl MemberDir {
    /// The folder that a config names.
    pub fn new(config: &Config) -> Self {
        let root = config.dir.clone();
        let data = config.postgres.data_dir.clone().unwrap_or_else(|| root.join("data"));
        Self { root, data }
    }

    /// Makes the folders, readable by their owner only.
    pub fn create(&self) -> Result<(), DirError> {
        for dir in
            [self.root.clone(), self.tls(), self.record(), self.run(), self.log(), self.salvage()]
        {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .map_err(|source| DirError::Io { doing: "make", path: dir.clone(), source })?;
        }
        Ok(())
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }
    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.data.clone()
    }
    /// Certificates.
    pub fn served(&self) -> PathBuf {
        self.root.join("served")
    }

    /// Where its certificate is.
    pub fn tls(&self) -> PathBuf {
        self.root.join("tls")
    }
    /// The record.
    pub fn record(&self) -> PathBuf {
        self.root.join("record")
    }
    /// Sockets.
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }
    /// Logs.
    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }
    /// Diverged WAL.
    pub fn salvage(&self) -> PathBuf {
        self.root.join("salvage")
    }

    /// Who this member is; none before `init` or `join`.
    pub fn who(&self) -> Result<Option<Who>, DirError> {
        read_json(&self.root.join("member.json"))
    }

    /// Writes who this member is.
    pub fn set_who(&self, who: &Who) -> Result<(), DirError> {
        write_json(&self.root.join("member.json"), who)
    }

    /// The members as last known: whom to ask when the record itself is damaged.
    pub fn members(&self) -> Vec<Member> {
        read_json(&self.root.join("members.json")).ok().flatten().unwrap_or_default()
    }

    /// Writes the members as known.
    pub fn set_members(&self, members: &[Member]) -> Result<(), DirError> {
        write_json(&self.root.join("members.json"), &members)
    }

    /// Writes the token that commands on this machine authorise themselves with.
    pub fn set_rest_token(&self, token: Option<&str>) -> Result<(), DirError> {
        match token {
            Some(token) => write_file(&self.root.join("rest.token"), token.as_bytes()),
            None => Ok(()),
        }
    }

    /// What was last applied. A damaged file is as good as none: everything is applied again.
    pub fn applied(&self) -> Applied {
        match read_json(&self.root.join("applied.json")) {
            Ok(applied) => applied.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%error, "everything is applied again");
                Applied::default()
            }
        }
    }

    /// What was known of logical slots. Without the file, none of them is usable.
    pub fn slot_notes(&self) -> SlotNotes {
        match read_json(&self.root.join("logical-slots.json")) {
            Ok(notes) => notes.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%error, "no copy of a logical slot is taken as usable");
                SlotNotes::default()
            }
        }
    }

    /// Writes what is known of logical slots.
    pub fn set_slot_notes(&self, notes: SlotNotes) -> Result<(), DirError> {
        write_json(&self.root.join("logical-slots.json"), &SlotNotes { format: FORMAT, ..notes })
    }

    /// Writes what was applied.
    pub fn set_applied(&self, applied: &Applied) -> Result<(), DirError> {
        write_json(&self.root.join("applied.json"), &Applied { format: FORMAT, ..applied.clone() })
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, DirError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|e| DirError::Damaged { path: path.to_owned(), why: e.to_string() }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DirError::Io { doing: "read", path: path.to_owned(), source }),
    }
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), DirError> {
    let bytes = serde_json::to_vec_pretty(value)
        .map_err(|e| DirError::Damaged { path: path.to_owned(), why: e.to_string() })?;
    write_file(path, &bytes)
}

/// Replaces a file as a whole, durably.
fn write_file(path: &Path, bytes: &[u8]) -> Result<(), DirError> {
    let io = |doing| move |source| DirError::Io { doing, path: path.to_owned(), source };
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(io("write"))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io("write"))?;
    fs::rename(&temporary, path).map_err(io("replace"))?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent).and_then(|d| d.sync_all()).map_err(io("sync"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_read_back_and_damage_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("member.json");
        let who = Who::new(MemberId::new("m1").unwrap(), 1, "x".into(), true);
        assert_eq!(read_json::<Who>(&path).unwrap(), None);
        write_json(&path, &who).unwrap();
        assert_eq!(read_json(&path).unwrap(), Some(who));
        fs::write(&path, b"{\"name\"").unwrap();
        let error = read_json::<Who>(&path).unwrap_err().to_string();
        assert!(error.contains("member.json is damaged"), "{error}");
    }
}
