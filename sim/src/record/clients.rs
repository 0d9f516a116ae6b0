//! Those who use the record: they propose, read and promise at any member.

use super::{cluster::Cluster, run::Bug};
use sempre_consensus::{Consensus, ProposeError};
use sempre_model::{Command, Generation, command::Change};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::timeout;

/// Longer than any answer takes by its own promise (about three seconds).
const PATIENCE: Duration = Duration::from_secs(6);

/// Commands of one run at most: each stays in the record.
const COMMANDS_MAX: u64 = 600;

/// A command that sets a parameter of its own.
pub fn command(key: &str) -> Command {
    let parameters = BTreeMap::from([(key.to_owned(), Some("1".to_owned()))]);
    Command { at_unix_ms: 1, change: Change::SetParameters { parameters } }
}

/// One of them, until the storm is over.
pub async fn live(cluster: Cluster, name: u64) {
    let mut n = 0;
    while cluster.lock().storm {
        cluster.nap(5, 150).await;
        match cluster.range(0, 100) {
            0..55 if n < COMMANDS_MAX => {
                n += 1;
                propose(&cluster, &format!("c{name}.{n}")).await;
            }
            55..88 => read(&cluster).await,
            88..90 => set_times(&cluster).await,
            _ => promise(&cluster).await,
        }
    }
}

/// Proposes at some member. True: acknowledged.
pub async fn propose(cluster: &Cluster, key: &str) -> bool {
    let Some(node) = cluster.any() else { return false };
    let Some((boot, member)) = cluster.running(node) else { return false };
    let asked_at = cluster.lock().oracle.floor();
    cluster.log(|| format!("{key} at {node}"));
    let given = command(key);
    let answer = boot.spawn(async move { member.propose(given).await });
    let answer = timeout(PATIENCE, answer).await;
    let what = match &answer {
        Ok(Ok(Ok(record))) => format!("version {}", record.version),
        Ok(Ok(Err(error))) => error.to_string(),
        Ok(Err(_)) => "the member died".into(),
        Err(_) => "no answer at all".into(),
    };
    cluster.log(|| format!("{key} at {node}: {what}"));
    let shared = &mut *cluster.lock();
    match answer {
        Ok(Ok(Ok(record))) => {
            shared.stats.commits += 1;
            shared.oracle.acknowledged(key, asked_at, &record);
            return true;
        }
        Ok(Ok(Err(ProposeError::Rejected(why)))) => {
            shared.oracle.violated("acknowledged", format!("{key} is refused: {why}"));
        }
        Ok(Ok(Err(ProposeError::NoLeader { .. }))) => shared.oracle.not_taken(key.to_owned()),
        Ok(Ok(Err(_))) => shared.stats.count("record: outcomes unknown"),
        // Nobody is there to wait for it.
        Ok(Err(_)) => {}
        Err(_) => {
            let what = format!("{key} at {node}: no answer in {PATIENCE:?}");
            shared.oracle.violated("answers", what);
        }
    }
    false
}

/// Reads through the barrier at some member.
async fn read(cluster: &Cluster) {
    let Some(node) = cluster.any() else { return };
    let Some((boot, member)) = cluster.running(node) else { return };
    let (asked_at, careless) = {
        let shared = cluster.lock();
        (shared.oracle.floor(), shared.shape.bug == Some(Bug::ReadWithoutAsking))
    };
    let answer = boot.spawn(async move {
        match careless {
            true => Ok(member.record().borrow().clone()),
            false => member.read_barrier().await,
        }
    });
    let answer = timeout(PATIENCE, answer).await;
    if let Ok(Ok(Ok(record))) = &answer {
        cluster.log(|| format!("read at {node}: version {}, {asked_at} known", record.version));
    }
    let shared = &mut *cluster.lock();
    match answer {
        Ok(Ok(Ok(record))) => {
            shared.stats.reads += 1;
            shared.oracle.read(asked_at, &record);
        }
        Ok(_) => {}
        Err(_) => {
            let what = format!("a read at {node}: no answer in {PATIENCE:?}");
            shared.oracle.violated("answers", what);
        }
    }
}

/// The policy gets other election times: every member makes its Raft anew.
async fn set_times(cluster: &Cluster) {
    let Some(node) = cluster.any() else { return };
    let Some((boot, member)) = cluster.running(node) else { return };
    let election_min_ms = cluster.range(4, 10) * cluster.lock().shape.heartbeat_ms;
    let mut policy = member.record().borrow().policy.clone();
    policy.election_min_ms = election_min_ms;
    policy.election_max_ms = election_min_ms * 2;
    let change = Change::SetPolicy { policy: Box::new(policy), expect_version: None };
    cluster.lock().oracle.gives_policy();
    let given = Command { at_unix_ms: 1, change };
    let setting = boot.spawn(async move { member.propose(given).await.is_ok() });
    let set = setting.await.unwrap_or(false);
    cluster.log(|| format!("election times at {node}: {election_min_ms} ms: {set}"));
    if set {
        cluster.lock().stats.count("record: election times changed");
    }
}

/// Some member promises a generation, higher or lower than before.
async fn promise(cluster: &Cluster) {
    let Some(node) = cluster.any() else { return };
    let Some((boot, member)) = cluster.running(node) else { return };
    let generation = {
        let about = member.promised().0 + 3;
        Generation(cluster.range(about.saturating_sub(4), about))
    };
    let promising = boot.spawn({
        let member = member.clone();
        async move { member.promise(generation).await }
    });
    if let Ok(Ok(())) = promising.await
        && !boot.is_dead()
    {
        let shared = &mut *cluster.lock();
        shared.stats.count("record: promises");
        let promised = member.promised();
        if promised < generation {
            let what = format!("{generation} was promised, and is {promised}");
            shared.oracle.violated("promise-kept", what);
        }
        shared.oracle.promised(node, promised);
    }
}
