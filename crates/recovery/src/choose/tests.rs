use super::*;
use sempre_backup::Stats;
use sempre_model::MemberId;

const SEGMENT: u64 = 16 << 20;

/// The `n`th backup: one segment each.
fn backup(n: u64, ended_unix_ms: u64) -> Backup {
    Backup {
        id: n.to_string(),
        parent: None,
        member: MemberId::new("a").unwrap(),
        from_standby: false,
        version_num: 150_000,
        began_unix_ms: ended_unix_ms.saturating_sub(1),
        ended_unix_ms,
        timeline: Timeline(1),
        start: Lsn(n * SEGMENT),
        stop: Lsn(n * SEGMENT + 1),
        wal_segment_bytes: SEGMENT,
        label: String::new(),
        tablespaces: Vec::new(),
        block_bytes: 1,
        sorted_segments: 0,
        late_segments: 0,
        stats: Stats::default(),
        alarms: Vec::new(),
    }
}

/// All WAL of these segments, each stored at this time.
fn coverage(segments: &[(u64, u64)]) -> Coverage {
    let mut list = WalList::default();
    list.whole.insert(Timeline(1), segments.iter().copied().collect());
    let histories = BTreeMap::from([(Timeline(1), History::first())]);
    Coverage { segment_bytes: SEGMENT, list, ends: BTreeMap::new(), histories }
}

#[test]
fn a_clock_that_jumped_leaves_windows_and_choices_sane() {
    // In the order in which they were made; the second one years ahead.
    let (now, ahead) = (1_000_000, 90_000_000_000);
    let backups = [backup(1, 500_000), backup(2, ahead), backup(3, 600_000), backup(4, 700_000)];
    let all = coverage(&[(1, 500_001), (2, ahead + 1), (3, 600_001), (4, 700_001)]);
    let found = windows(&backups, &all, now);
    let window = |from_unix_ms, to_unix_ms| Window { from_unix_ms, to_unix_ms, open: true };
    assert_eq!(found, [window(500_000, now), window(ahead, ahead)]);
    let chosen = |goal| choose(&backups, &all, &goal).unwrap().id.clone();
    assert_eq!(chosen(Goal::Latest), "4", "the newest, whatever the clock said");
    assert_eq!(chosen(Goal::Time(650_000)), "3");
    assert_eq!(chosen(Goal::Time(550_000)), "1", "never one that claims to be later");
    assert_eq!(chosen(Goal::Lsn(Lsn(2 * SEGMENT + 5))), "2");
    let early = choose(&backups, &all, &Goal::Time(1)).unwrap_err().to_string();
    assert!(early.contains("begins at"), "{early}");
}

#[test]
fn a_gap_in_the_wal_ends_a_window() {
    let backups = [backup(1, 100), backup(2, 200), backup(4, 400)];
    let with_gap = coverage(&[(1, 101), (2, 201), (4, 401)]);
    let found: Vec<_> = windows(&backups, &with_gap, 500)
        .iter()
        .map(|w| (w.from_unix_ms, w.to_unix_ms, w.open))
        .collect();
    assert_eq!(found, [(100, 201, false), (400, 500, true)]);
    let beyond = choose(&backups[..2], &with_gap, &Goal::Lsn(Lsn(4 * SEGMENT + 2))).unwrap_err();
    assert!(beyond.to_string().contains("goes up to"), "{beyond}");
}
