//! Carries bytes both ways between a client and a server until one of them ends or it is cut.
//!
//! An idle session holds no buffer: bytes are read into a scratch buffer of the thread and written
//! on within the same poll. Only what the receiver does not take at once is kept, and no more is
//! read before it is taken: back-pressure is the receiver's own.

use crate::{CutReason, sessions::Cut, stats::Counters};
use sempre_wire::pg::Framer;
use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// The most that is read at once, bytes: large enough that bulk data costs few system calls.
const SCRATCH: usize = 128 * 1024;
/// Bytes are added to the shared counters in portions of at least this, and at the end.
const COUNT_PORTION: u64 = 256 * 1024;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// What is known of the streams of a session.
pub(crate) enum Streams {
    /// Encrypted: nothing.
    Opaque,
    /// Typed messages.
    Plain {
        /// As far as it was written to the client.
        to_client: Framer,
        /// As far as it was written to the server.
        to_server: Framer,
    },
}

impl Streams {
    /// Was the end agreed on? The client said Terminate, or the server said why with an error.
    /// Nobody can tell in an encrypted stream.
    pub fn ended_well(&self) -> bool {
        match self {
            Streams::Opaque => true,
            Streams::Plain { to_client, to_server } => {
                to_client.last_type() == Some(b'E') || to_server.last_type() == Some(b'X')
            }
        }
    }
}

/// How it ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The client is gone.
    Client,
    /// The client had ended its side, and then the server its own.
    Both,
    /// The server closed its side, or the connection to it broke.
    Server,
    /// The session was cut.
    Cut(CutReason),
}

/// One way.
#[derive(Default)]
struct Way {
    /// Read and not yet written; `kept[at..]`.
    kept: Vec<u8>,
    at: usize,
    /// The source has ended.
    ended: bool,
    uncounted: u64,
}

/// Which side of a way failed.
enum Fault {
    Source,
    Sink,
}

impl Way {
    /// Moves what can be moved. Ready: the source ended and all of it was written.
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        mut source: impl AsyncRead + Unpin,
        mut sink: impl AsyncWrite + Unpin,
        mut framer: Option<&mut Framer>,
        counter: &AtomicU64,
    ) -> Poll<Result<(), Fault>> {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        BUFFER.with_borrow_mut(|scratch| {
            loop {
                while self.at < self.kept.len() {
                    let written =
                        ready!(Pin::new(&mut sink).poll_write(context, &self.kept[self.at..]));
                    let written = wrote(written)?;
                    feed(&mut framer, &self.kept[self.at..self.at + written]);
                    self.at += written;
                    self.count(written, counter);
                }
                let mut buffer = ReadBuf::new(scratch);
                match Pin::new(&mut source).poll_read(context, &mut buffer) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Fault::Source)),
                    Poll::Pending => {
                        // Nothing more to come for now: an idle session keeps no memory.
                        self.kept = Vec::new();
                        self.at = 0;
                        return Poll::Pending;
                    }
                }
                let bytes = buffer.filled();
                if bytes.is_empty() {
                    self.ended = true;
                    return Poll::Ready(Ok(()));
                }
                let written = match Pin::new(&mut sink).poll_write(context, bytes) {
                    Poll::Ready(written) => wrote(written)?,
                    Poll::Pending => 0,
                };
                feed(&mut framer, &bytes[..written]);
                self.count(written, counter);
                self.kept.clear();
                self.at = 0;
                self.kept.extend_from_slice(&bytes[written..]);
            }
        })
    }

    fn count(&mut self, bytes: usize, counter: &AtomicU64) {
        self.uncounted += bytes as u64;
        if self.uncounted >= COUNT_PORTION {
            counter.fetch_add(std::mem::take(&mut self.uncounted), Relaxed);
        }
    }
}

fn feed(framer: &mut Option<&mut Framer>, bytes: &[u8]) {
    if let Some(framer) = framer {
        framer.feed(bytes);
    }
}

fn wrote(result: io::Result<usize>) -> Result<usize, Fault> {
    match result {
        Ok(0) | Err(_) => Err(Fault::Sink),
        Ok(written) => Ok(written),
    }
}

/// Both ways of a session.
pub(crate) struct Copy<'a> {
    pub client: &'a mut TcpStream,
    pub server: &'a mut TcpStream,
    pub streams: &'a mut Streams,
    pub counters: &'a Counters,
}

impl Copy<'_> {
    /// Runs until the session ends. Bytes for the client that it did not take yet when the
    /// session is cut are returned.
    pub async fn run(self, cut: &Cut) -> (End, Vec<u8>) {
        let (mut client_in, mut client_out) = self.client.split();
        let (mut server_in, mut server_out) = self.server.split();
        let (mut down, mut up) = (Way::default(), Way::default());
        let mut up_is_over = false;
        let streams = self.streams;
        let counters = self.counters;
        let end = poll_fn(|context| {
            if let Some(reason) = cut.poll(context) {
                return Poll::Ready(End::Cut(reason));
            }
            let (down_framer, up_framer) = match streams {
                Streams::Opaque => (None, None),
                Streams::Plain { to_client, to_server } => (Some(to_client), Some(to_server)),
            };
            match down.poll(
                context,
                &mut server_in,
                &mut client_out,
                down_framer,
                &counters.bytes_to_client,
            ) {
                Poll::Pending => {}
                Poll::Ready(Err(Fault::Sink)) => return Poll::Ready(End::Client),
                Poll::Ready(_) if up.ended => return Poll::Ready(End::Both),
                Poll::Ready(_) => return Poll::Ready(End::Server),
            }
            if up_is_over {
                return Poll::Pending;
            }
            match up.poll(
                context,
                &mut client_in,
                &mut server_out,
                up_framer,
                &counters.bytes_to_server,
            ) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Ok(())) => {
                    // A client that ended its side may still wait for the answer. (On a TCP
                    // stream this neither waits nor, unless the server is gone, fails.)
                    let _ = Pin::new(&mut server_out).poll_shutdown(context);
                    up_is_over = true;
                    Poll::Pending
                }
                Poll::Ready(Err(Fault::Source)) => Poll::Ready(End::Client),
                Poll::Ready(Err(Fault::Sink)) => {
                    // The server is gone, but its last words may be on their way to the client.
                    up_is_over = true;
                    context.waker().wake_by_ref();
                    Poll::Pending
                }
            }
        })
        .await;
        counters.bytes_to_client.fetch_add(down.uncounted, Relaxed);
        counters.bytes_to_server.fetch_add(up.uncounted, Relaxed);
        down.kept.drain(..down.at);
        (end, down.kept)
    }
}
