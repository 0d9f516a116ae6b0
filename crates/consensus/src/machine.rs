//! The state machine: the record in memory, its snapshots on the store.

use crate::{
    format::{self, StoredMembers, StoredSnapshot},
    log_store::off_thread,
    once::Outcomes,
    store::{CURRENT, Store},
    types::{Outcome, RaftStorageError, Types},
};
use openraft::{
    AnyError, EmptyNode, Entry, EntryPayload, ErrorSubject, ErrorVerb, LogId, OptionalSend,
    RaftSnapshotBuilder, Snapshot, SnapshotMeta, StorageIOError, StoredMembership,
    storage::RaftStateMachine,
};
use sempre_model::{NodeId, Record};
use std::{
    io::Cursor,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

type Membership = StoredMembership<NodeId, EmptyNode>;
type Meta = SnapshotMeta<NodeId, EmptyNode>;

#[derive(Clone)]
struct State {
    applied: Option<LogId<NodeId>>,
    membership: Membership,
    record: Arc<Record>,
    outcomes: Outcomes,
}

/// Clones share the state: one applies, others make snapshots.
#[derive(Clone)]
pub(crate) struct Machine {
    store: Arc<Store>,
    state: Arc<Mutex<State>>,
    record: watch::Sender<Arc<Record>>,
    applied: watch::Sender<u64>,
}

impl Machine {
    /// Starts from the last snapshot; Raft applies what was committed after it.
    pub fn new(store: Arc<Store>, snapshot: Option<StoredSnapshot>) -> Self {
        let state = match snapshot {
            Some(snapshot) => State::from(snapshot),
            None => State {
                applied: None,
                membership: Membership::default(),
                record: Arc::default(),
                outcomes: Outcomes::default(),
            },
        };
        let record = watch::Sender::new(state.record.clone());
        let applied = watch::Sender::new(state.applied.map_or(0, |id| id.index));
        Self { store, state: Arc::new(Mutex::new(state)), record, applied }
    }

    /// The applied record.
    pub fn record(&self) -> watch::Receiver<Arc<Record>> {
        self.record.subscribe()
    }

    /// The index of the last applied entry; changes after the record did.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self) {
        let (record, index) = {
            let state = self.state();
            (state.record.clone(), state.applied.map_or(0, |id| id.index))
        };
        self.record.send_if_modified(|shown| {
            let changed = !Arc::ptr_eq(shown, &record);
            *shown = record;
            changed
        });
        self.applied.send_replace(index);
    }
}

impl From<StoredSnapshot> for State {
    fn from(snapshot: StoredSnapshot) -> Self {
        State {
            applied: snapshot.last.map(Into::into),
            membership: Membership::new(
                snapshot.members_at.map(Into::into),
                snapshot.members.into(),
            ),
            record: Arc::new(snapshot.record),
            outcomes: snapshot.outcomes,
        }
    }
}

impl From<&State> for StoredSnapshot {
    fn from(state: &State) -> Self {
        StoredSnapshot {
            last: state.applied.map(Into::into),
            members_at: state.membership.log_id().map(Into::into),
            members: StoredMembers::from(state.membership.membership()),
            record: (*state.record).clone(),
            outcomes: state.outcomes.clone(),
        }
    }
}

/// What Raft wants to know of a snapshot.
pub(crate) fn meta_of(snapshot: &StoredSnapshot) -> Meta {
    let id = snapshot
        .last
        .map_or_else(|| "0".to_owned(), |id| format!("{}-{}-{}", id.term, id.node, id.index));
    Meta {
        last_log_id: snapshot.last.map(Into::into),
        last_membership: Membership::new(
            snapshot.members_at.map(Into::into),
            snapshot.members.clone().into(),
        ),
        snapshot_id: id,
    }
}

/// A snapshot as Raft carries it around.
pub(crate) fn to_raft(snapshot: &StoredSnapshot) -> Result<Snapshot<Types>, String> {
    let bytes = format::encode("snapshot", CURRENT.as_bytes(), snapshot)?;
    Ok(Snapshot { meta: meta_of(snapshot), snapshot: Box::new(Cursor::new(bytes)) })
}

/// And back.
pub(crate) fn from_raft(snapshot: &Cursor<Vec<u8>>) -> Result<StoredSnapshot, String> {
    format::decode("snapshot", CURRENT.as_bytes(), snapshot.get_ref())
}

fn bad_snapshot(verb: ErrorVerb) -> impl Fn(String) -> RaftStorageError {
    move |why| StorageIOError::new(ErrorSubject::Snapshot(None), verb, AnyError::error(why)).into()
}

impl RaftSnapshotBuilder<Types> for Machine {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, RaftStorageError> {
        let snapshot = StoredSnapshot::from(&*self.state());
        let carried = to_raft(&snapshot).map_err(bad_snapshot(ErrorVerb::Write))?;
        off_thread(&self.store, ErrorSubject::Snapshot(None), ErrorVerb::Write, move |store| {
            store.write_snapshot(&snapshot)
        })
        .await?;
        Ok(carried)
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId<NodeId>>, Membership), RaftStorageError> {
        let state = self.state();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, RaftStorageError>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut outcomes = vec![];
        {
            let mut state = self.state();
            for entry in entries {
                // A Raft that was stopped may still apply what the next one applies, too.
                if Some(entry.log_id) <= state.applied {
                    outcomes.push(Outcome { record: state.record.clone(), rejected: None });
                    continue;
                }
                let mut rejected = None;
                match entry.payload {
                    EntryPayload::Blank => {}
                    EntryPayload::Normal(proposal) => {
                        let mut next = (*state.record).clone();
                        match state.outcomes.apply(&mut next, proposal.id, &proposal.command) {
                            Ok(()) => state.record = Arc::new(next),
                            Err(why) => rejected = Some(why),
                        }
                    }
                    EntryPayload::Membership(membership) => {
                        state.membership = Membership::new(Some(entry.log_id), membership);
                    }
                }
                state.applied = Some(entry.log_id);
                outcomes.push(Outcome { record: state.record.clone(), rejected });
            }
        }
        self.publish();
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, RaftStorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        _meta: &Meta,
        carried: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), RaftStorageError> {
        let snapshot = from_raft(&carried).map_err(bad_snapshot(ErrorVerb::Read))?;
        let row = snapshot.clone();
        off_thread(&self.store, ErrorSubject::Snapshot(None), ErrorVerb::Write, move |store| {
            store.write_snapshot(&row)
        })
        .await?;
        *self.state() = State::from(snapshot);
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, RaftStorageError> {
        let snapshot =
            off_thread(&self.store, ErrorSubject::Snapshot(None), ErrorVerb::Read, Store::snapshot)
                .await?;
        snapshot
            .map(|snapshot| to_raft(&snapshot))
            .transpose()
            .map_err(bad_snapshot(ErrorVerb::Read))
    }
}
