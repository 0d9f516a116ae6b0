//! The members of a run, and everything they share with those who watch them.

use super::{
    boot::Boot,
    disk::Disk,
    net::{End, Net, hop},
    oracle::Oracle,
    run::{Bug, Shape},
};
use crate::{rng::Rng, stats::Stats, trace::Trace};
use sempre_consensus::{Consensus, ConsensusConfig, OpenError, RaftConsensus};
use sempre_model::NodeId;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// A start that failed (the disk refuses) is tried again after this.
const START_AGAIN: Duration = Duration::from_millis(300);

/// A member that consensus has stopped on is started again after this.
const FAULT_SEEN: Duration = Duration::from_millis(200);

/// A member.
pub struct Node {
    /// Its disk.
    pub disk: Arc<Disk>,
    /// Its process, if it runs.
    pub boot: Option<Arc<Boot>>,
    /// Its part of consensus, once it is open.
    pub member: Option<Arc<RaftConsensus>>,
    /// It was taken out for good.
    pub gone: bool,
}

/// All that is shared.
pub struct Shared {
    /// What the seed stands for.
    pub shape: Shape,
    /// The only source of chance.
    pub rng: Rng,
    /// The network.
    pub net: Net,
    /// Members, former ones too.
    pub nodes: BTreeMap<NodeId, Node>,
    /// What was promised.
    pub oracle: Oracle,
    /// Counts.
    pub stats: Stats,
    /// What happened.
    pub trace: Trace,
    /// Faults go on.
    pub storm: bool,
    began: Instant,
}

/// A handle on it.
#[derive(Clone)]
pub struct Cluster(Arc<Mutex<Shared>>);

impl Cluster {
    /// Nobody yet.
    pub fn new(shape: Shape, print: bool) -> Self {
        let rng = Rng::new(shape.seed ^ 0x5ED1_57EE);
        Self(Arc::new(Mutex::new(Shared {
            shape,
            rng,
            net: Net::default(),
            nodes: BTreeMap::new(),
            oracle: Oracle::default(),
            stats: Stats::default(),
            trace: Trace::new(print),
            storm: true,
            began: Instant::now(),
        })))
    }

    /// Everything, for a moment. Never held while waiting.
    pub fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line for the trace.
    pub fn log(&self, line: impl FnOnce() -> String) {
        let mut shared = self.lock();
        let now = shared.began.elapsed().as_micros() as u64;
        shared.trace.line(now, line);
    }

    /// Real milliseconds since the beginning.
    pub fn now_ms(&self) -> u64 {
        self.lock().began.elapsed().as_millis() as u64
    }

    /// True in `per_mille` of 1000 cases.
    pub fn chance(&self, per_mille: u64) -> bool {
        self.lock().rng.chance(per_mille)
    }

    /// From `low` up to `high`.
    pub fn range(&self, low: u64, high: u64) -> u64 {
        self.lock().rng.range(low, high)
    }

    /// Waits for some time between the two, ms.
    pub async fn nap(&self, low: u64, high: u64) {
        let time = self.range(low * 1_000, high * 1_000);
        sleep(Duration::from_micros(time)).await;
    }

    /// One way over the network; see [`hop`].
    pub fn hop(&self, from: NodeId, to: NodeId) -> Option<(Duration, bool)> {
        let shared = &mut *self.lock();
        let hop = hop(&shared.net, &mut shared.rng, from, to);
        if hop.is_none() {
            shared.stats.lost += 1;
        }
        hop
    }

    /// A member that runs.
    pub fn running(&self, node: NodeId) -> Option<(Arc<Boot>, Arc<RaftConsensus>)> {
        let shared = self.lock();
        let node = shared.nodes.get(&node)?;
        Some((node.boot.clone().filter(|boot| !boot.is_dead())?, node.member.clone()?))
    }

    /// One of those that run.
    pub fn any(&self) -> Option<NodeId> {
        let shared = &mut *self.lock();
        let running: Vec<_> = shared
            .nodes
            .iter()
            .filter(|(_, n)| n.member.is_some() && n.boot.as_ref().is_some_and(|b| !b.is_dead()))
            .map(|(node, _)| *node)
            .collect();
        shared.rng.pick(&running)
    }

    /// A new machine.
    pub fn add(&self, node: NodeId) {
        let shared = &mut *self.lock();
        let lies = shared.shape.bug == Some(Bug::LyingDisk);
        let disk = Arc::new(Disk::new(shared.rng.draw(), lies));
        shared.nodes.insert(node, Node { disk, boot: None, member: None, gone: false });
    }

    /// Starts a member's process, again and again until it runs, or somebody kills it.
    pub async fn start(&self, node: NodeId) {
        loop {
            let boot = {
                let shared = &mut *self.lock();
                let (seed, snapshots) = (shared.rng.draw(), shared.shape.snapshots);
                let Some(machine) = shared.nodes.get_mut(&node) else { return };
                if machine.boot.is_some() || machine.gone {
                    return;
                }
                let boot = Boot::new(machine.disk.clone(), seed, snapshots);
                machine.boot = Some(boot.clone());
                boot
            };
            self.log(|| format!("{node} starts"));
            match self.open(node, &boot).await {
                Ok(Some(member)) => {
                    self.lock().nodes.get_mut(&node).expect("it was there").member =
                        Some(member.clone());
                    self.watch(node, &boot, &member);
                    return;
                }
                // It died at it.
                Ok(None) => {
                    self.bury(node, &boot, false);
                }
                Err(error) => {
                    self.log(|| format!("{node} does not start: {error}"));
                    if matches!(error, OpenError::Corrupt { .. } | OpenError::WrongNode { .. }) {
                        let mut shared = self.lock();
                        shared.oracle.violated("opens-again", format!("node {node}: {error}"));
                        return;
                    }
                    self.bury(node, &boot, false);
                }
            }
            sleep(START_AGAIN).await;
        }
    }

    async fn open(
        &self,
        node: NodeId,
        boot: &Arc<Boot>,
    ) -> Result<Option<Arc<RaftConsensus>>, OpenError> {
        let shape = self.lock().shape.clone();
        let config = ConsensusConfig {
            heartbeat_ms: shape.heartbeat_ms,
            election_min_ms: shape.heartbeat_ms * 5 / 2,
            election_max_ms: shape.heartbeat_ms * 5,
            ..ConsensusConfig::new("record", node)
        };
        let end = Arc::new(End { cluster: self.clone(), from: node });
        let opening = boot.spawn(async move { RaftConsensus::open(config, end).await });
        match opening.await {
            Ok(Ok(member)) if !boot.is_dead() => Ok(Some(Arc::new(member))),
            Ok(Err(error)) if !boot.is_dead() => Err(error),
            _ => Ok(None),
        }
    }

    /// Tells the oracle all that a member shows.
    fn watch(&self, node: NodeId, boot: &Arc<Boot>, member: &Arc<RaftConsensus>) {
        let (mut record, mut standing) = (member.record(), member.standing());
        let cluster = self.clone();
        cluster.lock().oracle.promised(node, member.promised());
        boot.spawn(async move {
            loop {
                let shown = record.borrow_and_update().clone();
                cluster.log(|| format!("{node} shows version {}", shown.version));
                cluster.lock().oracle.shows(node, &shown);
                if record.changed().await.is_err() {
                    return;
                }
            }
        });
        let (cluster, boot) = (self.clone(), boot.clone());
        tokio::spawn(async move {
            loop {
                let stands = standing.borrow_and_update().clone();
                if boot.is_dead() {
                    cluster.bury(node, &boot, false);
                    return;
                }
                cluster.log(|| {
                    format!(
                        "{node}: term {} leader {:?} voters {:?}{}",
                        stands.term,
                        stands.leader,
                        stands.voters,
                        stands.fault.as_deref().map(|f| format!(" fault: {f}")).unwrap_or_default()
                    )
                });
                if stands.fault.is_some() {
                    break;
                }
                if standing.changed().await.is_err() {
                    break;
                }
            }
            // Its agent sees that consensus has stopped, and starts anew.
            sleep(FAULT_SEEN).await;
            if cluster.bury(node, &boot, false) {
                cluster.lock().stats.count("record: started again after a fault");
                cluster.start(node).await;
            }
        });
    }

    /// The process of this boot is dead, or dies. False: it was known already.
    fn bury(&self, node: NodeId, boot: &Arc<Boot>, power: bool) -> bool {
        let member = {
            let shared = &mut *self.lock();
            let Some(machine) = shared.nodes.get_mut(&node) else { return false };
            if !machine.boot.as_ref().is_some_and(|b| Arc::ptr_eq(b, boot)) {
                return false;
            }
            machine.boot = None;
            machine.member.take()
        };
        boot.kill(power);
        drop(member);
        true
    }

    /// Kills a member's process; with `power`, the machine.
    pub fn crash(&self, node: NodeId, power: bool) {
        let boot = self.lock().nodes.get(&node).and_then(|n| n.boot.clone());
        if let Some(boot) = boot {
            self.log(|| format!("{node} {}", if power { "loses power" } else { "is killed" }));
            self.bury(node, &boot, power);
        }
    }
}
