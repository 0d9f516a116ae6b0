//! One seed: a storm, then calm, then everything must be whole again.

use super::{
    clients::{self, propose},
    cluster::Cluster,
    faults, members,
    oracle::Violation,
};
use crate::{rng::Rng, scenario::Scenario, stats::Stats, world};
use sempre_consensus::Consensus;
use sempre_model::{Command, NodeId, Policy, command::Change};
use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};
use tokio::time::sleep;

/// How long faults go on, ms.
const STORM_MS: u64 = 15_000;

/// How long it may take until all is whole again, ms. An election under bad luck takes seconds, a
/// member that is behind gets the whole record.
const HEAL_MS: u64 = 30_000;

/// Bugs put in on purpose, to prove that the oracle sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The disk says that it has synced, and has not.
    LyingDisk,
    /// A read is answered from what the member has.
    ReadWithoutAsking,
}

/// What a seed stands for.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The seed.
    pub seed: u64,
    /// Voters in the beginning.
    pub members: u64,
    /// Those who propose and read.
    pub clients: u64,
    /// Raft's heartbeat, ms; its election times follow.
    pub heartbeat_ms: u64,
    /// A snapshot every so many entries, and how many are kept after it.
    pub snapshots: (u64, u64),
    /// Mean time between faults, ms.
    pub fault_every_ms: u64,
    /// Mean time between changes of voters, ms; 0: none.
    pub change_every_ms: u64,
    /// The bug put in.
    pub bug: Option<Bug>,
}

impl Shape {
    /// Of this seed.
    pub fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut rng = Rng::new(seed.wrapping_mul(37) ^ 0x4ECC_04D5);
        Self {
            seed,
            members: [3, 3, 3, 4, 5][rng.index(5)],
            clients: 3,
            heartbeat_ms: [100, 200][rng.index(2)],
            snapshots: [(8, 3), (25, 10), (60, 1), (500, 200)][rng.index(4)],
            fault_every_ms: [250, 500, 1_000, 2_000][rng.index(4)],
            change_every_ms: [0, 1_500, 4_000][rng.index(3)],
            bug,
        }
    }
}

/// What became of a seed.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// What was wrong.
    pub violation: Option<Violation>,
    /// Of the whole trace.
    pub hash: u64,
    /// Its newest lines.
    pub newest: Vec<String>,
    /// Counts.
    pub stats: Stats,
}

fn runtime(seed: u64) -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true);
    #[cfg(tokio_unstable)]
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
    #[cfg(not(tokio_unstable))]
    let _ = seed;
    builder.build().expect("a runtime without IO needs nothing from the system")
}

/// Runs one seed. `print`: the whole trace.
pub fn run(seed: u64, bug: Option<Bug>, print: bool) -> Outcome {
    let runtime = runtime(seed);
    let outcome = runtime.block_on(live(Shape::new(seed, bug), print));
    drop(runtime);
    outcome
}

async fn live(shape: Shape, print: bool) -> Outcome {
    let cluster = Cluster::new(shape.clone(), print);
    begin(&cluster).await;
    let clients: Vec<_> =
        (0..shape.clients).map(|n| tokio::spawn(clients::live(cluster.clone(), n))).collect();
    let troubles = [
        tokio::spawn(faults::storm(cluster.clone())),
        tokio::spawn(members::surgeon(cluster.clone())),
    ];
    let over = cluster.now_ms() + STORM_MS;
    while cluster.now_ms() < over && cluster.lock().oracle.violation.is_none() {
        sleep(Duration::from_millis(100)).await;
    }
    cluster.lock().storm = false;
    cluster.log(|| "the storm is over".into());
    for task in clients.into_iter().chain(troubles) {
        if let Err(error) = task.await {
            cluster.lock().oracle.violated("no-panic", error.to_string());
        }
    }
    if cluster.lock().oracle.violation.is_none() {
        heal(&cluster).await;
    }
    // They hold the cluster, and it holds them.
    let nodes = std::mem::take(&mut cluster.lock().nodes);
    drop(nodes);
    let shared = &mut *cluster.lock();
    shared.oracle.finish();
    if let Some(violation) = shared.oracle.violation.clone() {
        shared.trace.line(0, || format!("VIOLATED {}: {}", violation.invariant, violation.what));
    }
    Outcome {
        seed: shape.seed,
        violation: shared.oracle.violation.clone(),
        hash: shared.trace.hash(),
        newest: shared.trace.newest(),
        stats: shared.stats.clone(),
    }
}

/// The first member forms a cluster, the others join.
async fn begin(cluster: &Cluster) {
    let size = cluster.lock().shape.members;
    for node in 1..=size {
        cluster.add(node);
        cluster.start(node).await;
    }
    let Some((boot, first)) = cluster.running(1) else { return };
    let init = init(&cluster.lock().shape);
    cluster.lock().oracle.gives_policy();
    let wrong = boot.spawn(async move {
        first.form().await.map_err(|error| error.to_string())?;
        first.propose(init).await.map_err(|error| error.to_string())?;
        for node in 2..=size {
            first.add_learner(node).await.map_err(|error| error.to_string())?;
        }
        first.set_voters((1..=size).collect()).await.map_err(|error| error.to_string())
    });
    match wrong.await {
        Ok(Ok(())) => {}
        wrong => cluster.lock().oracle.violated("begins", format!("{wrong:?}")),
    }
}

/// What every record begins with.
fn init(shape: &Shape) -> Command {
    let policy = Policy {
        election_min_ms: shape.heartbeat_ms * 5 / 2,
        election_max_ms: shape.heartbeat_ms * 5,
        heartbeat_ms: 100,
        ..Policy::default()
    };
    let change = Change::Init {
        cluster: Box::new(world::identity()),
        policy: Box::new(policy),
        member: Box::new(world::member(&Scenario::new(shape.seed, None), 0, 1)),
    };
    Command { at_unix_ms: 1, change }
}

/// Nothing goes wrong any more: soon everyone has the same, and takes commands.
async fn heal(cluster: &Cluster) {
    // Whatever was to mend itself has.
    sleep(Duration::from_millis(7_000)).await;
    let until = cluster.now_ms() + HEAL_MS;
    let mut tries = 0;
    loop {
        members::retire(cluster);
        let down: Vec<_> = {
            let shared = cluster.lock();
            let down = shared.nodes.iter().filter(|(_, n)| !n.gone && n.boot.is_none());
            down.map(|(node, _)| *node).collect()
        };
        for node in down {
            cluster.start(node).await;
        }
        tries += 1;
        let acknowledged = propose(cluster, &format!("end.{tries}")).await;
        if acknowledged && whole(cluster).await {
            return;
        }
        if cluster.lock().oracle.violation.is_some() {
            return;
        }
        if cluster.now_ms() > until {
            let what = picture(cluster);
            cluster.lock().oracle.violated("heals", what);
            return;
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// Every voter has all that is acknowledged, within a moment.
async fn whole(cluster: &Cluster) -> bool {
    sleep(Duration::from_millis(1_000)).await;
    let floor = cluster.lock().oracle.floor();
    let has_all = |voter: &NodeId| {
        cluster.running(*voter).is_some_and(|(_, m)| m.record().borrow().version >= floor)
    };
    members::voters(cluster).is_some_and(|voters| voters.iter().all(has_all))
}

fn picture(cluster: &Cluster) -> String {
    let nodes: Vec<_> = cluster.lock().nodes.keys().copied().collect();
    let mut lines = vec![format!("not whole in {HEAL_MS} ms")];
    for node in nodes {
        match cluster.running(node) {
            None => lines.push(format!("{node} is down")),
            Some((_, m)) => {
                let version = m.record().borrow().version;
                lines.push(format!("{node} v{version} {:?}", *m.standing().borrow()));
            }
        }
    }
    lines.join("; ")
}

/// Runs `count` seeds from `from` on `threads` threads; as [`crate::run_many`].
pub fn run_many(
    from: u64,
    count: u64,
    threads: usize,
    bug: Option<Bug>,
    mut done: impl FnMut(Outcome) -> bool,
) {
    let next = AtomicU64::new(from);
    let stop = AtomicBool::new(false);
    let (sender, receiver) = mpsc::sync_channel(threads * 2);
    let sender = Mutex::new(sender);
    thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            let sender = sender.lock().map(|s| s.clone()).expect("no thread panics with it");
            let (next, stop) = (&next, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + count || sender.send(run(seed, bug, false)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for outcome in receiver {
            if !done(outcome) {
                stop.store(true, Ordering::Relaxed);
            }
        }
    });
}
