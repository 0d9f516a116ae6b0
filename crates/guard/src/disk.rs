//! Everything the guard writes to disk while it serves goes through one thread: a disk that
//! hangs stops this thread, and never the loop that watches the deadline.

use crate::state::State;
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The log's name in the guard's directory; the one before it ends in `.1`.
pub(crate) const LOG_NAME: &str = "guard.log";
/// The log is begun anew at this size, bytes: weeks of a guard's life, and no burden.
const LOG_MAX: u64 = 1024 * 1024;
/// Jobs that may wait for the disk. Log lines beyond are dropped: a disk this slow tells more
/// than they would.
const JOBS_MAX: usize = 256;
/// The disk thread formats a line and calls the kernel; it needs little stack.
const STACK: usize = 128 * 1024;

enum Job {
    Log(String),
    Save(State),
}

/// The way to the disk thread.
pub(crate) struct Disk {
    jobs: mpsc::SyncSender<Job>,
    saved: mpsc::Receiver<(State, io::Result<()>)>,
    wake: Arc<EventFd>,
}

impl Disk {
    /// Starts the thread. Signals must be blocked before, so that they reach the main thread.
    pub fn start(dir: &Path) -> io::Result<Disk> {
        let (jobs, todo) = mpsc::sync_channel(JOBS_MAX);
        let (done, saved) = mpsc::sync_channel(JOBS_MAX);
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let wake = Arc::new(EventFd::from_value_and_flags(0, flags)?);
        let (dir, waker) = (dir.to_owned(), wake.clone());
        std::thread::Builder::new().name("guard-disk".into()).stack_size(STACK).spawn(
            move || {
                let mut log = LogFile::new(&dir);
                for job in todo {
                    match job {
                        Job::Log(line) => log.write(&line),
                        Job::Save(state) => {
                            let result = state.save(&dir);
                            if done.send((state, result)).is_err() {
                                return;
                            }
                            let _ = waker.write(1);
                        }
                    }
                }
            },
        )?;
        Ok(Disk { jobs, saved, wake })
    }

    /// Logs a line, if the disk keeps up.
    pub fn log(&self, line: impl Into<String>) {
        let _ = self.jobs.try_send(Job::Log(line.into()));
    }

    /// Asks for the state to be written; the outcome comes through [`Disk::saved`]. False when
    /// the disk does not keep up.
    pub fn save(&self, state: State) -> bool {
        self.jobs.try_send(Job::Save(state)).is_ok()
    }

    /// The outcome of the oldest save that ended, if any.
    pub fn saved(&self) -> Option<(State, io::Result<()>)> {
        self.saved.try_recv().ok()
    }

    /// Waits for the outcome of the oldest save. Only while no database runs.
    pub fn wait_saved(&self, within: Duration) -> Option<(State, io::Result<()>)> {
        self.saved.recv_timeout(within).ok()
    }

    /// Readable when a save ended.
    pub fn event(&self) -> &EventFd {
        &self.wake
    }

    /// Forgets the wake-up.
    pub fn clear_event(&self) {
        let _ = self.wake.read();
    }
}

struct LogFile {
    dir: PathBuf,
    file: Option<File>,
    size: u64,
}

impl LogFile {
    fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), file: None, size: 0 }
    }

    fn write(&mut self, line: &str) {
        if self.size > LOG_MAX {
            let _ = fs::rename(self.dir.join(LOG_NAME), self.dir.join(format!("{LOG_NAME}.1")));
            self.file = None;
        }
        if self.file.is_none() {
            self.file = open_log(&self.dir).ok();
            self.size = self.file.as_ref().and_then(|f| f.metadata().ok()).map_or(0, |m| m.len());
        }
        let text = stamped(line);
        let Some(file) = &mut self.file else { return };
        match file.write_all(text.as_bytes()) {
            Ok(()) => self.size += text.len() as u64,
            Err(_) => self.file = None,
        }
    }
}

fn open_log(dir: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(dir.join(LOG_NAME))
}

fn stamped(line: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:03} {} {line}\n", now.as_secs(), now.subsec_millis(), std::process::id())
}

/// Logs a line at once: before the guard serves, or as its last act.
pub(crate) fn log_now(dir: &Path, line: &str) {
    if let Ok(mut file) = open_log(dir) {
        let _ = file.write_all(stamped(line).as_bytes());
    }
}
