//! Damaged stores: opened with nothing acknowledged missing, or refused by name. Never a panic.
#![allow(missing_docs)]

mod common;

use common::{Cluster, get, join, leader, record, set, standing};
use sempre_consensus::{
    Consensus, ConsensusConfig, OpenError, RaftConsensus, inspect, quarantine, reform,
};
use sempre_model::{Generation, Record};
use std::{collections::BTreeSet, fs, path::Path};

const PROPOSALS: u64 = 620;

/// A store with a snapshot, a log, a vote and a promise.
async fn make(dir: &Path) -> Record {
    let cluster = Cluster::new();
    let member = cluster.start_in(dir, 1).await;
    member.form().await.unwrap();
    for n in 0..PROPOSALS {
        member.propose(set(&format!("k{}", n % 7), n)).await.unwrap();
    }
    member.promise(Generation(41)).await.unwrap();
    let last = member.propose(set("last", 1)).await.unwrap();
    member.shutdown().await;
    (*last).clone()
}

enum Damage {
    Flip(u64),
    Zero(u64),
    Cut(u64),
}

fn damaged(clean: &[u8], damage: &Damage) -> Vec<u8> {
    let mut bytes = clean.to_vec();
    match damage {
        Damage::Flip(at) => bytes[*at as usize] ^= 0x40,
        Damage::Zero(at) => {
            let at = *at as usize;
            let end = (at + 512).min(bytes.len());
            bytes[at..end].fill(0);
        }
        Damage::Cut(length) => bytes.truncate(*length as usize),
    }
    bytes
}

/// Opens a damaged copy: true if it was refused.
async fn try_open(clean: &Path, damage: &Damage, expected: &Record, what: &str) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("record.redb");
    fs::write(&file, damaged(&fs::read(clean.join("record.redb")).unwrap(), damage)).unwrap();
    fs::copy(clean.join("record.seal"), dir.path().join("record.seal")).unwrap();

    let looked = inspect(dir.path());
    let config = ConsensusConfig::new(dir.path(), 1);
    let net = common::Net::default();
    match RaftConsensus::open(config, net.end(1)).await {
        Ok(member) => {
            assert_eq!(*member.record().borrow().clone(), *expected, "{what}");
            assert_eq!(member.promised(), Generation(41), "{what}");
            member.shutdown().await;
            assert!(looked.is_ok(), "{what}: {looked:?}");
            false
        }
        Err(OpenError::Corrupt { file: named, what: why }) => {
            assert_eq!(named, file, "{what}");
            assert!(!why.is_empty(), "{what}");
            true
        }
        Err(other) => panic!("{what}: {other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_is_refused_by_name_or_complete() {
    let dir = tempfile::tempdir().unwrap();
    let expected = make(dir.path()).await;
    let length = fs::metadata(dir.path().join("record.redb")).unwrap().len();

    let mut damages = vec![];
    // The header byte by byte, then all over the file, at odd places.
    damages.extend((0..320).step_by(5).map(Damage::Flip));
    damages.extend((1..90).map(|n| Damage::Flip(n * length / 90 - 1)));
    damages.extend((0..30).map(|n| Damage::Zero(n * length / 30 / 512 * 512)));
    damages.extend((0..30).map(|n| Damage::Cut(n * length / 30)));
    damages.extend([1, 63, 64, 511, 4095, 4096].map(Damage::Cut));
    damages.extend([1, 2, 4096].map(|n| Damage::Cut(length - n)));
    let mut refused = 0;
    for damage in &damages {
        let what = match damage {
            Damage::Flip(at) => format!("flipped a bit at {at} of {length}"),
            Damage::Zero(at) => format!("zeroed 512 bytes at {at} of {length}"),
            Damage::Cut(at) => format!("cut to {at} of {length}"),
        };
        refused += u64::from(try_open(dir.path(), damage, &expected, &what).await);
    }
    println!("{} damages: {refused} refused, the others harmless", damages.len());
    assert!(refused > 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_went_back_in_time_is_refused() {
    let cluster = Cluster::new();
    let member = cluster.start(1).await;
    member.form().await.unwrap();
    member.propose(set("k", 1)).await.unwrap();
    cluster.stop(member).await;
    let file = cluster.dir(1).join("record.redb");
    let old = fs::read(&file).unwrap();
    let member = cluster.start(1).await;
    member.propose(set("k", 2)).await.unwrap();
    cluster.stop(member).await;

    // An older copy, an empty file, and none at all.
    for content in [Some(&old[..]), Some(&[][..]), None] {
        match content {
            Some(content) => fs::write(&file, content).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        let config = ConsensusConfig::new(cluster.dir(1), 1);
        let refused = RaftConsensus::open(config, cluster.net.end(1)).await.map(|_| ());
        assert!(matches!(refused, Err(OpenError::Corrupt { .. })), "{refused:?}");
    }

    // A seal that is damaged itself proves nothing, and stops nothing.
    fs::write(&file, &old).unwrap();
    fs::write(cluster.dir(1).join("record.seal"), b"??").unwrap();
    let member = cluster.start(1).await;
    assert_eq!(get(&member.record().borrow(), "k"), Some(1));
    cluster.stop(member).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_with_a_corrupt_store_comes_back_as_a_new_node() {
    let (cluster, mut members) = Cluster::with_voters(3).await;
    let first = leader(&members).await;
    first.propose(set("k", 1)).await.unwrap();
    let broken = members.iter().find(|m| m.node() != first.node()).unwrap().clone();
    members.retain(|m| m.node() != broken.node());
    let dir = cluster.dir(broken.node());
    cluster.stop(broken.clone()).await;
    let file = dir.join("record.redb");
    fs::write(&file, &fs::read(&file).unwrap()[..5000]).unwrap();
    let config = ConsensusConfig::new(&dir, broken.node());
    let refused = RaftConsensus::open(config, cluster.net.end(9)).await.map(|_| ());
    assert!(matches!(refused, Err(OpenError::Corrupt { .. })), "{refused:?}");

    let aside = quarantine(&dir).unwrap();
    assert_eq!(aside, dir.join("record.redb.corrupt-1"));
    assert_eq!(fs::metadata(&aside).unwrap().len(), 5000);
    let back = cluster.start_in(&dir, 4).await;
    let first = leader(&members).await;
    join(&first, 4).await;
    let keep: BTreeSet<_> = members.iter().map(|m| m.node()).chain([4]).collect();
    first.set_voters(keep.clone()).await.unwrap();
    record(&back, "has the record", |r| get(r, "k") == Some(1)).await;
    standing(&back, "votes", |s| s.voters == keep).await;
    members.push(back);
    cluster.stop_all(members).await;

    // Again, without anything there: the next number, and no error.
    fs::remove_file(&file).unwrap();
    assert_eq!(quarantine(&dir).unwrap(), dir.join("record.redb.corrupt-2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cluster_is_formed_anew_from_one_survivor() {
    let (cluster, members) = Cluster::with_voters(3).await;
    let first = leader(&members).await;
    first.propose(set("k", 1)).await.unwrap();
    let survivor = members.iter().find(|m| m.node() != first.node()).unwrap().clone();
    survivor.promise(Generation(5)).await.unwrap();
    record(&survivor, "has it", |r| get(r, "k") == Some(1)).await;
    let (node, dir) = (survivor.node(), cluster.dir(survivor.node()));
    assert!(matches!(reform(&dir, 10), Err(OpenError::Busy { .. })));
    cluster.stop_all(members).await;

    let before = inspect(&dir).unwrap();
    assert_eq!((before.node, before.promised), (Some(node), Generation(5)));
    // Not under the id of another member.
    assert!(reform(&dir, first.node()).is_err());
    let kept = reform(&dir, 10).unwrap();
    assert_eq!(kept, before.record_with_log);
    assert_eq!(inspect(&dir).unwrap().voters, BTreeSet::from([10]));

    // It leads alone at once, keeps its promise, and others join with empty stores.
    let alone = cluster.start_in(&dir, 10).await;
    assert_eq!(get(&alone.record().borrow(), "k"), Some(1));
    assert_eq!(alone.promised(), Generation(5));
    alone.propose(set("k", 2)).await.unwrap();
    let fresh = cluster.start(11).await;
    join(&alone, 11).await;
    record(&fresh, "has it all", |r| get(r, "k") == Some(2)).await;

    // A member of the old cluster that comes back changes nothing.
    let stale = cluster.start(first.node()).await;
    alone.propose(set("k", 3)).await.unwrap();
    assert_eq!(alone.standing().borrow().voters, BTreeSet::from([10, 11]));
    assert!(stale.read_barrier().await.is_err());
    cluster.stop_all(vec![alone, fresh, stale]).await;

    // Under its own id it works too.
    let summary = inspect(&cluster.dir(11)).unwrap();
    assert_eq!(reform(&cluster.dir(11), 11).unwrap(), summary.record_with_log);
    let alone = cluster.start(11).await;
    assert_eq!(get(&alone.propose(set("k", 4)).await.unwrap(), "k"), Some(4));
    cluster.stop(alone).await;
}

#[test]
fn what_is_not_there_is_said() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(inspect(dir.path()), Err(OpenError::Missing { .. })));
    assert!(matches!(reform(dir.path(), 1), Err(OpenError::Missing { .. })));
}
