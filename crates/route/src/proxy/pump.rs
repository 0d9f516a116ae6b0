//! Bytes flow both ways, and are looked at as they pass.
//!
//! An idle session holds no buffer: bytes are read into a scratch buffer of the thread, looked at,
//! and written on within the same poll, with one read and one write for a burst. Kept is only what
//! the receiver does not take at once, the beginning of a message, and what has to wait.

use super::{
    link::Farewell,
    session::Session,
    up::{Looked, Stop},
};
use crate::CutReason;
use sempre_wire::pg::{BUFFER_MIN, ErrorResponse};
use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    sync::atomic::Ordering::Relaxed,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The most that is read at once, bytes: large enough that bulk data costs few system calls.
const SCRATCH: usize = 128 * 1024;
const _: () = assert!(SCRATCH >= 4 * BUFFER_MIN);
/// A buffer of an idle session that is larger than this is given back, bytes.
const KEEP: usize = 256;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// Why bytes do not flow any more.
pub(crate) enum Event {
    /// The client is gone.
    ClientGone,
    /// The client says something, and there is no server.
    NeedServer,
    /// The server is gone, or no longer the right one.
    Lost(Loss),
    /// The server is to be left: it hands over, and nothing is under way.
    Drain,
    /// The client begins a transaction that a standby may serve.
    Split,
    /// That transaction is over, and the client wants more.
    SplitEnds,
    /// The primary is to be asked for its position.
    Locate,
    /// The server connection was given back to the pool.
    Shared,
    /// The session cannot go on.
    Fatal(ErrorResponse),
}

/// How a server was lost.
pub(crate) enum Loss {
    /// The connection ended, after these last words.
    Ended(Farewell),
    /// The table ended it.
    Cut(CutReason),
    /// A standby, left as it is not the place for what the client wants.
    Unsuited,
}

impl Session<'_> {
    /// Runs until something happens that takes more than passing bytes on.
    pub async fn pump(&mut self) -> Event {
        poll_fn(|context| BUFFER.with_borrow_mut(|scratch| self.poll(context, scratch))).await
    }

    /// Gives the client all that waits for it, before anything that may take long.
    pub async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|context| self.flush_client(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Event> {
        self.watch_home(context);
        self.warm_up(context);
        if let Some(link) = &self.link {
            if let Some(reason) = link.ticket.cut.poll(context) {
                return Poll::Ready(Event::Lost(Loss::Cut(reason)));
            }
            if let Poll::Ready(event) = self.poll_down(context, scratch) {
                return Poll::Ready(event);
            }
        } else if let Poll::Ready(Err(_)) = self.flush_client(context) {
            return Poll::Ready(Event::ClientGone);
        }
        if let Poll::Ready(event) = self.poll_up(context, scratch) {
            return Poll::Ready(event);
        }
        // What was answered in the place of a server.
        if self.given < self.to_client.len()
            && let Poll::Ready(Err(_)) = self.flush_client(context)
        {
            return Poll::Ready(Event::ClientGone);
        }
        // A client that broke the protocol is told so by the server, which then ends.
        let over = self.client_ended
            && !self.broken
            && self.tracker.pending().len() == 0
            && self.withheld.is_none();
        if over && self.given == self.to_client.len() {
            return Poll::Ready(Event::ClientGone);
        }
        if let Some(event) = self.end_split() {
            return Poll::Ready(event);
        }
        let draining = self.link.as_ref().is_some_and(|link| link.ticket.cut.is_draining())
            || self.is_asked_to_leave();
        if draining && self.is_idle() && self.given == self.to_client.len() {
            return Poll::Ready(Event::Drain);
        }
        if let Some(event) = self.may_locate() {
            return Poll::Ready(event);
        }
        if self.link.is_some() && self.share() {
            return Poll::Ready(Event::Shared);
        }
        Poll::Pending
    }

    /// From the server to the client.
    fn poll_down(&mut self, context: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Event> {
        loop {
            if ready!(self.flush_client(context)).is_err() {
                return Poll::Ready(Event::ClientGone);
            }
            let Some(link) = &mut self.link else { return Poll::Pending };
            let kept = link.kept.len();
            scratch[..kept].copy_from_slice(&link.kept);
            let mut buffer = ReadBuf::new(&mut scratch[kept..]);
            let read = match Pin::new(&mut link.stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) => buffer.filled().len(),
                Poll::Ready(Err(_)) => 0,
                Poll::Pending => {
                    release(&mut link.kept);
                    return Poll::Pending;
                }
            };
            if read == 0 {
                return Poll::Ready(Event::Lost(Loss::Ended(link.farewell)));
            }
            link.kept.clear();
            if let Some(event) = self.look_down(context, &scratch[..kept + read]) {
                return Poll::Ready(event);
            }
        }
    }

    /// From the client to the server.
    fn poll_up(&mut self, context: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Event> {
        loop {
            match self.flush_server(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return self.lost_writing(context, scratch),
                Poll::Pending => return Poll::Pending,
            }
            if let (true, true, Some(link)) = (self.broken, self.client_ended, &mut self.link) {
                // Nobody knows what the server still waits for: not for this client.
                let _ = Pin::new(&mut link.stream).poll_shutdown(context);
                return Poll::Pending;
            }
            let kept = self.from_client.len();
            scratch[..kept].copy_from_slice(&self.from_client);
            let mut read = 0;
            if (kept == 0 || self.wants_more) && !self.client_ended {
                let mut buffer = ReadBuf::new(&mut scratch[kept..]);
                match Pin::new(&mut self.client).poll_read(context, &mut buffer) {
                    Poll::Ready(Ok(())) => read = buffer.filled().len(),
                    Poll::Ready(Err(_)) => return Poll::Ready(Event::ClientGone),
                    Poll::Pending => {
                        release(&mut self.from_client);
                        return Poll::Pending;
                    }
                }
                if read == 0 {
                    self.client_ended = true;
                    self.broken |= self.is_in_the_middle();
                    if self.broken {
                        continue;
                    }
                }
            }
            if read == 0 && (kept == 0 || self.wants_more) {
                return Poll::Pending;
            }
            self.from_client.clear();
            let bytes = &scratch[..kept + read];
            let Looked { taken, stop } = self.look_up(context, bytes);
            self.from_client.extend_from_slice(&bytes[taken..]);
            self.wants_more = stop.is_none();
            match stop {
                None => {}
                // What it waits for may be the answer to what was put in front of it just now.
                Some(Stop::Wait) => {
                    return match self.flush_server(context) {
                        Poll::Ready(Err(_)) => self.lost_writing(context, scratch),
                        _ => Poll::Pending,
                    };
                }
                Some(Stop::Broken) => return self.lost_writing(context, scratch),
                Some(Stop::Event(event)) => return Poll::Ready(event),
            }
        }
    }

    /// The server does not take what we write. Its last words may still be there.
    fn lost_writing(&mut self, context: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Event> {
        match self.poll_down(context, scratch) {
            Poll::Ready(event) => Poll::Ready(event),
            Poll::Pending => Poll::Ready(Event::Lost(Loss::Ended(Farewell::None))),
        }
    }

    /// Gives the client what waits for it.
    pub fn flush_client(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let client = &mut self.client;
        while self.given < self.to_client.len() {
            let rest = &self.to_client[self.given..];
            let written = ready!(Pin::new(&mut *client).poll_write(context, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.given += written;
            self.client_flush = client.buffers();
            self.proxy.shared.counters.bytes_to_client.fetch_add(written as u64, Relaxed);
            self.pool.pool.counts.sent.fetch_add(written as u64, Relaxed);
        }
        if self.client_flush {
            ready!(Pin::new(client).poll_flush(context))?;
            self.client_flush = false;
        }
        self.given = 0;
        self.to_client.clear();
        release(&mut self.to_client);
        Poll::Ready(Ok(()))
    }

    /// Gives the server what waits for it.
    fn flush_server(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(link) = &mut self.link else { return Poll::Ready(Ok(())) };
        while link.sent < link.out.len() {
            let rest = &link.out[link.sent..];
            let written = ready!(Pin::new(&mut link.stream).poll_write(context, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            link.sent += written;
            link.flush = link.stream.buffers();
            self.proxy.shared.counters.bytes_to_server.fetch_add(written as u64, Relaxed);
            self.pool.pool.counts.received.fetch_add(written as u64, Relaxed);
        }
        if link.flush {
            ready!(Pin::new(&mut link.stream).poll_flush(context))?;
            link.flush = false;
        }
        link.sent = 0;
        link.out.clear();
        release(&mut link.out);
        Poll::Ready(Ok(()))
    }
}

/// An empty buffer that grew large is given back.
fn release(buffer: &mut Vec<u8>) {
    if buffer.is_empty() && buffer.capacity() > KEEP {
        *buffer = Vec::new();
    }
}
