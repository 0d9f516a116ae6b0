//! One fault under load: cause it, wait until writes go on, end it, wait until the cluster is
//! whole, and check that nothing acknowledged is lost and that two members never took writes.

use crate::{
    client::{self, Target},
    faults::Fault,
    load::{self, Load},
    probe::{self, Acceptance, Probe, Span},
    rig::{self, Rig, wait_until},
};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Acknowledgements of each writer before the fault, so that caches and latencies are warm.
const WARM_ACKS: usize = 50;
/// Deadlines of waiting. Far beyond every aim: a stall is measured, not cut short.
const WARM_DEADLINE: Duration = Duration::from_secs(60);
const WRITES_DEADLINE: Duration = Duration::from_secs(120);
const WHOLE_DEADLINE: Duration = Duration::from_secs(120);
const CONVERGED_DEADLINE: Duration = Duration::from_secs(60);
/// A stall of more than this many times the aim, and [`HOPELESS_MORE`] on top, fails the run: no slow
/// moment of the machine explains it. Less is reported as slow.
const HOPELESS_TIMES: u64 = 3;
const HOPELESS_MORE: u64 = 6_000;
/// The load goes on for so long after the cluster is whole.
const AFTERWARDS: Duration = Duration::from_millis(500);

/// How to run faults.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What counts as taking a write in the probe.
    pub acceptance: Acceptance,
    /// How many write at once.
    pub writers: usize,
    /// They use transactions, and retry them in the same session.
    pub transactions: bool,
}

impl Options {
    /// Four writers of single statements.
    pub fn new(acceptance: Acceptance) -> Self {
        Self { acceptance, writers: 4, transactions: false }
    }
}

/// What came of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// `sempre`, `patroni`.
    pub make: &'static str,
    /// Which fault.
    pub fault: Fault,
    /// Counts up from 1 over all runs.
    pub number: usize,
    /// What the application saw; none if the run broke off.
    pub load: Option<load::Report>,
    /// From the start of the load to the fault, ms.
    pub fault_at_ms: u64,
    /// From ending the fault until the cluster was whole, ms.
    pub whole_after_ms: u64,
    /// Who took writes when.
    pub writers: Vec<Span>,
    /// The primary before, and after.
    pub primary: (String, String),
    /// What is wrong: empty if the run passed.
    pub failures: Vec<String>,
    /// Why it was not run, if so.
    pub skipped: Option<&'static str>,
}

impl Run {
    fn new(make: &'static str, fault: Fault, number: usize) -> Self {
        Self {
            make,
            fault,
            number,
            load: None,
            fault_at_ms: 0,
            whole_after_ms: 0,
            writers: Vec::new(),
            primary: Default::default(),
            failures: Vec::new(),
            skipped: None,
        }
    }

    /// A run of `sempre` that never began, because no cluster formed.
    pub fn broken(fault: Fault, number: usize, error: &anyhow::Error) -> Self {
        Self { failures: vec![format!("{error:#}")], ..Self::new("sempre", fault, number) }
    }

    /// Nothing is wrong with it.
    pub fn passed(&self) -> bool {
        self.failures.is_empty()
    }

    /// It passed, but took longer, or showed clients more errors, than is the aim.
    pub fn missed_aim(&self) -> bool {
        let Some(load) = &self.load else { return false };
        self.fault.stall_target_ms().is_some_and(|aim| load.stall_ms > aim)
            || self.fault.no_errors_expected() && load.errors > 0
    }
}

/// Causes `fault` once. What goes wrong is in the result, never an error: later runs go on.
pub async fn run(rig: &mut dyn Rig, fault: Fault, number: usize, options: Options) -> Run {
    let mut run = Run::new(rig.make(), fault, number);
    if let Err(error) = attempt(rig, &mut run, options).await {
        run.failures.push(format!("{error:#}"));
    }
    run
}

async fn attempt(rig: &mut dyn Rig, run: &mut Run, options: Options) -> Result<()> {
    let fault = run.fault;
    let primary = rig::wait_whole(rig.base(), WHOLE_DEADLINE).await.context("before the fault")?;
    let standby = rig.base().topology.hosts().iter().find(|h| **h != primary).cloned();
    let standby = standby.context("a cluster of one has no standby")?;
    run.skipped = fault.unsuitable(rig, &primary);
    if run.skipped.is_some() {
        return Ok(());
    }
    run.primary.0.clone_from(&primary);
    let table = format!("lab_acks_{}", run.number);
    let load_options = load::Options {
        writers: options.writers,
        transactions: options.transactions,
        ..load::Options::new(rig.endpoint(), &table)
    };
    let load = Load::start(&rig.base().app, load_options).await?;
    let probe = start_probe(rig, options.acceptance);
    let outcome = under_load(rig, run, &load, (&primary, &standby)).await;
    let report = load.finish().await;
    run.writers = probe.finish().await?;
    run.failures.extend(probe::violations(&run.writers));
    // What went wrong first is the better explanation.
    if let Err(error) = outcome {
        run.failures.insert(0, format!("{error:#}"));
    }
    let report = report?;
    if report.lost > 0 {
        let (count, rows) = (report.lost, &report.lost_rows);
        run.failures.push(format!("{count} acknowledged rows lost (writer, number): {rows:?}"));
    }
    if report.duplicates > 0 {
        run.failures.push(format!("{} rows are there twice", report.duplicates));
    }
    run.failures.extend(hopeless(fault, report.stall_ms).filter(|_| rig.make() == "sempre"));
    run.load = Some(report);
    if run.passed() {
        converged(rig, &table).await?;
        run.primary.1 = rig::wait_whole(rig.base(), WHOLE_DEADLINE).await?;
    }
    Ok(())
}

/// Why a stall cannot be called slow any more, if so.
fn hopeless(fault: Fault, stall_ms: u64) -> Option<String> {
    let aim = fault.stall_target_ms()?;
    let most = aim * HOPELESS_TIMES + HOPELESS_MORE;
    (stall_ms > most)
        .then(|| format!("writes stalled for {stall_ms} ms; the aim is {aim}, the limit {most}"))
}

fn start_probe(rig: &dyn Rig, acceptance: Acceptance) -> Probe {
    let stations = &rig.base().stations;
    let members = stations.iter().map(|(host, station)| (host.as_str(), station, rig.direct(host)));
    Probe::start(members, acceptance)
}

async fn under_load(
    rig: &mut dyn Rig,
    run: &mut Run,
    load: &Load,
    (primary, standby): (&str, &str),
) -> Result<()> {
    let fault = run.fault;
    wait_until("each writer wrote before the fault", WARM_DEADLINE, async || {
        load.fewest_acks() >= WARM_ACKS
    })
    .await
    .with_context(|| last_error(load))?;
    let injected = Instant::now();
    run.fault_at_ms = millis(injected - load.began());
    fault.inject(rig, primary, standby).await.context("could not cause the fault")?;
    let lasted = injected + fault.lasts();
    // The fault still lasts: only what ends it by itself is over.
    let gone_on = wait_until("writes went on under the fault", WRITES_DEADLINE, async || {
        load.all_written_since(lasted)
    })
    .await
    .with_context(|| last_error(load));
    let healed = Instant::now();
    fault.heal(rig, primary, standby).await.context("could not end the fault")?;
    gone_on?;
    rig::wait_whole(rig.base(), WHOLE_DEADLINE).await.context("after the fault")?;
    run.whole_after_ms = millis(healed.elapsed());
    sleep(AFTERWARDS).await;
    let whole = Instant::now();
    wait_until("writes went on when all was whole", WRITES_DEADLINE, async || {
        load.all_written_since(whole)
    })
    .await
    .with_context(|| last_error(load))
}

fn last_error(load: &Load) -> String {
    format!("last error of a writer: {}", load.last_error().unwrap_or_else(|| "none".into()))
}

/// Waits until all members have the same rows.
async fn converged(rig: &dyn Rig, table: &str) -> Result<()> {
    let end = Instant::now() + CONVERGED_DEADLINE;
    loop {
        let mut counts = Vec::new();
        for (host, station) in &rig.base().stations {
            let counted = station.run(count(rig.direct(host), table.to_owned())).await;
            counts.push((host, counted.map_err(|error| client::one_line(&error))));
        }
        let first = &counts[0].1;
        if first.is_ok() && counts.iter().all(|(_, counted)| counted == first) {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("members do not have the same rows: {counts:?}");
        }
        sleep(Duration::from_millis(100)).await;
    }
}

async fn count(target: Target, table: String) -> Result<i64> {
    let session = target.connect("lab-count", Duration::from_secs(2)).await?;
    let query = format!("select count(*) from {table}");
    Ok(session.client.query_one(&query, &[]).await?.try_get(0)?)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
