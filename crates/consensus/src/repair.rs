//! By hand, on a store nobody has open: look at it, set it aside, or go on from it alone.

use crate::{
    check::{self, Content, io_error, sync_dir},
    error::OpenError,
    format::{StoredBody, StoredLogId, StoredMembers, StoredSnapshot, StoredVote},
    store,
};
use sempre_model::{Generation, NodeId, Record};
use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

/// Stores set aside in one folder at most; more means that the disk is broken.
const QUARANTINED_MAX: u32 = 100;

/// What is in a store.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreSummary {
    /// The file.
    pub file: PathBuf,
    /// Whose it is.
    pub node: Option<NodeId>,
    /// Term and node of the last vote, and whether that node was elected.
    pub vote: Option<(u64, NodeId, bool)>,
    /// Index of the first entry in the log, if there is one.
    pub first_log_index: Option<u64>,
    /// Index of the last entry, counting the snapshot.
    pub last_log_index: Option<u64>,
    /// Term of that entry.
    pub last_log_term: Option<u64>,
    /// Index of the last entry known to be committed, which is applied at open.
    pub committed_index: Option<u64>,
    /// Index of the last entry in the snapshot.
    pub snapshot_index: Option<u64>,
    /// Who votes, as of the end of the log.
    pub voters: BTreeSet<NodeId>,
    /// Who learns, as of the end of the log.
    pub learners: BTreeSet<NodeId>,
    /// The highest generation promised.
    pub promised: Generation,
    /// The record with everything known to be committed.
    pub record: Record,
    /// The record with everything in the log: what [`reform`] would keep.
    pub record_with_log: Record,
}

/// The record, and who was in the cluster, after the entries up to `upto` (or all).
fn replay(content: &Content, upto: Option<Option<StoredLogId>>) -> (Record, StoredMembers) {
    let (mut record, mut outcomes, mut members, mut at) = match &content.snapshot {
        Some(s) => (s.record.clone(), s.outcomes.clone(), s.members.clone(), s.last),
        None => Default::default(),
    };
    for entry in &content.entries {
        if Some(entry.id) <= at || upto.is_some_and(|upto| Some(entry.id) > upto) {
            continue;
        }
        at = Some(entry.id);
        match &entry.body {
            StoredBody::Blank => {}
            // A refused command changes nothing, here as everywhere.
            StoredBody::Command(command) => drop(record.apply(command)),
            StoredBody::Request { id, command } => {
                drop(outcomes.apply(&mut record, *id, command));
            }
            StoredBody::Members(new) => members = new.clone(),
        }
    }
    (record, members)
}

/// Reads and checks the store in `dir` without changing anything.
///
/// Fails with [`OpenError::Busy`] while a member runs on it, and with [`OpenError::Corrupt`] if it
/// is damaged.
pub fn inspect(dir: &Path) -> Result<StoreSummary, OpenError> {
    let (file, content) = check::load_copy(dir)?;
    let (record, _) = replay(&content, Some(content.committed));
    let (record_with_log, members) = replay(&content, None);
    let voters: BTreeSet<NodeId> = members.voters.iter().flatten().copied().collect();
    Ok(StoreSummary {
        file,
        node: content.node,
        vote: content.vote.map(|v| (v.term, v.node, v.committed)),
        first_log_index: content.entries.first().map(|e| e.id.index),
        last_log_index: content.last().map(|id| id.index),
        last_log_term: content.last().map(|id| id.term),
        committed_index: content.committed.map(|id| id.index),
        snapshot_index: content.snapshot.as_ref().and_then(|s| s.last).map(|id| id.index),
        learners: members.nodes.difference(&voters).copied().collect(),
        voters,
        promised: content.promised,
        record,
        record_with_log,
    })
}

/// Sets the store in `dir` aside, whatever is in it, and returns its new path.
///
/// The member has forgotten its votes and promises then. It must join again **under a new node
/// id**: under the old one it could vote twice in one term, and two leaders could be elected.
pub fn quarantine(dir: &Path) -> Result<PathBuf, OpenError> {
    let file = dir.join(store::FILE);
    let seal = dir.join(store::SEAL);
    for number in 1..=QUARANTINED_MAX {
        let aside = dir.join(format!("{}.corrupt-{number}", store::FILE));
        let seal_aside = dir.join(format!("{}.corrupt-{number}", store::SEAL));
        if aside.exists() || seal_aside.exists() {
            continue;
        }
        // The seal last: a store without its file, but with its seal, is not taken for a new one.
        rename_if_there(&file, &aside)?;
        rename_if_there(&seal, &seal_aside)?;
        sync_dir(dir)?;
        return Ok(aside);
    }
    Err(OpenError::Io {
        file,
        doing: "set aside",
        why: format!("{QUARANTINED_MAX} were set aside already; check the disk, then remove them"),
    })
}

fn rename_if_there(from: &Path, to: &Path) -> Result<(), OpenError> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error(from, "set aside")(error))
        }
        _ => Ok(()),
    }
}

/// Makes the store in `dir` that of a cluster of `node` alone, and returns its record.
///
/// For the day the majority is gone for good. Kept is everything in this member's snapshot and
/// log, also entries it did not know to be committed. **Lost** is what the others had agreed on
/// and this member had not received yet: take the survivor with the highest `last_log_term`, then
/// the highest `last_log_index`, of [`inspect`]. A change that was never acknowledged may come to
/// be.
///
/// Give a node id that was never used (above [`Record::last_node`]). Then a member of the old
/// cluster that comes back cannot reach this one as a peer, and cannot overrule it. Under its own
/// old id that is possible: all others must be stopped for good then. In either case the others
/// join again with empty stores. Promises are kept.
pub fn reform(dir: &Path, node: NodeId) -> Result<Record, OpenError> {
    // All checks are made on a copy first; the locked store is opened right after.
    let (file, content) = check::load_copy(dir)?;
    let found = content
        .node
        .ok_or_else(|| OpenError::Corrupt { file, what: "it does not say whose it is".into() })?;
    let (store, content) = check::open(dir, found)?;
    let (record, members) = replay(&content, None);
    if node != found && members.nodes.contains(&node) {
        let why = format!("node {node} is another member of the old cluster; use a new node id");
        store.close();
        return Err(OpenError::Io { file: dir.join(store::FILE), doing: "re-form", why });
    }
    let vote_term = content.vote.map_or(0, |vote| vote.term);
    let log_term = content.last().map_or(0, |id| id.term);
    let last = StoredLogId {
        term: vote_term.max(log_term) + 1,
        node,
        index: content.last().map_or(0, |id| id.index + 1),
    };
    let snapshot = StoredSnapshot {
        last: Some(last),
        members_at: Some(last),
        members: StoredMembers {
            voters: vec![BTreeSet::from([node])],
            nodes: BTreeSet::from([node]),
        },
        record: record.clone(),
        outcomes: Default::default(),
    };
    let vote = StoredVote { term: last.term, node, committed: false };
    let written = store.write(|write| {
        write.meta(store::NODE, &node)?;
        write.meta(store::VOTE, &vote)?;
        write.meta(store::COMMITTED, &last)?;
        write.meta(store::PURGED, &last)?;
        write.remove_entries(..)?;
        write.snapshot(&snapshot)
    });
    store.close();
    written?;
    Ok(record)
}
