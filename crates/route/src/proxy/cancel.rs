//! Cancel requests: clients get keys of ours, which lead to the server that runs their query.

use super::link::Link;
use sempre_wire::pg::write;
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time,
};

/// How long a cancel request may take on its way to the server.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// Where clients' process numbers begin: above those that Linux gives (`PID_MAX_LIMIT`), so that a
/// client never takes a real process, named by a notification, for itself.
const FIRST_PROCESS: u32 = 1 << 22;
/// Numbers of 31 bits: some clients read them signed.
const LAST_PROCESS: u32 = 0x7FFF_FFFF;

/// Where a client's query runs.
#[derive(Clone, Debug)]
struct Running {
    address: SocketAddr,
    process: u32,
    key: Vec<u8>,
    /// Requests on their way to it.
    coming: Arc<AtomicUsize>,
}

#[derive(Default)]
struct State {
    running: Option<Running>,
    /// A commit is on its way, or a question of ours: nothing to cancel.
    guarded: bool,
}

type Client = (u32, Arc<Mutex<State>>);

/// The keys of all clients.
#[derive(Default)]
pub(crate) struct Cancels {
    next: AtomicU32,
    /// By process number: the secret, and where the client is.
    clients: Mutex<HashMap<u32, Client>>,
}

/// One client's key. Given back when dropped.
pub(crate) struct CancelKey {
    cancels: Arc<Cancels>,
    pub process: u32,
    pub secret: u32,
    state: Arc<Mutex<State>>,
}

impl Cancels {
    pub fn enter(self: &Arc<Self>) -> CancelKey {
        let secret: u32 = rand::random();
        let state = Arc::new(Mutex::new(State::default()));
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let process = loop {
            let number = self.next.fetch_add(1, Relaxed) % (LAST_PROCESS - FIRST_PROCESS);
            let process = FIRST_PROCESS + 1 + number;
            if !clients.contains_key(&process) {
                break process;
            }
        };
        clients.insert(process, (secret, state.clone()));
        drop(clients);
        CancelKey { cancels: self.clone(), process, secret, state }
    }

    /// Passes a request on, if it belongs to a client and there is something to cancel. True: it
    /// was sent.
    pub async fn cancel(&self, process: u32, key: &[u8]) -> bool {
        let found = {
            let clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
            clients.get(&process).cloned()
        };
        let Some((_, state)) = found.filter(|(secret, _)| secret.to_be_bytes() == key) else {
            return false;
        };
        let running = {
            let state = state.lock().unwrap_or_else(PoisonError::into_inner);
            let running = if state.guarded { None } else { state.running.clone() };
            // Under the lock: a connection that is given back meanwhile must not serve another
            // client as long as this is on its way to it.
            running.map(|running| (Coming::new(running.coming.clone()), running))
        };
        let Some((_coming, running)) = running else { return false };
        let send = async {
            let mut server = TcpStream::connect(running.address).await.ok()?;
            let mut request = Vec::new();
            write::cancel_request(&mut request, running.process, &running.key);
            server.write_all(&request).await.ok()?;
            // The server closes when it has acted; the client waits for that.
            let _ = server.read(&mut [0; 1]).await;
            Some(())
        };
        matches!(time::timeout(CANCEL_TIMEOUT, send).await, Ok(Some(())))
    }
}

/// A request on its way.
struct Coming(Arc<AtomicUsize>);

impl Coming {
    fn new(coming: Arc<AtomicUsize>) -> Self {
        coming.fetch_add(1, Relaxed);
        Self(coming)
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl CancelKey {
    /// The client's queries run there now; none: nowhere.
    pub fn runs(&self, at: Option<&Link>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.running = at.and_then(|link| {
            Some(Running {
                address: link.address?,
                process: link.process,
                key: link.key.clone(),
                coming: link.cancelling.clone(),
            })
        });
        state.guarded = false;
    }

    /// While it is guarded, nothing is cancelled.
    pub fn guard(&self, guarded: bool) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).guarded = guarded;
    }
}

impl Drop for CancelKey {
    fn drop(&mut self) {
        let mut clients = self.cancels.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.remove(&self.process);
    }
}
