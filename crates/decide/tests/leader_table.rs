//! Every rule of the leader's table, reached by a view made by hand, with the whole change it
//! proposes.

mod common;

use common::{Cluster3, END, G, NOW, fenced, name, set};
use sempre_decide::{
    leader::{RULES, decide, target, wished_sync},
    restart::LATE_MAX_MS,
};
use sempre_model::{
    Generation, Lsn, Phase, SyncSet, Timeline,
    command::Change,
    observation::{DiskState, ProcessState},
    policy::{Durability, OnCrash},
    record::{Cause, Switchover},
    restart::{RestartConditions, ScheduledRestart, WantedRole},
};

fn proposed(all: &Cluster3) -> Option<(&'static str, Change)> {
    decide(&all.view()).proposal.map(|p| (p.rule, p.change))
}

fn handing_over(me: &str) -> Cluster3 {
    let mut all = Cluster3::serving(me);
    all.record.phase = Phase::HandingOver { to: name("m1"), began_unix_ms: 77 };
    all.since = NOW - 200;
    all
}

/// A moment ago, by the wall clock of a view.
const DUE: u64 = 999_000;

/// A restart is scheduled.
fn scheduled(member: &str, at_unix_ms: u64) -> Cluster3 {
    let mut all = Cluster3::serving("m1");
    schedule(&mut all, member, at_unix_ms, RestartConditions::default());
    all
}

fn schedule(all: &mut Cluster3, member: &str, at_unix_ms: u64, only_if: RestartConditions) {
    let wish = ScheduledRestart { at_unix_ms, only_if, timeout_seconds: None };
    all.record.scheduled_restarts.insert(name(member), wish);
}

/// It is begun, or dropped.
fn restart(member: &str, at_unix_ms: u64, dropped: Option<&str>) -> Change {
    let dropped = dropped.map(str::to_owned);
    Change::EndScheduledRestart { member: name(member), at_unix_ms, dropped }
}

/// One view for each rule, and what is to come of it.
fn table() -> Vec<(&'static str, Cluster3, Change)> {
    let fill = Cluster3::fencing("m2");
    let fill_change = Change::Promote {
        generation: Generation(4),
        to: name("m1"),
        fenced: vec![fenced("m1", Generation(4), END), fenced("m2", Generation(4), END)],
        sync: set(1, &["m2"]),
        evidence: vec![
            "m1 is the most advanced of 2 fenced at 0/1388 on timeline 3; relied on 1 of {m1, m2}"
                .into(),
            "m0 attests that its database is gone".into(),
        ],
    };

    let confirm = Cluster3::promoting("m2");
    let confirm_change = Change::ConfirmServing {
        generation: Generation(4),
        timeline: Timeline(4),
        lsn: Lsn(1_000),
    };

    let mut shrink = Cluster3::promoting("m0");
    shrink.database("m1").downstreams.clear();
    shrink.silent_for("m2", 1_500);
    let shrink_change = Change::SetSync {
        generation: Generation(4),
        expect: set(1, &["m1", "m2"]),
        sync: set(1, &["m1", "m2"]),
        wanted: set(0, &[]),
        why: "first sync set without the lost: 0 of {}".into(),
    };

    let mut complete = handing_over("m1");
    complete.word("m0").attests_below = Generation(4);
    let complete_change = Change::BeginFailover {
        expect: G,
        cause: Cause::Switchover,
        target: Some(name("m1")),
        allow_data_loss: false,
        served_until_unix_ms: 77,
        evidence: vec!["m0 has shut down to hand over to m1".into()],
    };

    let mut lost = Cluster3::serving("m1");
    lost.silent_for("m0", 900);
    for m in ["m1", "m2"] {
        lost.database(m).receiver_age_ms = Some(900);
    }
    let lost_change = Change::BeginFailover {
        expect: G,
        cause: Cause::MemberLost,
        target: None,
        allow_data_loss: false,
        served_until_unix_ms: 1_000_000 - 900,
        evidence: vec!["m1 misses it for 900 ms".into(), "m2 misses it for 910 ms".into()],
    };

    let mut abort = handing_over("m2");
    abort.database("m1").process = ProcessState::Crashed;
    let abort_change =
        Change::AbortHandOver { expect: G, why: "hand-over given up: m1 is lost".into() };

    let mut full = Cluster3::serving("m1");
    full.word("m0").disk = DiskState::Full;

    let mut wish = Cluster3::serving("m1");
    wish.record.switchover = Some(Switchover { to: Some(name("m2")), at_unix_ms: None });
    wish.word("m0").hand_over_ready = true;

    let mut keep = Cluster3::serving("m1");
    keep.silent_for("m2", 1_500);
    let keep_change = Change::SetSync {
        generation: G,
        expect: set(1, &["m1", "m2"]),
        sync: set(1, &["m1", "m2"]),
        wanted: set(1, &["m1"]),
        why: "relied on 1 of {m1, m2}, enforcing 1 of {m1}".into(),
    };

    vec![
        ("fill-vacancy", fill, fill_change),
        ("confirm-serving", confirm, confirm_change),
        ("shrink-while-promoting", shrink, shrink_change),
        ("complete-hand-over", complete, complete_change),
        ("replace-lost-primary", lost, lost_change),
        ("abort-hand-over", abort, abort_change),
        ("leave-full-disk", full, Change::BeginHandOver { expect: G, to: name("m1") }),
        ("begin-hand-over", wish, Change::BeginHandOver { expect: G, to: name("m2") }),
        ("restart-on-schedule", scheduled("m1", DUE), restart("m1", DUE, None)),
        ("keep-sync-set", keep, keep_change),
    ]
}

#[test]
fn each_rule_is_reached_and_proposes_the_whole_change() {
    for (rule, all, change) in table() {
        assert_eq!(proposed(&all), Some((rule, change)));
    }
}

#[test]
fn the_table_of_this_test_is_complete() {
    let rules: Vec<_> = RULES.iter().map(|(rule, _)| *rule).collect();
    let tested: Vec<_> = table().iter().map(|(rule, _, _)| *rule).collect();
    assert_eq!(tested, rules);
}

#[test]
fn a_healthy_cluster_is_left_alone() {
    for me in ["m0", "m1", "m2"] {
        assert_eq!(proposed(&Cluster3::serving(me)), None);
    }
}

#[test]
fn a_word_older_than_the_record_narrows_no_sync_set() {
    let mut all = Cluster3::serving("m1");
    all.record.sync = set(1, &["m0", "m1", "m2"]);
    all.word("m0").record_version = all.record.version - 1;
    assert_eq!(proposed(&all), None, "what it enforced then it may enforce no more");
    all.word("m0").record_version = all.record.version;
    let narrowed = proposed(&all).map(|(rule, _)| rule);
    assert_eq!(narrowed, Some("keep-sync-set"));
}

#[test]
fn a_first_sync_set_is_confirmed_only_when_every_walsender_knows_it() {
    let mut all = Cluster3::promoting("m2");
    all.database("m1").sync_since_lsn = Lsn(u64::MAX);
    assert_eq!(proposed(&all), None);
}

#[test]
fn a_lease_just_granted_is_not_condemned_by_older_words_of_the_voters() {
    let mut all = Cluster3::serving("m1");
    for m in ["m0", "m1", "m2"] {
        all.word(m).grant_ms = 0;
    }
    assert_eq!(proposed(&all), None, "m0 says that it holds it");
    all.word("m0").lease = None;
    all.since = NOW - 10_000;
    assert_eq!(proposed(&all).map(|(rule, _)| rule), Some("replace-lost-primary"));
}

#[test]
fn a_leader_that_was_paused_condemns_nobody_by_old_words() {
    let mut all = Cluster3::serving("m1");
    for heard in all.heard.values_mut() {
        heard.at = NOW - 710;
    }
    all.heard.get_mut(&name("m2")).unwrap().at = NOW - 690;
    all.heard.get_mut(&name("m1")).unwrap().at = NOW;
    all.database("m1").streaming_from = None;
    assert_eq!(proposed(&all).filter(|(rule, _)| *rule == "replace-lost-primary"), None);
}

#[test]
fn a_primary_that_the_leader_itself_streams_from_is_not_lost() {
    let mut all = Cluster3::serving("m1");
    all.silent_for("m0", 900);
    all.database("m2").receiver_age_ms = Some(900);
    assert_eq!(all.database("m1").receiver_age_ms, Some(30));
    assert_eq!(proposed(&all).filter(|(rule, _)| *rule == "replace-lost-primary"), None);
}

#[test]
fn a_named_standby_comes_before_those_that_are_in_the_set() {
    let mut all = Cluster3::serving("m0");
    all.record.policy.sync_spares = 0;
    all.record.members.get_mut(&name("m2")).unwrap().tags.priority = 7;
    (all.record.sync, all.record.sync_wanted) = (set(1, &["m1"]), set(1, &["m1"]));
    let wished = |all: &Cluster3| {
        let database = all.heard[&name("m0")].observation.database.as_ref().unwrap();
        wished_sync(&all.view(), &name("m0"), database)
    };
    assert_eq!(wished(&all), set(1, &["m1"]), "with quorum a steady set matters more");
    all.record.policy.durability = Durability::Sync;
    assert_eq!(wished(&all), set(1, &["m2"]));
}

#[test]
fn a_standby_that_has_not_said_how_far_it_is_gets_no_hand_over() {
    let mut all = Cluster3::serving("m0");
    let wish = Switchover { to: Some(name("m2")), at_unix_ms: None };
    assert_eq!(target(&all.view(), &name("m0"), &wish), Ok(name("m2")));
    let old = &mut all.heard.get_mut(&name("m0")).unwrap().observation;
    let database = old.database.as_mut().unwrap();
    database.downstreams.get_mut(&name("m2")).unwrap().flush_lsn = Lsn(0);
    let why = target(&all.view(), &name("m0"), &wish).unwrap_err();
    assert!(why.contains("m2 has just connected"), "{why}");
}

#[test]
fn an_asynchronous_standby_is_promoted_within_the_limit_of_a_known_position_only() {
    let chosen = |last_lsn: u64| {
        let mut all = Cluster3::fencing("m1");
        all.record.policy.durability = Durability::Async;
        all.record.policy.max_lag_bytes = 1_000;
        all.record.sync = SyncSet::default();
        let old = &mut all.heard.get_mut(&name("m0")).unwrap().observation;
        old.database.as_mut().unwrap().lsn = Lsn(last_lsn);
        proposed(&all).map(|(_, change)| match change {
            Change::Promote { to, .. } => to,
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(chosen(END.0 + 1_000), Some(name("m1")));
    // Beyond it the last primary itself goes on, as it is there; also when its agent has just
    // started, and does not know where the database ended.
    assert_eq!(chosen(END.0 + 1_001), Some(name("m0")));
    assert_eq!(chosen(0), Some(name("m0")));
}

#[test]
fn a_clean_hand_over_goes_to_nobody_on_another_timeline() {
    let mut all = Cluster3::fencing("m0");
    all.database("m0").clean_end_lsn = Some(END);
    all.word("m1").fenced.as_mut().unwrap().timeline = Timeline(2);
    all.word("m1").fenced.as_mut().unwrap().lsn = Lsn(9_000);
    let Some(("fill-vacancy", Change::Promote { to, .. })) = proposed(&all) else {
        panic!("m2 has all of the old primary's WAL")
    };
    assert_eq!(to, name("m2"));
}

#[test]
fn a_standby_on_another_branch_does_not_hold_up_the_first_confirmation() {
    let mut all = Cluster3::promoting("m0");
    all.database("m1").downstreams.clear();
    assert_eq!(proposed(&all), None, "it may still be connecting");
    all.since = NOW - 4_000;
    let rule = proposed(&all).map(|(rule, _)| rule);
    assert_eq!(rule, Some("shrink-while-promoting"));
}

#[test]
fn under_strict_others_take_the_place_of_the_lost() {
    let mut all = Cluster3::promoting("m0");
    all.record.policy.strict = true;
    let Phase::Promoting { sync, .. } = &mut all.record.phase else { unreachable!() };
    *sync = set(1, &[]);
    let Some((rule, Change::SetSync { wanted, .. })) = proposed(&all) else {
        panic!("nobody could ever confirm")
    };
    assert_eq!((rule, wanted), ("shrink-while-promoting", set(1, &["m2"])));
}

#[test]
fn a_crash_is_replaced_or_restarted_as_the_policy_says() {
    for (on_crash, replaced) in [(OnCrash::Failover, true), (OnCrash::Restart, false)] {
        let mut all = Cluster3::serving("m1");
        all.record.policy.on_crash = on_crash;
        all.database("m0").process = ProcessState::Crashed;
        let rule = proposed(&all).map(|(rule, _)| rule);
        assert_eq!(rule == Some("replace-lost-primary"), replaced, "{on_crash:?}: {rule:?}");
    }
}

#[test]
fn a_crash_is_answered_by_what_is_estimated_to_be_faster() {
    // WAL to replay, MB: by the primary when it starts again, by the standby before it leads.
    for (redo, left, replaced) in [(0, 0, true), (10, 2_000, false), (3_000, 2_000, true)] {
        let mut all = Cluster3::serving("m1");
        all.database("m0").process = ProcessState::Crashed;
        all.database("m0").redo_bytes = redo << 20;
        for standby in ["m1", "m2"] {
            all.database(standby).lsn = Lsn(10 << 30);
            all.database(standby).replay_lsn = Lsn((10 << 30) - (left << 20));
        }
        let rule = proposed(&all).map(|(rule, _)| rule);
        assert_eq!(rule == Some("replace-lost-primary"), replaced, "{redo} {left}: {rule:?}");
    }
}

#[test]
fn a_primary_lost_in_a_pause_is_left_as_it_is_and_that_is_kept_in_the_events_once() {
    let mut all = Cluster3::serving("m1");
    let apply = |all: &mut Cluster3, change| {
        let command = sempre_model::Command { at_unix_ms: 1, change };
        all.record.apply(&command).unwrap();
        let version = all.record.version;
        for heard in all.heard.values_mut() {
            heard.observation.record_version = version;
        }
    };
    apply(&mut all, Change::SetPaused(true));
    all.database("m0").process = ProcessState::Crashed;
    let Some(("replace-lost-primary", note @ Change::Note { .. })) = proposed(&all) else {
        panic!("{:?}", proposed(&all));
    };
    apply(&mut all, note);
    assert!(all.record.events.last().unwrap().text.contains("the cluster is paused"));
    let left = decide(&all.view());
    assert_eq!(left.proposal, None);
    assert!(left.why_not.iter().any(|why| why.contains("m0 is lost")), "{:?}", left.why_not);

    apply(&mut all, Change::SetPaused(false));
    assert!(matches!(proposed(&all), Some(("replace-lost-primary", Change::BeginFailover { .. }))));
}

#[test]
fn a_scheduled_restart_waits_for_its_time_and_is_judged_then() {
    assert_eq!(proposed(&scheduled("m1", 1_000_001)), None, "too early");

    let mut all = scheduled("m1", DUE);
    let only_if = RestartConditions { role: Some(WantedRole::Primary), ..Default::default() };
    schedule(&mut all, "m1", DUE, only_if);
    let dropped = Some(("restart-on-schedule", restart("m1", DUE, Some("it is no primary"))));
    assert_eq!(proposed(&all), dropped);

    // What keeps it back for a while keeps it back for so long, and no longer.
    type Hinder = fn(&mut Cluster3);
    let hindered: [(Hinder, &str); 4] = [
        (|all| all.record.paused = true, "the cluster is paused"),
        (|all| all.silent_for("m1", 5_000), "m1 is not running"),
        (|all| all.database("m1").process = ProcessState::Starting, "m1 is not running"),
        (|all| all.record.restarts = [(name("m2"), 9)].into(), "m2 is still to restart"),
    ];
    for (hinder, why) in hindered {
        let mut all = scheduled("m1", DUE);
        hinder(&mut all);
        let decision = decide(&all.view());
        assert!(decision.why_not.contains(&format!("scheduled restart of m1: {why}")));
        assert_ne!(decision.proposal.map(|p| p.rule), Some("restart-on-schedule"));

        let late = 1_000_000 - LATE_MAX_MS - 1;
        schedule(&mut all, "m1", late, RestartConditions::default());
        let dropped = restart("m1", late, Some(&format!("300 s later {why}")));
        assert_eq!(proposed(&all), Some(("restart-on-schedule", dropped)));
    }
}

#[test]
fn restarts_of_one_time_go_round_with_the_primary_last() {
    let mut all = Cluster3::serving("m1");
    for m in ["m0", "m1", "m2"] {
        schedule(&mut all, m, DUE, RestartConditions::default());
    }
    // One that does not run holds up nobody.
    all.database("m1").process = ProcessState::Starting;
    for (next, others) in [("m2", 2), ("m0", 1)] {
        let Some(("restart-on-schedule", change)) = proposed(&all) else {
            panic!("{:?}", proposed(&all));
        };
        assert_eq!(change, restart(next, DUE, None));
        all.record.apply(&sempre_model::Command { at_unix_ms: 1, change }).unwrap();
        assert_eq!(all.record.scheduled_restarts.len(), others);
        all.record.restarts.clear();
    }
}

#[test]
fn the_primary_does_not_restart_before_standbys_that_must_have_a_parameter_first() {
    let mut all = scheduled("m0", DUE);
    all.database("m2").pending_restart = vec!["max_connections".into()];
    let decision = decide(&all.view());
    assert_eq!(decision.proposal, None);
    assert!(decision.why_not[0].contains("in force on m2 first"), "{decision:?}");
    all.database("m2").pending_restart = vec!["shared_buffers".into()];
    assert_eq!(proposed(&all), Some(("restart-on-schedule", restart("m0", DUE, None))));
}

#[test]
fn a_switchover_waits_for_those_who_say_that_they_warm_up_sessions() {
    let mut all = Cluster3::serving("m1");
    all.record.switchover = Some(Switchover { to: Some(name("m2")), at_unix_ms: None });
    all.word("m0").hand_over_ready = true;
    all.word("m2").warming = true;
    let decision = sempre_decide::leader::decide(&all.view());
    assert_eq!(decision.proposal, None);
    assert_eq!(decision.why_not, ["switchover: sessions are warmed up by m2"]);
    // Not for one that is not heard any more: nobody but itself knows when its time is over.
    all.silent_for("m2", 600);
    all.record.switchover = Some(Switchover { to: Some(name("m1")), at_unix_ms: None });
    assert_eq!(proposed(&all).map(|(rule, _)| rule), Some("begin-hand-over"));
}
