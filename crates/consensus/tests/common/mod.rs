//! Members in one process, over links that can be cut.
#![allow(dead_code, missing_docs)]

use async_trait::async_trait;
use sempre_consensus::{
    CallKind, Consensus, ConsensusConfig, RaftConsensus, Standing, Transport, TransportError,
};
use sempre_model::{Command, NodeId, Record, command::Change};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};

/// Anything that is to happen happens within this time, also on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A proposal that sets parameter `key` to `value`.
pub fn set(key: &str, value: u64) -> Command {
    let parameters = BTreeMap::from([(key.to_owned(), Some(value.to_string()))]);
    Command { at_unix_ms: 1, change: Change::SetParameters { parameters } }
}

pub fn get(record: &Record, key: &str) -> Option<u64> {
    record.parameters.get(key).and_then(|value| value.parse().ok())
}

#[derive(Default)]
struct Switchboard {
    nodes: BTreeMap<NodeId, Arc<RaftConsensus>>,
    /// Links that swallow everything, by direction.
    cut: BTreeSet<(NodeId, NodeId)>,
    /// Links that swallow the answers to proposals.
    mute: BTreeSet<(NodeId, NodeId)>,
    /// So many answers to proposals are swallowed, whoever asks.
    swallow: u64,
    proposals_handed_over: u64,
}

#[derive(Clone, Default)]
pub struct Net(Arc<Mutex<Switchboard>>);

/// One node's end of the net.
pub struct End {
    net: Net,
    from: NodeId,
}

#[async_trait]
impl Transport for End {
    async fn call(
        &self,
        to: NodeId,
        kind: CallKind,
        body: Vec<u8>,
        within: Duration,
    ) -> Result<Vec<u8>, TransportError> {
        let from = self.from;
        let lost = || TransportError::TimedOut { to, waited_ms: within.as_millis() as u64 };
        let (target, cut, mute) = {
            let mut board = self.net.0.lock().unwrap();
            if kind == CallKind::Propose {
                board.proposals_handed_over += 1;
            }
            let mut mute = kind == CallKind::Propose && board.mute.contains(&(from, to));
            if kind == CallKind::Propose && board.swallow > 0 {
                board.swallow -= 1;
                mute = true;
            }
            (board.nodes.get(&to).cloned(), board.cut.contains(&(from, to)), mute)
        };
        if cut {
            sleep(within).await;
            return Err(lost());
        }
        let Some(target) = target else {
            return Err(TransportError::Unreachable { to, why: "it is down".into() });
        };
        // As on a real network, the callee goes on when the caller gives up.
        let serving = tokio::spawn(async move { target.serve(kind, &body).await });
        let answer = match timeout(within, serving).await {
            Ok(Ok(Ok(answer))) => answer,
            Ok(Ok(Err(error))) => {
                return Err(TransportError::Failed { to, why: error.to_string() });
            }
            Ok(Err(error)) => return Err(TransportError::Failed { to, why: error.to_string() }),
            Err(_) => return Err(lost()),
        };
        if mute || self.net.0.lock().unwrap().cut.contains(&(to, from)) {
            sleep(within).await;
            return Err(lost());
        }
        Ok(answer)
    }
}

impl Net {
    pub fn end(&self, from: NodeId) -> Arc<dyn Transport> {
        Arc::new(End { net: self.clone(), from })
    }

    /// Cuts both directions between each of `these` and each of `those`.
    pub fn cut(&self, these: &[NodeId], those: &[NodeId]) {
        let mut board = self.0.lock().unwrap();
        for a in these {
            for b in those {
                board.cut.insert((*a, *b));
                board.cut.insert((*b, *a));
            }
        }
    }

    pub fn cut_one_way(&self, from: NodeId, to: NodeId) {
        self.0.lock().unwrap().cut.insert((from, to));
    }

    pub fn mute_proposals(&self, from: NodeId, to: NodeId) {
        self.0.lock().unwrap().mute.insert((from, to));
    }

    /// The next `count` proposals that are handed over get no answer.
    pub fn swallow_answers(&self, count: u64) {
        self.0.lock().unwrap().swallow = count;
    }

    pub fn proposals_handed_over(&self) -> u64 {
        self.0.lock().unwrap().proposals_handed_over
    }

    pub fn heal(&self) {
        let mut board = self.0.lock().unwrap();
        board.cut.clear();
        board.mute.clear();
    }
}

/// A cluster in temporary folders.
pub struct Cluster {
    pub net: Net,
    dir: tempfile::TempDir,
}

impl Cluster {
    pub fn new() -> Self {
        Self { net: Net::default(), dir: tempfile::tempdir().unwrap() }
    }

    pub fn dir(&self, node: NodeId) -> PathBuf {
        self.dir.path().join(node.to_string())
    }

    pub async fn start(&self, node: NodeId) -> Arc<RaftConsensus> {
        self.start_in(&self.dir(node), node).await
    }

    pub async fn start_in(&self, dir: &Path, node: NodeId) -> Arc<RaftConsensus> {
        // Twice as quick as the defaults, to keep the tests short.
        let config = ConsensusConfig {
            heartbeat_ms: 100,
            election_min_ms: 300,
            election_max_ms: 600,
            ..ConsensusConfig::new(dir, node)
        };
        let opened = RaftConsensus::open(config, self.net.end(node)).await;
        let member = Arc::new(opened.unwrap_or_else(|error| panic!("node {node}: {error}")));
        self.net.0.lock().unwrap().nodes.insert(node, member.clone());
        member
    }

    pub async fn stop(&self, member: Arc<RaftConsensus>) {
        self.net.0.lock().unwrap().nodes.remove(&member.node());
        member.shutdown().await;
    }

    /// A cluster of nodes 1 to `size`, all voters.
    pub async fn with_voters(size: NodeId) -> (Self, Vec<Arc<RaftConsensus>>) {
        let cluster = Self::new();
        let mut members = vec![cluster.start(1).await];
        members[0].form().await.unwrap();
        for node in 2..=size {
            members.push(cluster.start(node).await);
            join(&members[0], node).await;
        }
        (cluster, members)
    }

    pub async fn stop_all(&self, members: Vec<Arc<RaftConsensus>>) {
        for member in members {
            self.stop(member).await;
        }
    }
}

/// The whole way from a stranger to a voter.
pub async fn join(leader: &RaftConsensus, node: NodeId) {
    leader.add_learner(node).await.unwrap();
    leader.wait_caught_up(node, PATIENCE).await.unwrap();
    let mut voters = leader.standing().borrow().voters.clone();
    voters.insert(node);
    leader.set_voters(voters).await.unwrap();
}

/// Waits until the standing is as wished.
pub async fn standing(
    member: &RaftConsensus,
    what: &str,
    wish: impl FnMut(&Standing) -> bool,
) -> Standing {
    let mut standing = member.standing();
    match timeout(PATIENCE, standing.wait_for(wish)).await {
        Ok(Ok(now)) => now.clone(),
        _ => panic!("node {} never: {what}; {:?}", member.node(), member.standing().borrow()),
    }
}

/// Waits until the record is as wished.
pub async fn record(
    member: &RaftConsensus,
    what: &str,
    wish: impl FnMut(&Arc<Record>) -> bool,
) -> Arc<Record> {
    let mut record = member.record();
    match timeout(PATIENCE, record.wait_for(wish)).await {
        Ok(Ok(now)) => now.clone(),
        _ => panic!("node {} never: {what}; {:?}", member.node(), member.standing().borrow()),
    }
}

/// Waits until all of `members` follow one leader among them, and returns it.
pub async fn leader(members: &[Arc<RaftConsensus>]) -> Arc<RaftConsensus> {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        let named: BTreeSet<_> = members.iter().map(|m| m.standing().borrow().leader).collect();
        if let (1, Some(Some(node))) = (named.len(), named.first())
            && let Some(member) = members.iter().find(|m| m.node() == *node)
            && member.read_barrier().await.is_ok()
        {
            return member.clone();
        }
        sleep(Duration::from_millis(10)).await;
    }
    let standings: Vec<_> = members.iter().map(|m| m.standing().borrow().clone()).collect();
    panic!("no leader: {standings:?}");
}
