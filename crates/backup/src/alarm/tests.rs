use super::*;
use crate::Retention;

const MB: u64 = 1_000_000;

fn stats(bytes: u64, new_bytes: u64, noise_bytes: u64, turned_bytes: u64) -> Stats {
    let rewritten_bytes = new_bytes;
    Stats { bytes, new_bytes, rewritten_bytes, noise_bytes, turned_bytes, ..Stats::default() }
}

fn said(now: Stats, before: &[Stats]) -> String {
    alarms(&now, before.last(), before).join("; ")
}

#[test]
fn what_was_encrypted_is_told_from_a_usual_load() {
    let full = stats(500 * MB, 480 * MB, 2 * MB, 0);
    let usual = [full, stats(510 * MB, 400 * MB, 3 * MB, MB)];
    assert_eq!(said(stats(520 * MB, 500 * MB, 4 * MB, 2 * MB), &usual), "", "all of it changed");
    let in_place = said(stats(510 * MB, 100 * MB, 95 * MB, 90 * MB), &usual);
    assert!(in_place.contains("90.0 MB of it in place") && in_place.contains("95 %"), "{in_place}");
    // Rows that were updated stand elsewhere, with the old ones between them.
    let updated = said(stats(600 * MB, 200 * MB, 90 * MB, 0), &usual);
    assert!(updated.contains("45 %; 1 % are usual") && !updated.contains("place"), "{updated}");
    assert_eq!(said(stats(520 * MB, 20 * MB, 19 * MB, 19 * MB), &usual), "", "too little");
    assert_eq!(said(full, &[]), "", "the first");
}

#[test]
fn noise_is_usual_where_pictures_are_kept() {
    let pictures = [stats(900 * MB, 900 * MB, 800 * MB, 0), stats(950 * MB, 60 * MB, 50 * MB, 0)];
    assert_eq!(said(stats(999 * MB, 60 * MB, 58 * MB, 0), &pictures), "");
    let turned = said(stats(950 * MB, 300 * MB, 290 * MB, 200 * MB), &pictures);
    assert!(turned.contains("200.0 MB of it in place"), "{turned}");
}

#[test]
fn odd_growth_and_shrinking_are_told() {
    let grown = |sizes: &[u64]| -> Vec<Stats> {
        sizes.iter().map(|size| stats(size * MB, MB, 0, 0)).collect()
    };
    assert!(said(stats(40 * MB, MB, 0, 0), &grown(&[100])).contains("from 100.0 MB to 40.0 MB"));
    assert_eq!(said(stats(60 * MB, MB, 0, 0), &grown(&[100])), "");
    assert_eq!(said(stats(MB, MB, 0, 0), &grown(&[30])), "", "too small to tell");
    let steady = grown(&[100, 102, 101, 104]);
    assert!(said(stats(160 * MB, MB, 0, 0), &steady).contains("at most 3.0 MB are usual"));
    assert_eq!(said(stats(150 * MB, MB, 0, 0), &steady), "", "less than half");
    assert_eq!(said(stats(900 * MB, MB, 0, 0), &grown(&[30, 31])), "", "too few to tell");
    assert_eq!(said(stats(900 * MB, MB, 0, 0), &grown(&[30, 200, 400])), "", "as it uses to");
}

#[test]
fn retention_keeps_the_last_good_one_until_the_alarm_is_accepted() {
    let backup = |(n, alarm): (usize, &bool)| {
        let mut backup = crate::retention::tests::backup(&n.to_string(), n as u64 * 3_600_000);
        backup.alarms.extend(alarm.then(|| "odd".to_owned()));
        backup
    };
    let kept = |alarms: &[bool], accepted: &[&str]| {
        let backups: Vec<_> = alarms.iter().enumerate().map(backup).collect();
        let rules = Retention { last: 1, ..Retention::default() };
        let mut plan = rules.judge(&backups, &BTreeSet::new(), u64::MAX / 4);
        keep(&mut plan, &backups, &accepted.iter().map(|id| (*id).to_owned()).collect());
        let kept = plan.into_iter().filter(Verdict::is_kept).map(|verdict| verdict.id);
        kept.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(kept(&[false; 4], &[]), "3");
    assert_eq!(kept(&[false, false, true, false, false], &[]), "1 2 4");
    assert_eq!(kept(&[false, false, true, true, true], &[]), "1 2 4", "the first one counts");
    assert_eq!(kept(&[false, true, false, true, true], &[]), "0 1 2 4");
    assert_eq!(kept(&[false, true, false, true, true], &["1"]), "2 3 4");
    assert_eq!(kept(&[false, false, true, false, false], &["2"]), "4");
    assert_eq!(kept(&[true, false], &[]), "0 1", "there is none before it");
}
