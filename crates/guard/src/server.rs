//! The guard's loop: one thread, one `poll`. On every wake-up the deadline is looked at before
//! anything else, so that a guard that was paused kills first and listens then.

use crate::{
    client::SOCKET_NAME,
    connection::{Connection, Input},
    error::{SOCKET_PATH_MAX, ServeError},
    guard::{Guard, Outcome},
    protocol::{ClientLine, GuardLine, GuardStatus, PROTOCOL, Refusal, RefusalCode, Request, Role},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::Signal,
        signalfd::SignalFd,
        socket::{getsockopt, sockopt::PeerCredentials},
        stat::{Mode, umask},
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
};
use std::{
    fs, io,
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    time::Duration,
};

/// Connections at a time: an agent, the one before it, and tools that look.
const CONNECTIONS_MAX: usize = 16;

/// The loop's own state.
pub(crate) struct Server {
    guard: Guard,
    listener: UnixListener,
    timer: TimerFd,
    signals: SignalFd,
    connections: Vec<Connection>,
    /// The newest agent: the one that commands.
    commander: Option<u64>,
    last_connection: u64,
    pushed: GuardStatus,
}

impl Server {
    /// Listens at the socket of `dir`. The caller holds the directory's lock, so a socket that is
    /// there was left by a guard that is gone.
    pub fn new(dir: &Path, guard: Guard, signals: SignalFd) -> Result<Server, ServeError> {
        let path = dir.join(SOCKET_NAME);
        let length = path.as_os_str().len();
        if length > SOCKET_PATH_MAX {
            return Err(ServeError::PathTooLong { path, length });
        }
        let file = |source| ServeError::File { what: "listen at", path: path.clone(), source };
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(file(e)),
            _ => {}
        }
        // 0600 from its first moment.
        let mask = umask(Mode::from_bits_truncate(0o177));
        let listener = UnixListener::bind(&path).map_err(file);
        umask(mask);
        let listener = listener?;
        listener.set_nonblocking(true).map_err(file)?;
        // On this clock, and absolute, a deadline that passed in suspend is due on waking up.
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)
            .map_err(|e| ServeError::System { what: "make a timer", source: e.into() })?;
        Ok(Server {
            guard,
            listener,
            timer,
            signals,
            connections: Vec::new(),
            commander: None,
            last_connection: 0,
            pushed: GuardStatus::default(),
        })
    }

    /// Serves until asked to end.
    pub fn run(mut self) -> Result<(), ServeError> {
        loop {
            self.guard.enforce();
            self.guard.work();
            self.complete_fences();
            self.push_if_changed();
            self.drop_closed();
            if self.guard.finished() {
                self.guard.close();
                return Ok(());
            }
            self.set_timer()?;
            let ready = self.wait()?;
            self.guard.enforce();
            if ready.signals {
                self.take_signals();
            }
            if ready.listener {
                self.accept();
            }
            for id in ready.connections {
                self.serve(id);
            }
        }
    }

    fn set_timer(&self) -> Result<(), ServeError> {
        let set = match self.guard.wake_at() {
            // Zero would switch the timer off.
            Some(at) => self.timer.set(
                Expiration::OneShot(TimeSpec::from_duration(Duration::from_nanos(at.0.max(1)))),
                TimerSetTimeFlags::TFD_TIMER_ABSTIME,
            ),
            None => self.timer.unset(),
        };
        set.map_err(|e| ServeError::System { what: "set the timer", source: e.into() })
    }

    fn wait(&self) -> Result<Ready, ServeError> {
        let input = PollFlags::POLLIN;
        let mut fds = vec![
            PollFd::new(self.timer.as_fd(), input),
            PollFd::new(self.signals.as_fd(), input),
            PollFd::new(self.guard.disk().event().as_fd(), input),
            PollFd::new(self.listener.as_fd(), input),
        ];
        for connection in &self.connections {
            let mut flags = input;
            flags.set(PollFlags::POLLOUT, connection.wants_to_write());
            fds.push(PollFd::new(connection.stream.as_fd(), flags));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(ServeError::System { what: "poll", source: e.into() }),
        }
        let ready = |fd: &PollFd| fd.any().unwrap_or(true);
        Ok(Ready {
            signals: ready(&fds[1]),
            listener: ready(&fds[3]),
            connections: fds[4..]
                .iter()
                .zip(&self.connections)
                .filter(|(fd, _)| ready(fd))
                .map(|(_, connection)| connection.id)
                .collect(),
        })
    }

    fn take_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            let ends = [Signal::SIGTERM as u32, Signal::SIGINT as u32];
            if ends.contains(&signal.ssi_signo) {
                self.guard.terminate();
            }
            // SIGCHLD: `work` waits for whoever ended. SIGHUP: of a terminal we do not have.
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if !is_ours(&stream) {
                self.guard.disk().log("refused a connection of another user");
                continue;
            }
            if self.connections.len() >= CONNECTIONS_MAX {
                let oldest = self.connections.iter().position(|c| Some(c.id) != self.commander);
                let gone = self.connections.remove(oldest.unwrap_or(0));
                self.forget(gone.id);
            }
            self.last_connection += 1;
            if let Ok(connection) = Connection::new(self.last_connection, stream) {
                self.connections.push(connection);
            }
        }
    }

    fn serve(&mut self, id: u64) {
        let Some(connection) = self.connection(id) else { return };
        connection.flush();
        match connection.read() {
            Input::Closed => connection.closed = true,
            Input::Lines(lines) => {
                for line in lines {
                    // A line before may have taken its time.
                    self.guard.enforce();
                    self.take_line(id, &line);
                }
            }
        }
    }

    fn connection(&mut self, id: u64) -> Option<&mut Connection> {
        self.connections.iter_mut().find(|c| c.id == id && !c.closed)
    }

    fn take_line(&mut self, id: u64, line: &[u8]) {
        let bad = |text: String| Some(Refusal::new(RefusalCode::BadRequest, text));
        let line: ClientLine = match serde_json::from_slice(line) {
            Ok(line) => line,
            Err(e) => return self.part(id, bad(format!("this is no line of the protocol: {e}"))),
        };
        if let Some(hello) = line.hello {
            return self.greet(id, hello.role, hello.protocol);
        }
        let Some(role) = self.connection(id).and_then(|c| c.role) else {
            return self.part(id, bad("say hello first".into()));
        };
        let (Some(request_id), Some(request)) = (line.id, line.request) else {
            return self.part(id, bad("a request needs `id` and `request`".into()));
        };
        let result = match serde_json::from_value::<Request>(request) {
            Err(e) => Err(Refusal::new(
                RefusalCode::Unsupported,
                format!(
                    "this guard (version {}) does not understand: {e}",
                    env!("CARGO_PKG_VERSION")
                ),
            )),
            Ok(what) if what != Request::Status && self.commander != Some(id) => {
                let why = match role {
                    Role::Agent => "a newer agent commands this guard; this one may only look",
                    Role::Observer => "an observer may only look",
                };
                Err(Refusal::new(RefusalCode::Superseded, why))
            }
            Ok(what) => match self.guard.handle(id, request_id, what) {
                Outcome::Now(result) => result,
                Outcome::Later => return,
            },
        };
        self.answer(id, request_id, result);
    }

    fn greet(&mut self, id: u64, role: Role, protocol: u32) {
        let status = self.guard.status();
        let Some(connection) = self.connection(id) else { return };
        connection.role = Some(role);
        // The client decides whether it can speak with us; it knows what came after this version.
        connection.send(&GuardLine { protocol: Some(PROTOCOL), id: None, refused: None, status });
        if role == Role::Agent {
            self.commander = Some(id);
            self.guard.disk().log(format!("an agent connected (protocol {protocol})"));
        }
    }

    fn answer(&mut self, id: u64, request: u64, result: Result<(), Refusal>) {
        let status = self.guard.status();
        if let Some(connection) = self.connection(id) {
            let refused = result.err();
            connection.send(&GuardLine { protocol: None, id: Some(request), refused, status });
        }
    }

    /// Tells a client what is wrong, and closes.
    fn part(&mut self, id: u64, refused: Option<Refusal>) {
        let status = self.guard.status();
        if let Some(connection) = self.connection(id) {
            connection.send(&GuardLine { protocol: Some(PROTOCOL), id: None, refused, status });
            connection.closing = true;
            connection.flush();
        }
    }

    fn complete_fences(&mut self) {
        for (fence, result) in self.guard.complete_fences() {
            self.answer(fence.connection, fence.request, result);
        }
    }

    fn push_if_changed(&mut self) {
        let status = self.guard.status();
        // A renewal is no news to anyone but the one who asked for it, and has the answer.
        let mut news = status.clone();
        if let Some(postmaster) = &mut news.postmaster {
            postmaster.deadline = None;
        }
        if news == self.pushed {
            return;
        }
        self.pushed = news;
        for connection in self.connections.iter_mut().filter(|c| c.role.is_some()) {
            let status = status.clone();
            connection.send(&GuardLine { protocol: None, id: None, refused: None, status });
        }
    }

    fn drop_closed(&mut self) {
        let gone: Vec<u64> = self.connections.iter().filter(|c| c.closed).map(|c| c.id).collect();
        self.connections.retain(|c| !c.closed);
        for id in gone {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: u64) {
        self.guard.forget_fences_of(id);
        if self.commander == Some(id) {
            self.commander = None;
            self.guard.disk().log("the agent is gone; the database goes on");
        }
    }
}

struct Ready {
    signals: bool,
    listener: bool,
    connections: Vec<u64>,
}

/// The socket's mode says so already; this holds on systems that ignore it, too.
fn is_ours(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    getsockopt(stream, PeerCredentials).is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}
