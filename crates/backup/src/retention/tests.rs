use super::*;
use crate::Stats;
use proptest::{collection::vec, prelude::*};
use sempre_model::{MemberId, Timeline};

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;
/// Monday, 2024-01-01 00:00 UTC.
const MONDAY_MS: u64 = 1_704_067_200_000;

pub(crate) fn backup(id: &str, ended_unix_ms: u64) -> Backup {
    Backup {
        id: id.to_owned(),
        parent: None,
        member: MemberId::new("a").unwrap(),
        from_standby: false,
        version_num: 150_000,
        began_unix_ms: ended_unix_ms.saturating_sub(1),
        ended_unix_ms,
        timeline: Timeline(1),
        start: Lsn(ended_unix_ms),
        stop: Lsn(ended_unix_ms),
        wal_segment_bytes: 16 << 20,
        label: String::new(),
        tablespaces: Vec::new(),
        block_bytes: 1,
        sorted_segments: 0,
        late_segments: 0,
        stats: Stats::default(),
        alarms: Vec::new(),
    }
}

fn kept(verdicts: &[Verdict]) -> BTreeSet<String> {
    verdicts.iter().filter(|v| v.is_kept()).map(|v| v.id.clone()).collect()
}

/// How long ago, in hours, each kept one ended, with its reasons.
fn ages(policy: Retention, hours_ago: &[u64], now: u64) -> Vec<(u64, Vec<Reason>)> {
    let backups: Vec<_> =
        hours_ago.iter().map(|h| backup(&format!("{h}"), now - h * HOUR_MS)).collect();
    let verdicts = policy.judge(&backups, &BTreeSet::new(), now);
    let kept = verdicts.into_iter().filter(Verdict::is_kept);
    kept.map(|v| ((now - v.ended_unix_ms) / HOUR_MS, v.reasons)).collect()
}

#[test]
fn each_rule_keeps_what_it_says() {
    use Reason::*;
    let now = MONDAY_MS + 10 * DAY_MS + 5 * HOUR_MS; // Thursday the 11th, 05:00
    let every_6_hours: Vec<u64> = (0..60).map(|n| n * 6).collect();
    let last = Retention { last: 2, ..Default::default() };
    assert_eq!(ages(last, &every_6_hours, now), [(6, vec![Last]), (0, vec![Newest, Last])]);
    let daily = Retention { daily: 3, ..Default::default() };
    assert_eq!(
        ages(daily, &every_6_hours, now),
        [(30, vec![Daily]), (6, vec![Daily]), (0, vec![Newest, Daily])],
        "Tuesday 23:00, Wednesday 23:00, today"
    );
    let weekly = Retention { weekly: 2, monthly: 2, yearly: 1, ..Default::default() };
    assert_eq!(
        ages(weekly, &every_6_hours, now),
        [(246, vec![Monthly]), (78, vec![Weekly]), (0, vec![Newest, Weekly, Monthly, Yearly])],
        "the last of December, the last Sunday, now"
    );
    let window = Retention { window_ms: 12 * HOUR_MS, ..Default::default() };
    assert_eq!(
        ages(window, &[0, 11, 12, 13, 20], now),
        [(12, vec![BeforeWindow]), (11, vec![Window]), (0, vec![Newest, Window])]
    );
    // A clock that jumped back: what is of the future is in the window.
    let ahead = [backup("a", now), backup("b", now + DAY_MS)];
    assert_eq!(kept(&window.judge(&ahead, &BTreeSet::new(), now)).len(), 2);
    assert_eq!(ages(Retention::default(), &every_6_hours, now).len(), 60, "no rule, nothing goes");
    assert!(Retention { last: 9, ..last }.judge(&[], &BTreeSet::new(), now).is_empty());
}

#[test]
fn wal_is_needed_from_the_oldest_start() {
    let kept = [backup("a", 500), backup("b", 300)];
    assert_eq!(oldest_needed_wal(&kept, &[]), Some(Lsn(300)));
    assert_eq!(oldest_needed_wal(&kept, &[Some(Lsn(200)), Some(Lsn(400))]), Some(Lsn(200)));
    assert_eq!(oldest_needed_wal(&kept, &[Some(Lsn(200)), None]), None, "not known");
    assert_eq!(oldest_needed_wal(&[], &[Some(Lsn(200))]), None, "no backup yet");
}

fn policies() -> impl Strategy<Value = Retention> {
    let count = || 0..5u32;
    let window = prop_oneof![Just(0), 1..60 * DAY_MS];
    (count(), count(), count(), count(), count(), count(), window).prop_map(
        |(last, hourly, daily, weekly, monthly, yearly, window_ms)| Retention {
            last,
            hourly,
            daily,
            weekly,
            monthly,
            yearly,
            window_ms,
        },
    )
}

fn backups() -> impl Strategy<Value = Vec<Backup>> {
    // Close together and far apart; some at the same moment, some in the future.
    let ended = prop_oneof![
        (0..800 * DAY_MS).prop_map(|ms| MONDAY_MS + ms),
        (0..50u64).prop_map(|n| MONDAY_MS + 790 * DAY_MS + n * HOUR_MS),
    ];
    vec(ended, 0..40).prop_map(|times| {
        let numbered = times.into_iter().enumerate();
        numbered.map(|(n, ended)| backup(&format!("{ended}-{n}"), ended)).collect()
    })
}

fn nows() -> impl Strategy<Value = u64> {
    (700 * DAY_MS..900 * DAY_MS).prop_map(|ms| MONDAY_MS + ms)
}

/// Wider in every rule. (A policy without a rule keeps all, and is none of these.)
fn wider(a: &Retention, b: &Retention) -> Retention {
    Retention {
        last: a.last + b.last,
        hourly: a.hourly + b.hourly,
        daily: a.daily + b.daily,
        weekly: a.weekly + b.weekly,
        monthly: a.monthly + b.monthly,
        yearly: a.yearly + b.yearly,
        window_ms: a.window_ms + b.window_ms,
    }
}

fn held_of(backups: &[Backup], every: usize) -> BTreeSet<String> {
    backups.iter().step_by(every).map(|b| b.id.clone()).collect()
}

proptest! {
    #[test]
    fn a_wider_policy_keeps_all_that_a_narrower_one_does(
        narrow in policies(), more in policies(), backups in backups(), now in nows(),
    ) {
        prop_assume!(narrow != Retention::default());
        let held = BTreeSet::new();
        let narrower = kept(&narrow.judge(&backups, &held, now));
        let wide = kept(&wider(&narrow, &more).judge(&backups, &held, now));
        prop_assert!(narrower.is_subset(&wide));
    }

    #[test]
    fn the_newest_and_the_held_stay(
        policy in policies(), backups in backups(), now in nows(), every in 1..9usize,
    ) {
        let held = held_of(&backups, every);
        let kept = kept(&policy.judge(&backups, &held, now));
        prop_assert!(held.is_subset(&kept));
        let newest = backups.iter().map(|b| b.ended_unix_ms).max();
        let kept_newest =
            backups.iter().filter(|b| kept.contains(&b.id)).map(|b| b.ended_unix_ms).max();
        prop_assert_eq!(newest, kept_newest);
    }

    #[test]
    fn every_moment_of_the_window_can_be_restored_as_well_as_before(
        policy in policies(), backups in backups(), now in nows(), moment in 0.0..1.0f64,
    ) {
        prop_assume!(policy.window_ms > 0);
        let kept = kept(&policy.judge(&backups, &BTreeSet::new(), now));
        let moment = now - (policy.window_ms as f64 * moment) as u64;
        // The backup one would restore from is the newest that ended by then.
        let best = |b: &&Backup| b.ended_unix_ms <= moment;
        let before = backups.iter().filter(best).map(|b| b.ended_unix_ms).max();
        let after = backups.iter().filter(|b| kept.contains(&b.id)).filter(best);
        prop_assert_eq!(before, after.map(|b| b.ended_unix_ms).max());
    }

    #[test]
    fn the_order_they_come_in_does_not_matter(
        policy in policies(),
        (backups, shuffled) in backups().prop_flat_map(|b| (Just(b.clone()), Just(b).prop_shuffle())),
        now in nows(),
    ) {
        let held = held_of(&backups, 7);
        prop_assert_eq!(policy.judge(&backups, &held, now), policy.judge(&shuffled, &held, now));
    }

    #[test]
    fn what_is_kept_is_kept_again(policy in policies(), backups in backups(), now in nows()) {
        let held = held_of(&backups, 7);
        let once = kept(&policy.judge(&backups, &held, now));
        let left: Vec<_> = backups.into_iter().filter(|b| once.contains(&b.id)).collect();
        prop_assert_eq!(kept(&policy.judge(&left, &held, now)), once);
    }

    #[test]
    fn nothing_that_is_needed_is_before_the_oldest_wal(
        backups in backups(), writers in vec(any::<Option<u64>>(), 0..4),
    ) {
        let writers: Vec<_> = writers.into_iter().map(|w| w.map(Lsn)).collect();
        if let Some(oldest) = oldest_needed_wal(&backups, &writers) {
            prop_assert!(backups.iter().all(|b| b.start >= oldest));
            prop_assert!(writers.iter().all(|w| w.is_some_and(|w| w >= oldest)));
        }
    }
}

#[test]
fn a_clock_that_jumped_makes_no_backup_newer_or_older_than_it_is() {
    let now = MONDAY_MS + 9 * DAY_MS;
    // As they were made; the third one while the clock was years ahead, the fifth one while it was in 1970.
    let times =
        [now - 5 * HOUR_MS, now - 4 * HOUR_MS, now + 3000 * DAY_MS, now - 2 * HOUR_MS, 7, now];
    let backups: Vec<_> = times
        .iter()
        .enumerate()
        .map(|(n, time)| Backup { stop: Lsn(n as u64), ..backup(&n.to_string(), *time) })
        .collect();
    let kept = |policy: Retention, count: usize| {
        let verdicts = policy.judge(&backups[..count], &BTreeSet::new(), now);
        kept(&verdicts).into_iter().collect::<Vec<_>>().join(" ")
    };
    let last = Retention { last: 2, ..Default::default() };
    assert_eq!(kept(last, 6), "4 5");
    assert_eq!(kept(last, 4), "2 3", "the one of the future is not the newest for ever");
    let daily = Retention { daily: 3, ..Default::default() };
    assert_eq!(kept(daily, 6), "2 3 5", "of each day that was said the newest");
    let window = Retention { window_ms: 3 * HOUR_MS, ..Default::default() };
    // Those within it, and more than is needed rather than less: the newest that is older than it.
    assert_eq!(kept(window, 6), "2 3 4 5");
    assert_eq!(kept(window, 4), "1 2 3");
}
