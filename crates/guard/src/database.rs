//! The database as a child process: starting it, and what is known of it.

use crate::{
    boot::{BootTime, boot_now},
    protocol::{Lease, Postmaster, StartRequest, StopMode},
};
use nix::{
    sys::{
        prctl,
        signal::{SigSet, Signal, kill},
    },
    unistd::{Pid, getppid},
};
use std::{
    fs::OpenOptions,
    io,
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Why its processes are being killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KillReason {
    /// Its lease ended.
    Lease,
    /// A request.
    Asked,
    /// The postmaster ended by itself: what it left cannot serve, and is in the way of a restart.
    Remains,
}

/// A database that was started and whose processes are not all gone.
#[derive(Debug)]
pub(crate) struct Database {
    pub pid: Pid,
    pub data_dir: PathBuf,
    pub started_at: BootTime,
    pub lease: Option<Lease>,
    pub stop: Option<StopMode>,
    pub kill: Option<KillReason>,
    /// The postmaster itself was waited for.
    pub reaped: bool,
}

impl Database {
    /// Starts it. `oom_score` is restored in it, if given.
    pub fn start(request: &StartRequest, oom_score: Option<&str>) -> io::Result<Database> {
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&request.log_file);
        let log = log.map_err(|e| {
            io::Error::new(e.kind(), format!("cannot open {}: {e}", request.log_file.display()))
        })?;
        let mut command = Command::new(&request.program);
        command
            .args(&request.args)
            .envs(&request.env)
            .current_dir(request.cwd.as_deref().unwrap_or(Path::new("/")))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let guard = nix::unistd::getpid();
        let oom_score = oom_score.map(str::to_owned);
        // SAFETY: between fork and exec only system calls are made, and nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                // A killed guard takes the postmaster along.
                prctl::set_pdeathsig(Signal::SIGKILL)?;
                if getppid() != guard {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                SigSet::empty().thread_set_mask()?;
                // The guard may come before others; its database does not.
                nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, 0);
                if let Some(score) = &oom_score {
                    let _ = crate::spawn::write_oom_score(score.as_bytes());
                }
                Ok(())
            });
        }
        let child = command.spawn()?;
        // The handle is dropped: the guard waits for all of its children alike.
        Ok(Database {
            pid: Pid::from_raw(child.id() as i32),
            data_dir: request.data_dir.clone(),
            started_at: boot_now(),
            lease: request.lease,
            stop: None,
            kill: None,
            reaped: false,
        })
    }

    /// Signals the postmaster, while its pid is surely its own.
    pub fn signal(&self, signal: Signal) {
        if !self.reaped {
            let _ = kill(self.pid, signal);
        }
    }

    pub fn status(&self) -> Postmaster {
        Postmaster {
            pid: self.pid.as_raw(),
            data_dir: self.data_dir.clone(),
            started_at: self.started_at,
            generation: self.lease.map(|l| l.generation),
            deadline: self.lease.map(|l| l.deadline),
            stopping: self.stop,
            dying: self.kill.is_some(),
        }
    }
}
