//! What processes take while they work.

use anyhow::{Context, Result, ensure};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// How often processes are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// The kernel counts processor time in hundredths of a second.
const TICKS_PER_S: f64 = 100.0;

/// What some work took.
#[derive(Clone, Debug, Default)]
pub struct Cost {
    pub seconds: f64,
    /// Processor time.
    pub cpu_seconds: f64,
    pub peak_mb: f64,
}

/// Runs a command; what it printed, and what it took with all processes called `name` that it, or
/// `helper`, begins meanwhile.
pub fn run(command: &mut Command, helper: Option<u32>, name: &str) -> Result<(String, Cost)> {
    let mut before = BTreeSet::new();
    if let Some(helper) = helper {
        below(helper, &mut before);
    }
    let began = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.with_context(|| format!("{command:?}"))?;
    let id = child.id();
    let waiter = std::thread::spawn(move || (child.wait_with_output(), Instant::now()));
    // The last that was seen of each.
    let mut seen: BTreeMap<u32, (f64, f64)> = BTreeMap::new();
    while !waiter.is_finished() {
        let mut now = BTreeSet::new();
        for root in [Some(id), helper].into_iter().flatten() {
            below(root, &mut now);
        }
        for process in now.difference(&before) {
            seen.extend(look(*process, name).map(|taken| (*process, taken)));
        }
        sleep(LOOK_EVERY);
    }
    let (done, ended) = waiter.join().map_err(|_| anyhow::anyhow!("a thread ended early"))?;
    let done = done?;
    ensure!(
        done.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
    let cost = Cost {
        seconds: (ended - began).as_secs_f64(),
        cpu_seconds: seen.values().map(|(_, cpu)| cpu).sum(),
        peak_mb: seen.values().map(|(peak, _)| peak).sum(),
    };
    Ok((String::from_utf8_lossy(&done.stdout).into_owned(), cost))
}

/// A process and those below it.
fn below(root: u32, found: &mut BTreeSet<u32>) {
    found.insert(root);
    for task in fs::read_dir(format!("/proc/{root}/task")).into_iter().flatten().flatten() {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|word| word.parse().ok()) {
            below(child, found);
        }
    }
}

/// Peak memory in MB, and processor time in seconds, of a process of this name.
fn look(process: u32, name: &str) -> Option<(f64, f64)> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let field = |wanted: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(wanted))?;
        line.split_whitespace().next().map(str::to_owned)
    };
    if field("Name:")? != name {
        return None;
    }
    let peak_kb: f64 = field("VmHWM:")?.parse().ok()?;
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    Some((peak_kb / 1024.0, ticks / TICKS_PER_S))
}
