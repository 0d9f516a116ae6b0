//! The agent's side of the peer network: what others may call here, and how consensus calls them.

use crate::{
    backups,
    certificate::certificate_addresses,
    clock,
    hello::{Answer, HELLO, Hello},
    looper::{Event, Shown},
};
use async_trait::async_trait;
use bytes::Bytes;
use sempre_backup::serve::Server;
use sempre_consensus::{CallKind, Consensus, ProposeError, ServeError, Transport, TransportError};
use sempre_model::{Command, Generation, Member, MemberId, NodeId, Record, command::Change};
use sempre_net::{
    Authority, CallError, Caller, Handler, MEMBER_LIFETIME, METHOD_JOIN, Peers, RpcError, Streamed,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock, RwLock},
    time::Duration,
};
use tokio::sync::{mpsc, oneshot, watch};

/// Prefix of the consensus calls.
const RAFT: &str = "raft/";
/// "Do you hold the lease of this generation, and do you let clients in?"
pub const VERIFY: &str = "verify";
/// A member's request for a new certificate.
pub const RENEW: &str = "renew";
/// A member whose record was lost asks to be let in again under a new Raft node.
pub const REENTER: &str = "reenter";

/// How consensus reaches other members: over whichever path works.
pub struct PeerTransport {
    pub peers: Arc<Peers>,
    pub nodes: RwLock<BTreeMap<NodeId, MemberId>>,
}

impl PeerTransport {
    /// Who is which node. Called whenever the record's members change.
    pub fn set_nodes(&self, record: &Record) {
        let nodes = record.members.values().map(|m| (m.node, m.name.clone())).collect();
        *self.nodes.write().unwrap_or_else(|e| e.into_inner()) = nodes;
    }
}

#[async_trait]
impl Transport for PeerTransport {
    async fn call(
        &self,
        to: NodeId,
        kind: CallKind,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, TransportError> {
        let name = self.nodes.read().unwrap_or_else(|e| e.into_inner()).get(&to).cloned();
        let Some(name) = name else {
            return Err(TransportError::Unreachable { to, why: "no member has this node".into() });
        };
        let called = self.peers.call(&name, &format!("{RAFT}{kind}"), body.into(), timeout).await;
        called.map(Into::into).map_err(|error| not_called(to, &error))
    }
}

/// What consensus is told: above all whether the call may have arrived, for then a proposal may
/// have been taken.
fn not_called(to: NodeId, error: &CallError) -> TransportError {
    let why = error.to_string();
    let arrived = match error {
        CallError::UnknownMember(_) | CallError::UnknownPath { .. } => false,
        CallError::Unreachable { sent, .. } => *sent,
        CallError::Answered { error, .. } => match error {
            // Turned away before consensus there saw it.
            RpcError::Busy(_)
            | RpcError::Refused(_)
            | RpcError::UnknownMethod(_)
            | RpcError::BadRequest(_) => false,
            // Too large may be the answer.
            RpcError::TooLarge(_) | RpcError::Failed(_) => true,
        },
    };
    match arrived {
        true => TransportError::Failed { to, why },
        false => TransportError::Unreachable { to, why },
    }
}

/// What a newcomer sends.
#[derive(Debug, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The token's secret.
    pub secret_hash: String,
    /// Who it wants to be. Its node is given by the answer.
    pub member: Member,
    /// Certificate signing request, PEM.
    pub request: String,
    /// Its data come from this repository (empty: the only one), not from another member.
    #[serde(default)]
    pub from_backup: Option<String>,
}

/// What it gets.
#[derive(Debug, Serialize, Deserialize)]
pub struct JoinAnswer {
    /// Its Raft node.
    pub node: NodeId,
    /// The cluster.
    pub cluster_id: String,
    /// The cluster's authority, PEM.
    pub ca_certificate: String,
    /// Its certificate, PEM.
    pub certificate: String,
}

/// A renewal of a certificate.
#[derive(Debug, Serialize, Deserialize)]
pub struct RenewRequest {
    /// Certificate signing request, PEM.
    pub request: String,
}

/// A member whose record was lost, known by its certificate.
#[derive(Debug, Serialize, Deserialize)]
pub struct ReenterAnswer {
    /// Its new Raft node.
    pub node: NodeId,
}

/// Answers other members' calls.
pub struct PeerHandler {
    pub events: mpsc::Sender<Event>,
    pub consensus: OnceLock<Arc<dyn Consensus>>,
    pub shown: OnceLock<watch::Receiver<Arc<Shown>>>,
    /// Serves folders of this machine as repositories.
    pub repositories: Arc<Server>,
}

#[async_trait]
impl Handler for PeerHandler {
    fn streamed(&self) -> Option<Arc<dyn Streamed>> {
        Some(self.repositories.connection())
    }

    async fn handle(&self, from: Caller, method: &str, body: Bytes) -> Result<Bytes, RpcError> {
        let consensus = self.consensus.get().ok_or_else(|| RpcError::Busy("starting".into()))?;
        match (method, from) {
            (METHOD_JOIN, _) => self.join(&**consensus, read(&body)?).await,
            (_, Caller::Stranger(_)) => Err(RpcError::Refused("only members may call this".into())),
            (HELLO, Caller::Member(from)) => self.hello(from, read(&body)?).await,
            (VERIFY, _) => write(&self.verify(read(&body)?)),
            (RENEW, Caller::Member(name)) => {
                let RenewRequest { request } = read(&body)?;
                let record = consensus.record().borrow().clone();
                let member = record
                    .member(&name)
                    .ok_or_else(|| RpcError::Busy(format!("{name} is not known here yet")))?;
                write(&sign(&record, member, &request)?)
            }
            (REENTER, Caller::Member(name)) => self.reenter(&**consensus, name).await,
            (method, _) => {
                let kind = method
                    .strip_prefix(RAFT)
                    .and_then(|kind| kind.parse::<CallKind>().ok())
                    .ok_or_else(|| RpcError::UnknownMethod(method.to_owned()))?;
                let answer = consensus.serve(kind, &body).await;
                answer.map(Bytes::from).map_err(|error| match error {
                    // Nothing was done with it.
                    ServeError::UnknownCall(_)
                    | ServeError::WrongNode { .. }
                    | ServeError::BadBody { .. } => RpcError::BadRequest(error.to_string()),
                    ServeError::Fault { .. } => RpcError::Failed(error.to_string()),
                })
            }
        }
    }
}

impl PeerHandler {
    async fn hello(&self, from: MemberId, hello: Hello) -> Result<Bytes, RpcError> {
        let (reply, answer) = oneshot::channel();
        let event = Event::Hello { from, hello: Box::new(hello), reply };
        self.events.send(event).await.map_err(|_| RpcError::Busy("stopping".into()))?;
        let answer: Answer = answer.await.map_err(|_| RpcError::Busy("stopping".into()))?;
        write(&answer)
    }

    /// Is this member the lease-holding primary of `generation`, with clients let in, now?
    pub fn verify(&self, generation: Generation) -> bool {
        let Some(shown) = self.shown.get() else { return false };
        holds(&shown.borrow(), generation)
    }

    async fn join(&self, consensus: &dyn Consensus, join: JoinRequest) -> Result<Bytes, RpcError> {
        let refused = |e: ProposeError| match e {
            // The newcomer shows the code as its own.
            ProposeError::Rejected(why) => {
                let error = sempre_api::ActionError::from(why);
                RpcError::Refused(format!("{} ({})", error.why, error.code))
            }
            other => RpcError::Failed(other.to_string()),
        };
        let record = consensus.read_barrier().await.map_err(refused)?;
        let cluster =
            record.cluster.as_ref().ok_or_else(|| RpcError::Busy("not initialised".into()))?;
        let mut member = join.member;
        member.node = record.next_node();
        let certificate = sign(&record, &member, &join.request)?;
        let (node, ca_certificate, cluster_id) =
            (member.node, cluster.ca_certificate.clone(), cluster.id.clone());
        let fill = join.from_backup.map(|from| backups::fill(&member.name, &from));
        let put =
            Change::PutMember { member: Box::new(member), token_hash: Some(join.secret_hash) };
        let change = match fill {
            Some(fill) => Change::Together(vec![put, fill]),
            None => put,
        };
        let command = Command { at_unix_ms: clock::now_unix_ms(), change };
        consensus.propose(command).await.map_err(refused)?;
        write(&JoinAnswer { node, cluster_id, ca_certificate, certificate })
    }

    async fn reenter(&self, consensus: &dyn Consensus, name: MemberId) -> Result<Bytes, RpcError> {
        let failed = |e: ProposeError| RpcError::Failed(e.to_string());
        let record = consensus.read_barrier().await.map_err(failed)?;
        let mut member = record
            .member(&name)
            .cloned()
            .ok_or_else(|| RpcError::Refused(format!("{name} is no member")))?;
        member.node = record.next_node();
        let node = member.node;
        let change = Change::PutMember { member: Box::new(member), token_hash: None };
        let command = Command { at_unix_ms: clock::now_unix_ms(), change };
        consensus.propose(command).await.map_err(failed)?;
        write(&ReenterAnswer { node })
    }
}

/// The answer to [`VERIFY`], from what the loop has shown.
pub fn holds(shown: &Shown, generation: Generation) -> bool {
    let Some(me) = shown.heard.get(&shown.me) else { return false };
    shown.record.generation == generation
        && shown.lease_until.is_some_and(|until| until > clock::now_ms())
        && me
            .observation
            .database
            .as_ref()
            .is_some_and(|d| d.admitted && d.generation == generation)
}

fn sign(record: &Record, member: &Member, request: &str) -> Result<String, RpcError> {
    let cluster =
        record.cluster.as_ref().ok_or_else(|| RpcError::Busy("not initialised".into()))?;
    Authority::from_pem(&cluster.ca_certificate, &cluster.ca_key)
        .and_then(|authority| {
            let addresses = certificate_addresses(member);
            authority.sign_for(request, &member.name, &addresses, MEMBER_LIFETIME)
        })
        .map_err(|e| RpcError::BadRequest(e.to_string()))
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, RpcError> {
    serde_json::from_slice(body).map_err(|e| RpcError::BadRequest(e.to_string()))
}

fn write<T: Serialize>(value: &T) -> Result<Bytes, RpcError> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|e| RpcError::Failed(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consensus_is_told_whether_a_call_may_have_arrived() {
        let to = MemberId::new("b").unwrap();
        let unreachable = |sent| CallError::Unreachable { to: to.clone(), tried: vec![], sent };
        let answered = |error| CallError::Answered { to: to.clone(), error };
        for (error, arrived) in [
            (unreachable(false), false),
            (unreachable(true), true),
            (CallError::UnknownMember(to.clone()), false),
            (answered(RpcError::Busy("starting".into())), false),
            (answered(RpcError::BadRequest("for another node".into())), false),
            (answered(RpcError::Failed("it broke".into())), true),
        ] {
            let told = not_called(7, &error);
            assert_eq!(matches!(told, TransportError::Failed { .. }), arrived, "{error}");
            assert_eq!(matches!(told, TransportError::Unreachable { .. }), !arrived, "{error}");
        }
    }
}
