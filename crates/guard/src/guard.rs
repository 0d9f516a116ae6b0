//! What the guard knows and does: the database, its lease, the fence. The loop in `server` calls
//! in here; nothing in here waits, but for a start, which happens only while nothing runs.

use crate::{
    boot::{BootTime, boot_now},
    database::{Database, KillReason},
    disk::Disk,
    processes::kill_descendants,
    protocol::{
        GuardStatus, LEASE_MAX, LastExit, Lease, Refusal, RefusalCode, Request, StartRequest,
        StopMode,
    },
    state::State,
    strays::{kill_strays_once, stray_processes, unreaped_postmaster},
    warden::SharedDeadline,
};
use nix::{
    errno::Errno,
    sys::{
        signal::Signal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use sempre_model::Generation;
use std::{path::PathBuf, time::Duration};

/// Between two passes over processes that were killed: a process that forked in the moment it was
/// killed is found by the next.
const KILL_AGAIN: Duration = Duration::from_millis(5);
/// The same, for what a former guard left, which takes a look at every process of the machine.
const STRAYS_AGAIN: Duration = Duration::from_millis(20);
/// Between two attempts to write the state, when the disk refuses.
const SAVE_AGAIN: Duration = Duration::from_secs(1);
/// How long a start waits for the state to be written.
const SAVE_WITHIN: Duration = Duration::from_secs(5);
/// How long a new guard waits for a dead postmaster's parent to notice. PostgreSQL does not start
/// while the process of its `postmaster.pid` exists, dead or not. Init may be slow; one that never
/// looks must not stop us for ever.
const REAP_WITHIN: Duration = Duration::from_secs(2);
/// Fences that may wait to be complete: an agent needs one.
const FENCES_MAX: usize = 16;

/// What becomes of a request.
pub(crate) enum Outcome {
    /// Answered now.
    Now(Result<(), Refusal>),
    /// Answered by [`Guard::complete_fences`].
    Later,
}

/// A fence that is not complete yet.
pub(crate) struct WaitingFence {
    pub connection: u64,
    pub request: u64,
    below: Generation,
}

/// The guard's state.
pub(crate) struct Guard {
    disk: Disk,
    shared: SharedDeadline,
    version: &'static str,
    oom_score: Option<String>,
    state: State,
    saved: State,
    saving: bool,
    save_failed: Option<String>,
    save_next: BootTime,
    database: Option<Database>,
    left_behind: Option<PathBuf>,
    strays: Vec<i32>,
    last_exit: Option<LastExit>,
    fences: Vec<WaitingFence>,
    kill_next: BootTime,
    quitting: bool,
    began: BootTime,
}

fn refuse<T>(code: RefusalCode, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::new(code, message))
}

impl Guard {
    /// `oom_score`: what to restore in the database, when the guard's own was lowered.
    pub fn new(
        disk: Disk,
        state: State,
        shared: SharedDeadline,
        oom_score: Option<String>,
    ) -> Self {
        let left_behind = state.database.clone();
        Self {
            disk,
            shared,
            version: env!("CARGO_PKG_VERSION"),
            oom_score,
            saved: state.clone(),
            state,
            saving: false,
            save_failed: None,
            save_next: BootTime::default(),
            database: None,
            left_behind,
            strays: Vec::new(),
            last_exit: None,
            fences: Vec::new(),
            kill_next: BootTime::default(),
            quitting: false,
            began: boot_now(),
        }
    }

    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    pub fn status(&self) -> GuardStatus {
        GuardStatus {
            connected: false,
            guard_pid: std::process::id() as i32,
            version: self.version.to_owned(),
            postmaster: self.database.as_ref().map(Database::status),
            strays: self.strays.clone(),
            last_exit: self.last_exit.clone(),
            fenced_below: self.state.fenced_below,
            fence_saved: self.saved.fenced_below >= self.state.fenced_below,
        }
    }

    /// The first thing on every wake-up: is the lease over?
    pub fn enforce(&mut self) {
        let over = self
            .database
            .as_ref()
            .filter(|db| db.kill.is_none())
            .and_then(|db| db.lease)
            .filter(|lease| boot_now() >= lease.deadline);
        if let Some(lease) = over {
            self.kill(KillReason::Lease);
            let late = boot_now().since(lease.deadline).as_micros();
            self.disk.log(format!(
                "the lease of generation {} ended: killed the database ({late} us after the deadline)",
                lease.generation
            ));
        }
    }

    fn kill(&mut self, reason: KillReason) {
        if let Some(db) = &mut self.database {
            // Nobody starts anything new once the postmaster is gone: it first.
            db.signal(Signal::SIGKILL);
            kill_descendants();
            db.kill.get_or_insert(reason);
            self.shared.set(None);
            self.kill_next = boot_now().after(KILL_AGAIN);
        }
    }

    /// Everything that is due, after [`Guard::enforce`].
    pub fn work(&mut self) {
        self.reap();
        let now = boot_now();
        let dying = self.database.as_ref().is_some_and(|db| db.kill.is_some());
        if dying && now >= self.kill_next {
            kill_descendants();
            self.kill_next = now.after(KILL_AGAIN);
            self.reap();
        }
        if let Some(data_dir) = self.left_behind.clone()
            && now >= self.kill_next
        {
            let mut strays = kill_strays_once(&data_dir);
            if !strays.is_empty() && self.strays.is_empty() {
                self.disk.log(format!("killed what a former guard left behind: {strays:?}"));
            }
            if strays.is_empty() {
                strays.extend(
                    unreaped_postmaster(&data_dir).filter(|_| now < self.began.after(REAP_WITHIN)),
                );
            }
            if strays.is_empty() {
                self.left_behind = None;
                self.state.database = None;
            }
            self.strays = strays;
            self.kill_next = now.after(STRAYS_AGAIN);
        }
        self.take_saved();
        self.save_if_due();
    }

    /// When to wake up next, without an event.
    pub fn wake_at(&self) -> Option<BootTime> {
        let dying = self.database.as_ref().is_some_and(|db| db.kill.is_some());
        let deadline = self
            .database
            .as_ref()
            .filter(|db| db.kill.is_none())
            .and_then(|db| db.lease)
            .map(|lease| lease.deadline);
        let killing = (dying || self.left_behind.is_some()).then_some(self.kill_next);
        let saving = (self.saved != self.state && !self.saving).then_some(self.save_next);
        [deadline, killing, saving].into_iter().flatten().min()
    }

    /// Waits for every child that ended: ours, and orphans, which become ours.
    fn reap(&mut self) {
        loop {
            let (pid, code, signal) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, Some(code), None),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, None, Some(signal as i32)),
                Ok(WaitStatus::StillAlive) => return,
                Err(Errno::ECHILD) => break,
                Err(Errno::EINTR) | Ok(_) => continue,
                Err(_) => return,
            };
            self.ended(pid, code, signal);
        }
        // No child at all: whoever remained of the tree would be one.
        if self.database.as_ref().is_some_and(|db| db.reaped) {
            self.database = None;
            self.state.database = None;
            self.disk.log("the database is gone");
        }
    }

    fn ended(&mut self, pid: Pid, code: Option<i32>, signal: Option<i32>) {
        let Some(db) = self.database.as_mut().filter(|db| db.pid == pid && !db.reaped) else {
            return;
        };
        db.reaped = true;
        let exit = LastExit {
            pid: pid.as_raw(),
            at: boot_now(),
            code,
            signal,
            asked_for: db.stop.is_some() || db.kill == Some(KillReason::Asked),
            by_lease: db.kill == Some(KillReason::Lease),
        };
        self.disk.log(format!("the postmaster ended: {exit:?}"));
        self.last_exit = Some(exit);
        self.kill(KillReason::Remains);
    }

    fn save_if_due(&mut self) {
        if self.saved != self.state && !self.saving && boot_now() >= self.save_next {
            self.saving = self.disk.save(self.state.clone());
            self.save_next = boot_now().after(SAVE_AGAIN);
        }
    }

    fn take_saved(&mut self) {
        self.disk.clear_event();
        while let Some(done) = self.disk.saved() {
            self.note_saved(done);
        }
    }

    fn note_saved(&mut self, (state, result): (State, std::io::Result<()>)) {
        self.saving = false;
        match result {
            Ok(()) => {
                self.saved = state;
                self.save_failed = None;
                self.save_next = BootTime::default();
            }
            Err(e) => {
                let text = format!("cannot write the guard's state: {e}");
                self.disk.log(text.clone());
                self.save_failed = Some(text);
                self.save_next = boot_now().after(SAVE_AGAIN);
            }
        }
    }

    /// Fences that are complete, or failed, now.
    pub fn complete_fences(&mut self) -> Vec<(WaitingFence, Result<(), Refusal>)> {
        let mut done = Vec::new();
        for fence in std::mem::take(&mut self.fences) {
            let serves = self
                .database
                .as_ref()
                .and_then(|db| db.lease)
                .is_some_and(|lease| lease.generation < fence.below);
            if !serves && self.left_behind.is_none() && self.saved.fenced_below >= fence.below {
                done.push((fence, Ok(())));
            } else if let Some(why) = &self.save_failed {
                let why = format!("{why}; the fence holds only until the guard ends");
                done.push((fence, Err(Refusal::new(RefusalCode::NotSaved, why))));
            } else {
                self.fences.push(fence);
            }
        }
        done
    }

    /// Nobody waits for these any more.
    pub fn forget_fences_of(&mut self, connection: u64) {
        self.fences.retain(|f| f.connection != connection);
    }

    /// The guard was asked to end, and nothing runs.
    pub fn finished(&self) -> bool {
        self.quitting && self.database.is_none()
    }

    /// SIGTERM to the guard: an orderly end; at the second one, at once.
    pub fn terminate(&mut self) {
        self.disk.log("asked to end by a signal");
        if self.quitting {
            self.kill(KillReason::Asked);
        } else {
            self.quitting = true;
            self.stop(StopMode::Fast);
        }
    }

    /// Does what a request says.
    pub fn handle(&mut self, connection: u64, request: u64, what: Request) -> Outcome {
        Outcome::Now(match what {
            Request::Status => Ok(()),
            Request::Start(start) => self.start(&start),
            Request::Arm(lease) => self.arm(lease),
            Request::Renew(lease) => self.renew(lease),
            Request::Disarm => self.disarm(),
            Request::Reload => self.running().map(|db| db.signal(Signal::SIGHUP)),
            Request::Stop { mode } => self.running().map(|_| ()).map(|()| self.stop(mode)),
            Request::Quit { kill } => self.quit(kill),
            Request::Fence { below } => {
                if self.fences.len() >= FENCES_MAX {
                    let text = format!("{FENCES_MAX} fences are not complete yet");
                    return Outcome::Now(refuse(RefusalCode::Busy, text));
                }
                self.fence(below);
                self.fences.push(WaitingFence { connection, request, below });
                return Outcome::Later;
            }
        })
    }

    /// The database, if it runs and is not being killed.
    fn running(&mut self) -> Result<&mut Database, Refusal> {
        let why = match self.database.as_ref().map(|db| db.kill) {
            None => (RefusalCode::NotRunning, "no database runs: start it first"),
            Some(Some(KillReason::Lease)) => {
                (RefusalCode::LeaseEnded, "the lease ended, and the database was killed")
            }
            Some(Some(_)) => (RefusalCode::NotRunning, "the database is ending"),
            Some(None) => (RefusalCode::NotRunning, "no database runs"),
        };
        match self.database.as_mut().filter(|db| db.kill.is_none()) {
            Some(db) => Ok(db),
            None => refuse(why.0, why.1),
        }
    }

    fn check_lease(&self, lease: Lease) -> Result<(), Refusal> {
        let now = boot_now();
        if lease.generation < self.state.fenced_below {
            return refuse(
                RefusalCode::Fenced,
                format!(
                    "generation {} may not serve here: every one below {} is fenced",
                    lease.generation, self.state.fenced_below
                ),
            );
        }
        if lease.deadline <= now {
            let ago = now.since(lease.deadline);
            return refuse(RefusalCode::LeaseEnded, format!("the lease ended {ago:?} ago"));
        }
        if lease.deadline > now.after(LEASE_MAX) {
            let ahead = lease.deadline.since(now);
            return refuse(
                RefusalCode::LeaseTooLong,
                format!("a deadline {ahead:?} ahead is no lease: the longest is {LEASE_MAX:?}"),
            );
        }
        Ok(())
    }

    fn start(&mut self, request: &StartRequest) -> Result<(), Refusal> {
        if self.quitting {
            return refuse(RefusalCode::Busy, "this guard is ending");
        }
        if let Some(db) = &self.database {
            let how = if db.kill.is_some() { "is not gone yet" } else { "runs already" };
            return refuse(
                RefusalCode::Running,
                format!("the database (process {}) {how}", db.pid),
            );
        }
        if self.left_behind.is_some() {
            let text = format!(
                "processes of the database before are not gone yet: {:?}; try again",
                self.strays
            );
            return refuse(RefusalCode::Running, text);
        }
        if let Some(lease) = request.lease {
            self.check_lease(lease)?;
        }
        let others = stray_processes(&request.data_dir);
        if !others.is_empty() {
            let text = format!(
                "a server that no guard started runs in {} (processes {others:?}): stop it first",
                request.data_dir.display()
            );
            return refuse(RefusalCode::ForeignDatabase, text);
        }
        // On disk before it runs, so that the next guard knows whom to look for.
        self.state.database = Some(request.data_dir.clone());
        if let Err(why) = self.save_now() {
            self.state.database = None;
            return refuse(RefusalCode::NotSaved, why);
        }
        // First, so that there is no moment without: the warden watches from before the start.
        self.shared.set(request.lease.map(|lease| lease.deadline));
        match Database::start(request, self.oom_score.as_deref()) {
            Ok(db) => {
                self.disk.log(format!(
                    "started {} as process {} on {}, lease {:?}",
                    request.program.display(),
                    db.pid,
                    request.data_dir.display(),
                    request.lease
                ));
                self.database = Some(db);
                Ok(())
            }
            Err(e) => {
                self.state.database = None;
                self.shared.set(None);
                let text = format!("cannot start {}: {e}", request.program.display());
                self.disk.log(text.clone());
                refuse(RefusalCode::StartFailed, text)
            }
        }
    }

    /// Waits for the state to be on disk. Only while nothing runs.
    fn save_now(&mut self) -> Result<(), String> {
        let until = boot_now().after(SAVE_WITHIN);
        self.save_next = BootTime::default();
        self.save_failed = None;
        while self.saved != self.state {
            self.save_if_due();
            match self.disk.wait_saved(until.since(boot_now())) {
                Some(done) => self.note_saved(done),
                None => {
                    return Err(format!("the guard's disk did not answer within {SAVE_WITHIN:?}"));
                }
            }
            if let Some(why) = &self.save_failed {
                return Err(why.clone());
            }
        }
        Ok(())
    }

    fn arm(&mut self, lease: Lease) -> Result<(), Refusal> {
        self.running()?;
        self.check_lease(lease)?;
        let db = self.running()?;
        if let Some(held) = db.lease {
            if held.generation > lease.generation {
                let text = format!(
                    "it serves generation {}: {} is over",
                    held.generation, lease.generation
                );
                return refuse(RefusalCode::WrongGeneration, text);
            }
            if held.generation == lease.generation {
                return self.renew(lease);
            }
        }
        db.lease = Some(lease);
        self.shared.set(Some(lease.deadline));
        self.disk.log(format!("armed: generation {}", lease.generation));
        Ok(())
    }

    fn renew(&mut self, lease: Lease) -> Result<(), Refusal> {
        let held = self.running()?.lease;
        match held {
            Some(held) if held.generation == lease.generation => {
                if lease.deadline > held.deadline {
                    self.check_lease(lease)?;
                    self.running()?.lease = Some(lease);
                    self.shared.set(Some(lease.deadline));
                }
                Ok(())
            }
            Some(held) => refuse(
                RefusalCode::WrongGeneration,
                format!("it serves generation {}, not {}", held.generation, lease.generation),
            ),
            None => refuse(
                RefusalCode::WrongGeneration,
                "it runs as a standby: arm it before renewing its lease",
            ),
        }
    }

    fn disarm(&mut self) -> Result<(), Refusal> {
        let db = self.running()?;
        if db.lease.take().is_some() {
            self.shared.set(None);
            self.disk.log("disarmed: a standby");
        }
        Ok(())
    }

    fn stop(&mut self, mode: StopMode) {
        let Some(db) = self.database.as_mut().filter(|db| db.kill.is_none()) else { return };
        db.stop = Some(mode);
        match mode {
            StopMode::Smart => db.signal(Signal::SIGTERM),
            StopMode::Fast => db.signal(Signal::SIGINT),
            StopMode::Immediate => db.signal(Signal::SIGQUIT),
            StopMode::Kill => self.kill(KillReason::Asked),
        }
        self.disk.log(format!("stopping the database: {mode:?}"));
    }

    fn fence(&mut self, below: Generation) {
        if below > self.state.fenced_below {
            self.state.fenced_below = below;
            self.save_next = BootTime::default();
            self.disk.log(format!("fenced below generation {below}"));
        }
        self.save_failed = None;
        let serves = self.database.as_ref().and_then(|db| db.lease);
        if serves.is_some_and(|lease| lease.generation < below) {
            self.kill(KillReason::Asked);
        }
    }

    fn quit(&mut self, kill: bool) -> Result<(), Refusal> {
        if let Some(db) = &self.database {
            if !kill {
                let text = format!("the database (process {}) runs: stop it first", db.pid);
                return refuse(RefusalCode::Running, text);
            }
            self.kill(KillReason::Asked);
        }
        self.disk.log("asked to end");
        self.quitting = true;
        Ok(())
    }

    /// The last act: what is not on disk yet gets its moment, the log too.
    pub fn close(&mut self) {
        while self.saving {
            match self.disk.wait_saved(SAVE_WITHIN) {
                Some(done) => self.note_saved(done),
                None => return,
            }
        }
        self.disk.log("ended");
        if self.disk.save(self.state.clone()) {
            // The same thread writes both, in order.
            let _ = self.disk.wait_saved(SAVE_WITHIN);
        }
    }
}
