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
    /// Processor time of the process in the middle for each query, µs.
    middle_us: f64,
}

pub fn measure(ways: &Ways, rounds: usize, seconds: u32, clients: u32) -> Result<()> {
    let mut shown =
        table(&["mode", "way", "queries/s", "of direct", "p50 µs", "p99 µs", "processor µs"]);
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
                match way.pid {
                    Some(_) => format!("{:.1}", of(way.name, |run| run.middle_us)),
                    None => String::new(),
                },
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
    let before = way.pid.map_or(Ok(0.0), processor_us)?;
    let printed = ways::output(&mut command)?;
    let spent = way.pid.map_or(Ok(0.0), processor_us)? - before;
    let queries = processed(&printed).context("pgbench did not say how many")?;
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
        middle_us: spent / queries.max(1.0),
    })
}

/// Processor time of a process and of the children it has now, in user and kernel mode, µs.
fn processor_us(pid: u32) -> Result<f64> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let mut sum = 0.0;
    for pid in children.split_whitespace().chain([pid.to_string().as_str()]) {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields = stat.rsplit_once(") ").context("no stat")?.1;
        let ticks = |at: usize| fields.split(' ').nth(at)?.parse::<f64>().ok();
        sum += ticks(11).context("no time")? + ticks(12).context("no time")?;
    }
    // 100 ticks a second on every Linux there is.
    Ok(sum * 10_000.0)
}

/// The figure in `number of transactions actually processed: 1234`.
fn processed(printed: &str) -> Option<f64> {
    let line = printed.lines().find(|line| line.starts_with("number of transactions actually"))?;
    line.rsplit(' ').next()?.split('/').next()?.parse().ok()
}

/// The figure in `tps = 1234.5 (without initial connection time)`.
pub fn per_second(printed: &str) -> Option<f64> {
    let line = printed.lines().rfind(|line| line.starts_with("tps = "))?;
    line.split(' ').nth(2)?.parse().ok()
}
