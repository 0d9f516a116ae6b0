//! Raft's calls, over the agent's transport.

use crate::{
    api::{CallKind, Transport},
    error::TransportError,
    machine,
    types::Types,
    wire::{self, Append, AppendAnswer, AskVote, Call, Install, InstallAnswer, VoteAnswer},
};
use openraft::{
    AnyError, EmptyNode, Snapshot, Vote,
    error::{
        Fatal, InstallSnapshotError, RPCError, RaftError, ReplicationClosed, StreamingError,
        Unreachable,
    },
    network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest,
        InstallSnapshotResponse, SnapshotResponse, VoteRequest, VoteResponse,
    },
};
use sempre_model::NodeId;
use serde::{Serialize, de::DeserializeOwned};
use std::{future::Future, sync::Arc, time::Duration};

type CallError<E = openraft::error::Infallible> = RPCError<NodeId, EmptyNode, RaftError<NodeId, E>>;

/// Makes a client for each other node.
pub(crate) struct Network {
    pub node: NodeId,
    pub transport: Arc<dyn Transport>,
    /// Pause before a node that could not be reached is called again.
    pub pause: Duration,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: NodeId, _: &EmptyNode) -> Client {
        Client { node: self.node, target, transport: self.transport.clone(), pause: self.pause }
    }
}

/// Calls one other node.
pub(crate) struct Client {
    node: NodeId,
    target: NodeId,
    transport: Arc<dyn Transport>,
    pause: Duration,
}

/// Sends one call and reads its answer.
pub(crate) async fn call<T: Serialize, A: DeserializeOwned>(
    transport: &dyn Transport,
    (from, to): (NodeId, NodeId),
    kind: CallKind,
    call: T,
    timeout: Duration,
) -> Result<A, TransportError> {
    let body = wire::encode(kind, &Call { to, from, call })
        .map_err(|why| TransportError::Unreachable { to, why: format!("not sent: {why}") })?;
    let answer = transport.call(to, kind, body, timeout).await?;
    wire::decode(kind, &answer)
        .map_err(|error| TransportError::Failed { to, why: format!("its answer: {error}") })
}

/// Whatever went wrong, Raft is to pause before it calls again: an error that it takes for
/// momentary it would answer with a busy loop.
fn unreachable(error: &TransportError) -> Unreachable {
    Unreachable::new(error)
}

impl Client {
    async fn call<T: Serialize, A: DeserializeOwned>(
        &self,
        kind: CallKind,
        body: T,
        timeout: Duration,
    ) -> Result<A, Unreachable> {
        call(&*self.transport, (self.node, self.target), kind, body, timeout)
            .await
            .map_err(|error| unreachable(&error))
    }
}

impl RaftNetwork<Types> for Client {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, CallError> {
        let append = Append {
            vote: request.vote.into(),
            previous: request.prev_log_id.map(Into::into),
            entries: request.entries.iter().map(Into::into).collect(),
            committed: request.leader_commit.map(Into::into),
        };
        let answer = self.call(CallKind::AppendEntries, append, option.hard_ttl()).await?;
        Ok(match answer {
            AppendAnswer::Success => AppendEntriesResponse::Success,
            AppendAnswer::Partial(upto) => {
                AppendEntriesResponse::PartialSuccess(upto.map(Into::into))
            }
            AppendAnswer::Conflict => AppendEntriesResponse::Conflict,
            AppendAnswer::HigherVote(vote) => AppendEntriesResponse::HigherVote(vote.into()),
        })
    }

    /// Not used: [`Self::full_snapshot`] sends the record in one piece.
    async fn install_snapshot(
        &mut self,
        _: InstallSnapshotRequest<Types>,
        _: RPCOption,
    ) -> Result<InstallSnapshotResponse<NodeId>, CallError<InstallSnapshotError>> {
        let error = AnyError::error("snapshots are not sent in pieces");
        Err(RPCError::Unreachable(Unreachable::new(&error)))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<NodeId>,
        option: RPCOption,
    ) -> Result<VoteResponse<NodeId>, CallError> {
        let ask = AskVote { vote: request.vote.into(), last: request.last_log_id.map(Into::into) };
        let answer: VoteAnswer = self.call(CallKind::Vote, ask, option.hard_ttl()).await?;
        Ok(VoteResponse {
            vote: answer.vote.into(),
            vote_granted: answer.granted,
            last_log_id: answer.last.map(Into::into),
        })
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote<NodeId>,
        snapshot: Snapshot<Types>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<NodeId>, StreamingError<Types, Fatal<NodeId>>> {
        let snapshot = machine::from_raft(&snapshot.snapshot)
            .map_err(|why| Unreachable::new(&AnyError::error(why)))?;
        let install = Install { vote: vote.into(), snapshot };
        let sending = self.call(CallKind::InstallSnapshot, install, option.hard_ttl());
        // In order, not by chance: simulations replay.
        let answer: InstallAnswer = tokio::select! {
            biased;
            answer = sending => answer?,
            closed = cancel => return Err(closed.into()),
        };
        Ok(SnapshotResponse::new(answer.vote.into()))
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(self.pause))
    }
}
