//! Members stopped, started and cut off at random while everyone proposes: what was acknowledged
//! is in everyone's record at the end, and all records are the same.
#![allow(missing_docs)]

mod common;

use common::{Cluster, leader, record, set};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use sempre_consensus::{Consensus, ProposeError, RaftConsensus};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, atomic::AtomicBool, atomic::Ordering},
    time::Duration,
};
use tokio::time::sleep;

const TROUBLES: u32 = 9;

/// The members that run at the moment.
type Running = Arc<Mutex<Vec<Arc<RaftConsensus>>>>;

/// Proposes one key after the other through whoever runs, and returns the acknowledged ones.
async fn propose_all(lane: u64, running: Running, over: Arc<AtomicBool>) -> BTreeSet<String> {
    let mut acknowledged = BTreeSet::new();
    let mut n = 0;
    while !over.load(Ordering::Relaxed) {
        n += 1;
        let member = {
            let running = running.lock().unwrap();
            running[(lane + n) as usize % running.len()].clone()
        };
        let key = format!("lane{lane}.{n}");
        match member.propose(set(&key, n)).await {
            Ok(record) => {
                assert!(record.parameters.contains_key(&key), "{key} acknowledged, not there");
                acknowledged.insert(key);
            }
            Err(ProposeError::Rejected(why)) => panic!("{key}: {why}"),
            // It was stopped, or there is no leader, or the outcome is open.
            Err(_) => sleep(Duration::from_millis(5)).await,
        }
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_whatever_happens() {
    let seed: u64 = match std::env::var("SEMPRE_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => rand::random(),
    };
    println!("troubles as by SEMPRE_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let (cluster, members) = Cluster::with_voters(3).await;
    let running: Running = Arc::new(Mutex::new(members));
    let over = Arc::new(AtomicBool::new(false));
    let lanes: Vec<_> =
        (0..3).map(|lane| tokio::spawn(propose_all(lane, running.clone(), over.clone()))).collect();

    for _ in 0..TROUBLES {
        // How long a trouble lasts and how long the calm after it: both around an election.
        let trouble = Duration::from_millis(rng.random_range(20..700));
        let calm = Duration::from_millis(rng.random_range(0..500));
        let node = rng.random_range(1..=3);
        let others: Vec<_> = (1..=3).filter(|n| *n != node).collect();
        match rng.random_range(0..4) {
            0 => cluster.net.cut(&[node], &others),
            1 => cluster.net.cut_one_way(node, others[0]),
            2 => cluster.net.cut(&[1, 2, 3], &[1, 2, 3]),
            _ => {
                let stopped = {
                    let mut running = running.lock().unwrap();
                    let at = running.iter().position(|m| m.node() == node).unwrap();
                    running.remove(at)
                };
                cluster.stop(stopped).await;
                sleep(trouble).await;
                let back = cluster.start(node).await;
                running.lock().unwrap().push(back);
                continue;
            }
        }
        sleep(trouble).await;
        cluster.net.heal();
        sleep(calm).await;
    }
    over.store(true, Ordering::Relaxed);
    let mut acknowledged = BTreeSet::new();
    for lane in lanes {
        acknowledged.extend(lane.await.unwrap());
    }

    let members = std::mem::take(&mut *running.lock().unwrap());
    let last = leader(&members).await.propose(set("last", 1)).await.unwrap();
    println!("{} acknowledged, {} applied", acknowledged.len(), last.parameters.len() - 1);
    assert!(!acknowledged.is_empty());
    for key in &acknowledged {
        assert!(last.parameters.contains_key(key), "seed {seed}: {key} is lost");
    }
    for member in &members {
        let same = record(member, "the end", |r| r.version >= last.version).await;
        assert_eq!(*same, *last, "seed {seed}: node {}", member.node());
    }
    cluster.stop_all(members).await;
}
