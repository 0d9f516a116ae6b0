//! A conversation in turns, message by message: logging in, restoring, finding out. Where bytes
//! just flow, see the pump.

use super::stream::Stream;
use sempre_wire::pg::{Backend, ErrorResponse, Fields, Piece, ScanError, Scanner, Side, sqlstate};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The longest message of such a conversation, bytes. The longest there is: the text of a prepared
/// statement, or an error that quotes it.
const MESSAGE_MAX: usize = 4 << 20;
/// Read at once, bytes.
const READ: usize = 4096;

/// Why a conversation ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TalkError {
    #[error("the connection ended")]
    Ended,
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Scan(#[from] ScanError),
    #[error("a message has more than {MESSAGE_MAX} bytes")]
    TooLong,
    #[error("{0}")]
    Decode(#[from] sempre_wire::pg::DecodeError),
}

/// One message: its type and its body.
pub(crate) struct Heard {
    pub tag: u8,
    pub body: Vec<u8>,
}

impl Heard {
    /// The message as it came.
    pub fn raw(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.body.len() + 5);
        sempre_wire::pg::write::message(&mut out, self.tag, |out| {
            out.extend_from_slice(&self.body)
        });
        out
    }
}

/// Messages of one side of a connection. What was read and not yet taken is in `buffer`.
pub(crate) struct Talk<'a> {
    pub stream: &'a mut Stream,
    buffer: Vec<u8>,
    scanner: Scanner,
}

impl<'a> Talk<'a> {
    /// `buffer`: what was read of it already.
    pub fn new(stream: &'a mut Stream, side: Side, buffer: Vec<u8>) -> Self {
        Self { stream, buffer, scanner: Scanner::new(side) }
    }

    pub async fn say(&mut self, bytes: &[u8]) -> Result<(), TalkError> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await?;
        Ok(())
    }

    /// The next message.
    pub async fn hear(&mut self) -> Result<Heard, TalkError> {
        let mut long: Option<Heard> = None;
        loop {
            if let Some(piece) = self.scanner.next(&self.buffer)? {
                let size = piece.size();
                let heard = match piece {
                    Piece::Whole(message) => {
                        Some(Heard { tag: message.tag, body: message.body.to_vec() })
                    }
                    Piece::Begin { tag, head, length, .. } => {
                        if length > MESSAGE_MAX {
                            return Err(TalkError::TooLong);
                        }
                        long = Some(Heard { tag, body: head.to_vec() });
                        None
                    }
                    Piece::Part { bytes, last, .. } => {
                        if let Some(long) = &mut long {
                            long.body.extend_from_slice(bytes);
                        }
                        if last { long.take() } else { None }
                    }
                };
                self.buffer.drain(..size);
                match heard {
                    Some(heard) => return Ok(heard),
                    None => continue,
                }
            }
            let before = self.buffer.len();
            self.buffer.resize(before + READ, 0);
            let read = self.stream.read(&mut self.buffer[before..]).await;
            self.buffer.truncate(before + *read.as_ref().unwrap_or(&0));
            if read? == 0 {
                return Err(TalkError::Ended);
            }
        }
    }

    /// Ends the conversation: what was read and not taken.
    pub fn rest(self) -> Vec<u8> {
        self.buffer
    }
}

/// What a batch of queries was answered with.
#[derive(Default)]
pub(crate) struct Answers {
    /// The rows, as text.
    pub rows: Vec<Vec<Option<String>>>,
    /// Errors, in the order of the ReadyForQuery that followed: (which, code, message).
    pub errors: Vec<(usize, String, String)>,
    /// Parameters that the server reported.
    pub parameters: Vec<(Vec<u8>, Vec<u8>)>,
    /// Other things that belong to the client: notifications.
    pub notifications: Vec<u8>,
}

impl Talk<'_> {
    /// Says `bytes` and hears the answer up to the `cycles`th ReadyForQuery. A FATAL error is an
    /// `Ended`.
    pub async fn ask(&mut self, bytes: &[u8], cycles: usize) -> Result<Answers, TalkError> {
        self.say(bytes).await?;
        let mut answers = Answers::default();
        let mut cycle = 0;
        while cycle < cycles {
            let heard = self.hear().await?;
            match Backend::decode(heard.tag, &heard.body)? {
                Backend::ReadyForQuery(_) => cycle += 1,
                Backend::DataRow(values) => answers.rows.push(
                    values.map(|v| v.map(|v| String::from_utf8_lossy(v).into_owned())).collect(),
                ),
                Backend::ErrorResponse(fields) if fields.is_fatal() => {
                    return Err(TalkError::Ended);
                }
                Backend::ErrorResponse(fields) => {
                    let (code, message) = texts(&fields);
                    answers.errors.push((cycle, code, message));
                }
                Backend::ParameterStatus { name, value } => {
                    answers.parameters.push((name.to_vec(), value.to_vec()));
                }
                Backend::NotificationResponse { .. } => {
                    answers.notifications.extend_from_slice(&heard.raw());
                }
                _ => {}
            }
        }
        Ok(answers)
    }
}

/// Code and message of an error.
pub(crate) fn texts(fields: &Fields<'_>) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(fields.code()), text(fields.message()))
}

/// What is said to a client that does not speak the protocol.
pub(crate) fn violation(why: impl ToString) -> ErrorResponse {
    ErrorResponse::fatal(sqlstate::PROTOCOL_VIOLATION, why.to_string(), "", "")
}
