//! Who votes changes all the while: as the agent of a Raft leader does it, a learner first, one
//! change after the other; and now and then several at once.

use super::cluster::Cluster;
use sempre_consensus::{Consensus, RaftConsensus};
use sempre_model::NodeId;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::time::sleep;

/// Voters at most.
const VOTERS_MAX: usize = 5;

/// A new member gets this long to catch up.
const CATCH_UP: Duration = Duration::from_secs(4);

/// Changes the membership until the storm is over.
pub async fn surgeon(cluster: Cluster) {
    let every = cluster.lock().shape.change_every_ms;
    if every == 0 {
        return;
    }
    let mut next = cluster.lock().nodes.keys().max().map_or(1, |n| n + 1);
    loop {
        cluster.nap(every / 2, every * 2).await;
        if !cluster.lock().storm {
            return;
        }
        let Some((boot, leader)) = leader(&cluster) else { continue };
        let standing = leader.standing().borrow().clone();
        let voters = standing.voters.clone();
        if standing.changing {
            // It was left midway: the same again completes it.
            let again = operate(&cluster, &boot, &leader, voters, "completed").await;
            cluster.log(|| format!("change completed: {again}"));
            continue;
        }
        let grow = voters.len() < 3 || (voters.len() < VOTERS_MAX && cluster.chance(500));
        let replace = !grow && cluster.chance(400);
        let mut wanted = voters.clone();
        if !grow || replace {
            let list: Vec<_> = voters.iter().copied().collect();
            let out = cluster.lock().rng.pick(&list);
            wanted.remove(&out.unwrap_or(0));
        }
        if grow || replace {
            let node = next;
            next += 1;
            join(&cluster, &boot, &leader, node).await;
            wanted.insert(node);
        }
        let name = match (grow, replace) {
            (true, _) => "record: voter added",
            (_, true) => "record: voter replaced",
            _ => "record: voter removed",
        };
        operate(&cluster, &boot, &leader, wanted, name).await;
        // Those left out go on running for a while: they know nothing of it, and disturb.
        let cluster = cluster.clone();
        let lasts = Duration::from_millis(cluster.range(0, 4_000));
        tokio::spawn(async move {
            sleep(lasts).await;
            retire(&cluster);
        });
    }
}

type Boot = Arc<super::boot::Boot>;

/// The leader that a majority follows. Others may take themselves for it: those who are cut off,
/// and those who were taken out and never heard of it.
fn leader(cluster: &Cluster) -> Option<(Boot, Arc<RaftConsensus>)> {
    let nodes: Vec<_> = cluster.lock().nodes.keys().copied().collect();
    let running: Vec<_> = nodes.into_iter().filter_map(|node| cluster.running(node)).collect();
    let stands = |m: &RaftConsensus| m.standing().borrow().clone();
    let (boot, leader) = running
        .iter()
        .filter(|(_, m)| stands(m).leader == Some(m.node()))
        .max_by_key(|(_, m)| stands(m).term)?;
    let standing = stands(leader);
    let followers = running
        .iter()
        .filter(|(_, m)| standing.voters.contains(&m.node()))
        .filter(|(_, m)| stands(m).leader == standing.leader && stands(m).term == standing.term);
    (followers.count() > standing.voters.len() / 2).then(|| (boot.clone(), leader.clone()))
}

/// Who votes, by the word of the leader.
pub fn voters(cluster: &Cluster) -> Option<BTreeSet<NodeId>> {
    let (_, leader) = leader(cluster)?;
    let voters = leader.standing().borrow().voters.clone();
    Some(voters)
}

async fn join(cluster: &Cluster, boot: &Boot, leader: &Arc<RaftConsensus>, node: NodeId) {
    cluster.log(|| format!("{node} is to join"));
    cluster.add(node);
    {
        let cluster = cluster.clone();
        tokio::spawn(async move { cluster.start(node).await });
    }
    let leader = leader.clone();
    let joining = boot.spawn(async move {
        leader.add_learner(node).await?;
        leader.wait_caught_up(node, CATCH_UP).await
    });
    let joined = joining.await;
    cluster.log(|| format!("{node} as a learner: {:?}", joined.ok()));
}

async fn operate(
    cluster: &Cluster,
    boot: &Boot,
    leader: &Arc<RaftConsensus>,
    wanted: BTreeSet<NodeId>,
    name: &'static str,
) -> bool {
    cluster.log(|| format!("voters {wanted:?}"));
    let leader = leader.clone();
    let changing = boot.spawn(async move { leader.set_voters(wanted).await });
    let changed = changing.await;
    cluster.log(|| format!("voters: {:?}", changed.as_ref().ok()));
    let done = matches!(changed, Ok(Ok(())));
    if done {
        cluster.lock().stats.count(name);
    }
    done
}

/// Those whom nobody knows any more are switched off for good.
pub fn retire(cluster: &Cluster) {
    let Some((_, leader)) = leader(cluster) else { return };
    let standing = leader.standing().borrow().clone();
    if standing.changing || standing.applied_index < standing.last_log_index {
        return;
    }
    let known = |node: &NodeId| standing.voters.contains(node) || standing.learners.contains(node);
    let strangers: Vec<_> = {
        let shared = cluster.lock();
        // The newest may be on its way in.
        let newest = shared.nodes.keys().max().copied().filter(|_| shared.storm);
        shared
            .nodes
            .iter()
            .filter(|(n, x)| !x.gone && !known(n) && Some(**n) != newest)
            .map(|(n, _)| *n)
            .collect()
    };
    for node in strangers {
        cluster.log(|| format!("{node} is gone for good"));
        cluster.crash(node, false);
        if let Some(machine) = cluster.lock().nodes.get_mut(&node) {
            machine.gone = true;
        }
    }
}
