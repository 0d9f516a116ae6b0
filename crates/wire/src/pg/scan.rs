//! Cuts a stream of typed messages into pieces, without buffering and without copying.
//!
//! The caller owns the one buffer. [`Scanner::next`] looks at its front and either names the
//! piece that stands there (the caller then moves on by [`Piece::size`] bytes) or asks for more
//! bytes. A message of up to [`WHOLE_MAX`] bytes is always seen whole; of a longer one the first
//! `WHOLE_MAX` bytes are seen together, with all that matters about it (its names, its first
//! words), and the rest streams through. So a buffer of [`BUFFER_MIN`] bytes is enough for
//! messages of any length, and how the stream was split into reads changes nothing but the
//! lengths of the streamed parts.

/// Type byte and length.
pub const HEADER: usize = 5;

/// Bodies up to this many bytes are seen whole.
///
/// PostgreSQL's own limit for all messages of a client that carry no data (Execute, Describe,
/// Close, ...), so that these are never seen in parts.
pub const WHOLE_MAX: usize = 10_000;

/// The smallest buffer a [`Scanner`] can be driven with, bytes: the longest piece it waits for.
pub const BUFFER_MIN: usize = HEADER + WHOLE_MAX;

/// The longest message that PostgreSQL itself sends or takes, bytes, its type byte not counted
/// (its allocation limit).
const MESSAGE_MAX: usize = 0x3FFF_FFFF;

/// Which way the stream goes; a client's messages have stricter limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// From a client to a server.
    Frontend,
    /// From a server to a client.
    Backend,
}

/// A message that is there as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its type byte.
    pub tag: u8,
    /// What follows the length.
    pub body: &'a [u8],
    /// All of it, type byte and length included.
    pub raw: &'a [u8],
}

/// What stands at the front of the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A whole message.
    Whole(Message<'a>),
    /// The beginning of a long one; its [`Piece::Part`]s follow.
    Begin {
        /// Its type byte.
        tag: u8,
        /// Bytes of the whole body, more than [`WHOLE_MAX`].
        length: usize,
        /// The first [`WHOLE_MAX`] bytes of the body.
        head: &'a [u8],
        /// The same with type byte and length in front.
        raw: &'a [u8],
    },
    /// More of a long message.
    Part {
        /// Its type byte.
        tag: u8,
        /// The next bytes of its body.
        bytes: &'a [u8],
        /// Does the message end here?
        last: bool,
    },
}

impl<'a> Piece<'a> {
    /// The bytes of the stream this piece is.
    pub fn raw(&self) -> &'a [u8] {
        match *self {
            Piece::Whole(Message { raw, .. }) | Piece::Begin { raw, .. } => raw,
            Piece::Part { bytes, .. } => bytes,
        }
    }

    /// How many bytes of the stream this piece is; never 0.
    pub fn size(&self) -> usize {
        self.raw().len()
    }

    /// The type byte of its message.
    pub fn tag(&self) -> u8 {
        match *self {
            Piece::Whole(Message { tag, .. })
            | Piece::Begin { tag, .. }
            | Piece::Part { tag, .. } => tag,
        }
    }

    /// Does a message end with it?
    pub fn ends_message(&self) -> bool {
        matches!(self, Piece::Whole(_) | Piece::Part { last: true, .. })
    }
}

/// A stream that is not PostgreSQL's. Nothing after it can be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// A client's message of no known type.
    #[error("invalid frontend message type {0}")]
    Type(u8),
    /// No message of this type is so short or so long.
    #[error(
        "invalid message length {length} for message type {tag}: the connection is out of step"
    )]
    Length {
        /// The type byte.
        tag: u8,
        /// The length it claims, its own four bytes included.
        length: u32,
    },
}

/// Where in the stream we are. See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scanner {
    side: Side,
    /// The message whose parts are streaming.
    tag: u8,
    /// Bytes of it that are still to come; 0 between messages.
    left: usize,
    broken: Option<ScanError>,
}

impl Scanner {
    /// At the beginning of a stream of typed messages, behind the start-up message.
    pub fn new(side: Side) -> Self {
        Self { side, tag: 0, left: 0, broken: None }
    }

    /// The piece at the front of `bytes`, which begin where the previous piece ended. `None`:
    /// more bytes are needed, at most up to [`BUFFER_MIN`] together with these.
    ///
    /// An error is final: every later call gives it again.
    #[inline]
    pub fn next<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<Piece<'a>>, ScanError> {
        if self.left > 0 {
            let bytes = &bytes[..self.left.min(bytes.len())];
            if bytes.is_empty() {
                return Ok(None);
            }
            self.left -= bytes.len();
            return Ok(Some(Piece::Part { tag: self.tag, bytes, last: self.left == 0 }));
        }
        let body = match self.body(bytes)? {
            Some(body) => body,
            None => return Ok(None),
        };
        let tag = bytes[0];
        if body <= WHOLE_MAX {
            let Some(raw) = bytes.get(..HEADER + body) else { return Ok(None) };
            return Ok(Some(Piece::Whole(Message { tag, body: &raw[HEADER..], raw })));
        }
        let Some(raw) = bytes.get(..BUFFER_MIN) else { return Ok(None) };
        self.tag = tag;
        self.left = body - WHOLE_MAX;
        Ok(Some(Piece::Begin { tag, length: body, head: &raw[HEADER..], raw }))
    }

    /// The length of the body that the header in front announces.
    #[inline]
    fn body(&mut self, bytes: &[u8]) -> Result<Option<usize>, ScanError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        let Some(&tag) = bytes.first() else { return Ok(None) };
        let limit = match self.side {
            Side::Backend => MESSAGE_MAX,
            Side::Frontend => match frontend_limit(tag) {
                Some(limit) => limit,
                None => return Err(self.fail(ScanError::Type(tag))),
            },
        };
        let Some(&[a, b, c, d]) = bytes.get(1..HEADER) else { return Ok(None) };
        let length = u32::from_be_bytes([a, b, c, d]);
        if !(4..=limit).contains(&(length as usize)) {
            return Err(self.fail(ScanError::Length { tag, length }));
        }
        Ok(Some(length as usize - 4))
    }

    fn fail(&mut self, error: ScanError) -> ScanError {
        self.broken = Some(error);
        error
    }

    /// Is the stream between two pieces of which the next begins a message? Bytes that the
    /// scanner asked more for do not count as begun: the caller still holds them.
    pub fn at_boundary(&self) -> bool {
        self.left == 0 && self.broken.is_none()
    }

    /// How many bytes of a long message are still to come; 0 between messages.
    pub fn left(&self) -> usize {
        self.left
    }
}

/// The longest body that PostgreSQL takes of a client's message; `None`: there is no such type.
#[inline]
fn frontend_limit(tag: u8) -> Option<usize> {
    match tag {
        b'Q' | b'P' | b'B' | b'F' | b'd' => Some(MESSAGE_MAX),
        // The password family: 65,535 bytes in PostgreSQL (a GSS token may be that long).
        b'p' => Some(65_535),
        b'D' | b'E' | b'C' | b'H' | b'S' | b'X' | b'c' | b'f' => Some(WHOLE_MAX),
        _ => None,
    }
}
