//! Calling other members.

use crate::{
    authority::CertError,
    connect::Target,
    identity::Identity,
    names::server_name,
    path::{Call, PathFailure, PathState, PeerPath},
    rpc::RpcError,
    tls,
};
use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use rustls::ClientConfig;
use sempre_model::{Member, MemberId, Path};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, RwLock},
    time::{Duration, Instant},
};
use tokio::time::{Instant as Deadline, sleep};

/// No answer for this long: the next path is tried as well. Half of what a lost network may stall
/// writes would be 250 ms; a heartbeat is 200 ms.
const HEDGE_AFTER: Duration = Duration::from_millis(100);
/// A large body takes longer by itself: one more hedge delay for each of these bytes.
const HEDGE_BYTES: usize = 1024 * 1024;

/// A call to a member did not succeed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallError {
    /// The peer answered, with an error.
    #[error("{to} answered: {error}")]
    Answered {
        /// Who was called.
        to: MemberId,
        /// What it said.
        error: RpcError,
    },
    /// No such member is known here.
    #[error("no member `{0}` is known here")]
    UnknownMember(MemberId),
    /// The member has no such path.
    #[error("{to} has no path {path}")]
    UnknownPath {
        /// Who was to be called.
        to: MemberId,
        /// The index asked for.
        path: usize,
    },
    /// All paths that were tried failed or stayed silent.
    #[error("{to} cannot be reached: {}", tried.join("; "))]
    Unreachable {
        /// Who was called.
        to: MemberId,
        /// By path: address and what went wrong.
        tried: Vec<String>,
        /// It was sent over one of them, so it may have arrived. If not, it certainly did not.
        sent: bool,
    },
}

impl CallError {
    /// Did the member itself answer?
    pub fn answered(&self) -> Option<&RpcError> {
        match self {
            CallError::Answered { error, .. } => Some(error),
            _ => None,
        }
    }
}

/// The other members, and the connections to them. One connection a member and path, opened at the
/// first call.
pub struct Peers {
    me: MemberId,
    my_paths: RwLock<Vec<Path>>,
    identity: Arc<Identity>,
    tls: Arc<ClientConfig>,
    peers: RwLock<BTreeMap<MemberId, Vec<Arc<PeerPath>>>>,
}

impl Peers {
    /// Knows nobody yet. `my_paths` are this member's own addresses: calls on path `i` leave from
    /// address `i` where that is an IP address of this machine, so that they use network `i`.
    pub fn new(
        me: MemberId,
        my_paths: Vec<Path>,
        identity: Arc<Identity>,
    ) -> Result<Self, CertError> {
        let tls = tls::client_config(identity.clone())
            .map_err(|e| CertError::Unmakeable { what: "TLS settings", why: e.to_string() })?;
        let (my_paths, peers) = (RwLock::new(my_paths), RwLock::default());
        Ok(Self { me, my_paths, identity, tls: Arc::new(tls), peers })
    }

    /// This member's own addresses changed. Takes effect on all connections: they are opened anew.
    pub fn set_my_paths(&self, my_paths: Vec<Path>) {
        let mut mine = self.my_paths.write().unwrap_or_else(|e| e.into_inner());
        if *mine != my_paths {
            *mine = my_paths;
            self.peers.write().unwrap_or_else(|e| e.into_inner()).clear();
        }
    }

    /// Who there is, and at which addresses. Paths whose address did not change keep their
    /// connection. This member itself is left out.
    pub fn set_members<'a>(&self, members: impl IntoIterator<Item = &'a Member>) {
        let mine = self.my_paths.read().unwrap_or_else(|e| e.into_inner()).clone();
        let mut peers = self.peers.write().unwrap_or_else(|e| e.into_inner());
        let mut next = BTreeMap::new();
        for member in members {
            if member.name == self.me {
                continue;
            }
            let Ok(name) = server_name(&member.name, self.identity.cluster_id()) else {
                tracing::error!(member = %member.name, "no certificate can name this member");
                continue;
            };
            let known = peers.remove(&member.name).unwrap_or_default();
            let port = member.ports.peer;
            let paths = member.paths.iter().enumerate().map(|(index, path)| {
                match known.get(index).filter(|known| known.is_to(&path.host, port)) {
                    Some(known) => known.clone(),
                    None => {
                        let from = mine.get(index).and_then(|p| p.host.parse::<IpAddr>().ok());
                        let (host, name) = (path.host.clone(), name.clone());
                        let target = Target { host, port, from, name };
                        PeerPath::new(target, self.identity.clone(), self.tls.clone())
                    }
                }
            });
            next.insert(member.name.clone(), paths.collect());
        }
        *peers = next;
    }

    /// Calls a member by whichever path works: the best one first, and when no answer comes within
    /// 100 ms or it fails, the next one as well. Fails only when all of them did, or `timeout`
    /// passed.
    pub async fn call(
        &self,
        to: &MemberId,
        method: &str,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        let hedge_after = HEDGE_AFTER * (1 + (body.len() / HEDGE_BYTES) as u32);
        let call = call_for(method, body, timeout, false);
        let mut waiting = ranked(self.paths_to(to)?).into_iter();
        let mut running = FuturesUnordered::new();
        let mut began: Vec<(Arc<PeerPath>, Instant)> = Vec::new();
        let mut tried = Vec::new();
        let mut sent = false;
        let mut start_next = true;
        loop {
            if std::mem::take(&mut start_next)
                && let Some(path) = waiting.next()
            {
                began.push((path.clone(), Instant::now()));
                let call = &call;
                running.push(async move {
                    let outcome = path.call(call).await;
                    (path, outcome)
                });
            }
            let hedge = async {
                match waiting.len() {
                    0 => std::future::pending().await,
                    _ => sleep(hedge_after).await,
                }
            };
            tokio::select! {
                biased;
                finished = running.next() => match finished {
                    None => return Err(CallError::Unreachable { to: to.clone(), tried, sent }),
                    Some((
                        path,
                        Err(
                            failure @ (PathFailure::NotSent(_)
                            | PathFailure::Broken(_)
                            | PathFailure::TimedOut(_)),
                        ),
                    )) => {
                        let (why, was_sent) = failure.in_words();
                        sent |= was_sent;
                        tried.push(format!("{}: {why}", path.address()));
                        began.retain(|(other, _)| !Arc::ptr_eq(other, &path));
                        start_next = true;
                    }
                    Some((path, outcome)) => {
                        for (other, since) in began.iter().filter(|(o, _)| !Arc::ptr_eq(o, &path)) {
                            other.overtaken(*since);
                        }
                        return outcome.map_err(|failure| failed(to, &path, failure));
                    }
                },
                () = hedge => start_next = true,
            }
        }
    }

    /// Calls a member over exactly this path: how each network is probed.
    pub async fn call_on(
        &self,
        to: &MemberId,
        path: usize,
        method: &str,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        let paths = self.paths_to(to)?;
        let chosen = paths.get(path).ok_or(CallError::UnknownPath { to: to.clone(), path })?;
        chosen
            .call(&call_for(method, body, timeout, true))
            .await
            .map_err(|failure| failed(to, chosen, failure))
    }

    /// What is known of each path to a member; empty for an unknown one.
    pub fn paths(&self, to: &MemberId) -> Vec<PathState> {
        let paths = self.paths_to(to).unwrap_or_default();
        paths.iter().map(|path| path.state()).collect()
    }

    fn paths_to(&self, to: &MemberId) -> Result<Vec<Arc<PeerPath>>, CallError> {
        let peers = self.peers.read().unwrap_or_else(|e| e.into_inner());
        peers.get(to).cloned().ok_or_else(|| CallError::UnknownMember(to.clone()))
    }
}

fn call_for(method: &str, body: Bytes, timeout: Duration, measures: bool) -> Call {
    Call { method: method.into(), body, deadline: Deadline::now() + timeout, measures }
}

/// The best first: paths that work before those that failed lately, open ones before others, then
/// the quicker (by powers of two, so that noise does not move calls to and fro), then in order.
fn ranked(paths: Vec<Arc<PeerPath>>) -> Vec<Arc<PeerPath>> {
    let mut ranked: Vec<_> = paths
        .into_iter()
        .enumerate()
        .map(|(index, path)| {
            let state = path.state();
            let slowness = state.rtt_us.map_or(u32::MAX, |us| us.max(1).ilog2());
            ((state.failures > 0, !state.connected, slowness, index), path)
        })
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, path)| path).collect()
}

fn failed(to: &MemberId, path: &PeerPath, failure: PathFailure) -> CallError {
    match failure {
        PathFailure::Answered(error) => CallError::Answered { to: to.clone(), error },
        other => {
            let (why, sent) = other.in_words();
            let tried = vec![format!("{}: {why}", path.address())];
            CallError::Unreachable { to: to.clone(), tried, sent }
        }
    }
}
