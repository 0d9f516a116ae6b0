//! A client of physical streaming replication: what a standby's walreceiver says to a server, for those
//! who keep the WAL elsewhere than in a data directory.

mod connect;

use crate::{Error, Result};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use connect::Stream;
use sempre_model::ids::{Lsn, Timeline};
use sempre_wire::pg::{Backend, Fields, write};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A server that answers no command for this long is given up.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Bytes of WAL that one message brings at most; PostgreSQL sends 128 KiB.
const MESSAGE_MAX: usize = 64 << 20;
/// Room for so much is made before each read.
const READ_BYTES: usize = 256 << 10;
/// The tag of CopyBothResponse.
const COPY_BOTH: u8 = b'W';
/// Microseconds from 1970 to 2000, where PostgreSQL's clock begins.
const EPOCH_US: i64 = 946_684_800_000_000;

/// Who a server says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identified {
    /// PostgreSQL's identity of the cluster.
    pub system_identifier: u64,
    /// The timeline it writes or replays.
    pub timeline: Timeline,
    /// Flushed there so far.
    pub flushed: Lsn,
}

/// What a server streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Streamed {
    /// A piece of WAL.
    Wal {
        /// Where it begins.
        start: Lsn,
        /// What it is.
        bytes: Bytes,
    },
    /// Nothing new.
    Alive {
        /// The server's end of WAL.
        end: Lsn,
        /// It wants to hear from us at once.
        reply: bool,
    },
    /// The timeline ends here, and another one goes on: [`Replication::ended`] says which.
    Ended,
}

/// A replication connection. After an error it is of no more use.
pub struct Replication {
    stream: Stream,
    input: BytesMut,
    at: String,
}

/// A row of a command's answer.
type Columns = Vec<Option<String>>;

impl Replication {
    /// Who is there?
    pub async fn identify(&mut self) -> Result<Identified> {
        let rows = self.command("IDENTIFY_SYSTEM").await?;
        let column = |n: usize| rows.first().and_then(|r| r.get(n)?.as_deref());
        let system_identifier = column(0).and_then(|c| c.parse().ok());
        let timeline = column(1).and_then(|c| c.parse().ok()).map(Timeline);
        let flushed = column(2).and_then(|c| c.parse().ok());
        match (system_identifier, timeline, flushed) {
            (Some(system_identifier), Some(timeline), Some(flushed)) => {
                Ok(Identified { system_identifier, timeline, flushed })
            }
            _ => Err(self.garbled("the answer to IDENTIFY_SYSTEM")),
        }
    }

    /// Bytes of a WAL segment.
    pub async fn wal_segment_bytes(&mut self) -> Result<u64> {
        let rows = self.command("SHOW wal_segment_size").await?;
        let text = rows.first().and_then(|r| r.first()?.clone()).unwrap_or_default();
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit = match &text[digits.len()..] {
            "GB" => 1 << 30,
            "MB" => 1 << 20,
            "kB" => 1 << 10,
            _ => 1,
        };
        let bytes = digits.parse::<u64>().ok().map(|n| n * unit);
        bytes.filter(|b| b.is_power_of_two()).ok_or_else(|| self.garbled("wal_segment_size"))
    }

    /// Makes a slot that keeps WAL from now on, unless it is there.
    pub async fn ensure_slot(&mut self, slot: &str) -> Result<()> {
        let made =
            self.command(&format!("CREATE_REPLICATION_SLOT \"{slot}\" PHYSICAL RESERVE_WAL")).await;
        match made {
            Err(Error::Query { code: Some(code), .. }) if code == "42710" => Ok(()),
            made => made.map(|_| ()),
        }
    }

    /// From where a slot keeps WAL; none: there is no such slot, or it keeps none.
    pub async fn slot_start(&mut self, slot: &str) -> Result<Option<Lsn>> {
        let question = format!(
            "SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = '{}'",
            slot.replace('\'', "''")
        );
        let rows = self.command(&question).await?;
        Ok(rows.first().and_then(|row| row.first()?.as_deref()?.parse().ok()))
    }

    /// The text of a timeline's `.history` file.
    pub async fn history(&mut self, timeline: Timeline) -> Result<String> {
        let rows = self.command(&format!("TIMELINE_HISTORY {timeline}")).await?;
        let text = rows.into_iter().next().and_then(|row| row.into_iter().nth(1)?);
        text.ok_or_else(|| self.garbled("a timeline's history"))
    }

    /// Begins streaming. The answer may already be that the timeline has ended.
    pub async fn start(
        &mut self,
        slot: Option<&str>,
        at: Lsn,
        timeline: Timeline,
    ) -> Result<Option<(Timeline, Lsn)>> {
        let slot = slot.map(|slot| format!("SLOT \"{slot}\" ")).unwrap_or_default();
        self.send(&format!("START_REPLICATION {slot}PHYSICAL {at} TIMELINE {timeline}")).await?;
        let first = self.message(ANSWER_WITHIN).await?;
        if first.tag == COPY_BOTH {
            return Ok(None);
        }
        let rows = self.rest_of_answer(Some(first)).await?;
        self.end_of_timeline(&rows).map(Some)
    }

    /// What comes next. Safe to drop and call again.
    pub async fn next(&mut self) -> Result<Streamed> {
        loop {
            let message = self.message_forever().await?;
            match message.decode(&self.at)? {
                Backend::CopyData(_) => {
                    if let Some(streamed) = self.streamed(message.body)? {
                        return Ok(streamed);
                    }
                }
                Backend::CopyDone => return Ok(Streamed::Ended),
                Backend::ErrorResponse(fields) => return Err(refused(&fields)),
                _ => {}
            }
        }
    }

    /// After [`Streamed::Ended`]: the timeline that goes on, and from where. Then a new
    /// [`Replication::start`] is due.
    pub async fn ended(&mut self) -> Result<(Timeline, Lsn)> {
        let mut done = Vec::new();
        write::copy_done(&mut done);
        self.write(&done).await?;
        let rows = self.rest_of_answer(None).await?;
        self.end_of_timeline(&rows)
    }

    /// Is there more, already received?
    pub fn has_more(&self) -> bool {
        self.input.first_chunk().is_some_and(|header| self.input.len() > length_of(header))
    }

    /// Says how far the WAL is safe here: the server may forget what is older, and commits that
    /// wait for us go on. It says at once that it is alive, if that is wished.
    pub async fn report(&mut self, flushed: Lsn, now_unix_ms: u64, reply: bool) -> Result<()> {
        let mut status = BytesMut::with_capacity(34);
        status.put_u8(b'r');
        // Written, flushed and applied are the same here.
        for _ in 0..3 {
            status.put_u64(flushed.0);
        }
        let now_us = i64::try_from(now_unix_ms).unwrap_or(0).saturating_mul(1000);
        status.put_i64(now_us.saturating_sub(EPOCH_US));
        status.put_u8(u8::from(reply));
        let mut message = Vec::with_capacity(40);
        write::copy_data(&mut message, &status);
        self.write(&message).await
    }

    fn streamed(&self, mut data: Bytes) -> Result<Option<Streamed>> {
        let enough = |bytes: usize, data: &Bytes| match data.len() >= bytes {
            true => Ok(()),
            false => Err(self.garbled("a streamed message")),
        };
        enough(1, &data)?;
        match data.get_u8() {
            b'w' => {
                enough(24, &data)?;
                let start = Lsn(data.get_u64());
                data.advance(16);
                Ok(Some(Streamed::Wal { start, bytes: data }))
            }
            b'k' => {
                enough(17, &data)?;
                let end = Lsn(data.get_u64());
                data.advance(8);
                Ok(Some(Streamed::Alive { end, reply: data.get_u8() != 0 }))
            }
            _ => Ok(None),
        }
    }

    fn end_of_timeline(&self, rows: &[Columns]) -> Result<(Timeline, Lsn)> {
        let column = |n: usize| rows.first().and_then(|r| r.get(n)?.as_deref());
        let next = column(0).and_then(|c| c.parse().ok()).map(Timeline);
        let at = column(1).and_then(|c| c.parse().ok());
        next.zip(at).ok_or_else(|| self.garbled("the end of a timeline"))
    }

    async fn command(&mut self, text: &str) -> Result<Vec<Columns>> {
        self.send(text).await?;
        self.rest_of_answer(None).await
    }

    async fn send(&mut self, text: &str) -> Result<()> {
        let mut query = Vec::new();
        write::query(&mut query, text.as_bytes());
        self.write(&query).await
    }

    /// Rows, up to the end of the answer.
    async fn rest_of_answer(&mut self, first: Option<Message>) -> Result<Vec<Columns>> {
        let (mut rows, mut refusal, mut ready) = (Vec::new(), None, first);
        loop {
            let message = match ready.take() {
                Some(message) => message,
                None => self.message(ANSWER_WITHIN).await?,
            };
            match message.decode(&self.at)? {
                Backend::DataRow(values) => {
                    let text =
                        |v: Option<&[u8]>| v.map(|v| String::from_utf8_lossy(v).into_owned());
                    rows.push(values.map(text).collect());
                }
                Backend::ErrorResponse(fields) => refusal = Some(refused(&fields)),
                Backend::ReadyForQuery(_) => return refusal.map_or(Ok(rows), Err),
                _ => {}
            }
        }
    }

    async fn message(&mut self, within: Duration) -> Result<Message> {
        let message = tokio::time::timeout(within, self.message_forever()).await;
        message.unwrap_or_else(|_| {
            Err(Error::TimedOut { what: format!("the answer of {}", self.at), after: within })
        })
    }

    async fn message_forever(&mut self) -> Result<Message> {
        loop {
            if let Some(header) = self.input.first_chunk::<5>() {
                let (tag, length) = (header[0], length_of(header));
                if !(4..=MESSAGE_MAX).contains(&length) {
                    return Err(self.garbled("a message's length"));
                }
                if self.input.len() > length {
                    let body = self.input.split_to(length + 1).freeze().slice(5..);
                    return Ok(Message { tag, body });
                }
                self.input.reserve(length);
            }
            self.input.reserve(READ_BYTES);
            let read = self.stream.read_buf(&mut self.input).await.map_err(|e| self.broken(e))?;
            if read == 0 {
                return Err(self.broken("the server closed the connection"));
            }
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        written.await.map_err(|e| self.broken(e))
    }

    fn broken(&self, why: impl std::fmt::Display) -> Error {
        Error::Connect { at: self.at.clone(), why: why.to_string() }
    }

    fn garbled(&self, what: &str) -> Error {
        Error::Format { what: format!("{what} of {}", self.at), why: "it is garbled".to_owned() }
    }
}

/// A message of the server.
struct Message {
    tag: u8,
    body: Bytes,
}

impl Message {
    fn decode(&self, at: &str) -> Result<Backend<'_>> {
        Backend::decode(self.tag, &self.body)
            .map_err(|e| Error::Format { what: format!("a message of {at}"), why: e.to_string() })
    }
}

fn length_of(header: &[u8; 5]) -> usize {
    u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize
}

fn refused(fields: &Fields<'_>) -> Error {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = Some(text(fields.code()));
    Error::Query { doing: "replicate", why: text(fields.message()), code }
}
