//! Clusters of one to three members over links that can be cut.
#![allow(missing_docs)]

mod common;

use common::{Cluster, PATIENCE, get, join, leader, record, set, standing};
use sempre_consensus::{
    CallKind, Consensus, FormError, MembershipError, ProposeError, RaftConsensus, ServeError,
};
use sempre_model::{
    Command, Generation, Member, MemberId, MemberKind, Policy, Rejected,
    command::{Change, Refusal},
    member::Ports,
    record::Secrets,
};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};

fn others(members: &[Arc<RaftConsensus>], not: &RaftConsensus) -> Vec<Arc<RaftConsensus>> {
    members.iter().filter(|m| m.node() != not.node()).cloned().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_forms_proposes_and_comes_back() {
    let cluster = Cluster::new();
    let member = cluster.start(1).await;
    // The agent holds it so.
    let narrow: Arc<dyn Consensus> = member.clone();
    assert!(narrow.record().borrow().cluster.is_none());
    drop(narrow);

    // A form only works once.
    member.form().await.unwrap();
    assert!(
        matches!(member.form().await, Err(FormError::AlreadyFormed { voters }) if voters == [1])
    );

    // A change shows at once; a refused one changes nothing, and says why.
    let after = member.propose(set("a", 1)).await.unwrap();
    assert_eq!(get(&after, "a"), Some(1));
    let nobody = MemberId::new("nobody").unwrap();
    let remove = Change::RemoveMember { name: nobody, force: false };
    let refused = member.propose(Command { at_unix_ms: 2, change: remove }).await;
    let kind = match &refused {
        Err(ProposeError::Rejected(Rejected::Refused { kind, .. })) => *kind,
        other => panic!("{other:?}"),
    };
    assert_eq!(kind, Refusal::UnknownMember);
    assert_eq!(member.read_barrier().await.unwrap().version, 1);

    // A command that is too large is refused as well.
    let lines = vec!["x".repeat(sempre_consensus::COMMAND_BYTES_MAX)];
    let large = member.propose(Command { at_unix_ms: 3, change: Change::SetHba { lines } }).await;
    assert!(matches!(large, Err(ProposeError::Rejected(_))), "{large:?}");

    // Promises only rise.
    member.promise(Generation(7)).await.unwrap();
    member.promise(Generation(3)).await.unwrap();
    assert_eq!(member.promised(), Generation(7));
    // The longest grant rises and falls.
    assert_eq!(member.longest_grant_ms(), 0);
    member.set_longest_grant_ms(60_061).await.unwrap();
    member.set_longest_grant_ms(2_003).await.unwrap();

    // All of it is there after a restart, before any election.
    cluster.stop(member).await;
    let member = cluster.start(1).await;
    assert_eq!(get(&member.record().borrow(), "a"), Some(1));
    assert_eq!(member.promised(), Generation(7));
    assert_eq!(member.longest_grant_ms(), 2_003);
    assert_eq!(get(&member.propose(set("b", 2)).await.unwrap(), "b"), Some(2));
    cluster.stop(member).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_is_kept_out() {
    let cluster = Cluster::new();
    let member = cluster.start(1).await;
    let again = sempre_consensus::ConsensusConfig::new(cluster.dir(1), 1);
    let refused = RaftConsensus::open(again, cluster.net.end(1)).await;
    assert!(matches!(refused, Err(sempre_consensus::OpenError::Busy { .. })));
    let looked = sempre_consensus::inspect(&cluster.dir(1));
    assert!(matches!(looked, Err(sempre_consensus::OpenError::Busy { .. })), "{looked:?}");
    cluster.stop(member).await;

    let other = sempre_consensus::ConsensusConfig::new(cluster.dir(1), 2);
    let refused = RaftConsensus::open(other, cluster.net.end(2)).await;
    assert!(matches!(
        refused,
        Err(sempre_consensus::OpenError::WrongNode { found: 1, wanted: 2, .. })
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_agree_and_any_of_them_can_propose_and_read() {
    let (cluster, members) = Cluster::with_voters(3).await;
    for (n, member) in members.iter().enumerate() {
        let n = n as u64;
        assert_eq!(get(&member.propose(set("k", n)).await.unwrap(), "k"), Some(n));
        for reader in &members {
            assert_eq!(get(&reader.read_barrier().await.unwrap(), "k"), Some(n));
        }
    }
    // A refusal comes through to a follower as well.
    let leader = leader(&members).await;
    let follower = others(&members, &leader)[0].clone();
    let nobody = MemberId::new("nobody").unwrap();
    let remove = Change::RemoveMember { name: nobody, force: true };
    let refused = follower.propose(Command { at_unix_ms: 2, change: remove }).await;
    let unknown = |r: &Rejected| matches!(r, Rejected::Refused { kind, .. } if *kind == Refusal::UnknownMember);
    assert!(matches!(&refused, Err(ProposeError::Rejected(r)) if unknown(r)), "{refused:?}");
    // Only the leader changes the membership.
    let refused = follower.set_voters(BTreeSet::from([1])).await;
    assert!(
        matches!(&refused, Err(MembershipError::NotLeader { leader: Some(l) }) if *l == leader.node()),
        "{refused:?}"
    );
    cluster.stop_all(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_leader_is_replaced_and_catches_up_when_it_comes_back() {
    let (cluster, mut members) = Cluster::with_voters(3).await;
    let old = leader(&members).await;
    let rest = others(&members, &old);
    old.propose(set("before", 1)).await.unwrap();
    cluster.stop(old.clone()).await;

    // The others elect, and go on; a proposal made at once waits for that.
    assert_eq!(get(&rest[0].propose(set("after", 2)).await.unwrap(), "after"), Some(2));
    let new = leader(&rest).await;
    assert_ne!(new.node(), old.node());
    assert_eq!(get(&new.read_barrier().await.unwrap(), "before"), Some(1));

    let back = cluster.start(old.node()).await;
    assert_eq!(get(&back.record().borrow(), "before"), Some(1));
    record(&back, "catches up", |r| get(r, "after") == Some(2)).await;
    members = rest;
    members.push(back);
    cluster.stop_all(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_off_leader_changes_nothing_and_yields_after_the_heal() {
    let (cluster, members) = Cluster::with_voters(3).await;
    let old = leader(&members).await;
    let rest = others(&members, &old);
    let rest_ids: Vec<_> = rest.iter().map(|m| m.node()).collect();
    cluster.net.cut(&[old.node()], &rest_ids);

    // It cannot commit, and says that the outcome is open; it cannot confirm a read either. Its
    // record stays readable.
    let (proposed, read) = tokio::join!(old.propose(set("lost", 1)), old.read_barrier());
    assert!(matches!(proposed, Err(ProposeError::TimedOut { .. })), "{proposed:?}");
    assert!(read.is_err(), "{read:?}");
    assert_eq!(get(&old.record().borrow(), "lost"), None);

    let new = leader(&rest).await;
    new.propose(set("won", 2)).await.unwrap();
    cluster.net.heal();

    // One history: the new one, without the old leader's unacknowledged change.
    let healed = record(&old, "follows", |r| get(r, "won") == Some(2)).await;
    assert_eq!(get(&healed, "lost"), None);
    let last = leader(&members).await;
    last.propose(set("all", 3)).await.unwrap();
    for member in &members {
        record(member, "agrees", |r| get(r, "all") == Some(3)).await;
    }
    cluster.stop_all(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_off_follower_does_not_depose_the_leader_for_long() {
    let (cluster, members) = Cluster::with_voters(3).await;
    let first = leader(&members).await;
    let cut = others(&members, &first)[0].clone();
    let rest: Vec<_> = members.iter().filter(|m| m.node() != cut.node()).cloned().collect();
    let rest_ids: Vec<_> = rest.iter().map(|m| m.node()).collect();
    cluster.net.cut(&[cut.node()], &rest_ids);
    let term = cut.standing().borrow().term;
    standing(&cut, "stands for election in vain", |s| s.term > term + 1).await;

    // No leader is reachable: clear answer, in bounded time.
    let refused = cut.propose(set("x", 1)).await;
    assert!(
        matches!(refused, Err(ProposeError::NoLeader { .. } | ProposeError::TimedOut { .. })),
        "{refused:?}"
    );
    first.propose(set("y", 2)).await.unwrap();
    cluster.net.heal();
    record(&cut, "comes back", |r| get(r, "y") == Some(2)).await;
    let last = leader(&members).await;
    last.propose(set("z", 3)).await.unwrap();
    cluster.stop_all(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_one_way_cut_from_the_leader_ends_in_one_leader() {
    let (cluster, members) = Cluster::with_voters(3).await;
    let old = leader(&members).await;
    for other in others(&members, &old) {
        cluster.net.cut_one_way(old.node(), other.node());
    }
    let rest = others(&members, &old);
    let new = leader(&rest).await;
    assert_ne!(new.node(), old.node());
    new.propose(set("k", 1)).await.unwrap();
    cluster.net.heal();
    record(&old, "follows", |r| get(r, "k") == Some(1)).await;
    cluster.stop_all(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_costs_nothing_and_a_command_is_applied_once() {
    let (cluster, members) = Cluster::with_voters(3).await;
    let leader = leader(&members).await;
    let follower = others(&members, &leader)[0].clone();
    let version = leader.record().borrow().version;

    // It was taken, and the answer is lost: the same proposal again gets the first one's outcome.
    cluster.net.swallow_answers(1);
    let before = cluster.net.proposals_handed_over();
    let after = follower.propose(set("once", 1)).await.unwrap();
    assert_eq!(get(&after, "once"), Some(1));
    assert!(cluster.net.proposals_handed_over() > before + 1);
    assert_eq!(leader.record().borrow().version, version + 1);

    // A refusal that is lost comes a second time, the same.
    cluster.net.swallow_answers(1);
    let cancel = Command { at_unix_ms: 2, change: Change::CancelSwitchover };
    let refused = follower.propose(cancel).await;
    assert!(matches!(refused, Err(ProposeError::Rejected(_))), "{refused:?}");

    // Nothing ever comes back: only then is the outcome unknown. It was applied once.
    cluster.net.mute_proposals(follower.node(), leader.node());
    let unknown = follower.propose(set("twice", 1)).await;
    assert!(matches!(unknown, Err(ProposeError::TimedOut { .. })), "{unknown:?}");
    assert_eq!(leader.record().borrow().version, version + 2);
    cluster.stop_all(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proposal_to_a_leader_that_falls_silent_reaches_the_next_one() {
    let (cluster, members) = Cluster::with_voters(3).await;
    let old = leader(&members).await;
    let rest = others(&members, &old);
    let ids: Vec<_> = rest.iter().map(|m| m.node()).collect();
    cluster.net.cut(&[old.node()], &ids);
    // The follower still takes the silent one for the leader, and asks it first.
    let before = cluster.net.proposals_handed_over();
    let after = rest[0].propose(set("k", 1)).await.unwrap();
    assert_eq!(get(&after, "k"), Some(1));
    assert!(cluster.net.proposals_handed_over() > before);
    let new = leader(&rest).await;
    assert_ne!(new.node(), old.node());
    cluster.stop_all(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_members_need_each_other() {
    let (cluster, members) = Cluster::with_voters(2).await;
    members[1].propose(set("k", 1)).await.unwrap();
    cluster.net.cut(&[1], &[2]);
    let (one, two) = tokio::join!(members[0].propose(set("k", 2)), members[1].read_barrier());
    assert!(one.is_err() && two.is_err(), "{one:?} {two:?}");
    cluster.net.heal();
    leader(&members).await;
    members[0].propose(set("k", 3)).await.unwrap();
    cluster.stop_all(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go() {
    let (cluster, mut members) = Cluster::with_voters(3).await;
    let leader_ = leader(&members).await;

    // A stranger cannot vote; nobody cannot vote; a learner learns.
    let stranger = leader_.set_voters(BTreeSet::from([1, 2, 9])).await;
    assert!(matches!(stranger, Err(MembershipError::UnknownNode { node: 9 })), "{stranger:?}");
    assert_eq!(leader_.set_voters(BTreeSet::new()).await, Err(MembershipError::NoVoters));
    let fourth = cluster.start(4).await;
    leader_.add_learner(4).await.unwrap();
    leader_.add_learner(4).await.unwrap();
    leader_.wait_caught_up(4, PATIENCE).await.unwrap();
    leader_.propose(set("k", 1)).await.unwrap();
    record(&fourth, "learns", |r| get(r, "k") == Some(1)).await;
    standing(&leader_, "knows the learner", |s| s.learners == BTreeSet::from([4])).await;
    assert_eq!(get(&fourth.read_barrier().await.unwrap(), "k"), Some(1));
    leader_.remove_learner(4).await.unwrap();
    standing(&leader_, "forgets the learner", |s| s.learners.is_empty()).await;

    // A replacement: the new one in, the leader itself out.
    join(&leader_, 4).await;
    let keep: BTreeSet<_> = leader_
        .standing()
        .borrow()
        .voters
        .iter()
        .copied()
        .filter(|n| *n != leader_.node())
        .collect();
    leader_.set_voters(keep.clone()).await.unwrap();
    members.retain(|m| m.node() != leader_.node());
    members.push(fourth);
    cluster.stop(leader_).await;
    let new = leader(&members).await;
    standing(&new, "has the new voters", |s| s.voters == keep && !s.changing).await;
    new.propose(set("k", 2)).await.unwrap();
    cluster.stop_all(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_far_behind_gets_the_whole_record() {
    let (cluster, mut members) = Cluster::with_voters(3).await;
    let leader_ = leader(&members).await;
    let away = others(&members, &leader_)[0].clone();
    members.retain(|m| m.node() != away.node());
    cluster.stop(away.clone()).await;

    // More entries than a snapshot leaves in the log.
    let mut proposals = tokio::task::JoinSet::new();
    for lane in 0..8u64 {
        let leader_ = leader_.clone();
        proposals.spawn(async move {
            for n in 0..160 {
                leader_.propose(set(&format!("lane{lane}"), n)).await.unwrap();
            }
        });
    }
    while let Some(done) = proposals.join_next().await {
        done.unwrap();
    }
    let back = cluster.start(away.node()).await;
    let now = record(&back, "has it all", |r| {
        (0..8).all(|lane| get(r, &format!("lane{lane}")) == Some(159))
    })
    .await;
    assert_eq!(*now, *leader_.read_barrier().await.unwrap());
    members.push(back.clone());
    cluster.stop_all(members).await;

    // It really was a snapshot, the log is short, and the store holds the same record.
    let summary = sempre_consensus::inspect(&cluster.dir(back.node())).unwrap();
    assert!(summary.snapshot_index > Some(500), "{summary:?}");
    assert!(summary.first_log_index > Some(200), "{summary:?}");
    assert_eq!(summary.record, *now);
    assert_eq!(summary.voters, BTreeSet::from([1, 2, 3]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_to_a_former_self_and_garbage_are_refused() {
    let (cluster, members) = Cluster::with_voters(1).await;
    let member = &members[0];
    for kind in CallKind::ALL {
        assert_eq!(kind.as_str().parse::<CallKind>(), Ok(kind));
        for body in [&b""[..], b"x", b"\x01aaaa{}", &[0xff; 300], &vec![1; 20 << 20]] {
            let refused = member.serve(kind, body).await;
            assert!(matches!(refused, Err(ServeError::BadBody { .. })), "{kind}: {refused:?}");
        }
    }
    assert!("gossip".parse::<CallKind>().is_err());
    // What another end sends for node 9 arrives at node 1.
    let seen: Arc<std::sync::Mutex<Vec<_>>> = Arc::default();
    type Seen = Arc<std::sync::Mutex<Vec<(CallKind, Vec<u8>)>>>;
    struct Tap(Seen);
    #[async_trait::async_trait]
    impl sempre_consensus::Transport for Tap {
        async fn call(
            &self,
            to: u64,
            kind: CallKind,
            body: Vec<u8>,
            _: Duration,
        ) -> Result<Vec<u8>, sempre_consensus::TransportError> {
            self.0.lock().unwrap().push((kind, body));
            Err(sempre_consensus::TransportError::Unreachable { to, why: "tapped".into() })
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let config = sempre_consensus::ConsensusConfig::new(dir.path(), 5);
    let other = RaftConsensus::open(config, Arc::new(Tap(seen.clone()))).await.unwrap();
    other.form().await.unwrap();
    other.add_learner(9).await.unwrap();
    let until = Instant::now() + PATIENCE;
    let (kind, body) = loop {
        if let Some(call) = seen.lock().unwrap().first().cloned() {
            break call;
        }
        assert!(Instant::now() < until, "nothing was sent");
        tokio::task::yield_now().await;
    };
    let refused = member.serve(kind, &body).await;
    assert_eq!(refused, Err(ServeError::WrongNode { wanted: 9, here: 1 }));
    other.shutdown().await;
    cluster.stop_all(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_shutdown_every_answer_is_quick_and_clear() {
    let (cluster, members) = Cluster::with_voters(1).await;
    let member = members[0].clone();
    cluster.stop_all(members).await;
    let all = async {
        assert!(matches!(member.propose(set("k", 1)).await, Err(ProposeError::Fault { .. })));
        assert!(matches!(member.read_barrier().await, Err(ProposeError::Fault { .. })));
        assert!(member.promise(Generation(9)).await.is_err());
        assert!(member.set_voters(BTreeSet::from([1])).await.is_err());
        standing(&member, "says so", |s| s.fault.is_some()).await;
        member.shutdown().await;
    };
    timeout(PATIENCE, all).await.unwrap();
    assert_eq!(member.promised(), Generation(0));
}

/// Makes the record a cluster's, with a policy of its own.
fn init(policy: Policy) -> Command {
    let secrets = Secrets { admin: "a".into(), replication: "r".into(), rest: "t".into() };
    let cluster = sempre_model::record::Cluster {
        name: "test".into(),
        id: "id".into(),
        system_identifier: None,
        major_version: None,
        ca_certificate: String::new(),
        ca_key: String::new(),
        secrets,
    };
    let member = Member {
        name: MemberId::new("a").unwrap(),
        node: 1,
        kind: MemberKind::Data,
        paths: vec![],
        ports: Ports::default(),
        zone: None,
        tags: Default::default(),
        own_certificate: false,
    };
    let (cluster, policy, member) = (Box::new(cluster), Box::new(policy), Box::new(member));
    Command { at_unix_ms: 1, change: Change::Init { cluster, policy, member } }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_election_times_are_the_policys_at_open_and_on_change() {
    let (cluster, members) = Cluster::with_voters(3).await;
    let old = leader(&members).await;
    let term = old.standing().borrow().term;
    // Quick at first: the members start anew, nobody loses an office, and proposals go through.
    let quick = Policy { election_min_ms: 400, election_max_ms: 800, ..Policy::default() };
    old.propose(init(quick)).await.unwrap();
    let change = |policy: Policy| Command {
        at_unix_ms: 2,
        change: Change::SetPolicy { policy: Box::new(policy), expect_version: None },
    };
    for (n, member) in members.iter().enumerate() {
        let max = 6_000 + n as u64;
        let slow = Policy { election_min_ms: 4_000, election_max_ms: max, ..Policy::default() };
        member.propose(change(slow)).await.unwrap();
        assert_eq!(get(&member.propose(set("k", max)).await.unwrap(), "k"), Some(max));
    }
    assert_eq!(leader(&members).await.node(), old.node());
    assert_eq!(old.standing().borrow().term, term, "no election");

    // One was opened anew with quick times of its own: the policy's count.
    let rest = others(&members, &old);
    let again = rest[0].node();
    cluster.stop(rest[0].clone()).await;
    let rest = vec![cluster.start(again).await, rest[1].clone()];
    let newest = old.record().borrow().version;
    record(&rest[0], "catches up", |r| r.version == newest).await;
    let stopped = Instant::now();
    cluster.stop(old).await;
    leader(&rest).await;
    let waited = stopped.elapsed();
    assert!(waited > Duration::from_millis(2_500), "a new leader after {waited:?}");
    cluster.stop_all(rest).await;
}
