//! Starting a guard that is nobody's child and shares nothing with the agent.

use std::{
    ffi::{CString, OsString},
    io,
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// What the kernel's out-of-memory killer is told of the guard, where permitted: nearly last.
/// Without a guard the database dies too, so killing it frees nothing that is worth it.
pub(crate) const GUARD_OOM_SCORE: &str = "-900";

/// The command that becomes the guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpawnBinary {
    /// The binary.
    pub program: PathBuf,
    /// All of its arguments, the guard's directory included.
    pub args: Vec<OsString>,
    /// The system user it becomes (with its groups); only root can. None: the caller's.
    pub user: Option<String>,
}

impl SpawnBinary {
    /// This program again, as `guard --dir DIR`.
    pub fn this_program(dir: &Path) -> Self {
        Self {
            // The very binary that runs, even when its file was replaced by an upgrade.
            program: "/proc/self/exe".into(),
            args: vec!["guard".into(), "--dir".into(), dir.into()],
            user: None,
        }
    }
}

struct Identity {
    user: nix::unistd::Uid,
    group: nix::unistd::Gid,
    groups: Vec<nix::unistd::Gid>,
}

fn identity(name: &str) -> io::Result<Identity> {
    let user = nix::unistd::User::from_name(name)?.ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("there is no system user `{name}`"))
    })?;
    let c_name = CString::new(name)?;
    let groups = nix::unistd::getgrouplist(&c_name, user.gid)?;
    Ok(Identity { user: user.uid, group: user.gid, groups })
}

/// Starts the guard: in a session of its own, child of init, with none of our files open.
///
/// What is returned is its standard error: it ends, empty, when the guard listens, and with the
/// reason when it cannot.
pub(crate) fn spawn_detached(binary: &SpawnBinary) -> io::Result<OwnedFd> {
    let (reason, stderr) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let identity = binary.user.as_deref().map(identity).transpose()?;
    let mut command = Command::new(&binary.program);
    command
        .args(&binary.args)
        .current_dir("/")
        // What the service manager hears comes from the agent alone.
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_USEC")
        .env_remove("WATCHDOG_PID")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr);
    // SAFETY: between fork and exec only async-signal-safe calls are made: system calls, and no
    // allocation.
    unsafe {
        command.pre_exec(move || detach(identity.as_ref()));
    }
    // The one that is waited for ends at once; its child, the guard, is adopted by init.
    command.spawn()?.wait()?;
    Ok(reason)
}

fn detach(identity: Option<&Identity>) -> io::Result<()> {
    // Rust's own files close on exec; those of C libraries may not.
    // SAFETY: a plain system call on numbers.
    unsafe {
        nix::libc::close_range(3, u32::MAX, nix::libc::CLOSE_RANGE_CLOEXEC as i32);
    }
    let _ = write_oom_score(GUARD_OOM_SCORE.as_bytes());
    nix::unistd::setsid()?;
    nix::sys::signal::SigSet::empty().thread_set_mask()?;
    // SAFETY: the child goes on to exec; the parent ends without running anything of ours.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { .. } => unsafe { nix::libc::_exit(0) },
        nix::unistd::ForkResult::Child => {}
    }
    if let Some(identity) = identity {
        nix::unistd::setgroups(&identity.groups)?;
        nix::unistd::setgid(identity.group)?;
        nix::unistd::setuid(identity.user)?;
    }
    Ok(())
}

/// Writes this process's `oom_score_adj`, with system calls alone (used between fork and exec).
pub(crate) fn write_oom_score(score: &[u8]) -> nix::Result<()> {
    use nix::fcntl::{OFlag, open};
    let file = open(c"/proc/self/oom_score_adj", OFlag::O_WRONLY, nix::sys::stat::Mode::empty())?;
    nix::unistd::write(&file, score)?;
    Ok(())
}
