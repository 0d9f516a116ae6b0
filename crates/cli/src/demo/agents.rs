//! The members' agents, restarted when they end, as systemd would.

use super::plan::{Plan, Spot};
use crate::fail::Fail;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sempre_guard::GuardClient;
use std::{
    fs::{self, OpenOptions},
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    process::{Child, ChildStdin, Command},
    sync::watch,
    task::JoinSet,
    time::{self, Instant},
};

/// Pause before an agent is started again; doubled each time it ends at once.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// It is not doubled beyond this.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// An agent that ran this long did not end at once.
const STEADY: Duration = Duration::from_secs(10);
/// How long an agent may take to stop its database and itself, before both are killed.
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// How long killed processes may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(10);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Lines of an agent's log that an error shows.
const LOG_LINES: usize = 8;

/// What is known of one agent.
#[derive(Debug)]
struct Known {
    name: String,
    log: PathBuf,
    /// 0: it does not run.
    pid: AtomicU32,
    ends: AtomicUsize,
}

/// All agents.
#[derive(Debug)]
pub struct Agents {
    known: Vec<Arc<Known>>,
    tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
}

impl Agents {
    /// None yet.
    pub fn new() -> Self {
        Self { known: Vec::new(), tasks: JoinSet::new(), stop: watch::Sender::new(false) }
    }

    /// Starts the agent of a member, and from then on whenever it ends.
    pub fn start(&mut self, spot: &Spot) -> Result<(), Fail> {
        let known = Arc::new(Known {
            name: spot.config.name.to_string(),
            log: spot.log.clone(),
            pid: AtomicU32::new(0),
            ends: AtomicUsize::new(0),
        });
        let child = spawn(spot).map_err(|error| {
            Fail::new(format!("the agent of {} does not start", known.name), error.to_string(), "")
        })?;
        self.known.push(known.clone());
        self.tasks.spawn(keep(spot.clone(), known, child, self.stop.subscribe()));
        Ok(())
    }

    /// The agent of a member; 0 while it does not run.
    pub fn pid(&self, name: &str) -> u32 {
        let known = self.known.iter().find(|known| known.name == name);
        known.map_or(0, |known| known.pid.load(Ordering::Relaxed))
    }

    /// An agent that ended at least so often, and the end of its log.
    pub fn often_ended(&self, times: usize) -> Option<(&str, String)> {
        let known = self.known.iter().find(|known| known.ends.load(Ordering::Relaxed) >= times)?;
        let text = fs::read(&known.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        Some((&known.name, lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")))
    }

    /// Stops the agents with their databases, and makes sure that nothing is left.
    pub async fn stop(mut self, plan: &Plan) -> Result<(), Fail> {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
        // An agent that was being restarted, or was stuck, has left its guard.
        for spot in &plan.spots {
            let _ = GuardClient::kill_guard(&spot.config.dir.join("run")).await;
        }
        let until = Instant::now() + GONE_WITHIN;
        loop {
            let left = processes_below(&plan.dir);
            if left.is_empty() {
                return Ok(());
            }
            for pid in &left {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            if Instant::now() > until {
                return Err(Fail::new(
                    "not everything stopped",
                    format!("these processes do not go: {left:?}"),
                    "",
                ));
            }
            time::sleep(LOOK_EVERY).await;
        }
    }
}

fn spawn(spot: &Spot) -> std::io::Result<Child> {
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&spot.log)?;
    Command::new("/proc/self/exe")
        .arg0("sempre")
        .arg("--config")
        .arg(&spot.file)
        .args(["run", "--stop-with-input"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(log)
        // Ctrl-C at the terminal is for the supervisor.
        .process_group(0)
        .spawn()
}

async fn keep(spot: Spot, known: Arc<Known>, first: Child, mut stop: watch::Receiver<bool>) {
    let mut pause = PAUSE_MIN;
    let mut next = Some(first);
    loop {
        if let Some(mut child) = next.take() {
            let began = Instant::now();
            // Taken, as waiting for a child would end its input.
            let input = child.stdin.take();
            known.pid.store(child.id().unwrap_or_default(), Ordering::Relaxed);
            tokio::select! {
                ended = child.wait() => {
                    known.ends.fetch_add(1, Ordering::Relaxed);
                    eprintln!("the agent of {} ended ({}); starting it again", known.name, words(ended));
                }
                () = stopped(&mut stop) => {
                    end(child, input).await;
                    known.pid.store(0, Ordering::Relaxed);
                    return;
                }
            }
            known.pid.store(0, Ordering::Relaxed);
            pause = if began.elapsed() > STEADY { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
        }
        if time::timeout(pause, stopped(&mut stop)).await.is_ok() {
            return;
        }
        match spawn(&spot) {
            Ok(child) => next = Some(child),
            Err(error) => eprintln!("the agent of {} does not start: {error}", known.name),
        }
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Tells an agent to stop with its database, by ending its input.
async fn end(mut child: Child, input: Option<ChildStdin>) {
    drop(input);
    if time::timeout(STOP_WITHIN, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

fn words(ended: std::io::Result<ExitStatus>) -> String {
    match ended {
        Ok(status) => match status.signal() {
            Some(signal) => format!("signal {signal}"),
            None => status.to_string(),
        },
        Err(error) => error.to_string(),
    }
}

/// Processes that were started for this folder, or that are PostgreSQL's and live in it.
fn processes_below(dir: &Path) -> Vec<i32> {
    let me = std::process::id().to_string();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_name() != *me)
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| is_below(&PathBuf::from(format!("/proc/{pid}")), dir))
        .collect()
}

fn is_below(process: &Path, dir: &Path) -> bool {
    let read = |name: &str| fs::read(process.join(name)).unwrap_or_default();
    match String::from_utf8_lossy(&read("comm")).trim() {
        // Backends change their arguments, not their working directory.
        "postgres" => fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir)),
        "sempre" | "exe" => read("cmdline")
            .split(|byte| *byte == 0)
            .any(|word| Path::new(std::ffi::OsStr::from_bytes(word)).starts_with(dir)),
        _ => false,
    }
}
