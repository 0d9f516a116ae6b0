//! A network that fails when a test says so.

use anyhow::Result;
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

struct State {
    to: Mutex<Option<SocketAddr>>,
    /// Connections end when this changes.
    cuts: watch::Sender<u64>,
    /// After so many bytes towards the member everything is cut; negative: never.
    left: AtomicI64,
    /// What comes back is lost.
    deaf: AtomicBool,
}

pub struct Proxy {
    port: u16,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

impl Proxy {
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(State {
            to: Mutex::default(),
            cuts: watch::channel(0).0,
            left: AtomicI64::new(-1),
            deaf: AtomicBool::new(false),
        });
        let accepting = tokio::spawn(accept(listener, state.clone()));
        Ok(Self { port, state, accepting })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn leads_to(&self, to: SocketAddr) {
        *self.state.to.lock().unwrap() = Some(to);
    }

    /// All connections are lost, now.
    pub fn cut(&self) {
        self.state.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// They are lost once so many bytes went to the member; new ones are not.
    pub fn cut_after(&self, bytes: i64) {
        self.state.left.store(bytes, Ordering::SeqCst);
    }

    /// Has that happened?
    pub fn was_cut(&self) -> bool {
        self.state.left.load(Ordering::SeqCst) < 0
    }

    /// Nothing comes back any more, as from a member that is stopped; or it does again.
    pub fn deaf(&self, is: bool) {
        self.state.deaf.store(is, Ordering::SeqCst);
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(carry(client, state.clone()));
    }
}

async fn carry(mut client: TcpStream, state: Arc<State>) {
    let mut cuts = state.cuts.subscribe();
    let Some(to) = *state.to.lock().unwrap() else { return };
    let Ok(mut server) = TcpStream::connect(to).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let (mut up, mut down) = (vec![0; 16 << 10], vec![0; 16 << 10]);
    loop {
        tokio::select! {
            _ = cuts.changed() => return,
            read = from_client.read(&mut up) => {
                let Ok(bytes @ 1..) = read else { return };
                let left = state.left.load(Ordering::SeqCst);
                let bytes = if left >= 0 { bytes.min(left as usize) } else { bytes };
                let _ = to_server.write_all(&up[..bytes]).await;
                if left >= 0 && state.left.fetch_sub(bytes as i64, Ordering::SeqCst) <= bytes as i64 {
                    state.left.store(-1, Ordering::SeqCst);
                    state.cuts.send_modify(|cuts| *cuts += 1);
                    return;
                }
            }
            read = from_server.read(&mut down) => {
                let Ok(bytes @ 1..) = read else { return };
                if !state.deaf.load(Ordering::SeqCst) && to_client.write_all(&down[..bytes]).await.is_err() {
                    return;
                }
            }
        }
    }
}
