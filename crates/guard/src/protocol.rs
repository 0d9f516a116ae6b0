//! What agent and guard say to each other over the guard's Unix socket: one JSON object a line.
//!
//! A guard outlives the agent that started it, so the two may be of different releases. Both
//! ignore fields they do not know; a guard answers a request it does not know with
//! [`RefusalCode::Unsupported`]; fields added later have defaults.

use crate::boot::BootTime;
use sempre_model::Generation;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// The version of this protocol. Raised only by a change that an older side cannot ignore.
pub const PROTOCOL: u32 = 1;

/// Longest request, in bytes. A start with its environment needs a few kB; the guard's memory
/// is bounded by this times its connections.
pub const REQUEST_MAX: usize = 64 * 1024;

/// Furthest a deadline may lie ahead: twice the longest lease the policy allows. More is a
/// mistake (another machine's clock, a wrong unit), and would be a lease without an end.
pub const LEASE_MAX: Duration = Duration::from_secs(600);

/// The right to take writes as primary of `generation`, up to `deadline`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Of which generation.
    pub generation: Generation,
    /// On this machine's [`BootTime`] clock: the database is killed when it passes.
    pub deadline: BootTime,
}

/// What to start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartRequest {
    /// The postmaster's binary, absolute.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Added to the guard's own environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Where it starts; `/` if not given.
    #[serde(default)]
    pub cwd: Option<PathBuf>,
    /// Its standard output and error are appended here.
    pub log_file: PathBuf,
    /// The data directory: processes a killed guard left behind are known by it.
    pub data_dir: PathBuf,
    /// As primary, up to a deadline; without: as standby.
    #[serde(default)]
    pub lease: Option<Lease>,
}

/// How to end the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopMode {
    /// Wait for clients to leave (SIGTERM).
    Smart,
    /// Cut clients off, shut down cleanly (SIGINT).
    Fast,
    /// No clean shutdown (SIGQUIT).
    Immediate,
    /// SIGKILL to everything, at once.
    Kill,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Starts the database.
    Start(Box<StartRequest>),
    /// The running standby is (about to be) primary: from now the deadline counts.
    Arm(Lease),
    /// A later deadline for the same generation. An earlier one than the present changes nothing.
    Renew(Lease),
    /// The database is a standby (still, or again): no deadline.
    Disarm,
    /// SIGHUP to the postmaster.
    Reload,
    /// Ends the database. Answered at once; that it ended is seen in the status.
    Stop {
        /// How.
        mode: StopMode,
    },
    /// From now on, durably, nothing of a generation below this serves here. Answered only once
    /// that holds.
    Fence {
        /// The lowest generation still allowed.
        below: Generation,
    },
    /// Only the status.
    Status,
    /// Ends the guard.
    Quit {
        /// Even with a database running: it is killed first.
        kill: bool,
    },
}

impl Request {
    /// A word for it, for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Request::Start(_) => "start",
            Request::Arm(_) => "arm",
            Request::Renew(_) => "renew",
            Request::Disarm => "disarm",
            Request::Reload => "reload",
            Request::Stop { .. } => "stop",
            Request::Fence { .. } => "fence",
            Request::Status => "status",
            Request::Quit { .. } => "quit",
        }
    }
}

/// The database as the guard has it. Present until the last of its processes is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Postmaster {
    /// Its process.
    pub pid: i32,
    /// Which data directory it was started on.
    pub data_dir: PathBuf,
    /// When the guard started it.
    pub started_at: BootTime,
    /// As primary: of which generation.
    #[serde(default)]
    pub generation: Option<Generation>,
    /// As primary: up to when.
    #[serde(default)]
    pub deadline: Option<BootTime>,
    /// A shutdown was asked for.
    #[serde(default)]
    pub stopping: Option<StopMode>,
    /// Killed, or ended by itself, and some of its processes are not gone yet.
    #[serde(default)]
    pub dying: bool,
}

/// How the last database ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastExit {
    /// The process.
    pub pid: i32,
    /// When the guard saw it.
    pub at: BootTime,
    /// Exit code, when it exited.
    #[serde(default)]
    pub code: Option<i32>,
    /// Signal number, when one ended it.
    #[serde(default)]
    pub signal: Option<i32>,
    /// By a request (stop, fence, quit).
    #[serde(default)]
    pub asked_for: bool,
    /// Because its lease ended.
    #[serde(default)]
    pub by_lease: bool,
}

/// The state of a guard.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardStatus {
    /// The client's view: is the guard there? All else is the last known when it is not.
    #[serde(default)]
    pub connected: bool,
    /// The guard's process.
    #[serde(default)]
    pub guard_pid: i32,
    /// The guard's release.
    #[serde(default)]
    pub version: String,
    /// The database; none once all of its processes are gone.
    #[serde(default)]
    pub postmaster: Option<Postmaster>,
    /// Processes an earlier guard left behind that are being killed and not gone yet.
    #[serde(default)]
    pub strays: Vec<i32>,
    /// How the last database ended.
    #[serde(default)]
    pub last_exit: Option<LastExit>,
    /// No generation below this serves here.
    #[serde(default)]
    pub fenced_below: Generation,
    /// `fenced_below` is on disk.
    #[serde(default)]
    pub fence_saved: bool,
}

impl GuardStatus {
    /// Connected, and no process of any database is left.
    pub fn nothing_runs(&self) -> bool {
        self.connected && self.postmaster.is_none() && self.strays.is_empty()
    }
}

/// Why a request was refused, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// The generation is below `fenced_below`.
    Fenced,
    /// A database runs already, or is not gone yet.
    Running,
    /// No database runs.
    NotRunning,
    /// The lease's deadline has passed.
    LeaseEnded,
    /// The deadline is further ahead than any lease may be.
    LeaseTooLong,
    /// The database serves another generation (or none).
    WrongGeneration,
    /// Another server, which no guard started, runs in the data directory.
    ForeignDatabase,
    /// A newer agent connected; this one may only read the status.
    Superseded,
    /// Not possible at the moment.
    Busy,
    /// The program could not be started.
    StartFailed,
    /// The guard's state file could not be written.
    NotSaved,
    /// This guard does not know the request.
    Unsupported,
    /// What came is not a request.
    BadRequest,
    /// A code of a newer guard.
    #[serde(other)]
    Other,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people: what happened, why, what to do next.
    pub message: String,
}

impl Refusal {
    pub(crate) fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Commands the guard. The newest one does; those before may only read from then on.
    Agent,
    /// Reads the status only.
    Observer,
}

/// The first line of a client.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub protocol: u32,
    pub role: Role,
}

/// A line from a client: a hello, or a request with its id.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ClientLine {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hello: Option<Hello>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// Kept as text until the id is known, so that an unknown request still gets its answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<serde_json::Value>,
}

/// A line from the guard: its status, and, with an id, the answer to a request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct GuardLine {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refusal>,
    pub status: GuardStatus,
}
