//! Runs as tables.

use crate::{faults::Fault, load, runner::Run};
use comfy_table::{Table, presets};

/// The median of some numbers; 0 of none.
pub fn median(mut numbers: Vec<u64>) -> u64 {
    numbers.sort_unstable();
    numbers.get(numbers.len() / 2).copied().unwrap_or_default()
}

/// One run in a line, printed as it ends.
pub fn line(run: &Run) -> String {
    let head = format!("{:8} {:15} #{:<3}", run.make, run.fault.name(), run.number);
    if let Some(why) = run.skipped {
        return format!("{head} not run: {why}");
    }
    let saw = match &run.load {
        Some(load) => format!(
            "stall {:5} ms, {} errors, {} retried, {} unknown, {} lost, {} sessions cut, {} rows, p50 {} ms, whole after {} ms, {} -> {}",
            load.stall_ms,
            load.errors,
            load.retried,
            load.unknown,
            load.lost,
            load.sessions_cut,
            load.acked,
            load.p50_ms,
            run.whole_after_ms,
            run.primary.0,
            run.primary.1
        ),
        None => String::new(),
    };
    let mut text = format!("{head} {:9} {saw}", verdict_of(run));
    for failure in &run.failures {
        text += &format!("\n    {failure}");
    }
    if let Some(load) = &run.load
        && (!run.passed() || run.missed_aim())
    {
        for (at, error) in &load.first_errors {
            let since = *at as i64 - run.fault_at_ms as i64;
            text += &format!("\n    {since:+} ms: {error}");
        }
    }
    text
}

fn verdict_of(run: &Run) -> &'static str {
    match (run.passed(), run.missed_aim()) {
        (false, _) => "FAILED",
        (true, true) => "ok, slow",
        (true, false) => "ok",
    }
}

/// The values of one number over the runs that got so far.
fn values(runs: &[&Run], value: impl Fn(&load::Report) -> u64) -> Vec<u64> {
    runs.iter().filter_map(|run| run.load.as_ref()).map(value).collect()
}

fn median_and_max(numbers: Vec<u64>) -> (String, String) {
    let most = numbers.iter().copied().max().unwrap_or_default();
    if numbers.is_empty() {
        return ("-".into(), "-".into());
    }
    (median(numbers).to_string(), most.to_string())
}

/// A line for each fault and make, in the order they were first run.
pub fn table(runs: &[Run]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "fault",
        "make",
        "runs",
        "stall ms: median",
        "max",
        "aim",
        "errors: median",
        "max",
        "retried",
        "unknown",
        "lost",
        "sessions cut",
        "verdict",
    ]);
    let mut kinds: Vec<(Fault, &str)> = Vec::new();
    for run in runs {
        if !kinds.contains(&(run.fault, run.make)) {
            kinds.push((run.fault, run.make));
        }
    }
    for (fault, make) in kinds {
        let these: Vec<&Run> = runs.iter().filter(|r| (r.fault, r.make) == (fault, make)).collect();
        table.add_row(row(fault, make, &these));
    }
    table.to_string()
}

fn row(fault: Fault, make: &str, runs: &[&Run]) -> [String; 13] {
    let (stall, stall_max) = median_and_max(values(runs, |l| l.stall_ms));
    let (errors, errors_max) = median_and_max(values(runs, |l| l.errors as u64));
    let retried = median_and_max(values(runs, |l| l.retried as u64)).0;
    let unknown: u64 = values(runs, |l| l.unknown as u64).iter().sum();
    let lost: u64 = values(runs, |l| l.lost as u64).iter().sum();
    let cut = median_and_max(values(runs, |l| l.sessions_cut as u64)).1;
    let failed = runs.iter().filter(|r| !r.passed()).count();
    let slow = runs.iter().filter(|r| r.passed() && r.missed_aim()).count();
    let skipped = runs.iter().filter(|r| r.skipped.is_some()).count();
    let verdict = match (failed, slow, skipped) {
        (0, _, n) if n == runs.len() => "not run".into(),
        (0, 0, _) => "ok".to_owned(),
        (0, n, _) => format!("ok, {n} slow"),
        (n, ..) => format!("{n} FAILED"),
    };
    let aim = fault.stall_target_ms().map_or("-".into(), |ms| ms.to_string());
    [
        fault.name().into(),
        make.into(),
        runs.len().to_string(),
        stall,
        stall_max,
        aim,
        errors,
        errors_max,
        retried,
        unknown.to_string(),
        lost.to_string(),
        cut,
        verdict,
    ]
}

/// For each fault that both makes went through: how many times longer the other one's stall is.
pub fn ratios(runs: &[Run], ours: &str, theirs: &str) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([
        "fault".to_owned(),
        format!("{ours}: stall ms, errors"),
        format!("{theirs}: stall ms, errors"),
        "stall ratio".to_owned(),
    ]);
    for fault in Fault::all() {
        let of = |make: &str| {
            let these: Vec<&Run> =
                runs.iter().filter(|r| r.fault == fault && r.make == make).collect();
            let stalls = values(&these, |l| l.stall_ms);
            let errors = values(&these, |l| l.errors as u64);
            (!stalls.is_empty()).then(|| (median(stalls), median(errors)))
        };
        if let (Some((a, errors_a)), Some((b, errors_b))) = (of(ours), of(theirs)) {
            table.add_row([
                fault.name().to_owned(),
                format!("{a}, {errors_a}"),
                format!("{b}, {errors_b}"),
                format!("{:.1}", b as f64 / a.max(1) as f64),
            ]);
        }
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_none_is_nothing() {
        assert_eq!(median(vec![]), 0);
        assert_eq!(median(vec![3, 1, 2]), 2);
    }
}
