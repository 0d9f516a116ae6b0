//! Runs PostgreSQL's own programs: English messages, no stray `PG*` variables, output captured,
//! and ended with all their children when no longer waited for.

use crate::{Error, Result};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use std::{
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
    time::Instant,
};

/// Lines of a program's output that are kept for its error.
const OUTPUT_LINES_KEPT: usize = 12;

/// How long killed processes may take to be gone (they may wait for a disk).
const STRAYS_LIMIT: Duration = Duration::from_secs(30);

/// Variables that would change what PostgreSQL's programs do.
const STRAY: [&str; 12] = [
    "PGHOST",
    "PGHOSTADDR",
    "PGPORT",
    "PGDATABASE",
    "PGUSER",
    "PGPASSWORD",
    "PGPASSFILE",
    "PGSERVICE",
    "PGOPTIONS",
    "PGDATA",
    "PGAPPNAME",
    "PGSSLMODE",
];

/// A command with a clean environment.
pub(crate) fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for name in STRAY {
        command.env_remove(name);
    }
    command.env("LC_ALL", "C").env("PGCONNECT_TIMEOUT", "5").kill_on_drop(true);
    // `initdb` and `pg_basebackup` have children that would outlive them.
    command.process_group(0);
    // SAFETY: between fork and exec only a system call on numbers is made.
    unsafe {
        command.pre_exec(|| {
            // The agent may come before others; the work it orders does not.
            nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, 0);
            Ok(())
        });
    }
    command
}

/// Ends a program's process group when dropped, unless it has ended by itself.
pub(crate) struct Group(Option<i32>);

impl Group {
    pub(crate) fn of(child: &Child) -> Self {
        Self(child.id().and_then(|pid| i32::try_from(pid).ok()))
    }

    /// The program has ended: its process id may be another's from now on.
    pub(crate) fn ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // All of it may have ended already.
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Ends what an earlier agent left working on a directory: it may have been killed itself, and
/// what it had started goes on. Such a process names the directory, or works within it.
pub(crate) async fn end_strays(dir: &Path) -> Result<()> {
    let until = Instant::now() + STRAYS_LIMIT;
    loop {
        let strays = strays(dir);
        if strays.is_empty() {
            return Ok(());
        }
        if Instant::now() >= until {
            let what = format!("ending processes {strays:?}, which use {},", dir.display());
            return Err(Error::TimedOut { what, after: STRAYS_LIMIT });
        }
        for pid in strays {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn strays(dir: &Path) -> Vec<i32> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let uses = |process: &Path| {
        let within = std::fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
        let named = || {
            let words = std::fs::read(process.join("cmdline")).unwrap_or_default();
            words.split(|b| *b == 0).any(|word| word == dir.as_os_str().as_encoded_bytes())
        };
        within || named()
    };
    processes
        .flatten()
        .filter_map(|p| Some((p.file_name().to_str()?.parse::<i32>().ok()?, p.path())))
        .filter(|(pid, path)| u32::try_from(*pid) != Ok(std::process::id()) && uses(path))
        // A process of ours only: of others there is nothing to read, and nothing to end.
        .map(|(pid, _)| pid)
        .collect()
}

/// Runs it to its end within `limit`, `input` on its standard input. An unsuccessful end is an
/// error with its last lines.
pub(crate) async fn run(mut command: Command, input: &str, limit: Duration) -> Result<Output> {
    let name = name_of(&command);
    let program = command.as_std().get_program().to_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(Error::io("start", &program))?;
    let group = Group::of(&child);
    let stdin = child.stdin.take();
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A program that ends early closes its input; its exit status says why.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let ended = tokio::time::timeout(limit, async {
        let (_, output) = tokio::join!(feed, child.wait_with_output());
        output
    });
    let output = ended
        .await
        .map_err(|_| Error::TimedOut { what: name.clone(), after: limit })?
        .map_err(Error::io("wait for", &program))?;
    group.ended();
    if output.status.success() {
        return Ok(output);
    }
    let all = [output.stderr.as_slice(), output.stdout.as_slice()].concat();
    Err(failed(name, &output.status, &String::from_utf8_lossy(&all)))
}

/// The error of a program that ended unsuccessfully.
pub(crate) fn failed(program: String, status: &std::process::ExitStatus, text: &str) -> Error {
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect();
    let from = lines.len().saturating_sub(OUTPUT_LINES_KEPT);
    Error::Tool { program, status: status.to_string(), output: lines[from..].join("\n") }
}

/// The program's name without its folder.
pub(crate) fn name_of(command: &Command) -> String {
    let program = Path::new(command.as_std().get_program());
    program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned()
}
