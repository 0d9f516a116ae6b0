//! Raft's log and vote, on the store.

use crate::{
    blocking,
    config::SNAPSHOT_TIMEOUT_MS,
    error::StoreError,
    format::{StoredEntry, StoredLogId},
    store::{COMMITTED, PURGED, Store, VOTE},
    types::{RaftStorageError, Types},
};
use openraft::{
    AnyError, Entry, EntryPayload, ErrorSubject, ErrorVerb, LogId, LogState, OptionalSend,
    RaftLogReader, StorageIOError, Vote,
    storage::{LogFlushed, RaftLogStorage},
};
use sempre_model::NodeId;
use std::{fmt::Debug, io, ops::RangeBounds, sync::Arc, time::Duration};
use tokio::time::timeout;

/// For writing a snapshot: on any disk that works it takes less.
const SNAPSHOT_WITHIN: Duration = Duration::from_millis(SNAPSHOT_TIMEOUT_MS);

/// The log store; clones share the store and serve as readers.
#[derive(Clone)]
pub(crate) struct LogStore {
    store: Arc<Store>,
}

/// Runs `work` on the store where blocking is allowed. A panic in there is an error here.
pub(crate) async fn off_thread<T: Send + 'static>(
    store: &Arc<Store>,
    subject: ErrorSubject<NodeId>,
    verb: ErrorVerb,
    work: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, RaftStorageError> {
    let store = store.clone();
    match blocking::off_thread(move || work(&store)).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(StorageIOError::new(subject, verb, AnyError::new(&error)).into()),
        Err(error) => Err(StorageIOError::new(subject, verb, AnyError::new(&error)).into()),
    }
}

impl LogStore {
    pub fn new(store: Arc<Store>) -> Self {
        Self { store }
    }

    async fn read(
        &self,
        range: impl RangeBounds<u64>,
        limited: bool,
    ) -> Result<Vec<Entry<Types>>, RaftStorageError> {
        let range = (range.start_bound().cloned(), range.end_bound().cloned());
        let entries = off_thread(&self.store, ErrorSubject::Logs, ErrorVerb::Read, move |store| {
            store.entries(range, limited)
        })
        .await?;
        Ok(entries.into_iter().map(Entry::from).collect())
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry<Types>>, RaftStorageError> {
        self.read(range, false).await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry<Types>>, RaftStorageError> {
        self.read(start..end, true).await
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, RaftStorageError> {
        let (purged, last) =
            off_thread(&self.store, ErrorSubject::Logs, ErrorVerb::Read, Store::last).await?;
        Ok(LogState {
            last_purged_log_id: purged.map(Into::into),
            last_log_id: last.map(Into::into),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<NodeId>) -> Result<(), RaftStorageError> {
        let vote = crate::format::StoredVote::from(*vote);
        off_thread(&self.store, ErrorSubject::Vote, ErrorVerb::Write, move |store| {
            store.write(|write| write.meta(VOTE, &vote))
        })
        .await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<NodeId>>, RaftStorageError> {
        let vote =
            off_thread(&self.store, ErrorSubject::Vote, ErrorVerb::Read, Store::vote).await?;
        Ok(vote.map(Into::into))
    }

    /// On disk before anything up to it is applied: see the crate's page.
    async fn save_committed(
        &mut self,
        committed: Option<LogId<NodeId>>,
    ) -> Result<(), RaftStorageError> {
        let Some(committed) = committed.map(StoredLogId::from) else { return Ok(()) };
        off_thread(&self.store, ErrorSubject::Store, ErrorVerb::Write, move |store| {
            store.write(|write| write.meta(COMMITTED, &committed))
        })
        .await
    }

    async fn read_committed(&mut self) -> Result<Option<LogId<NodeId>>, RaftStorageError> {
        let committed: Option<StoredLogId> =
            off_thread(&self.store, ErrorSubject::Store, ErrorVerb::Read, |store| {
                store.meta(COMMITTED)
            })
            .await?;
        Ok(committed.map(Into::into))
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<Types>,
    ) -> Result<(), RaftStorageError>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut rows = vec![];
        for entry in entries {
            if let EntryPayload::Normal(proposal) = &entry.payload {
                proposal.set_appended();
            }
            rows.push(StoredEntry::from(&entry));
        }
        let result = off_thread(&self.store, ErrorSubject::Logs, ErrorVerb::Write, move |store| {
            store.write(|write| write.entries(&rows))
        })
        .await;
        match result {
            Ok(()) => {
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(error) => {
                callback.log_io_completed(Err(io::Error::other(error.to_string())));
                Err(error)
            }
        }
    }

    async fn truncate(&mut self, since: LogId<NodeId>) -> Result<(), RaftStorageError> {
        off_thread(&self.store, ErrorSubject::Logs, ErrorVerb::Delete, move |store| {
            store.write(|write| write.remove_entries(since.index..))
        })
        .await
    }

    /// Raft installs a snapshot of another member in one task, and takes out the entries in it in
    /// another. They must not go first: a crash in between would leave neither.
    async fn purge(&mut self, upto: LogId<NodeId>) -> Result<(), RaftStorageError> {
        let upto = StoredLogId::from(upto);
        let mut snapshots = self.store.snapshots();
        let on_disk = snapshots.wait_for(|known| known.upto >= Some(upto) || known.failed);
        let known = timeout(SNAPSHOT_WITHIN, on_disk).await;
        if !known.is_ok_and(|known| known.is_ok_and(|known| known.upto >= Some(upto))) {
            let why = format!("entries up to {} are in no snapshot on disk", upto.index);
            let (subject, verb) = (ErrorSubject::Logs, ErrorVerb::Delete);
            return Err(StorageIOError::new(subject, verb, AnyError::error(why)).into());
        }
        off_thread(&self.store, ErrorSubject::Logs, ErrorVerb::Delete, move |store| {
            store.write(|write| {
                write.remove_entries(..=upto.index)?;
                write.meta(PURGED, &upto)
            })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        check,
        format::{StoredBody, StoredMembers, StoredSnapshot},
    };
    use openraft::CommittedLeaderId;
    use sempre_model::Record;
    use std::collections::BTreeSet;

    fn id(index: u64) -> StoredLogId {
        StoredLogId { term: 1, node: 1, index }
    }

    #[tokio::test]
    async fn entries_go_only_once_a_snapshot_on_disk_holds_them() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = check::open(dir.path(), 1).unwrap();
        let entries: Vec<_> =
            (0..10).map(|n| StoredEntry { id: id(n), body: StoredBody::Blank }).collect();
        store.write(|write| write.entries(&entries)).unwrap();
        let store = Arc::new(store);

        let mut log = LogStore::new(store.clone());
        let upto = LogId::new(CommittedLeaderId::new(1, 1), 7);
        let purging = tokio::spawn(async move { log.purge(upto).await });
        // However long it is given, it waits.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(!purging.is_finished());
        assert_eq!(store.entries(.., false).unwrap().len(), 10);

        let snapshot = StoredSnapshot {
            last: Some(id(7)),
            members_at: Some(id(0)),
            members: StoredMembers { voters: vec![BTreeSet::from([1])], nodes: [1].into() },
            record: Record::default(),
            outcomes: Default::default(),
        };
        store.write_snapshot(&snapshot).unwrap();
        purging.await.unwrap().unwrap();
        assert_eq!(store.entries(.., false).unwrap().len(), 2);
        store.close();
    }
}
