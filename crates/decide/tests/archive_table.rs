//! Repositories in the sync set: who is promoted, and who takes over what they have.

mod common;

use common::*;
use sempre_decide::{
    leader::{self, wished_sync},
    member::{self, DataDir, Local, Step},
    promote::{Choice, Grounds, choose},
};
use sempre_model::{
    Generation, Lsn, SyncSet, Timeline,
    backup::{ArchiveView, OnMember, StoreAt},
    command::Change,
    observation::{Database, Downstream, ProcessState, Role},
    record::{Fenced, HistoryEntry},
};

/// The generation of the failover.
const NEXT: Generation = Generation(4);

/// Serving, with an archiver that is attached.
fn archiving() -> Cluster3 {
    let mut cluster = Cluster3::serving("m0");
    cluster.keep_archive();
    let view =
        ArchiveView { timeline: Timeline(3), flushed: END, server: END, gap: None, behind_ms: 0 };
    cluster.word("m2").archives.insert("main".into(), view);
    let downstream = Downstream {
        state: "streaming".into(),
        flush_lsn: END,
        replay_lsn: END,
        sync_state: "quorum".into(),
        reply_age_ms: 10,
        client_addr: None,
    };
    cluster.database("m0").downstreams.insert(name(ARCHIVE), downstream);
    cluster
}

fn wished(cluster: &Cluster3) -> SyncSet {
    let view = cluster.view();
    wished_sync(&view, &name("m0"), view.database(&name("m0")).unwrap())
}

fn relying(end: Lsn) -> Cluster3 {
    Cluster3::relying_on_archive("m1", end)
}

fn archived(lsn: Lsn) -> Fenced {
    fenced(ARCHIVE, NEXT, lsn)
}

fn local<'a>(cluster: &'a Cluster3, database: &'a Database, data: DataDir) -> Local<'a> {
    let running = database.process == ProcessState::Running;
    Local {
        view: cluster.view(),
        promised: NEXT,
        lease_until: None,
        running,
        armed: None,
        fenced_below: NEXT,
        crashed_at: None,
        data,
        database,
        upstream: None,
        sync: SyncSet::default(),
        admitted: false,
        not_streaming_since: None,
        checked_for: Generation(0),
        retry_at: 0,
        settings_differ: false,
        resting: false,
    }
}

#[test]
fn a_repository_stands_in_only_for_standbys_that_are_missing() {
    let mut cluster = archiving();
    assert_eq!(wished(&cluster), set(1, &["m1", "m2"]), "enough without it");
    cluster.record.policy.sync_count = 3;
    assert_eq!(wished(&cluster), set(3, &["m1", "m2", ARCHIVE]));
    cluster.record.policy.sync_count = 1;
    for standby in ["m1", "m2"] {
        cluster.database("m0").downstreams.remove(&name(standby));
    }
    assert_eq!(wished(&cluster), set(1, &[ARCHIVE]));
    let without = |change: &dyn Fn(&mut Cluster3)| {
        let mut cluster = archiving();
        cluster.record.sync = SyncSet::default();
        cluster.database("m0").downstreams.retain(|name, _| name.as_str() == ARCHIVE);
        assert_eq!(wished(&cluster), set(1, &[ARCHIVE]));
        change(&mut cluster);
        assert_eq!(wished(&cluster), SyncSet::default());
    };
    without(&|c| c.record.policy.archive_in_sync_set = false);
    without(&|c| c.record.backups.newest_unix_ms.clear());
    without(&|c| c.word("m2").archives.clear());
    without(&|c| c.word("m2").archives.get_mut("main").unwrap().gap = Some((Lsn(1), Lsn(2))));
    without(&|c| {
        let at = OnMember { member: name("m0"), folder: "/r".into() };
        c.record.backups.repositories.get_mut("main").unwrap().store = StoreAt::Member(at);
    });
    without(&|c| drop(c.database("m0").downstreams.remove(&name(ARCHIVE))));
    without(&|c| {
        let slow = c.database("m0").downstreams.get_mut(&name(ARCHIVE)).unwrap();
        slow.reply_age_ms = 60_000;
    });
}

#[test]
fn an_archiver_that_is_being_replaced_leaves_no_sync_set_for_it() {
    let mut cluster = archiving();
    cluster.record.sync = set(1, &[ARCHIVE]);
    cluster.database("m0").downstreams.clear();
    assert_eq!(wished(&cluster), set(1, &[ARCHIVE]));
    cluster.silent_for("m2", 1_900);
    assert_eq!(wished(&cluster), set(1, &[ARCHIVE]), "another one is about to take its place");
    cluster.silent_for("m2", 5_000);
    assert_eq!(wished(&cluster), SyncSet::default());
}

#[test]
fn nobody_is_promoted_without_what_the_repository_has() {
    let cluster = relying(END);
    let Choice::Promote { to, grounds, .. } = choose(&cluster.view()) else { panic!() };
    assert_eq!((to, grounds), (name("m1"), Grounds::Quorum), "a standby that is as far on");
    let mut cluster = relying(Lsn(END.0 + 10));
    let Choice::Wait(why) = choose(&cluster.view()) else { panic!("nobody has it all") };
    assert!(why.iter().any(|w| w.contains("take it over")), "{why:?}");
    // One of them has taken it over.
    cluster.word("m2").fenced.as_mut().unwrap().lsn = Lsn(END.0 + 10);
    let Choice::Promote { to, .. } = choose(&cluster.view()) else { panic!() };
    assert_eq!(to, name("m2"));
    // The repository is not fenced yet, or for another generation.
    for word in [None, Some(Generation(3))] {
        let mut cluster = relying(END);
        cluster.word("m2").fenced_archives.clear();
        if let Some(generation) = word {
            let old = Fenced { generation, ..archived(END) };
            cluster.word("m2").fenced_archives.insert("main".into(), old);
        }
        assert!(matches!(choose(&cluster.view()), Choice::Wait(_)), "{word:?}");
    }
}

#[test]
fn members_and_repositories_of_one_set_are_both_needed() {
    let mut cluster = relying(END);
    cluster.record.sync = set(1, &["m1", ARCHIVE]);
    let further = Lsn(END.0 + 10);
    cluster.word("m1").fenced.as_mut().unwrap().lsn = further;
    let Choice::Promote { to, .. } = choose(&cluster.view()) else { panic!() };
    assert_eq!(to, name("m1"), "it has what m2 and the repository have, and more");
    cluster.word("m1").fenced = None;
    let Choice::Wait(why) = choose(&cluster.view()) else { panic!("m1 may have more") };
    assert!(why.iter().any(|w| w.contains("waiting for m1")), "{why:?}");
}

#[test]
fn a_timeline_that_never_served_does_not_count() {
    // m1 has the beginning of timeline 4, of a primary that was promoted and lost before it served;
    // the last primary went on with timeline 3 for as long as m2 followed it.
    let mut cluster = Cluster3::fencing("m1");
    let m1 = cluster.word("m1").fenced.as_mut().unwrap();
    (m1.timeline, m1.lsn) = (Timeline(4), Lsn(END.0 + 100));
    m1.ancestors = vec![(Timeline(3), Lsn(END.0 - 10))];
    let Choice::Promote { to, .. } = choose(&cluster.view()) else { panic!() };
    assert_eq!(to, name("m2"));
    // Once that timeline has served, it is the one that counts.
    let served = HistoryEntry { timeline: Timeline(4), ..cluster.record.history[0].clone() };
    cluster.record.history.push(served);
    let Choice::Promote { to, .. } = choose(&cluster.view()) else { panic!() };
    assert_eq!(to, name("m1"));
}

#[test]
fn a_fenced_standby_takes_over_what_it_lacks() {
    let further = Lsn(END.0 + 10);
    let wanted =
        Step::TakeArchived { repository: "main".into(), timeline: Timeline(3), lsn: further };
    let standby = Database {
        process: ProcessState::Running,
        role: Role::Standby,
        has_data: true,
        ..Database::default()
    };
    let data = || DataDir::Present { was_primary: false };
    let step =
        |cluster: &Cluster3| member::next(&local(cluster, &standby, data())).map(|next| next.step);
    assert_eq!(step(&relying(further)), Some(wanted));
    assert_eq!(step(&relying(END)), None, "it has it");
    let mut other_way = relying(further);
    let mine = other_way.word("m1").fenced.as_mut().unwrap();
    mine.timeline = Timeline(9);
    assert_eq!(step(&other_way), None, "nothing that could be taken");
    let mut out_of_reach = relying(further);
    let place = out_of_reach.record.backups.repositories.get_mut("main").unwrap();
    place.members = [name("m2")].into();
    assert_eq!(step(&out_of_reach), None);
}

#[test]
fn a_member_without_data_restores_itself_when_nobody_else_is_left() {
    let mut cluster = relying(END);
    cluster.record.policy.recover_from_backup = true;
    cluster.since = NOW - 20_000;
    for m in ["m1", "m2"] {
        cluster.word(m).fenced = None;
        *cluster.database(m) = Database::default();
    }
    let nothing = Database::default();
    let step = |cluster: &Cluster3| {
        member::next(&local(cluster, &nothing, DataDir::Missing)).map(|next| next.step)
    };
    let wanted = Step::Recover { repository: "main".into(), timeline: Timeline(3), lsn: END };
    cluster.silent_for("m0", 60_000);
    assert_eq!(step(&cluster), Some(wanted));
    cluster.since = NOW - 1_000;
    assert_eq!(step(&cluster), None, "the last primary is waited for");
    cluster.since = NOW - 20_000;
    cluster.record.policy.recover_from_backup = false;
    assert_eq!(step(&cluster), None, "by hand only");
    cluster.record.policy.recover_from_backup = true;
    cluster.database("m2").has_data = true;
    cluster.word("m2").fenced = Some(fenced("m2", NEXT, Lsn(1)));
    assert_eq!(step(&cluster), None, "m2 can take over what it lacks");
}

#[test]
fn a_spare_is_no_standby() {
    let mut cluster = Cluster3::serving("m1");
    let me = cluster.record.members.get_mut(&name("m1")).unwrap();
    me.tags.spare = true;
    let nothing = Database::default();
    let step = |cluster: &Cluster3| {
        let local = Local { promised: G, ..local(cluster, &nothing, DataDir::Missing) };
        member::next(&local).map(|next| next.step)
    };
    assert_eq!(step(&cluster), None);
    cluster.record.members.get_mut(&name("m1")).unwrap().tags.spare = false;
    assert!(matches!(step(&cluster), Some(Step::Clone { .. })));
}

#[test]
fn the_first_set_of_a_new_primary_may_be_a_repository() {
    let mut cluster = relying(END);
    cluster.word("m2").fenced = None;
    let proposal = leader::decide(&cluster.view()).proposal.unwrap();
    let Change::Promote { to, sync, .. } = proposal.change else { panic!("{:?}", proposal.rule) };
    assert_eq!((to, sync), (name("m1"), set(1, &[ARCHIVE])));
}
