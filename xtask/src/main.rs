//! What the project does with itself.
//!
//! `cargo xtask test` runs every test there is; `lab` causes real faults in real clusters; `bench` does
//! so side by side with Patroni; `proxies` compares routing with PgBouncer and HAProxy; `backups` backs up
//! and restores beside pgBackRest; `sim` runs simulated clusters.

mod backups;
mod bench;
mod lab;
mod overhead;
mod project;
mod proxies;
mod sim;
mod suites;
mod tally;
mod versions;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "What the project does with itself")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Every test there is; ends with `N passed, N failed, N skipped`
    Test(suites::Arguments),
    /// Real faults in a real cluster, in network namespaces (needs root)
    Lab(lab::Arguments),
    /// The same faults side by side with Patroni, etcd and HAProxy (needs root)
    Bench(bench::Arguments),
    /// What a client pays on its way through sempre, PgBouncer and HAProxy (needs root)
    Proxies(proxies::Arguments),
    /// Backup and restore beside pgBackRest
    Backups(backups::Arguments),
    /// Simulated clusters, a seed each
    Sim(sim::Arguments),
    /// What depends on PostgreSQL's version, with each installation that is named
    Versions(versions::Arguments),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Test(arguments) => suites::main(&arguments),
        Task::Lab(arguments) => lab::main(&arguments),
        Task::Bench(arguments) => bench::main(&arguments),
        Task::Proxies(arguments) => proxies::main(&arguments),
        Task::Backups(arguments) => backups::main(&arguments),
        Task::Sim(arguments) => sim::main(&arguments),
        Task::Versions(arguments) => versions::main(&arguments),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(2)
        }
    }
}
