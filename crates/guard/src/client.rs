//! The agent's side: finds or starts the guard, sends requests, keeps its status in a watch.

use crate::{
    error::{GuardError, SOCKET_PATH_MAX},
    protocol::{
        ClientLine, GuardLine, GuardStatus, Hello, Lease, PROTOCOL, REQUEST_MAX, Refusal, Request,
        Role, StartRequest, StopMode,
    },
    spawn::{SpawnBinary, spawn_detached},
};
use sempre_model::Generation;
use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, pipe},
    },
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, timeout},
};

/// The socket's name in the guard's directory.
pub const SOCKET_NAME: &str = "guard.sock";
/// Requests that may wait for their answers. An agent asks one thing at a time, and renews.
const WAITING_MAX: usize = 64;
/// Longest line from the guard, bytes. A status is about 1 kB.
const LINE_MAX: u64 = 1024 * 1024;
/// How long a guard that was just started may take to listen. Longer than a slow disk's moment.
const LISTEN_WITHIN: Duration = Duration::from_secs(10);
/// How long another guard, whose start came first, may take to listen.
const OTHER_LISTENS_WITHIN: Duration = Duration::from_millis(500);
/// How much of a guard's reason not to start is read, bytes.
const REASON_MAX: u64 = 4096;
/// How long a guard may take to say hello. It does nothing else that takes time.
const HELLO_WITHIN: Duration = Duration::from_secs(2);
/// Between two looks for the socket of a guard that was just started.
const LISTEN_LOOK: Duration = Duration::from_millis(5);

type Answer = Result<GuardStatus, Refusal>;

/// A connection to the guard of one directory. Cheap to clone; clones share the connection.
#[derive(Clone)]
pub struct GuardClient {
    shared: Arc<Shared>,
}

struct Shared {
    dir: PathBuf,
    binary: SpawnBinary,
    role: Role,
    status: watch::Sender<GuardStatus>,
    link: Mutex<Link>,
    /// One connects at a time.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Link {
    /// Counts connections, so that the end of an old one does not end a new one.
    epoch: u64,
    lines: Option<mpsc::Sender<String>>,
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
    last_id: u64,
    pid: i32,
}

impl Shared {
    fn link(&self) -> MutexGuard<'_, Link> {
        // Nothing in here panics half way through a change.
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(&self, epoch: u64) {
        let mut link = self.link();
        if link.epoch == epoch {
            link.lines = None;
            link.waiting.clear();
            self.status.send_modify(|s| s.connected = false);
        }
    }
}

impl GuardClient {
    /// Connects to the guard of `dir`; when there is none, starts one with `binary` first.
    pub async fn connect_or_spawn(
        dir: &Path,
        binary: SpawnBinary,
    ) -> Result<GuardClient, GuardError> {
        let client = Self::new(dir, binary, Role::Agent);
        client.reconnect_or_spawn().await?;
        Ok(client)
    }

    /// Connects to a running guard to read its status only; starts none.
    pub async fn observe(dir: &Path) -> Result<GuardClient, GuardError> {
        let client = Self::new(dir, SpawnBinary::this_program(dir), Role::Observer);
        let path = client.socket_path()?;
        let stream = UnixStream::connect(&path)
            .await
            .map_err(|source| GuardError::Connect { path, source })?;
        client.adopt(stream).await?;
        Ok(client)
    }

    /// Kills the guard of `dir`, and with it the database: the last means against a guard that is
    /// stopped or stuck ([`GuardError::NoAnswer`]). Returns its pid; none when there is no guard.
    pub async fn kill_guard(dir: &Path) -> Result<Option<i32>, GuardError> {
        let path = Self::new(dir, SpawnBinary::this_program(dir), Role::Observer).socket_path()?;
        // The kernel names who listens; the connection is held until the kill, and the check
        // below is made while the pid cannot change hands.
        let stream = match UnixStream::connect(&path).await {
            Ok(stream) => stream,
            Err(e) if is_nobody(&e) => return Ok(None),
            Err(source) => return Err(GuardError::Connect { path, source }),
        };
        let credentials = stream
            .peer_cred()
            .map_err(|source| GuardError::Connect { path: path.clone(), source })?;
        let Some(pid) = credentials.pid() else { return Ok(None) };
        // A guard that ended meanwhile would have closed the connection.
        let open = || !matches!(stream.try_read(&mut [0; 1]), Ok(0));
        crate::processes::kill_if(pid, |_| open());
        Ok(Some(pid))
    }

    fn new(dir: &Path, binary: SpawnBinary, role: Role) -> Self {
        Self {
            shared: Arc::new(Shared {
                dir: dir.to_owned(),
                binary,
                role,
                status: watch::Sender::new(GuardStatus::default()),
                link: Mutex::default(),
                connecting: tokio::sync::Mutex::default(),
            }),
        }
    }

    /// After [`GuardStatus::connected`] became false: connects again, or starts a new guard. The
    /// watch goes on. Does nothing when connected.
    pub async fn reconnect_or_spawn(&self) -> Result<(), GuardError> {
        let _one = self.shared.connecting.lock().await;
        if self.shared.link().lines.is_some() {
            return Ok(());
        }
        let path = self.socket_path()?;
        let began = Instant::now();
        let mut failed: Option<(Instant, String)> = None;
        let mut spawned = false;
        loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => match self.adopt(stream).await {
                    // A guard that ends closes what it has not accepted: look again.
                    Err(GuardError::Disconnected { .. }) if began.elapsed() < LISTEN_WITHIN => {}
                    other => return other,
                },
                Err(e) if is_nobody(&e) && !spawned => {
                    spawned = true;
                    failed = self.spawn().await?.map(|reason| (Instant::now(), reason));
                    continue;
                }
                Err(e) if is_nobody(&e) => {
                    // When it failed because another guard is about to listen, that one will do.
                    if let Some((_, reason)) =
                        failed.take_if(|(at, _)| at.elapsed() > OTHER_LISTENS_WITHIN)
                    {
                        return Err(GuardError::NotListening { path, reason });
                    }
                    if began.elapsed() > LISTEN_WITHIN {
                        let reason = format!("nothing for {LISTEN_WITHIN:?}; see guard.log there");
                        return Err(GuardError::NotListening { path, reason });
                    }
                }
                Err(source) => return Err(GuardError::Connect { path, source }),
            }
            sleep(LISTEN_LOOK).await;
        }
    }

    fn socket_path(&self) -> Result<PathBuf, GuardError> {
        let path = self.shared.dir.join(SOCKET_NAME);
        let length = path.as_os_str().len();
        if length > SOCKET_PATH_MAX {
            return Err(GuardError::PathTooLong { path, length });
        }
        Ok(path)
    }

    /// Starts a guard and waits until it listens; why it does not, if it says so.
    async fn spawn(&self) -> Result<Option<String>, GuardError> {
        let binary = self.shared.binary.clone();
        let program = binary.program.clone();
        let failed = |source| GuardError::Spawn { program, source };
        let spawning = tokio::task::spawn_blocking(move || spawn_detached(&binary));
        let stderr = match spawning.await.map_err(io::Error::other).and_then(|spawned| spawned) {
            Ok(stderr) => stderr,
            Err(source) => return Err(failed(source)),
        };
        let stderr = pipe::Receiver::from_owned_fd(stderr).map_err(failed)?;
        let mut said = Vec::new();
        // When it says nothing for that long, the loop above finds out the same way.
        let _ = timeout(LISTEN_WITHIN, stderr.take(REASON_MAX).read_to_end(&mut said)).await;
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        Ok((!said.is_empty()).then_some(said))
    }

    async fn adopt(&self, stream: UnixStream) -> Result<(), GuardError> {
        const REQUEST: &str = "hello";
        let pid = stream.peer_cred().ok().and_then(|c| c.pid()).unwrap_or(0);
        let (read, mut write) = stream.into_split();
        let mut read = BufReader::new(read);
        let hello = ClientLine {
            hello: Some(Hello { protocol: PROTOCOL, role: self.shared.role }),
            id: None,
            request: None,
        };
        let hello = encode(REQUEST, &hello)?;
        let exchange = async {
            write.write_all(hello.as_bytes()).await.ok()?;
            read_line(&mut read).await
        };
        let first = timeout(HELLO_WITHIN, exchange)
            .await
            .map_err(|_| GuardError::NoAnswer { pid, request: REQUEST, within: HELLO_WITHIN })?
            .ok_or(GuardError::Disconnected { request: REQUEST })?;
        if let Some(refusal) = first.refused {
            return Err(GuardError::Refused { request: REQUEST, refusal });
        }
        match first.protocol {
            Some(PROTOCOL) => {}
            theirs => {
                let theirs = theirs.unwrap_or(0);
                return Err(GuardError::Protocol { theirs, ours: PROTOCOL });
            }
        }
        let (lines, mut to_send) = mpsc::channel::<String>(WAITING_MAX);
        let epoch = {
            let mut link = self.shared.link();
            link.epoch += 1;
            link.lines = Some(lines);
            link.waiting.clear();
            link.pid = pid;
            self.publish(first.status);
            link.epoch
        };
        // The tasks hold the shared part weakly: when the last client is dropped, `lines` is
        // dropped with it, the writer ends, and the connection closes.
        let weak = Arc::downgrade(&self.shared);
        tokio::spawn(async move {
            let writing = async {
                while let Some(line) = to_send.recv().await {
                    if write.write_all(line.as_bytes()).await.is_err() {
                        break;
                    }
                }
            };
            let reading = async {
                while let Some(line) = read_line(&mut read).await {
                    let Some(shared) = weak.upgrade() else { break };
                    GuardClient { shared }.take(epoch, line);
                }
            };
            tokio::select! { () = writing => {}, () = reading => {} }
            if let Some(shared) = weak.upgrade() {
                shared.lost(epoch);
            }
        });
        Ok(())
    }

    fn publish(&self, mut status: GuardStatus) {
        status.connected = true;
        self.shared.status.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
    }

    fn take(&self, epoch: u64, line: GuardLine) {
        let mut link = self.shared.link();
        if link.epoch != epoch {
            return;
        }
        self.publish(line.status.clone());
        let Some(waiting) = line.id.and_then(|id| link.waiting.remove(&id)) else { return };
        let mut status = line.status;
        status.connected = true;
        // Nobody may wait any more: the request timed out.
        let _ = waiting.send(match line.refused {
            Some(refusal) => Err(refusal),
            None => Ok(status),
        });
    }

    /// The guard's status, kept up to date by the guard itself. `connected` is false from the
    /// moment the guard is gone.
    pub fn status(&self) -> watch::Receiver<GuardStatus> {
        self.shared.status.subscribe()
    }

    /// The guard's directory.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Sends one request and waits up to `within` for its answer: the status after it.
    pub async fn request(
        &self,
        request: Request,
        within: Duration,
    ) -> Result<GuardStatus, GuardError> {
        let name = request.name();
        let value = serde_json::to_value(&request)
            .map_err(|e| GuardError::NotEncodable { request: name, reason: e.to_string() })?;
        let (sender, answer) = oneshot::channel();
        let (id, pid) = {
            let mut link = self.shared.link();
            link.waiting.retain(|_, waiting| !waiting.is_closed());
            let waiting = link.waiting.len();
            let Some(lines) = link.lines.clone() else {
                return Err(GuardError::Disconnected { request: name });
            };
            if waiting >= WAITING_MAX {
                return Err(GuardError::TooManyRequests { request: name, waiting });
            }
            let id = link.last_id + 1;
            let line = ClientLine { hello: None, id: Some(id), request: Some(value) };
            let line = encode(name, &line)?;
            if line.len() > REQUEST_MAX {
                return Err(GuardError::TooLong { request: name, length: line.len() });
            }
            // Sent under the lock: requests reach the guard in the order of their ids.
            lines.try_send(line).map_err(|e| match e {
                mpsc::error::TrySendError::Full(_) => {
                    GuardError::TooManyRequests { request: name, waiting: WAITING_MAX }
                }
                mpsc::error::TrySendError::Closed(_) => GuardError::Disconnected { request: name },
            })?;
            link.last_id = id;
            link.waiting.insert(id, sender);
            (id, link.pid)
        };
        match timeout(within, answer).await {
            Ok(Ok(Ok(status))) => Ok(status),
            Ok(Ok(Err(refusal))) => Err(GuardError::Refused { request: name, refusal }),
            Ok(Err(_)) => Err(GuardError::Disconnected { request: name }),
            Err(_) => {
                self.shared.link().waiting.remove(&id);
                Err(GuardError::NoAnswer { pid, request: name, within })
            }
        }
    }

    /// Starts the database.
    pub async fn start(
        &self,
        start: StartRequest,
        within: Duration,
    ) -> Result<GuardStatus, GuardError> {
        self.request(Request::Start(Box::new(start)), within).await
    }

    /// The running standby becomes primary: from now the deadline counts.
    pub async fn arm(&self, lease: Lease, within: Duration) -> Result<GuardStatus, GuardError> {
        self.request(Request::Arm(lease), within).await
    }

    /// A later deadline for the generation that is armed.
    pub async fn renew(&self, lease: Lease, within: Duration) -> Result<GuardStatus, GuardError> {
        self.request(Request::Renew(lease), within).await
    }

    /// The database is a standby: no deadline.
    pub async fn disarm(&self, within: Duration) -> Result<GuardStatus, GuardError> {
        self.request(Request::Disarm, within).await
    }

    /// Has the database read its configuration again.
    pub async fn reload(&self, within: Duration) -> Result<GuardStatus, GuardError> {
        self.request(Request::Reload, within).await
    }

    /// Ends the database. Answered at once; wait for [`GuardStatus::nothing_runs`] in the watch.
    pub async fn stop(&self, mode: StopMode, within: Duration) -> Result<GuardStatus, GuardError> {
        self.request(Request::Stop { mode }, within).await
    }

    /// Nothing of a generation below `below` serves here, nor will: durable, and true when this
    /// returns `Ok`. On a timeout it goes on in the guard.
    pub async fn fence(
        &self,
        below: Generation,
        within: Duration,
    ) -> Result<GuardStatus, GuardError> {
        self.request(Request::Fence { below }, within).await
    }

    /// Ends the guard; with `kill`, its database first.
    pub async fn quit(&self, kill: bool, within: Duration) -> Result<GuardStatus, GuardError> {
        self.request(Request::Quit { kill }, within).await
    }
}

/// Does the error say that no guard listens?
fn is_nobody(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn encode(request: &'static str, line: &ClientLine) -> Result<String, GuardError> {
    let mut text = serde_json::to_string(line)
        .map_err(|e| GuardError::NotEncodable { request, reason: e.to_string() })?;
    text.push('\n');
    Ok(text)
}

/// The next line; none when the connection ended or sent what is no line of a guard.
async fn read_line(read: &mut BufReader<OwnedReadHalf>) -> Option<GuardLine> {
    let mut line = Vec::new();
    let n = (&mut *read).take(LINE_MAX).read_until(b'\n', &mut line).await.ok()?;
    if n == 0 || line.last() != Some(&b'\n') {
        return None;
    }
    match serde_json::from_slice(&line) {
        Ok(line) => Some(line),
        Err(e) => {
            tracing::warn!(error = %e, "the guard sent a line that cannot be read");
            None
        }
    }
}
