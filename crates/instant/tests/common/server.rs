//! A process of its own that serves, so that it can be killed: this test program, called again.

use super::Prepared;
use anyhow::{Context, Result, ensure};
use sempre_backup::{Folder, Repository, Secret};
use sempre_instant::{Instant, Options};
use std::{
    io::{BufRead, BufReader, Lines},
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
    sync::Arc,
    time::Duration,
};

/// Everything is local by then, at any rate of these tests.
const PATIENCE: Duration = Duration::from_secs(120);

pub struct Server {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

/// What [`Server`] starts. Says what happens, a line each.
pub async fn serve_if_asked() -> Result<()> {
    let Ok(target) = std::env::var("SEMPRE_INSTANT_TARGET") else { return Ok(()) };
    let get = |name: &str| std::env::var(name).context(name.to_owned());
    let store = Arc::new(Folder::new(get("SEMPRE_INSTANT_REPOSITORY")?));
    let key = Secret::from_text(&get("SEMPRE_INSTANT_KEY")?)?;
    let repository = Repository::open(store, &key).await?;
    let backup: sempre_backup::Backup = serde_json::from_str(&get("SEMPRE_INSTANT_BACKUP")?)?;
    let options =
        Options { max_bytes_per_s: get("SEMPRE_INSTANT_RATE")?.parse().ok(), ..Options::default() };
    let target = PathBuf::from(target);
    let mut serving = Instant::mount(repository, backup, &target, options).await?;
    println!("\nserver: mounted {}", serving.progress().left_bytes);
    loop {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line)?;
        match line.trim() {
            "left" => println!("server: left {}", serving.progress().left_bytes),
            "switch" => {
                let switched = tokio::time::timeout(PATIENCE, serving.switch()).await;
                switched.with_context(|| format!("{:?}", serving.progress()))??;
                println!("server: switched {}", serving.open_handles());
                serving.unused().await;
                println!("server: unused");
            }
            _ => return Ok(()),
        }
    }
}

impl Server {
    /// Serves the backup in the target; returns when it is mounted.
    pub fn start(prepared: &Prepared, rate: Option<u64>) -> Result<Self> {
        Self::start_by(Command::new(std::env::current_exe()?), prepared, rate)
    }

    /// As the database's user, not root.
    pub fn start_as_user(prepared: &Prepared, rate: Option<u64>) -> Result<Self> {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
        command.arg(std::env::current_exe()?).current_dir("/");
        Self::start_by(command, prepared, rate)
    }

    fn start_by(mut command: Command, prepared: &Prepared, rate: Option<u64>) -> Result<Self> {
        command.args(["--exact", "serve", "--ignored", "--nocapture"]);
        command.env("SEMPRE_INSTANT_TARGET", &prepared.target);
        command.env("SEMPRE_INSTANT_REPOSITORY", prepared.scratch.path("repository"));
        command.env("SEMPRE_INSTANT_KEY", prepared.key.to_text());
        command.env("SEMPRE_INSTANT_BACKUP", serde_json::to_string(&prepared.backup)?);
        command.env("SEMPRE_INSTANT_RATE", rate.map_or(String::new(), |rate| rate.to_string()));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let mut server = Self { child, lines };
        server.wait_for("mounted")?;
        Ok(server)
    }

    /// The rest of the line that says so.
    pub fn wait_for(&mut self, what: &str) -> Result<String> {
        for line in &mut self.lines {
            let line = line?;
            let Some(said) = line.strip_prefix("server: ") else { continue };
            ensure!(said.starts_with(what), "it said {said:?}, not {what:?}");
            return Ok(said[what.len()..].trim().to_owned());
        }
        anyhow::bail!("the server ended before it said {what:?}")
    }

    pub fn say(&mut self, line: &str) -> Result<()> {
        use std::io::Write;
        let stdin = self.child.stdin.as_mut().context("no input")?;
        Ok(writeln!(stdin, "{line}")?)
    }

    pub fn left(&mut self) -> Result<u64> {
        self.say("left")?;
        Ok(self.wait_for("left")?.parse()?)
    }

    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
