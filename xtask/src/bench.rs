//! `cargo xtask bench`: the same faults in `sempre` and in Patroni, in turn, under the same load.

use crate::{
    lab::{self, Start},
    overhead,
};
use anyhow::Result;
use sempre_lab::{
    faults::Fault,
    patroni::Profile,
    probe::Acceptance,
    report,
    runner::{self, Run},
    scope,
};
use std::path::PathBuf;

/// The faults that both can be asked to go through.
const FAULTS: [Fault; 5] =
    [Fault::Switchover, Fault::DatabaseKilled, Fault::HostLost, Fault::CutOff, Fault::Hung];

#[derive(clap::Args)]
pub struct Arguments {
    /// A fault by name, several times if wished
    #[arg(long = "fault")]
    faults: Vec<String>,
    /// How many times each
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Patroni's times as shipped, instead of the shortest it allows
    #[arg(long)]
    patroni_default: bool,
    /// Patroni replicates asynchronously, as it does by default, instead of waiting for a standby
    #[arg(long)]
    patroni_async: bool,
    /// Policy of sempre, as key=value
    #[arg(long = "set")]
    settings: Vec<String>,
    /// This binary of sempre, instead of building one
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Only this make
    #[arg(long, value_enum)]
    only: Option<lab::Make>,
    /// Measure what an idle cluster takes, instead of causing faults
    #[arg(long)]
    idle: bool,
    /// Measure commits a second against plain PostgreSQL, instead of causing faults
    #[arg(long, conflicts_with = "idle")]
    throughput: bool,
    /// Print the runs as JSON, a line each, instead of the tables
    #[arg(long)]
    json: bool,
}

pub fn main(arguments: &Arguments) -> Result<bool> {
    let faults =
        if arguments.faults.is_empty() { FAULTS.to_vec() } else { lab::parse(&arguments.faults)? };
    let mut makes: Vec<(Start, Acceptance)> = Vec::new();
    if arguments.only != Some(lab::Make::Patroni) {
        let start = lab::sempre(arguments.binary.clone(), &arguments.settings, 3)?;
        makes.push((start, lab::acceptance(&arguments.settings)));
    }
    if arguments.only != Some(lab::Make::Sempre) {
        let profile = if arguments.patroni_default { Profile::Default } else { Profile::Tuned };
        makes.push((lab::patroni(profile, !arguments.patroni_async)?, Acceptance::Durable));
    }
    if arguments.idle {
        let starts: Vec<Start> = makes.into_iter().map(|(start, _)| start).collect();
        return overhead::idle(&starts, arguments.json);
    }
    if arguments.throughput {
        let starts: Vec<Start> = makes.into_iter().map(|(start, _)| start).collect();
        return overhead::throughput(&starts, arguments.runs, arguments.json);
    }
    let runs = scope::run(all(&makes, &faults, arguments.runs))?;
    if arguments.json {
        for run in &runs {
            println!("{}", serde_json::to_string(run)?);
        }
    } else {
        println!("{}\n{}", report::table(&runs), report::ratios(&runs, "sempre", "patroni"));
    }
    // What the peer does is not ours to fail for.
    Ok(runs.iter().filter(|run| run.make == "sempre").all(Run::passed))
}

/// A round is a fresh cluster of each make that goes through all faults; the makes take turns, so
/// that a machine that gets slower or faster does so for both.
async fn all(makes: &[(Start, Acceptance)], faults: &[Fault], rounds: usize) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    for _ in 0..rounds {
        for (start, acceptance) in makes {
            let mut cluster = Some(start.start(false).await?);
            for fault in faults {
                let rig = match &mut cluster {
                    Some(rig) => rig,
                    None => cluster.insert(start.start(false).await?),
                };
                let options = runner::Options::new(*acceptance);
                let run = runner::run(rig.as_mut(), *fault, runs.len() + 1, options).await;
                eprintln!("{}", report::line(&run));
                if !run.passed() {
                    rig.base_mut().keep = true;
                    eprintln!("    files: {}", rig.base().root.display());
                    cluster = None;
                }
                runs.push(run);
            }
        }
    }
    Ok(runs)
}
