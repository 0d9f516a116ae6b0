//! Members started as root run as a system user: PostgreSQL refuses root, and nothing of sempre
//! needs it.

use crate::fail::Fail;
use nix::unistd::{self, Uid, User};
use sempre_agent::Config;
use std::{
    ffi::CString,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::Path,
};

/// How nice sempre's own processes are: less than others.
const NICE: i32 = -10;

/// Makes the member's folders for the config's user, and becomes it. Nothing happens when not
/// started as root. To be called while the process has one thread.
pub fn become_member(config: &Config) -> Result<(), Fail> {
    if !Uid::effective().is_root() {
        return Ok(());
    }
    let user = find(&config.user)?;
    make(&config.dir, &user)?;
    refuse_foreign(&config.dir, &user)?;
    if let Some(data) = &config.postgres.data_dir {
        make(data, &user)?;
    }
    become_user(&user)
}

/// Comes before others on a busy machine, where that is allowed (to root, or by systemd's `Nice=`):
/// heartbeats and leases are little work, and a database that takes all of the processors must not
/// delay them until its primary counts as lost. What sempre starts of PostgreSQL is put back.
/// To be called while the process has one thread.
pub fn hurry() {
    use nix::libc::{PRIO_PROCESS, getpriority};
    // SAFETY: a plain system call on numbers.
    if unsafe { getpriority(PRIO_PROCESS, 0) } >= 0 {
        be_nice(NICE);
    }
}

/// Sets how nice this process is, where that is allowed.
pub fn be_nice(nice: i32) {
    // SAFETY: a plain system call on numbers.
    unsafe { nix::libc::setpriority(nix::libc::PRIO_PROCESS, 0, nice) };
}

/// The system user of this name, who must not be root.
pub fn find(name: &str) -> Result<User, Fail> {
    let user = User::from_name(name).ok().flatten().ok_or_else(|| {
        Fail::usage(
            format!("there is no system user `{name}`"),
            "started as root, a member runs as the config's `user`",
            "Install PostgreSQL's packages (they make `postgres`), or name another `user`.",
        )
    })?;
    if user.uid.is_root() {
        return Err(Fail::usage(
            "a member cannot run as root",
            "PostgreSQL refuses to",
            "Name a system user as `user` in the config file.",
        ));
    }
    Ok(user)
}

/// Makes a folder that is the user's alone. One that is there stays as it is, unless it is
/// empty and root's: then it is given to the user.
pub fn make(dir: &Path, user: &User) -> Result<(), Fail> {
    let failed = |doing: &str, error: io::Error| {
        let next = "Name another folder in the config file, or put this one right.";
        Fail::new(format!("cannot {doing} {}", dir.display()), error.to_string(), next)
    };
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent).map_err(|e| failed("make", e))?;
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let owner = fs::metadata(dir).map_err(|e| failed("look at", e))?.uid();
            let mut entries = fs::read_dir(dir).map_err(|e| failed("read", e))?;
            if owner != 0 || entries.next().is_some() {
                return Ok(());
            }
        }
        Err(e) => return Err(failed("make", e)),
    }
    std::os::unix::fs::chown(dir, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
        .map_err(|e| failed("give away", e))
}

/// A folder of somebody else is not the member's.
fn refuse_foreign(dir: &Path, user: &User) -> Result<(), Fail> {
    let owner = match fs::metadata(dir) {
        Ok(found) => found.uid(),
        // What it is, is said when it is used.
        Err(_) => return Ok(()),
    };
    if owner == user.uid.as_raw() {
        return Ok(());
    }
    Err(Fail::coded(
        sempre_api::codes::WRONG_OWNER,
        format!("`dir` ({}) cannot be used", dir.display()),
        format!("it belongs to user id {owner}, and the member runs as `{}`", user.name),
    )
    .next("Name an empty folder, or give it to that user if it is this member's (`chown -R`)."))
}

/// Becomes this user, for good.
pub fn become_user(user: &User) -> Result<(), Fail> {
    let change = || -> nix::Result<()> {
        let name = CString::new(user.name.as_str()).map_err(|_| nix::errno::Errno::EINVAL)?;
        unistd::setgroups(&unistd::getgrouplist(&name, user.gid)?)?;
        unistd::setresgid(user.gid, user.gid, user.gid)?;
        unistd::setresuid(user.uid, user.uid, user.uid)
    };
    change().map_err(|error| {
        Fail::new(format!("cannot become the system user `{}`", user.name), error.to_string(), "")
    })?;
    // Where we were may be closed to the user; PostgreSQL's programs want to know where they are.
    let _ = std::env::set_current_dir("/");
    // SAFETY: the process still has one thread (see `become_member`).
    unsafe {
        // libpq looks below HOME for keys, and fails if it may not look.
        std::env::set_var("HOME", &user.dir);
        std::env::set_var("USER", &user.name);
        std::env::set_var("LOGNAME", &user.name);
    }
    Ok(())
}
