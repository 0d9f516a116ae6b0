//! One client of the guard: lines in, lines out, neither without a limit, neither ever waited for.

use crate::protocol::{GuardLine, REQUEST_MAX, Role};
use std::{
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
};

/// Bytes that may wait for a client that does not read. About fifty statuses: a client that is
/// this far behind is stuck, and is dropped.
const UNSENT_MAX: usize = 64 * 1024;
/// Bytes read at a time, so that one client cannot keep the loop.
const READ_AT_ONCE: usize = 16 * 1024;

/// What came from a client.
pub(crate) enum Input {
    /// Whole lines, perhaps none yet.
    Lines(Vec<Vec<u8>>),
    /// It is gone, or sent more than a line may have.
    Closed,
}

/// A connection.
pub(crate) struct Connection {
    pub id: u64,
    pub stream: UnixStream,
    /// Said hello, as this.
    pub role: Option<Role>,
    unread: Vec<u8>,
    unsent: Vec<u8>,
    pub closed: bool,
    /// Close once everything is sent.
    pub closing: bool,
}

impl Connection {
    pub fn new(id: u64, stream: UnixStream) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            id,
            stream,
            role: None,
            unread: Vec::new(),
            unsent: Vec::new(),
            closed: false,
            closing: false,
        })
    }

    pub fn wants_to_write(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Reads what is there, up to a limit.
    pub fn read(&mut self) -> Input {
        let mut buffer = [0; READ_AT_ONCE];
        match self.stream.read(&mut buffer) {
            Ok(0) => return Input::Closed,
            Ok(n) => self.unread.extend_from_slice(&buffer[..n]),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => return Input::Closed,
        }
        let mut lines = Vec::new();
        while let Some(end) = self.unread.iter().position(|b| *b == b'\n') {
            let mut line: Vec<u8> = self.unread.drain(..=end).collect();
            line.pop();
            lines.push(line);
        }
        if self.unread.len() > REQUEST_MAX { Input::Closed } else { Input::Lines(lines) }
    }

    /// Queues a line and sends what can be sent now.
    pub fn send(&mut self, line: &GuardLine) {
        if self.closed || self.closing {
            return;
        }
        if serde_json::to_writer(&mut self.unsent, line).is_err() {
            self.closed = true;
            return;
        }
        self.unsent.push(b'\n');
        self.flush();
        if self.unsent.len() > UNSENT_MAX {
            self.closed = true;
        }
    }

    /// Sends what can be sent now.
    pub fn flush(&mut self) {
        while !self.unsent.is_empty() && !self.closed {
            match self.stream.write(&self.unsent) {
                Ok(0) => self.closed = true,
                Ok(n) => {
                    self.unsent.drain(..n);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.closed = true,
            }
        }
        if self.closing {
            self.closed = true;
        }
    }
}
