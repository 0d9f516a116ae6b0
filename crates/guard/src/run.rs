//! Becoming a guard.

use crate::{
    disk::{Disk, log_now},
    error::ServeError,
    guard::Guard,
    server::Server,
    state::State,
    warden,
};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::{
        mman::{MlockAllFlags, mlockall},
        prctl,
        resource::{Resource, getrlimit},
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        stat::{Mode, umask},
    },
};
use std::{
    fs::{DirBuilder, File, OpenOptions},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    process::ExitCode,
};

const LOCK_NAME: &str = "guard.lock";
/// Exit code when another guard serves the directory already.
pub const EXIT_LOCKED: u8 = 3;

/// Serves the directory until asked to end: the whole of `sempre guard --dir DIR`.
///
/// To be called before anything else of the program runs: the process must have one thread (the
/// database is bound to the thread that started it), and should have touched little memory.
pub fn main(dir: &Path) -> ExitCode {
    match run(dir) {
        Ok(code) => code,
        Err(e) => {
            log_now(dir, &format!("error: {e}"));
            eprintln!("sempre guard: {e}");
            match e {
                ServeError::Locked(_) => ExitCode::from(EXIT_LOCKED),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn run(dir: &Path) -> Result<ExitCode, ServeError> {
    umask(Mode::from_bits_truncate(0o077));
    let file = |what, path: &Path| {
        let path = path.to_owned();
        move |source| ServeError::File { what, path, source }
    };
    if !dir.is_dir() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(file("make", dir))?;
    }
    let subreaper =
        |e: nix::Error| ServeError::System { what: "become a subreaper", source: e.into() };
    prctl::set_child_subreaper(true).map_err(subreaper)?;
    let oom_score = lower_oom_score();
    lock_memory();
    let deadline = match warden::split(dir)? {
        Ok(deadline) => deadline,
        Err(code) => return Ok(code),
    };

    // From here on: the guard, the warden's child. Neither attribute is inherited.
    prctl::set_child_subreaper(true).map_err(subreaper)?;
    lock_memory();
    // Held until this process ends, whatever ends it.
    let _lock = lock(dir)?;
    let state = State::load(dir)?;
    let signals = block_signals()?;
    let disk = Disk::start(dir)
        .map_err(|source| ServeError::System { what: "start the disk thread", source })?;
    disk.log(format!("guard {} serves {state:?}", env!("CARGO_PKG_VERSION")));
    let guard = Guard::new(disk, state, deadline, oom_score);
    let server = Server::new(dir, guard, signals)?;
    // Whoever started us reads our standard error until it ends.
    close_stderr();
    server.run()?;
    Ok(ExitCode::SUCCESS)
}

fn lock(dir: &Path) -> Result<Flock<File>, ServeError> {
    let path = dir.join(LOCK_NAME);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|source| ServeError::File { what: "open", path: path.clone(), source })?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| match e {
        nix::errno::Errno::EWOULDBLOCK => ServeError::Locked(dir.to_owned()),
        e => ServeError::File { what: "lock", path, source: e.into() },
    })
}

/// Signals become input of the loop.
fn block_signals() -> Result<SignalFd, ServeError> {
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        mask.add(signal);
    }
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    mask.thread_block()
        .and_then(|()| SignalFd::with_flags(&mask, flags))
        .map_err(|e| ServeError::System { what: "take signals", source: e.into() })
}

/// Returns the score the database is to have, when the guard's own is a lower one.
fn lower_oom_score() -> Option<String> {
    const NORMAL: &str = "0";
    let now = std::fs::read_to_string("/proc/self/oom_score_adj").ok()?;
    // Whoever started us may have been permitted to lower it already.
    let lowered = now.trim().parse::<i32>().is_ok_and(|score| score < 0)
        || crate::spawn::write_oom_score(crate::spawn::GUARD_OOM_SCORE.as_bytes()).is_ok();
    lowered.then(|| NORMAL.to_owned())
}

/// Lets go of the standard error that was given to us.
pub(crate) fn close_stderr() {
    if let Ok(null) = OpenOptions::new().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stderr(&null);
    }
}

/// What the guard has touched stays in memory, so that killing needs nothing from a disk that
/// hangs. Only pages that are in use count (`MCL_ONFAULT`); not permitted everywhere.
fn lock_memory() {
    /// A locked stack that cannot grow within the limit would be a crash.
    const ROOM: u64 = 2 * 1024 * 1024;
    /// In bytes, on every machine this is likely to see; a wrong guess only costs the lock.
    const PAGE: u64 = 4096;
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let Some(pages) = statm.split(' ').next().and_then(|w| w.parse::<u64>().ok()) else { return };
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((limit, _)) if pages.saturating_mul(PAGE).saturating_add(ROOM) <= limit => {}
        _ => return,
    }
    let on_fault = MlockAllFlags::from_bits_retain(nix::libc::MCL_ONFAULT);
    let _ = mlockall(MlockAllFlags::MCL_CURRENT | on_fault);
}
