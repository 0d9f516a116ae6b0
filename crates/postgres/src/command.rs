//! Runs PostgreSQL's own programs: English messages, no stray `PG*` variables, output captured,
//! killed when no longer waited for.

use crate::{Error, Result};
use std::{
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};
use tokio::{io::AsyncWriteExt, process::Command};

/// Lines of a program's output that are kept for its error.
const OUTPUT_LINES_KEPT: usize = 12;

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
    command
}

/// Runs it to its end within `limit`, `input` on its standard input. An unsuccessful end is an
/// error with its last lines.
pub(crate) async fn run(mut command: Command, input: &str, limit: Duration) -> Result<Output> {
    let name = name_of(&command);
    let program = command.as_std().get_program().to_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(Error::io("start", &program))?;
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
