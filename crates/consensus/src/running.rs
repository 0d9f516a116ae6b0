//! Raft as it runs now. Its times are fixed when it is made, so a change of the election times in
//! the policy stops it and makes it anew on the same store: milliseconds, and a leader goes on as
//! leader of the same term.

use crate::{
    api::{Standing, Transport},
    blocking::off_thread,
    config::ConsensusConfig,
    error::StoreError,
    log_store::LogStore,
    machine::Machine,
    network::Network,
    standing::standing_of,
    store::Store,
    types::{Raft, Types},
};
use openraft::{AsyncRuntime, LogId, RaftTypeConfig};
use sempre_model::NodeId;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::watch;

/// Elections in a row in place of a candidate that cannot win: one to learn its term, one to win,
/// one more for a call that is lost.
const STAND_TRIES: u32 = 3;

/// All that Raft is made of, and the Raft there is.
pub(crate) struct Running {
    config: ConsensusConfig,
    transport: Arc<dyn Transport>,
    store: Arc<Store>,
    machine: Machine,
    now: watch::Sender<Now>,
    standing: watch::Sender<Standing>,
    /// It stands in place of a candidate that cannot win.
    stands_instead: AtomicBool,
}

/// Which Raft it is.
#[derive(Clone, Default)]
struct Now {
    /// Counts up each time it is made anew.
    made: u64,
    /// None while it is being made.
    raft: Option<Raft>,
    resumed: Option<Resumed>,
}

/// Raft was made on the store of a leader, and goes on as leader of the same term.
///
/// All of its log may have been committed before, and others may have applied it: the old leader
/// told them before it noted so itself. A reader has to come that far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resumed {
    term: u64,
    last: u64,
}

/// A Raft, and which one of them.
#[derive(Clone)]
pub(crate) struct Current {
    pub raft: Raft,
    made: u64,
    resumed: Option<Resumed>,
}

impl Current {
    /// Where a reader must have come to, if Raft asked a majority and says `read`.
    pub fn read_index(&self, read: Option<LogId<NodeId>>) -> u64 {
        read_index(self.resumed, read)
    }
}

fn read_index(resumed: Option<Resumed>, read: Option<LogId<NodeId>>) -> u64 {
    let Some(read) = read else { return 0 };
    match resumed {
        // In a later term it was elected, and its first entry comes after all of these.
        Some(resumed) if resumed.term == read.leader_id.term => read.index.max(resumed.last),
        _ => read.index,
    }
}

impl Running {
    /// Makes the first, and a task that keeps the standing and the times up to date. The error says
    /// why Raft would not start.
    pub async fn start(
        config: ConsensusConfig,
        transport: Arc<dyn Transport>,
        store: Arc<Store>,
        machine: Machine,
    ) -> Result<(Arc<Self>, KeeperHandle), String> {
        let running = Arc::new(Self {
            config,
            transport,
            store,
            machine,
            now: watch::Sender::default(),
            standing: watch::Sender::default(),
            stands_instead: AtomicBool::new(false),
        });
        let config = running.wished();
        let (raft, resumed) = running.make(&config).await?;
        running.standing.send_replace(standing_of(&raft.metrics().borrow()));
        running.now.send_replace(Now { made: 1, raft: Some(raft), resumed });
        let keeper = running.clone();
        let task = <Types as RaftTypeConfig>::AsyncRuntime::spawn(async move {
            keeper.keeping(config).await;
        });
        Ok((running, task))
    }

    /// Where this node stands.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// The Raft there is; waits while one is being made.
    pub async fn current(&self) -> Current {
        let mut now = self.now.subscribe();
        loop {
            let Now { made, raft, resumed } = now.borrow_and_update().clone();
            if let Some(raft) = raft {
                return Current { raft, made, resumed };
            }
            // The sender is this struct itself.
            let _ = now.changed().await;
        }
    }

    /// A candidate without all of our log was refused. Where it is needed for a majority, it
    /// refuses us as well, if only for its higher term; and if its election time is shorter than
    /// ours (the policy was changed and it does not know yet), it raises the term each time before
    /// we stand again, and so for ever. So we stand at once: one try learns its term, the next wins.
    pub fn stand_instead(self: &Arc<Self>, current: Current) {
        let led = |raft: &Raft| raft.metrics().borrow().current_leader.is_some();
        if led(&current.raft) || self.stands_instead.swap(true, Ordering::SeqCst) {
            return;
        }
        let (running, pause) = (self.clone(), Duration::from_millis(self.config.heartbeat_ms));
        <Types as RaftTypeConfig>::AsyncRuntime::spawn(async move {
            for _ in 0..STAND_TRIES {
                if led(&current.raft) || current.raft.trigger().elect().await.is_err() {
                    break;
                }
                tokio::time::sleep(pause).await;
            }
            running.stands_instead.store(false, Ordering::SeqCst);
        });
    }

    /// Is this one stopped because another takes its place?
    pub fn replaced(&self, old: &Current) -> bool {
        self.now.borrow().made != old.made
    }

    /// The configuration with the times of the record's policy. An empty record has a policy that
    /// nobody chose.
    fn wished(&self) -> ConsensusConfig {
        let record = self.machine.record();
        let record = record.borrow();
        let wished = self.config.with_policy(&record.policy);
        match record.cluster.is_some() && wished.validate().is_ok() {
            true => wished,
            false => self.config.clone(),
        }
    }

    async fn make(&self, config: &ConsensusConfig) -> Result<(Raft, Option<Resumed>), String> {
        let node = self.config.node;
        let network = Network {
            node,
            transport: self.transport.clone(),
            pause: Duration::from_millis(config.heartbeat_ms),
        };
        let config = config.to_raft().validate().map_err(|error| error.to_string())?;
        let log = LogStore::new(self.store.clone());
        let resumed = self.resumed().await?;
        let raft = Raft::new(node, Arc::new(config), network, log, self.machine.clone())
            .await
            .map_err(|error| error.to_string())?;
        // Raft reports its metrics before it serves its first request; without this the standing
        // would begin as that of a node that knows nobody.
        raft.with_raft_state(|_| ()).await.map_err(|error| error.to_string())?;
        Ok((raft, resumed))
    }

    async fn resumed(&self) -> Result<Option<Resumed>, String> {
        let store = self.store.clone();
        let read = off_thread(move || Ok((store.vote()?, store.last()?.1)));
        let read: Result<_, StoreError> = read.await.map_err(|error| error.to_string())?;
        let (vote, last) = read.map_err(|error| error.to_string())?;
        let leads = vote.filter(|vote| vote.committed && vote.node == self.config.node);
        Ok(leads.zip(last).map(|(vote, last)| Resumed { term: vote.term, last: last.index }))
    }

    /// Keeps the standing up to date, and Raft's times those of the policy, until Raft ends.
    async fn keeping(&self, made_with: ConsensusConfig) {
        let mut record = self.machine.record();
        let mut in_force = made_with;
        let mut metrics = self.current().await.raft.metrics();
        // What was applied while Raft started is looked at as well.
        record.mark_changed();
        metrics.mark_changed();
        loop {
            tokio::select! {
                biased;
                changed = metrics.changed() => {
                    if changed.is_err() {
                        self.show_fault("it was shut down");
                        return;
                    }
                    let now = standing_of(&metrics.borrow_and_update());
                    self.standing.send_if_modified(|shown| {
                        let changed = *shown != now;
                        *shown = now;
                        changed
                    });
                }
                Ok(()) = record.changed() => {
                    record.mark_unchanged();
                    let wished = self.wished();
                    if wished == in_force {
                        continue;
                    }
                    tracing::info!(
                        election_min_ms = wished.election_min_ms,
                        election_max_ms = wished.election_max_ms,
                        "the election times changed: Raft starts anew"
                    );
                    let replaced = self.replace(&wished).await;
                    in_force = wished;
                    if let Err(why) = replaced {
                        tracing::error!(why, "Raft did not start with the new election times");
                        self.show_fault(&why);
                        return;
                    }
                    metrics = self.current().await.raft.metrics();
                    metrics.mark_changed();
                }
            }
        }
    }

    /// Stops Raft and makes it anew.
    async fn replace(&self, config: &ConsensusConfig) -> Result<(), String> {
        let Current { raft: old, made, .. } = self.current().await;
        self.now.send_replace(Now { made: made + 1, raft: None, resumed: None });
        let stopped = old.shutdown().await.map_err(|error| error.to_string());
        let made_anew = match stopped {
            Ok(()) => self.make(config).await,
            Err(why) => Err(why),
        };
        let ((raft, resumed), outcome) = match made_anew {
            Ok(made) => (made, Ok(())),
            // Whoever asks it is told that it has stopped.
            Err(why) => ((old, None), Err(why)),
        };
        self.now.send_replace(Now { made: made + 1, raft: Some(raft), resumed });
        outcome
    }

    fn show_fault(&self, what: &str) {
        self.standing.send_if_modified(|shown| {
            let first = shown.fault.is_none();
            shown.fault.get_or_insert_with(|| what.to_owned());
            first
        });
    }
}

/// The task that keeps it.
pub(crate) type KeeperHandle =
    <<Types as RaftTypeConfig>::AsyncRuntime as AsyncRuntime>::JoinHandle<()>;

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::CommittedLeaderId;

    #[test]
    fn a_leader_that_goes_on_has_its_readers_come_as_far_as_its_log() {
        let read = |term, index| LogId::new(CommittedLeaderId::new(term, 1), index);
        let resumed = Some(Resumed { term: 4, last: 90 });
        assert_eq!(read_index(resumed, Some(read(4, 80))), 90);
        assert_eq!(read_index(resumed, Some(read(4, 95))), 95);
        // Elected anew: its first entry is the least, and comes after all it had.
        assert_eq!(read_index(resumed, Some(read(5, 85))), 85);
        assert_eq!(read_index(None, Some(read(4, 80))), 80);
        assert_eq!(read_index(None, None), 0);
    }
}
