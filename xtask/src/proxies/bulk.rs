//! Much at once: COPY, and a row of 100 MB.

use super::ways::{Way, Ways};
use super::{crowd::field, median, table};
use anyhow::{Result, ensure};
use std::{
    fs::{self, File},
    process::Stdio,
    time::Instant,
};

const ROW_MB: u32 = 100;
/// One line of what is copied: 999 bytes and the end of the line.
const LINE: usize = 1_000;

struct Run {
    out_mb_s: f64,
    in_mb_s: f64,
    row_mb_s: f64,
    /// The most memory the process in the middle had, more than before, MB.
    peak_mb: f64,
}

pub fn measure(ways: &Ways, rounds: usize, copy_mb: u32) -> Result<()> {
    let folder = tempfile::tempdir_in("/var/tmp")?;
    let file = folder.path().join("lines");
    let line = format!("{}\n", "x".repeat(LINE - 1));
    fs::write(&file, line.repeat(1_000_000 / LINE * copy_mb as usize))?;
    ways.psql(&ways.all[0], "create unlogged table bulk (line text)")?;
    let mut runs: Vec<Vec<Run>> = ways.all.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (way, runs) in ways.all.iter().zip(&mut runs) {
            runs.push(run(ways, way, copy_mb, &file)?);
        }
    }
    let mut shown =
        table(&["way", "COPY out MB/s", "COPY in MB/s", "100 MB row MB/s", "peak MB more"]);
    for (way, runs) in ways.all.iter().zip(&runs) {
        let of = |value: fn(&Run) -> f64| median(runs.iter().map(value).collect());
        shown.add_row([
            way.name.to_owned(),
            format!("{:.0}", of(|r| r.out_mb_s)),
            format!("{:.0}", of(|r| r.in_mb_s)),
            format!("{:.0}", of(|r| r.row_mb_s)),
            way.pid.map_or("-".into(), |_| format!("{:.1}", of(|r| r.peak_mb))),
        ]);
    }
    println!("COPY of {copy_mb} MB both ways, {rounds} rounds, medians\n{shown}");
    Ok(())
}

fn run(ways: &Ways, way: &Way, copy_mb: u32, file: &std::path::Path) -> Result<Run> {
    let before = match way.pid {
        Some(pid) => {
            // 5: the highest resident size so far is forgotten.
            fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
            field(pid, "VmRSS:")?
        }
        None => 0,
    };
    let rows = u64::from(copy_mb) * 1_000_000 / LINE as u64;
    let out = format!(
        "copy (select repeat('x', {}) from generate_series(1, {rows})) to stdout",
        LINE - 1
    );
    let out_mb_s = timed(ways, way, &out, None, copy_mb)?;
    ways.psql(&ways.all[0], "truncate bulk")?;
    let in_mb_s = timed(ways, way, "copy bulk from stdin", Some(file), copy_mb)?;
    let row = format!("select repeat('x', {ROW_MB} * 1000000)");
    let row_mb_s = timed(ways, way, &row, None, ROW_MB)?;
    let peak_mb = match way.pid {
        Some(pid) => field(pid, "VmHWM:")?.saturating_sub(before) as f64 / 1024.0,
        None => 0.0,
    };
    Ok(Run { out_mb_s, in_mb_s, row_mb_s, peak_mb })
}

fn timed(
    ways: &Ways,
    way: &Way,
    statement: &str,
    input: Option<&std::path::Path>,
    mb: u32,
) -> Result<f64> {
    let mut command = ways.client(way, "psql");
    command.args(["-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-c", statement]);
    command.stdout(Stdio::null());
    if let Some(file) = input {
        command.stdin(File::open(file)?);
    }
    let began = Instant::now();
    ensure!(command.status()?.success(), "{}: {statement} failed", way.name);
    Ok(f64::from(mb) / began.elapsed().as_secs_f64())
}
