//! Queries a second and their time.

use super::ways::{Way, Ways};
use super::{median, table, ways};
use anyhow::{Context, Result};
use std::{collections::BTreeMap, fs};

const MODES: [&str; 3] = ["simple", "extended", "prepared"];

struct Run {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
}

pub fn measure(ways: &Ways, rounds: usize, seconds: u32, clients: u32) -> Result<()> {
    let mut shown = table(&["mode", "way", "queries/s", "of direct", "p50 µs", "p99 µs"]);
    for mode in MODES {
        let mut runs: BTreeMap<&str, Vec<Run>> = BTreeMap::new();
        for _ in 0..rounds {
            for way in &ways.all {
                let run = pgbench(ways, way, mode, seconds, clients)?;
                eprintln!("{mode}, {}: {:.0} queries/s", way.name, run.per_second);
                runs.entry(way.name).or_default().push(run);
            }
        }
        let of = |way: &str, value: fn(&Run) -> f64| {
            median(runs.get(way).into_iter().flatten().map(value).collect())
        };
        let direct = of("direct", |run| run.per_second);
        for way in &ways.all {
            let per_second = of(way.name, |run| run.per_second);
            shown.add_row([
                mode.to_owned(),
                way.name.to_owned(),
                format!("{per_second:.0}"),
                format!("{:.0} %", per_second / direct * 100.0),
                format!("{:.0}", of(way.name, |run| run.p50_us)),
                format!("{:.0}", of(way.name, |run| run.p99_us)),
            ]);
        }
    }
    println!("pgbench -S, {clients} clients, {rounds} rounds of {seconds} s, medians\n{shown}");
    Ok(())
}

fn pgbench(ways: &Ways, way: &Way, mode: &str, seconds: u32, clients: u32) -> Result<Run> {
    let folder = tempfile::tempdir()?;
    let mut command = ways.client(way, "pgbench");
    command.current_dir(folder.path()).args(["-n", "-S", "-M", mode, "-l"]);
    // One query in ten is written down: enough for the percentiles, and cheap.
    command.args(["--sampling-rate=0.1", "-T", &seconds.to_string(), "-c", &clients.to_string()]);
    let printed = ways::output(&mut command)?;
    let mut times = Vec::new();
    for file in fs::read_dir(folder.path())? {
        let text = fs::read_to_string(file?.path())?;
        times.extend(text.lines().filter_map(|l| l.split(' ').nth(2)?.parse::<f64>().ok()));
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied();
    Ok(Run {
        per_second: per_second(&printed).context("pgbench did not say how many")?,
        p50_us: at(0.5).context("pgbench wrote no times")?,
        p99_us: at(0.99).context("pgbench wrote no times")?,
    })
}

/// The figure in `tps = 1234.5 (without initial connection time)`.
pub fn per_second(printed: &str) -> Option<f64> {
    let line = printed.lines().rfind(|line| line.starts_with("tps = "))?;
    line.split(' ').nth(2)?.parse().ok()
}
