//! `sempre`: the members' daemon, and what operators type.
//!
//! ```text
//! arguments ─▶ guard (before anything else) ─▶ member: init, join, run (as the system user)
//!                                            ▶ show, act, config: asks the members over REST
//!                                            ▶ route, demo
//! ```

mod act;
mod arguments;
mod backup;
mod change;
mod config;
mod connect;
mod demo;
mod drill;
mod fail;
mod files;
mod logs;
mod member;
mod privileges;
mod recover;
mod restore;
mod route;
mod route_style;
mod show;
mod terminal;
mod upkeep;
mod worker;

use clap::Parser;
use fail::Fail;
use std::{path::Path, process::ExitCode};

fn main() -> ExitCode {
    // Started through /proc/self/exe, a guard would be listed as `exe`.
    let _ = nix::sys::prctl::set_name(c"sempre");
    // The guard wants to be alone in its process: one thread, little memory touched.
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == "guard")
        && words.next().is_some_and(|word| word == "--dir")
        && let Some(dir) = words.next()
    {
        return sempre_guard::main(Path::new(&dir));
    }
    let arguments = match arguments::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return mistyped(&error),
    };
    let json = arguments.json;
    match dispatch(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.print(json);
            ExitCode::from(error.exit)
        }
    }
}

/// Help and version are no errors; the rest is told as JSON where that was wished.
fn mistyped(error: &clap::Error) -> ExitCode {
    if error.use_stderr() && std::env::args_os().any(|word| word == "--json") {
        let text = error.render().to_string();
        let (why, next) = text.split_once("\n\n").unwrap_or((&text, ""));
        let why = why.trim_start_matches("error: ");
        Fail::usage("the command line cannot be used", why, next).print(true);
    } else {
        // A reader that went away is no error.
        let _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(fail::USAGE))
}

fn dispatch(arguments: arguments::Arguments) -> Result<(), Fail> {
    use arguments::Task;
    let scene = connect::Scene { config: arguments.config, json: arguments.json };
    match arguments.task {
        Task::Init { cluster, set } => member::init(&scene, &cluster, &set),
        Task::Join { token, from_backup } => member::join(&scene, &token, from_backup),
        Task::Run(how) => member::run(&scene, &how),
        Task::Guard { dir } => match sempre_guard::main(&dir) {
            code if code == ExitCode::SUCCESS => Ok(()),
            _ => Err(Fail::new("the guard ended", "its last words are above", "")),
        },
        Task::Recover { yes } => recover::run(&scene, yes),
        Task::Backup { task: arguments::BackupTask::Verify { backup, repository } } => {
            upkeep::verify(&scene, backup.as_deref(), repository)
        }
        Task::Backup { task: arguments::BackupTask::Prune { repository, dry_run, yes } } => {
            upkeep::prune(&scene, repository, dry_run, yes)
        }
        Task::Drill { task } => drill::run(&scene, task),
        Task::Restore(how) => restore::run(&scene, &how),
        Task::Worker => worker::run(),
        Task::RestoreWal { spool, file, target } => restore::serve(&spool, &file, &target),
        Task::Demo(how) => demo::run(&scene, &how),
        Task::Route { task: arguments::RouteTask::Run(how) } => route::run(&how),
        task => connect::block_on(async {
            match task {
                Task::Status { watch } => show::status(&scene, watch).await,
                Task::History => show::history(&scene).await,
                Task::Events { follow } => show::events(&scene, follow).await,
                Task::Backup { task } => backup::run(&scene, task).await,
                Task::Config { task } => config::run(&scene, task).await,
                task => act::run(&scene, task).await,
            }
        }),
    }
}
