//! The guard's parent: a second pair of eyes that does almost nothing, so that one killed or
//! stopped process does not end the promise.
//!
//! - When the guard is killed, the kernel kills the postmaster; the backends become children of
//!   the warden, which kills them at once, however little they look around.
//! - When the guard is stopped (SIGSTOP) and the deadline passes, the warden kills it and the
//!   whole tree. It knows the deadline from a page that both share: nothing has to be sent, so
//!   nothing can be stuck or stale.
//!
//! It lives as long as its guard. When it is itself killed, the guard goes on without.

use crate::{
    boot::{BootTime, boot_now},
    disk::log_now,
    error::ServeError,
    processes::kill_descendants,
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        mman::{MapFlags, ProtFlags, mmap_anonymous},
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork},
};
use std::{
    num::NonZero,
    os::fd::AsFd,
    path::Path,
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// How long after the deadline the warden steps in: the guard, which can tell why the database
/// ended and lives on, comes first. Within the default `lease_margin_ms`.
const GRACE: Duration = Duration::from_millis(50);
/// Between two passes over what is being killed.
const KILL_AGAIN: Duration = Duration::from_millis(2);
/// No deadline.
const NONE: u64 = 0;
/// A page of memory; only its first 8 bytes are used.
const PAGE: NonZero<usize> = NonZero::new(4096).unwrap();

/// The deadline as guard and warden share it.
pub(crate) struct SharedDeadline {
    at: &'static AtomicU64,
    set: EventFd,
}

impl SharedDeadline {
    fn new() -> nix::Result<Self> {
        let (access, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED);
        // SAFETY: a new mapping at a place of the kernel's choice; it is zeroed and aligned to a
        // page, a valid `AtomicU64`, and never unmapped, so it lives as long as the process.
        let at = unsafe { mmap_anonymous(None, PAGE, access, flags)?.cast::<AtomicU64>().as_ref() };
        let set = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { at, set })
    }

    /// Tells the warden. A later deadline costs one store; the warden learns of it when it wakes
    /// up for the earlier one.
    pub fn set(&self, deadline: Option<BootTime>) {
        let new = deadline.map_or(NONE, |d| d.0.max(1));
        let old = self.at.swap(new, Ordering::SeqCst);
        if new != NONE && (old == NONE || new < old) {
            let _ = self.set.write(1);
        }
    }

    fn get(&self) -> Option<BootTime> {
        Some(self.at.load(Ordering::SeqCst)).filter(|at| *at != NONE).map(BootTime)
    }
}

/// Becomes two processes: returns in the guard with the deadline to keep up to date, and in the
/// warden, when all is over, with the exit code. Needs a process of one thread.
pub(crate) fn split(dir: &Path) -> Result<Result<SharedDeadline, ExitCode>, ServeError> {
    let system = |what| move |e: Errno| ServeError::System { what, source: e.into() };
    let deadline = SharedDeadline::new().map_err(system("share a page of memory"))?;
    // SAFETY: there is one thread, so the child may go on like the parent.
    match unsafe { fork() }.map_err(system("fork"))? {
        ForkResult::Child => Ok(Ok(deadline)),
        ForkResult::Parent { child } => {
            super::run::close_stderr();
            let mut warden = Warden { guard: child, ended: None, deadline };
            if let Err(e) = warden.watch(dir) {
                // Better none than one that cannot see: the guard goes on alone.
                log_now(dir, &format!("the warden ends: {e}"));
                return Ok(Err(ExitCode::FAILURE));
            }
            Ok(Err(warden
                .ended
                .and_then(|c| u8::try_from(c).ok())
                .map_or(ExitCode::FAILURE, ExitCode::from)))
        }
    }
}

struct Warden {
    guard: Pid,
    /// The guard's exit code (or -1 for a signal), once it ended.
    ended: Option<i32>,
    deadline: SharedDeadline,
}

impl Warden {
    /// Until nothing is left.
    fn watch(&mut self, dir: &Path) -> nix::Result<()> {
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            // Orders to end are for the guard.
            mask.add(signal);
        }
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)?;
        loop {
            let due = self.deadline.get().map(|at| at.after(GRACE));
            if due.is_some_and(|due| boot_now() >= due) {
                let _ = kill(self.guard, Signal::SIGKILL);
                self.kill_all();
                log_now(dir, "the lease ended and the guard did nothing: killed both");
                return Ok(());
            }
            while let Ok(Some(_)) = signals.read_signal() {}
            let _ = self.deadline.set.read();
            self.reap();
            if let Some(code) = self.ended {
                let found = self.kill_all();
                if code < 0 || found > 0 {
                    log_now(
                        dir,
                        &format!("the guard was killed; killed {found} processes it left"),
                    );
                }
                return Ok(());
            }
            match due {
                Some(due) => timer.set(
                    Expiration::OneShot(TimeSpec::from_duration(Duration::from_nanos(due.0))),
                    TimerSetTimeFlags::TFD_TIMER_ABSTIME,
                )?,
                None => timer.unset()?,
            }
            let input = PollFlags::POLLIN;
            let mut fds = [
                PollFd::new(timer.as_fd(), input),
                PollFd::new(signals.as_fd(), input),
                PollFd::new(self.deadline.set.as_fd(), input),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Waits for who ended. True when no child is left.
    fn reap(&mut self) -> bool {
        loop {
            let (pid, code) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code),
                Ok(WaitStatus::Signaled(pid, ..)) => (pid, -1),
                Ok(WaitStatus::StillAlive) => return false,
                Err(Errno::ECHILD) => return true,
                Err(Errno::EINTR) | Ok(_) => continue,
                Err(_) => return false,
            };
            if pid == self.guard {
                self.ended = Some(code);
            }
        }
    }

    /// Kills until no child is left; how many there were at most.
    fn kill_all(&mut self) -> usize {
        let mut most = 0;
        loop {
            most = most.max(kill_descendants());
            if self.reap() {
                return most;
            }
            std::thread::sleep(KILL_AGAIN);
        }
    }
}
