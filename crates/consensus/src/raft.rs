//! [`RaftConsensus`]: the record behind embedded Raft.

use crate::{
    api::{CallKind, Consensus, Standing, Transport},
    blocking::off_thread,
    check,
    config::ConsensusConfig,
    error::{FormError, MembershipError, OpenError, ProposeError, ServeError, StoreError},
    machine::Machine,
    running::{KeeperHandle, Running},
    store::Store,
    types::Proposal,
    wire::COMMAND_BYTES_MAX,
};
use async_trait::async_trait;
use openraft::error::{CheckIsLeaderError, ClientWriteError, Fatal, InitializeError, RaftError};
use sempre_model::{Command, Generation, NodeId, Record, Rejected, command::Refusal};
use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout_at},
};

/// A lone member elects itself in milliseconds; this is for a disk that is very slow.
const FORM_WITHIN: Duration = Duration::from_secs(10);

/// The record behind embedded Raft, on disk.
pub struct RaftConsensus {
    pub(crate) node: NodeId,
    pub(crate) running: Arc<Running>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) record: watch::Receiver<Arc<Record>>,
    pub(crate) applied: watch::Receiver<u64>,
    store: Arc<Store>,
    keeper: KeeperHandle,
}

/// What became of a command given to this node's Raft.
pub(crate) enum Taken {
    Applied(Arc<Record>),
    Rejected(Rejected),
    /// Certainly not taken.
    NotLeader,
    Unknown(String),
    /// Certainly not taken, and Raft has stopped.
    Fault(String),
}

fn not_now(why: String) -> Taken {
    Taken::Rejected(Rejected::Refused { kind: Refusal::NotNow, why })
}

/// What became of a leader's question whether it still is the leader.
pub(crate) enum Barred {
    ReadAt(u64),
    Unconfirmed,
    Fault(String),
}

impl RaftConsensus {
    /// Opens the store, or makes it, and starts.
    ///
    /// A new store stays without a leader until [`Consensus::form`], or until the leader of a
    /// cluster adds this node.
    pub async fn open(
        config: ConsensusConfig,
        transport: Arc<dyn Transport>,
    ) -> Result<Self, OpenError> {
        config.validate()?;
        let (dir, node) = (config.dir.clone(), config.node);
        let opened = off_thread(move || check::open(&dir, node)).await;
        let (store, content) = opened.map_err(|error| OpenError::Start(error.to_string()))??;
        let store = Arc::new(store);
        let machine = Machine::new(store.clone(), content.snapshot);
        let (record, applied) = (machine.record(), machine.applied());
        let started = Running::start(config, transport.clone(), store.clone(), machine).await;
        let (running, keeper) = match started {
            Ok(started) => started,
            Err(why) => {
                let _ = off_thread(move || store.close()).await;
                return Err(OpenError::Start(why));
            }
        };
        Ok(Self { node, running, keeper, transport, record, applied, store })
    }

    /// Gives a command to this node's Raft.
    pub(crate) async fn take(&self, proposal: Proposal, deadline: Instant) -> Taken {
        let size = serde_json::to_vec(&proposal.command).map(|bytes| bytes.len());
        match size {
            Ok(size) if size <= COMMAND_BYTES_MAX => {}
            Ok(size) => {
                return not_now(format!(
                    "the command is {size} bytes long; at most {COMMAND_BYTES_MAX} are allowed"
                ));
            }
            Err(error) => return not_now(error.to_string()),
        }
        let mark = proposal.mark();
        let current = self.running.current().await;
        let written = timeout_at(deadline, current.raft.client_write(proposal)).await;
        let appended = mark.load(Ordering::SeqCst);
        match written {
            Ok(Ok(response)) => match response.data.rejected {
                None => Taken::Applied(response.data.record),
                Some(why) => Taken::Rejected(why),
            },
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) if !appended => {
                Taken::NotLeader
            }
            Ok(Err(RaftError::Fatal(error))) if !appended => {
                match self.running.replaced(&current) {
                    true => Taken::NotLeader,
                    false => Taken::Fault(error.to_string()),
                }
            }
            Ok(Err(error)) => Taken::Unknown(format!("the leader lost its office: {error}")),
            Err(_) => Taken::Unknown("no majority confirmed it in time".into()),
        }
    }

    /// Asks a majority whether this node is the leader; answers where a reader must have come to.
    pub(crate) async fn bar(&self, deadline: Instant) -> Barred {
        let current = self.running.current().await;
        match timeout_at(deadline, current.raft.get_read_log_id()).await {
            Ok(Ok((read, _))) => Barred::ReadAt(current.read_index(read)),
            Ok(Err(RaftError::APIError(
                CheckIsLeaderError::ForwardToLeader(_) | CheckIsLeaderError::QuorumNotEnough(_),
            )))
            | Err(_) => Barred::Unconfirmed,
            Ok(Err(RaftError::Fatal(_))) if self.running.replaced(&current) => Barred::Unconfirmed,
            Ok(Err(RaftError::Fatal(error))) => Barred::Fault(error.to_string()),
        }
    }

    /// Writes to the store.
    async fn on_store(
        &self,
        work: impl FnOnce(&Store) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), StoreError> {
        let store = self.store.clone();
        match off_thread(move || work(&store)).await {
            Ok(result) => result,
            Err(error) => Err(StoreError::Io {
                file: self.store.file().to_owned(),
                doing: "write",
                why: error.to_string(),
            }),
        }
    }

    fn fault(error: Fatal<NodeId>) -> FormError {
        FormError::Fault { what: error.to_string() }
    }
}

#[async_trait]
impl Consensus for RaftConsensus {
    fn node(&self) -> NodeId {
        self.node
    }

    fn record(&self) -> watch::Receiver<Arc<Record>> {
        self.record.clone()
    }

    fn standing(&self) -> watch::Receiver<Standing> {
        self.running.standing()
    }

    async fn propose(&self, command: Command) -> Result<Arc<Record>, ProposeError> {
        self.propose_anywhere(command).await
    }

    async fn read_barrier(&self) -> Result<Arc<Record>, ProposeError> {
        self.read_anywhere().await
    }

    async fn form(&self) -> Result<(), FormError> {
        match self.running.current().await.raft.initialize(BTreeSet::from([self.node])).await {
            Ok(()) => {}
            Err(RaftError::APIError(
                InitializeError::NotAllowed(_) | InitializeError::NotInMembers(_),
            )) => {
                let voters = self.standing().borrow().voters.iter().copied().collect();
                return Err(FormError::AlreadyFormed { voters });
            }
            Err(RaftError::Fatal(error)) => return Err(Self::fault(error)),
        }
        let deadline = Instant::now() + FORM_WITHIN;
        let mut standing = self.standing();
        let led = timeout_at(
            deadline,
            standing.wait_for(|now| now.leader == Some(self.node) || now.fault.is_some()),
        )
        .await;
        match led {
            Ok(Ok(now)) => match &now.fault {
                Some(what) => Err(FormError::Fault { what: what.clone() }),
                None => Ok(()),
            },
            Ok(Err(_)) => Err(FormError::Fault { what: "it was shut down".into() }),
            Err(_) => Err(FormError::TimedOut { waited_ms: FORM_WITHIN.as_millis() as u64 }),
        }
    }

    async fn add_learner(&self, node: NodeId) -> Result<(), MembershipError> {
        self.begin_learner(node).await
    }

    async fn wait_caught_up(&self, node: NodeId, within: Duration) -> Result<(), MembershipError> {
        self.wait_replicated(node, within).await
    }

    async fn set_voters(&self, voters: BTreeSet<NodeId>) -> Result<(), MembershipError> {
        self.replace_voters(voters).await
    }

    async fn remove_learner(&self, node: NodeId) -> Result<(), MembershipError> {
        self.forget_learner(node).await
    }

    async fn serve(&self, kind: CallKind, body: &[u8]) -> Result<Vec<u8>, ServeError> {
        self.answer(kind, body).await
    }

    fn promised(&self) -> Generation {
        self.store.promised()
    }

    async fn promise(&self, generation: Generation) -> Result<(), StoreError> {
        self.on_store(move |store| store.promise(generation)).await
    }

    fn longest_grant_ms(&self) -> u64 {
        self.store.longest_grant_ms()
    }

    async fn set_longest_grant_ms(&self, longest_ms: u64) -> Result<(), StoreError> {
        self.on_store(move |store| store.set_longest_grant_ms(longest_ms)).await
    }

    async fn shutdown(&self) {
        if let Err(error) = self.running.current().await.raft.shutdown().await {
            tracing::warn!(%error, "consensus did not stop cleanly");
        }
        // It must not make another one meanwhile.
        self.keeper.abort();
        let store = self.store.clone();
        if let Err(error) = off_thread(move || store.close()).await {
            tracing::warn!(%error, "the store did not close cleanly");
        }
    }
}

/// Sleeps, but not past `deadline`.
pub(crate) async fn pause(duration: Duration, deadline: Instant) {
    sleep_until((Instant::now() + duration).min(deadline)).await;
}
