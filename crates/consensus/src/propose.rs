//! Changing and reading the record from any member: find the leader, try, try again when safe.

use crate::{
    api::CallKind,
    error::{ProposeError, TransportError},
    network,
    once::{self, RequestId},
    raft::{Barred, RaftConsensus, Taken, pause},
    types::Proposal,
    wire::{Barrier, BarrierAnswer, Propose, ProposeAnswer},
};
use sempre_model::{Command, NodeId, Record};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};

/// A proposal or a read takes this long at most: an election, and a little.
pub(crate) const PROPOSE_WITHIN: Duration = Duration::from_secs(3);

/// Between two tries. An election takes hundreds of ms; asking more often would not help.
const PAUSE: Duration = Duration::from_millis(25);

/// A leader elsewhere that does not answer a proposal for this long has perhaps been replaced: the
/// same proposal, under the same id, goes to whoever leads then. An election takes about as long.
const PROPOSE_TRY: Duration = Duration::from_millis(1_000);

/// A read may be asked again at no risk, so a leader that does not answer is given up sooner.
const READ_TRY: Duration = Duration::from_millis(700);

fn no_leader() -> ProposeError {
    ProposeError::NoLeader { waited_ms: PROPOSE_WITHIN.as_millis() as u64 }
}

/// The outcome is not known, if `doubt` says why.
fn open_outcome(doubt: Option<String>) -> Option<ProposeError> {
    doubt.map(|why| ProposeError::TimedOut { why })
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

impl RaftConsensus {
    /// The leader, once there is one.
    async fn await_leader(&self, deadline: Instant) -> Result<NodeId, ProposeError> {
        loop {
            let current = self.running.current().await;
            let mut metrics = current.raft.metrics();
            let known = timeout_at(
                deadline,
                metrics.wait_for(|m| m.current_leader.is_some() || m.running_state.is_err()),
            )
            .await;
            let fault = match known {
                Ok(Ok(metrics)) => match (&metrics.running_state, metrics.current_leader) {
                    (Err(error), _) => error.to_string(),
                    (Ok(()), Some(leader)) => return Ok(leader),
                    (Ok(()), None) => return Err(no_leader()),
                },
                Ok(Err(_)) => "it was shut down".into(),
                Err(_) => return Err(no_leader()),
            };
            if !self.running.replaced(&current) {
                return Err(ProposeError::Fault { what: fault });
            }
        }
    }

    pub(crate) async fn propose_anywhere(
        &self,
        command: Command,
    ) -> Result<Arc<Record>, ProposeError> {
        let deadline = Instant::now() + PROPOSE_WITHIN;
        let id: RequestId = once::draw();
        // A copy given before may yet be applied; why that is not known.
        let mut doubt = None;
        loop {
            let leader = match self.await_leader(deadline).await {
                Ok(leader) => leader,
                Err(error) => return Err(open_outcome(doubt).unwrap_or(error)),
            };
            let taken = match leader == self.node {
                true => self.take(Proposal::new(id, command.clone()), deadline).await,
                false => self.hand_over(leader, id, command.clone(), deadline).await,
            };
            match taken {
                Taken::Applied(record) => return Ok(record),
                Taken::Rejected(why) => return Err(why.into()),
                Taken::Fault(what) => {
                    return Err(open_outcome(doubt).unwrap_or(ProposeError::Fault { what }));
                }
                // Whoever leads next is asked: a copy that was taken after all counts, and this
                // one then gets its outcome.
                Taken::Unknown(why) => doubt = Some(why),
                Taken::NotLeader => {}
            }
            if left(deadline).is_zero() {
                return Err(open_outcome(doubt).unwrap_or_else(no_leader));
            }
            pause(PAUSE, deadline).await;
        }
    }

    /// Gives a command to the leader elsewhere.
    async fn hand_over(
        &self,
        leader: NodeId,
        id: RequestId,
        command: Command,
        deadline: Instant,
    ) -> Taken {
        let timeout = left(deadline).min(PROPOSE_TRY);
        let deadline = Instant::now() + timeout;
        let call = Propose { id, command, within_ms: timeout.as_millis() as u64 };
        let answer =
            network::call(&*self.transport, (self.node, leader), CallKind::Propose, call, timeout);
        match timeout_at(deadline, answer).await {
            Ok(Ok(ProposeAnswer::Applied(record))) => Taken::Applied(Arc::from(record)),
            Ok(Ok(ProposeAnswer::Rejected(why))) => Taken::Rejected(why),
            Ok(Ok(ProposeAnswer::NotLeader)) | Ok(Err(TransportError::Unreachable { .. })) => {
                Taken::NotLeader
            }
            Ok(Ok(ProposeAnswer::Unknown(why))) => Taken::Unknown(why),
            Ok(Err(error)) => Taken::Unknown(error.to_string()),
            Err(_) => Taken::Unknown(format!("node {leader} did not answer in time")),
        }
    }

    pub(crate) async fn read_anywhere(&self) -> Result<Arc<Record>, ProposeError> {
        let deadline = Instant::now() + PROPOSE_WITHIN;
        loop {
            let leader = self.await_leader(deadline).await?;
            let until = deadline.min(Instant::now() + READ_TRY);
            let barred = match leader == self.node {
                true => self.bar(until).await,
                false => self.ask_leader(leader, until).await,
            };
            match barred {
                Barred::ReadAt(index) => {
                    let mut applied = self.applied.clone();
                    match timeout_at(deadline, applied.wait_for(|at| *at >= index)).await {
                        Ok(Ok(_)) => return Ok(self.record.borrow().clone()),
                        Ok(Err(_)) => {
                            return Err(ProposeError::Fault { what: "it was shut down".into() });
                        }
                        Err(_) => {
                            let why = format!("this member has not applied entry {index} yet");
                            return Err(ProposeError::TimedOut { why });
                        }
                    }
                }
                Barred::Fault(what) => return Err(ProposeError::Fault { what }),
                Barred::Unconfirmed => {}
            }
            if left(deadline).is_zero() {
                return Err(no_leader());
            }
            pause(PAUSE, deadline).await;
        }
    }

    async fn ask_leader(&self, leader: NodeId, until: Instant) -> Barred {
        let timeout = left(until);
        let call = Barrier { within_ms: timeout.as_millis() as u64 };
        let answer = network::call(
            &*self.transport,
            (self.node, leader),
            CallKind::ReadBarrier,
            call,
            timeout,
        );
        match timeout_at(until, answer).await {
            Ok(Ok(BarrierAnswer::ReadAt(index))) => Barred::ReadAt(index),
            _ => Barred::Unconfirmed,
        }
    }
}
