//! What goes wrong, one after the other and together.

use super::{cluster::Cluster, disk::Mood};
use sempre_model::NodeId;
use std::time::Duration;
use tokio::time::sleep;

/// Breaks things until the storm is over. What is broken mends itself after a while.
pub async fn storm(cluster: Cluster) {
    let every = cluster.lock().shape.fault_every_ms;
    loop {
        cluster.nap(every / 4, every * 2).await;
        if !cluster.lock().storm {
            return;
        }
        let Some(node) = cluster.any() else { continue };
        let lasts = Duration::from_millis(cluster.range(20, 3_000));
        let kind = cluster.range(0, 100);
        let name = match kind {
            0..12 => crash(&cluster, node, lasts, false),
            12..26 => crash(&cluster, node, lasts, true),
            26..40 => die_at_the_disk(&cluster, node, lasts),
            40..44 => crash_all(&cluster, lasts),
            44..56 => cut_off(&cluster, node, lasts),
            56..66 => cut_one_way(&cluster, node, lasts),
            66..72 => split(&cluster, lasts),
            72..80 => weather(&cluster, lasts),
            80..90 => disk(&cluster, node, Mood::Slow(cluster.range(20, 2_500)), lasts),
            90..95 => disk(&cluster, node, Mood::Refuses, lasts),
            _ => disk(&cluster, node, Mood::FailsToSync, lasts),
        };
        cluster.lock().stats.count(name);
    }
}

/// Does something after a while, whatever else goes on.
fn later(cluster: &Cluster, after: Duration, what: impl FnOnce(&Cluster) + Send + 'static) {
    let cluster = cluster.clone();
    tokio::spawn(async move {
        sleep(after).await;
        what(&cluster);
    });
}

fn start_later(cluster: &Cluster, node: NodeId, after: Duration) {
    let cluster = cluster.clone();
    tokio::spawn(async move {
        sleep(after).await;
        cluster.start(node).await;
    });
}

fn crash(cluster: &Cluster, node: NodeId, lasts: Duration, power: bool) -> &'static str {
    cluster.crash(node, power);
    start_later(cluster, node, lasts);
    if power { "record: power cut" } else { "record: process killed" }
}

/// In the middle of a commit, if there is one.
fn die_at_the_disk(cluster: &Cluster, node: NodeId, lasts: Duration) -> &'static str {
    let (after, power) = (cluster.range(0, 40), cluster.chance(700));
    let disk = cluster.lock().nodes.get(&node).map(|n| n.disk.clone());
    let Some(disk) = disk else { return "" };
    cluster.log(|| format!("{node} is to die after {after} writes (power: {power})"));
    disk.set_death(after, power);
    let cluster = cluster.clone();
    tokio::spawn(async move {
        sleep(lasts).await;
        // Whether it came to that or not.
        cluster.crash(node, power);
        sleep(lasts / 4).await;
        cluster.start(node).await;
    });
    "record: death in a write"
}

fn crash_all(cluster: &Cluster, lasts: Duration) -> &'static str {
    for node in everyone(cluster) {
        cluster.crash(node, true);
        let lasts = lasts.mul_f64(cluster.range(10, 100) as f64 / 100.0);
        start_later(cluster, node, lasts);
    }
    "record: power cut everywhere"
}

fn everyone(cluster: &Cluster) -> Vec<NodeId> {
    cluster.lock().nodes.iter().filter(|(_, n)| !n.gone).map(|(node, _)| *node).collect()
}

fn cut(cluster: &Cluster, ways: Vec<(NodeId, NodeId)>, lasts: Duration) {
    cluster.log(|| format!("cut {ways:?}"));
    {
        let net = &mut cluster.lock().net;
        ways.iter().for_each(|(from, to)| net.cut(*from, *to));
    }
    later(cluster, lasts, move |cluster| {
        cluster.log(|| format!("mended {ways:?}"));
        let net = &mut cluster.lock().net;
        ways.iter().for_each(|(from, to)| net.mend(*from, *to));
    });
}

fn cut_off(cluster: &Cluster, node: NodeId, lasts: Duration) -> &'static str {
    let others = everyone(cluster).into_iter().filter(|n| *n != node);
    cut(cluster, others.flat_map(|o| [(node, o), (o, node)]).collect(), lasts);
    "record: member cut off"
}

fn cut_one_way(cluster: &Cluster, node: NodeId, lasts: Duration) -> &'static str {
    let inward = cluster.chance(500);
    let some = cluster.range(300, 1_000);
    let others: Vec<_> =
        everyone(cluster).into_iter().filter(|n| *n != node && cluster.chance(some)).collect();
    let way = |o: NodeId| if inward { (o, node) } else { (node, o) };
    cut(cluster, others.into_iter().map(way).collect(), lasts);
    "record: cut one way"
}

fn split(cluster: &Cluster, lasts: Duration) -> &'static str {
    let (these, those): (Vec<_>, Vec<_>) =
        everyone(cluster).into_iter().partition(|_| cluster.chance(500));
    let ways = these.iter().flat_map(|a| those.iter().flat_map(|b| [(*a, *b), (*b, *a)]));
    cut(cluster, ways.collect(), lasts);
    "record: split"
}

fn weather(cluster: &Cluster, lasts: Duration) -> &'static str {
    {
        let shared = &mut *cluster.lock();
        shared.net.loss = shared.rng.range(0, 300);
        shared.net.twice = shared.rng.range(0, 200);
        shared.net.late = shared.rng.range(0, 500);
        shared.net.late_ms = shared.rng.range(10, 1_500);
    }
    later(cluster, lasts * 2, calm);
    "record: loss and delay"
}

fn calm(cluster: &Cluster) {
    let net = &mut cluster.lock().net;
    (net.loss, net.twice, net.late) = (0, 0, 0);
}

fn disk(cluster: &Cluster, node: NodeId, mood: Mood, lasts: Duration) -> &'static str {
    let disk = cluster.lock().nodes.get(&node).map(|n| n.disk.clone());
    let Some(disk) = disk else { return "" };
    cluster.log(|| format!("{node}: disk {mood:?}"));
    disk.set_mood(mood);
    later(cluster, lasts, move |cluster| {
        cluster.log(|| format!("{node}: disk well"));
        disk.set_mood(Mood::Well);
    });
    match mood {
        Mood::Slow(_) => "record: disk slow",
        Mood::Refuses => "record: disk full",
        _ => "record: disk fails to sync",
    }
}
