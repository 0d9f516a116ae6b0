//! `cargo xtask lab`: causes faults in a running cluster, and prints what clients saw.

use crate::project;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use sempre_lab::{
    faults::Fault,
    patroni::{self, Patroni, Profile},
    probe::Acceptance,
    report,
    rig::{self, Rig},
    runner::{self, Run},
    scope,
    sempre::{self, Cluster},
};
use std::path::PathBuf;

/// Clusters that may fail to form before the rest is given up: something basic is wrong then.
const FORM_FAILURES_MAX: usize = 2;

#[derive(clap::Args, Clone)]
pub struct Arguments {
    /// A fault by name, several times if wished, or `all`; `list` shows them
    #[arg(long = "fault", default_value = "all")]
    pub faults: Vec<String>,
    /// How many times each
    #[arg(long, default_value_t = 1)]
    pub runs: usize,
    /// Policy of the cluster, as key=value; of PostgreSQL, as postgresql.key=value; of the
    /// application's routing, as route.flag=value
    #[arg(long = "set")]
    pub settings: Vec<String>,
    /// How many members
    #[arg(long, default_value_t = 3)]
    pub members: usize,
    /// How many clients write at once
    #[arg(long, default_value_t = 4)]
    pub writers: usize,
    /// Clients use transactions, and retry serialization failures in the same session
    #[arg(long)]
    pub transactions: bool,
    /// Leave all files of the clusters
    #[arg(long)]
    pub keep: bool,
    /// Print the runs as JSON, a line each, instead of the table
    #[arg(long)]
    pub json: bool,
    /// This binary, instead of building one
    #[arg(long)]
    pub binary: Option<PathBuf>,
    /// What to cause faults in
    #[arg(long, value_enum, default_value_t = Make::Sempre)]
    pub make: Make,
}

/// What can be in the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Make {
    /// This project.
    Sempre,
    /// Patroni, etcd and HAProxy, at their fastest.
    Patroni,
}

/// The faults meant by names on the command line.
pub fn parse(names: &[String]) -> Result<Vec<Fault>> {
    if names.iter().any(|name| name == "all") {
        return Ok(Fault::all().collect());
    }
    names.iter().map(|name| name.parse().map_err(anyhow::Error::msg)).collect()
}

/// How clusters of one make are started.
pub enum Start {
    Sempre(sempre::Options),
    Patroni(patroni::Options),
}

impl Start {
    /// A running cluster, with disks of its own if `disks`.
    pub async fn start(&self, disks: bool) -> Result<Box<dyn Rig>> {
        Ok(match self {
            Start::Sempre(options) => {
                let options = sempre::Options { disks, ..options.clone() };
                Box::new(Cluster::start(&options).await?)
            }
            Start::Patroni(options) => Box::new(Patroni::start(options).await?),
        })
    }
}

/// Starts of `sempre` as wished.
pub fn sempre(binary: Option<PathBuf>, settings: &[String], members: usize) -> Result<Start> {
    let binary = match binary {
        Some(given) => given,
        None => project::build_sempre()?,
    };
    Ok(Start::Sempre(sempre::Options {
        binary,
        members,
        settings: settings.to_vec(),
        disks: false,
    }))
}

/// Starts of Patroni; installs it where it is missing.
pub fn patroni(profile: Profile, synchronous: bool) -> Result<Start> {
    let environment = match std::env::var_os("PATRONI_BIN") {
        Some(given) => given.into(),
        None => {
            let script = project::root().join("scripts").join("peers.sh");
            let said = std::process::Command::new(script)
                .stderr(std::process::Stdio::inherit())
                .output()
                .context("could not start scripts/peers.sh")?;
            if !said.status.success() {
                bail!("scripts/peers.sh could not install Patroni, etcd and HAProxy");
            }
            PathBuf::from(String::from_utf8_lossy(&said.stdout).trim())
        }
    };
    let postgres_bin = rig::postgres_bin()?;
    Ok(Start::Patroni(patroni::Options { environment, postgres_bin, profile, synchronous }))
}

/// What counts as taking a write under these settings.
pub fn acceptance(settings: &[String]) -> Acceptance {
    let fast = settings.iter().any(|s| s.replace(' ', "") == "fast_promotion=true");
    if fast { Acceptance::Durable } else { Acceptance::Local }
}

pub fn main(arguments: &Arguments) -> Result<bool> {
    if arguments.faults.iter().any(|name| name == "list") {
        for fault in Fault::all() {
            println!("{:16} {}", fault.name(), fault.what());
        }
        return Ok(true);
    }
    let faults = parse(&arguments.faults)?;
    let start = match arguments.make {
        Make::Sempre => sempre(arguments.binary.clone(), &arguments.settings, arguments.members)?,
        Make::Patroni => patroni(Profile::Tuned, true)?,
    };
    let runs = scope::run(all(arguments, &start, &faults))?;
    if arguments.json {
        for run in &runs {
            println!("{}", serde_json::to_string(run)?);
        }
    } else {
        println!("{}", report::table(&runs));
    }
    let skipped = runs.iter().filter(|run| run.skipped.is_some()).count();
    let failed = runs.iter().filter(|run| !run.passed()).count();
    let passed = runs.len() - skipped - failed;
    if !arguments.json {
        println!("{passed} passed, {failed} failed, {skipped} skipped");
    }
    Ok(failed == 0)
}

/// All runs, in one cluster as long as it stays whole.
async fn all(arguments: &Arguments, start: &Start, faults: &[Fault]) -> Result<Vec<Run>> {
    let options = runner::Options {
        acceptance: acceptance(&arguments.settings),
        writers: arguments.writers,
        transactions: arguments.transactions,
    };
    let mut runs = Vec::new();
    let mut failures = 0;
    let mut cluster: Option<Box<dyn Rig>> = None;
    let times = faults.iter().flat_map(|fault| (0..arguments.runs).map(move |_| *fault));
    for (index, fault) in times.enumerate() {
        let disks = fault == Fault::DiskFull;
        if disks && cluster.as_ref().is_some_and(|rig| !rig.fill_disk_possible()) {
            cluster = None;
        }
        let rig = match &mut cluster {
            Some(rig) => rig,
            None => match start.start(disks).await {
                Ok(mut rig) => {
                    rig.base_mut().keep = arguments.keep;
                    cluster.insert(rig)
                }
                Err(error) => {
                    failures += 1;
                    if failures >= FORM_FAILURES_MAX {
                        return Err(error);
                    }
                    eprintln!("{error:#}");
                    runs.push(Run::broken(fault, index + 1, &error));
                    continue;
                }
            },
        };
        let run = runner::run(rig.as_mut(), fault, index + 1, options).await;
        eprintln!("{}", report::line(&run));
        if !run.passed() {
            eprintln!("{}", rig.status());
            let base = rig.base_mut();
            base.keep = true;
            eprintln!("    files: {}", base.root.display());
            eprintln!("    replay: {}", replay(arguments, fault));
            // The next fault gets a cluster that nothing is wrong with.
            cluster = None;
        }
        runs.push(run);
    }
    Ok(runs)
}

fn replay(arguments: &Arguments, fault: Fault) -> String {
    let mut command = format!("cargo xtask lab --fault {} --keep", fault.name());
    if arguments.make == Make::Patroni {
        command += " --make patroni";
    }
    if arguments.members != 3 {
        command += &format!(" --members {}", arguments.members);
    }
    if arguments.writers != 4 {
        command += &format!(" --writers {}", arguments.writers);
    }
    if arguments.transactions {
        command += " --transactions";
    }
    for setting in &arguments.settings {
        command += &format!(" --set {setting}");
    }
    command
}
