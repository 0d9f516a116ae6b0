//! `cargo xtask backups`: backup and restore side by side with pgBackRest, of the same running server, in
//! turns, with two processors, two threads or processes, zstd level 1, and the same niceness.
//!
//! The server is a one-member cluster of `sempre`; it keeps its WAL by both ways all the time. Ours always
//! encrypts; pgBackRest does in a second repository. Before each measurement its input is read once,
//! so that it is in memory for all of them, and what is dirty is written out.
//!
//! Memory is the sum of the peaks of the processes that do the work, those of PostgreSQL left out: a
//! little more than there ever was at one time.

mod commits;
mod figures;
mod files;
mod peer;
mod server;
mod tool;
mod watch;

use anyhow::{Result, ensure};
use figures::{Figures, Phase};
use server::Server;
use std::{
    fs,
    path::{Path, PathBuf},
};
use tool::Tool;

/// Disk space that is needed, as a multiple of the database: itself, a copy a tool, repositories, WAL.
const SPACE: u64 = 7;
/// Processors that everything shares, and threads or processes of each tool.
const PROCESSORS: &str = "0,1";

#[derive(clap::Args)]
pub struct Arguments {
    /// Rounds; medians are shown
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Size of the pgbench database, MB
    #[arg(long, default_value_t = 5_000)]
    size_mb: u64,
    /// Incremental backups of the first round, behind its full one
    #[arg(long, default_value_t = 10)]
    incrementals: usize,
    /// Where the database, repositories and restored folders are
    #[arg(long, default_value = "/var/tmp")]
    folder: PathBuf,
    /// This binary of sempre, instead of building one
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Leave pgBackRest out
    #[arg(long)]
    alone: bool,
    /// Folders of files of this size, beside restic, instead of a database
    #[arg(long)]
    files: bool,
    /// What a commit costs that waits for a repository, beside one that waits for a standby
    #[arg(long, conflicts_with = "files")]
    commits: bool,
}

pub fn main(arguments: &Arguments) -> Result<bool> {
    if arguments.files {
        files::ready()?;
    }
    ensure!(
        arguments.files || arguments.alone || arguments.commits || peer::installed(),
        "pgBackRest is not installed: `scripts/peers.sh` gets it (package pgbackrest), and `--alone` does without"
    );
    enough_space(&arguments.folder, arguments.size_mb)?;
    // Whatever is started inherits it, the server as well.
    tool::output("taskset", &["-cp", PROCESSORS, &std::process::id().to_string()])?;
    let binary = match &arguments.binary {
        Some(binary) => binary.clone(),
        None => crate::project::build_sempre()?,
    };
    if arguments.commits {
        return commits::main(&binary, &arguments.folder, arguments.runs);
    }
    if arguments.files {
        return files::main(arguments, &binary);
    }
    let server = Server::start(&binary, &arguments.folder, !arguments.alone)?;
    eprintln!("filling a database of {} MB", arguments.size_mb);
    server.fill(arguments.size_mb)?;
    let mut tools = vec![Tool::Sempre];
    if !arguments.alone {
        tools.extend([Tool::PgBackRest { repository: 1 }, Tool::PgBackRest { repository: 2 }]);
    }
    let mut figures = Figures::new(&tools);
    for run in 0..arguments.runs {
        // Nobody is always the first, who finds the disk quiet.
        tools.rotate_left(usize::from(run > 0));
        round(&server, &tools, &mut figures)?;
        if run == 0 {
            for _ in 1..arguments.incrementals {
                incremental(&server, &tools, &mut figures)?;
            }
            for tool in &tools {
                figures.size(tool, &server.repository(tool))?;
            }
        }
    }
    println!("{}\n{}", figures.times(), figures.sizes());
    Ok(true)
}

/// A full backup, restored; an incremental one, restored over that.
fn round(server: &Server, tools: &[Tool], figures: &mut Figures) -> Result<()> {
    let mut backups = Vec::new();
    for tool in tools {
        server.warm(&[&server.data_dir()])?;
        let made = tool.back_up(server, true)?;
        figures.add(tool, Phase::Full, &made.cost);
        backups.push(made.id);
    }
    restore(server, tools, &backups, figures, false)?;
    let backups = incremental(server, tools, figures)?;
    restore(server, tools, &backups, figures, true)?;
    tools.iter().try_for_each(|tool| Ok(fs::remove_dir_all(server.target(tool))?))
}

fn incremental(server: &Server, tools: &[Tool], figures: &mut Figures) -> Result<Vec<String>> {
    server.change_a_hundredth()?;
    let mut backups = Vec::new();
    for tool in tools {
        server.warm(&[&server.data_dir()])?;
        let made = tool.back_up(server, false)?;
        figures.add(tool, Phase::Incremental, &made.cost);
        backups.push(made.id);
    }
    Ok(backups)
}

fn restore(
    server: &Server,
    tools: &[Tool],
    backups: &[String],
    figures: &mut Figures,
    delta: bool,
) -> Result<()> {
    let (files, whole) = match delta {
        false => (Phase::Restore, Phase::RestoreWhole),
        true => (Phase::Delta, Phase::DeltaWhole),
    };
    for (tool, backup) in tools.iter().zip(backups) {
        let target = server.target(tool);
        let mut input = vec![server.repository(tool)];
        input.extend(delta.then(|| target.clone()));
        server.warm(&input.iter().map(PathBuf::as_path).collect::<Vec<_>>())?;
        let restored = tool.restore(server, backup, &target, delta)?;
        figures.add(tool, files, &restored.files);
        figures.add(tool, whole, &restored.whole);
    }
    Ok(())
}

fn enough_space(folder: &Path, size_mb: u64) -> Result<()> {
    let free = tool::output("df", &["--output=avail", "-BM", &folder.to_string_lossy()])?;
    let free: u64 = free.lines().nth(1).unwrap_or("").trim().trim_end_matches('M').parse()?;
    let needed = size_mb * SPACE;
    ensure!(
        free >= needed,
        "{} has {free} MB free, and {needed} MB are needed: choose another --folder, or a smaller --size-mb",
        folder.display()
    );
    Ok(())
}
