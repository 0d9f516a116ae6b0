//! Every rule of the member's table, reached by a situation made by hand, with the whole step.

mod common;

use common::{Cluster3, END, G, NOW, name, set};
use sempre_decide::member::{DataDir, Local, RULES, Step, next};
use sempre_model::{
    Generation, Lsn, MemberId, Phase, SyncSet, Timeline,
    observation::{Database, ProcessState, Role},
    record::Switchover,
};

/// A [`Local`] without what it borrows.
struct Situation {
    all: Cluster3,
    promised: Generation,
    lease: bool,
    running: bool,
    armed: Option<Generation>,
    fenced_below: Generation,
    data: DataDir,
    upstream: Option<MemberId>,
    sync: SyncSet,
    admitted: bool,
    not_streaming: Option<u64>,
    checked_for: Generation,
    settings_differ: bool,
    resting: bool,
}

impl Situation {
    /// As the agent of a healthy member would have it.
    fn of(all: Cluster3) -> Self {
        let is_primary = all.record.primary.as_ref() == Some(&all.me);
        let generation = all.record.generation;
        let sync = all.record.sync_wanted.clone();
        Self {
            promised: generation,
            lease: is_primary,
            running: true,
            armed: is_primary.then_some(generation),
            fenced_below: Generation(0),
            data: DataDir::Present { was_primary: is_primary },
            upstream: all.record.primary.clone().filter(|_| !is_primary),
            sync,
            admitted: is_primary,
            not_streaming: None,
            checked_for: Generation(0),
            settings_differ: false,
            resting: false,
            all,
        }
    }

    fn next(&self) -> Option<(&'static str, Step)> {
        let nothing = Database::default();
        let heard = self.all.heard.get(&self.all.me);
        let own = heard.and_then(|h| h.observation.database.as_ref()).unwrap_or(&nothing);
        let local = Local {
            view: self.all.view(),
            promised: self.promised,
            lease_until: self.lease.then_some(NOW + 1_500),
            running: self.running,
            armed: self.armed,
            fenced_below: self.fenced_below,
            crashed_at: None,
            data: self.data.clone(),
            database: own,
            upstream: self.upstream.clone(),
            sync: self.sync.clone(),
            admitted: self.admitted,
            not_streaming_since: self.not_streaming.map(|ms| NOW - ms),
            checked_for: self.checked_for,
            retry_at: 0,
            settings_differ: self.settings_differ,
            resting: self.resting,
        };
        next(&local).map(|n| (n.rule, n.step))
    }
}

fn serving(me: &str) -> Situation {
    Situation::of(Cluster3::serving(me))
}

fn table() -> Vec<(&'static str, Situation, Step)> {
    let mut old = Situation::of(Cluster3::fencing("m0"));
    old.armed = Some(G);

    let mut streams = Situation::of(Cluster3::fencing("m1"));
    streams.fenced_below = Generation(4);
    streams.upstream = Some(name("m0"));

    let further = Lsn(END.0 + 10);
    let mut behind = Situation::of(Cluster3::relying_on_archive("m1", further));
    behind.fenced_below = Generation(4);
    behind.upstream = None;

    let mut spare = Situation::of(Cluster3::relying_on_archive("m1", END));
    spare.all.record.policy.recover_from_backup = true;
    spare.all.since = NOW - 20_000;
    for m in ["m1", "m2"] {
        spare.all.word(m).fenced = None;
        spare.all.database(m).has_data = false;
    }
    spare.fenced_below = Generation(4);
    spare.running = false;
    spare.data = DataDir::Missing;

    let (repository, timeline) = ("main".to_owned(), Timeline(3));
    let take = Step::TakeArchived { repository: repository.clone(), timeline, lsn: further };
    let recover = Step::Recover { repository, timeline, lsn: END };

    let cut_off = alone();

    let mut hands_over = serving("m0");
    hands_over.all.record.phase = Phase::HandingOver { to: name("m1"), began_unix_ms: 0 };

    let mut chosen = Situation::of(Cluster3::promoting("m1"));
    let database = chosen.all.database("m1");
    database.role = Role::Standby;
    chosen.armed = None;
    chosen.data = DataDir::Present { was_primary: false };

    let mut empty = serving("m2");
    empty.running = false;
    empty.data = DataDir::Missing;

    let mut stopped = serving("m2");
    stopped.running = false;

    let mut asked = serving("m2");
    asked.all.record.restarts.insert(name("m2"), 9);

    let mut differs = serving("m2");
    differs.settings_differ = true;

    vec![
        ("fence-old-primary", old, Step::Fence { below: Generation(4) }),
        ("stay-fenced", streams, Step::Follow { upstream: None }),
        ("take-archived", behind, take),
        ("recover-from-backup", spare, recover),
        ("rest-alone", cut_off, Step::Rest),
        ("hand-over", hands_over, Step::HandOver),
        ("be-primary", chosen, Step::Promote { generation: Generation(4), sync: set(1, &["m2"]) }),
        ("get-data", empty, Step::Clone { from: name("m1"), discard: false }),
        ("be-standby", stopped, Step::StartStandby { upstream: Some(name("m0")) }),
        ("restart-on-request", asked, Step::Restart),
        ("reload", differs, Step::Reload),
    ]
}

/// The primary, whose lease has ended and whose guard has ended the database; nobody is heard.
fn alone() -> Situation {
    let mut situation = serving("m0");
    situation.lease = false;
    situation.running = false;
    situation.armed = None;
    for other in ["m1", "m2"] {
        situation.all.heard.get_mut(&name(other)).unwrap().at = NOW - 6_000;
    }
    situation
}

#[test]
fn one_that_is_read_alone_is_never_promoted_but_stopped_first() {
    let mut situation = alone();
    situation.running = true;
    situation.resting = true;
    situation.all.database("m0").role = Role::Standby;
    situation.upstream = None;
    assert_eq!(situation.next(), None, "it is read");
    situation.lease = true;
    assert_eq!(situation.next(), None, "whatever it believes to hold");

    // One other is a majority again: it stops, whoever is primary then.
    situation.all.heard.get_mut(&name("m1")).unwrap().at = NOW;
    assert_eq!(situation.next(), Some(("rest-alone", Step::EndRest)));
    situation.running = false;
    let step = Step::StartPrimary { generation: G, sync: set(1, &["m1", "m2"]) };
    assert_eq!(situation.next(), Some(("be-primary", step)), "its own WAL goes on");
    situation.all.record.primary = Some(name("m1"));
    situation.all.record.generation = Generation(4);
    situation.promised = Generation(4);
    situation.all.database("m1").role = Role::Primary;
    situation.all.database("m1").generation = Generation(4);
    situation.all.database("m1").admitted = true;
    let step = Step::Rejoin { upstream: name("m1") };
    assert_eq!(situation.next(), Some(("get-data", step)), "it may have WAL nobody else has");
}

#[test]
fn nothing_is_started_to_be_read_while_a_majority_is_heard_or_in_a_pause() {
    let mut situation = alone();
    situation.all.heard.get_mut(&name("m1")).unwrap().at = NOW;
    assert_eq!(situation.next(), None);
    let mut situation = alone();
    situation.all.record.paused = true;
    assert_eq!(situation.next(), None);
    let mut situation = alone();
    situation.data = DataDir::Present { was_primary: false };
    assert_eq!(situation.next(), None);
}

#[test]
fn each_rule_is_reached_and_gives_the_whole_step() {
    for (rule, situation, step) in table() {
        assert_eq!(situation.next(), Some((rule, step)));
    }
}

#[test]
fn the_table_of_this_test_is_complete() {
    let rules: Vec<_> = RULES.iter().map(|(rule, _)| *rule).collect();
    let tested: Vec<_> = table().iter().map(|(rule, _, _)| *rule).collect();
    assert_eq!(tested, rules);
}

#[test]
fn a_healthy_member_does_nothing() {
    for me in ["m0", "m1", "m2"] {
        assert_eq!(serving(me).next(), None, "{me}");
    }
}

#[test]
fn nothing_is_served_without_the_lease() {
    let mut situation = serving("m0");
    situation.lease = false;
    situation.running = false;
    situation.armed = None;
    assert_eq!(situation.next(), None);
    situation.lease = true;
    let sync = set(1, &["m1", "m2"]);
    let step = Step::StartPrimary { generation: G, sync };
    assert_eq!(situation.next(), Some(("be-primary", step)));
}

#[test]
fn clients_are_let_in_only_when_what_recovery_left_is_safe() {
    let mut situation = serving("m0");
    situation.admitted = false;
    situation.all.database("m0").recovered_lsn = END;
    assert_eq!(situation.next(), Some(("be-primary", Step::Admit(true))));
    situation.all.database("m0").downstreams.clear();
    assert_eq!(situation.next(), None);
}

#[test]
fn the_set_is_enforced_only_when_a_failover_finds_its_commits() {
    let mut situation = serving("m0");
    situation.all.record.sync_wanted = set(1, &["m1"]);
    let step = Step::SetSync { sync: set(1, &["m1"]) };
    assert_eq!(situation.next(), Some(("be-primary", step)));
    situation.all.record.sync_wanted = set(0, &[]);
    assert_eq!(situation.next(), None, "the record still relies on one of two");
}

#[test]
fn one_promoted_that_went_down_before_it_served_goes_on() {
    let mut situation = Situation::of(Cluster3::promoting("m1"));
    situation.running = false;
    situation.armed = None;
    situation.sync = set(1, &["m2"]);
    let step = Step::StartPrimary { generation: Generation(4), sync: set(1, &["m2"]) };
    assert_eq!(situation.next(), Some(("be-primary", step)));
}

#[test]
fn one_promoted_that_never_served_is_fenced_like_a_standby() {
    let mut situation = Situation::of(Cluster3::fencing("m1"));
    situation.running = false;
    situation.fenced_below = Generation(4);
    situation.upstream = None;
    situation.data = DataDir::Present { was_primary: true };
    situation.all.database("m1").process = ProcessState::Stopped;
    assert_eq!(situation.next(), None, "it served: its WAL is compared first");
    situation.all.database("m1").timeline = Timeline(4);
    assert_eq!(situation.next(), Some(("stay-fenced", Step::StartStandby { upstream: None })));
}

#[test]
fn nothing_is_thrown_away_before_the_new_primary_is_confirmed_unless_nobody_else_could() {
    let mut situation = Situation::of(Cluster3::promoting("m0"));
    situation.running = false;
    situation.data = DataDir::Present { was_primary: true };
    situation.fenced_below = Generation(4);
    assert_eq!(situation.next(), None);
    let Phase::Promoting { sync, .. } = &mut situation.all.record.phase else { unreachable!() };
    *sync = set(1, &[]);
    let step = Step::Rejoin { upstream: name("m1") };
    assert_eq!(situation.next(), Some(("get-data", step)));
}

#[test]
fn a_checkpoint_comes_before_a_hand_over() {
    let mut situation = serving("m0");
    situation.all.record.switchover = Some(Switchover { to: None, at_unix_ms: None });
    // Not while sessions are warmed up, by whomever: it would be long ago then.
    situation.all.word("m2").warming = true;
    assert_eq!(situation.next(), None);
    situation.all.word("m2").warming = false;
    assert_eq!(situation.next(), Some(("hand-over", Step::Checkpoint)));
    situation.all.word("m0").hand_over_ready = true;
    assert_eq!(situation.next(), None);
}

#[test]
fn one_that_knows_an_older_record_than_it_promised_stays_fenced() {
    let mut situation = serving("m0");
    situation.promised = Generation(5);
    let step = Step::Fence { below: Generation(5) };
    assert_eq!(situation.next(), Some(("fence-old-primary", step)));
}

#[test]
fn a_ring_of_cascades_is_opened_at_one_place() {
    // Two that are to receive from each other: one goes to the primary.
    for (me, other, upstream) in [("m1", "m2", "m0"), ("m2", "m1", "m1")] {
        let mut situation = serving(me);
        for (member, from) in [(me, other), (other, me)] {
            let member = situation.all.record.members.get_mut(&name(member)).unwrap();
            member.tags.replicate_from = Some(name(from));
        }
        let next = situation.next();
        if upstream == "m0" {
            assert_eq!(next, None, "{me} streams from the primary, and goes on");
        } else {
            let follow = Step::Follow { upstream: Some(name(upstream)) };
            assert_eq!(next, Some(("be-standby", follow)));
        }
    }
}

#[test]
fn a_copy_comes_from_the_least_loaded_member() {
    let from = |change: fn(&mut Situation)| {
        let mut empty = serving("m2");
        empty.running = false;
        empty.data = DataDir::Missing;
        change(&mut empty);
        match empty.next() {
            Some((_, Step::Clone { from, .. })) => from,
            other => panic!("no copy but {other:?}"),
        }
    };
    assert_eq!(from(|_| {}), name("m1"), "a standby is spared less than the primary");
    assert_eq!(from(|s| s.all.database("m1").streaming_from = None), name("m0"));
    assert_eq!(
        from(|s| {
            let end = s.all.database("m0").lsn;
            s.all.database("m0").lsn = sempre_model::Lsn(end.0 + (1 << 40));
        }),
        name("m0"),
        "one far behind would bring old data"
    );
}
