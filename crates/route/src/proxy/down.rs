//! From the server to the client: what is an answer, what is for us, and what must wait.

use super::{
    link::Farewell,
    own,
    pump::Event,
    session::{Identity, Session, Xid},
    talk,
};
use crate::Role;
use sempre_wire::pg::{
    Backend, ErrorResponse, Fields, Message, Piece, TransactionStatus, sqlstate,
    track::{Heard, Hints, Text, Verb, What, Whose},
    write,
};
use std::{
    pin::Pin,
    sync::atomic::Ordering::Relaxed,
    task::{Context, Poll},
};
use tokio::io::AsyncWrite;

/// The most that is withheld from a client, bytes. A COMMIT's answer has 20.
const WITHHELD_MAX: usize = 1 << 20;
/// How often a barrier is tried whose own wait is cancelled.
const BARRIERS_MAX: u32 = 100;

/// What becomes of a message.
enum Step {
    Pass,
    Swallow,
    /// This, in its place.
    Replace(Vec<u8>),
    /// It, and all that follows, waits.
    Withhold,
    /// It is the end of a question of ours; what waited for it is said.
    Release,
    Stop(Event),
}

impl Session<'_> {
    /// Looks at what the server sent and passes it on.
    pub(super) fn look_down(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Option<Event> {
        let (mut at, mut from) = (0, 0);
        loop {
            let link = self.link.as_mut()?;
            let piece = match link.down.next(&bytes[at..]) {
                Ok(Some(piece)) => piece,
                Ok(None) => break,
                Err(error) => return Some(Event::Fatal(talk::violation(error))),
            };
            let size = piece.size();
            match self.server_piece(&piece) {
                Step::Pass => {}
                Step::Swallow => {
                    self.give(&bytes[from..at]);
                    from = at + size;
                }
                Step::Replace(message) => {
                    self.give(&bytes[from..at]);
                    self.give(&message);
                    from = at + size;
                }
                Step::Withhold => {
                    self.give(&bytes[from..at]);
                    from = at + size;
                    let xid = self.xid.clone();
                    let withheld = self.withheld.get_or_insert_default();
                    if withheld.asked {
                        withheld.again = true;
                    } else {
                        withheld.xid = xid;
                    }
                    self.key.guard(true);
                }
                Step::Release => {
                    self.give(&bytes[from..at]);
                    from = at + size;
                    if let Some(event) = self.release() {
                        return Some(event);
                    }
                }
                Step::Stop(event) => {
                    self.give(&bytes[from..at]);
                    return Some(event);
                }
            }
            at += size;
        }
        let rest = &bytes[from..at];
        let mut written = 0;
        if self.to_client.is_empty() && self.withheld.is_none() && !rest.is_empty() {
            match Pin::new(&mut self.client).poll_write(context, rest) {
                Poll::Ready(Ok(count)) => {
                    written = count;
                    self.client_flush = self.client.buffers();
                    let counter = &self.proxy.shared.counters.bytes_to_client;
                    counter.fetch_add(count as u64, Relaxed);
                    self.pool.pool.counts.sent.fetch_add(count as u64, Relaxed);
                }
                Poll::Ready(Err(_)) => return Some(Event::ClientGone),
                Poll::Pending => {}
            }
        }
        if written < rest.len() {
            self.give(&rest[written..]);
        }
        let link = self.link.as_mut()?;
        link.kept.extend_from_slice(&bytes[at..]);
        self.secure()
    }

    fn give(&mut self, bytes: &[u8]) {
        match &mut self.withheld {
            Some(withheld) => withheld.bytes.extend_from_slice(bytes),
            None => self.to_client.extend_from_slice(bytes),
        }
    }

    fn server_piece(&mut self, piece: &Piece<'_>) -> Step {
        let Heard { whose, what } = self.tracker.heard(piece);
        let ours = whose == Whose::Proxy;
        if let (What::Error { .. }, Some(link)) = (&what, &mut self.link) {
            link.known.failed();
            // What prepares a question behind what failed was overlooked.
            link.xid_prepared = false;
        }
        if let What::Error { fields, fatal: false } = &what {
            self.apart.failed(fields.code());
        }
        if !ours && let Some(instead) = self.converted_answer(piece, &what) {
            if let What::Complete { tag, text } = what {
                self.command(tag, text);
            }
            return Step::Replace(instead);
        }
        match what {
            What::Row | What::Answer if !ours => Step::Pass,
            What::Answer if matches!(piece, Piece::Whole(_)) => Step::Swallow,
            What::Row => match *piece {
                Piece::Whole(message) => self.our_row(message.body),
                _ => Step::Stop(too_much()),
            },
            What::Answer => Step::Stop(too_much()),
            What::Complete { tag, text } => {
                if ours {
                    return Step::Swallow;
                }
                self.command(tag, text);
                Step::Pass
            }
            What::Ready(_) if ours => match self.asking.is_some() || self.withheld.is_some() {
                true => Step::Release,
                false => Step::Swallow,
            },
            What::Ready(status) => match self.converted_ends() {
                None => self.ready(status),
                Some(complete) => match (self.ready(status), piece) {
                    (Step::Pass, Piece::Whole(message)) => {
                        Step::Replace([&complete[..], message.raw].concat())
                    }
                    (Step::Swallow, _) => Step::Replace(complete),
                    (step, _) => step,
                },
            },
            What::Error { fields, fatal: true } => self.server_ends(&fields),
            What::Error { fatal: false, .. } if ours && self.may_be_theirs() => Step::Pass,
            What::Error { fields, fatal: false } if ours => {
                let (code, message) = talk::texts(&fields);
                tracing::warn!(code, message, "a question of the router failed");
                Step::Stop(Event::Fatal(ErrorResponse::fatal(
                    sqlstate::ADMIN_SHUTDOWN,
                    "terminating connection because the state of the session cannot be known",
                    format!("A question that routing asked failed: {message} ({code})."),
                    "Connect again.",
                )))
            }
            What::CancelledSyncWait => Step::Withhold,
            // Whatever the client wants to hear of its own statements.
            What::Notice(_) if ours => Step::Swallow,
            What::Notice(fields) if matches!(fields.code(), b"57P01" | b"57P02") => {
                // A server that goes down at once. It says nothing about what ran.
                if let Some(link) = &mut self.link {
                    link.farewell = Farewell::Crash;
                }
                Step::Swallow
            }
            What::Setting(_) => {
                if let Piece::Whole(Message { tag, body, .. }) = *piece
                    && let Ok(Backend::ParameterStatus { name, value }) = Backend::decode(tag, body)
                {
                    self.reported(name, value);
                    if let Some(link) = &mut self.link {
                        link.reported(name, value);
                    }
                }
                Step::Pass
            }
            What::Notification => self.own_notification(piece),
            What::Error { .. } => self.renamed_back(piece).map_or(Step::Pass, Step::Replace),
            What::Notice(_) | What::CopyBegins(_) => Step::Pass,
        }
    }

    /// A client knows its own notifications by the number of its process, as it was told of it.
    fn own_notification(&self, piece: &Piece<'_>) -> Step {
        let (Piece::Whole(message), Some(link)) = (piece, &self.link) else { return Step::Pass };
        match message.body.strip_prefix(&link.process.to_be_bytes()) {
            Some(rest) => {
                let mut out = Vec::new();
                write::message(&mut out, b'A', |out| {
                    out.extend_from_slice(&self.key.process.to_be_bytes());
                    out.extend_from_slice(rest);
                });
                Step::Replace(out)
            }
            None => Step::Pass,
        }
    }

    /// A Parse that was put in front of a client's message fails in its place.
    fn may_be_theirs(&self) -> bool {
        self.asking.is_none()
            && self.withheld.is_none()
            && self.link.as_ref().is_some_and(|link| link.known.is_fresh())
    }

    /// The server said FATAL.
    fn server_ends(&mut self, fields: &Fields<'_>) -> Step {
        let Some(link) = &mut self.link else { return Step::Swallow };
        let (farewell, step) = match fields.code() {
            b"57P01" if link.farewell == Farewell::None && self.withheld.is_none() => {
                (Farewell::Shutdown, Step::Swallow)
            }
            b"57P01" | b"57P02" | b"57P03" => (Farewell::Crash, Step::Swallow),
            // Replay needs what its transaction can still see.
            b"40001" if link.role == Role::Standby => (Farewell::Crash, Step::Swallow),
            _ => (Farewell::Told, Step::Pass),
        };
        link.farewell = farewell;
        step
    }

    /// The client's command ended.
    fn command(&mut self, tag: &[u8], text: Text) {
        if matches!(tag, b"DEALLOCATE ALL" | b"DISCARD ALL") {
            self.names.clear();
        }
        if matches!(tag, b"COMMIT" | b"ROLLBACK" | b"PREPARE TRANSACTION") {
            // Another transaction may follow in the same exchange (AND CHAIN).
            self.xid = Xid::Unknown;
        }
        // A text that was sent before what it depends on failed may be another one than what ran.
        let unforeseen =
            is_of_session(tag) && text.verb != Verb::Session && !text.hints.any(Hints::STATE);
        if unforeseen {
            self.touched |= Hints::ANYTHING;
        }
        if (unforeseen || text.hints.any(Hints::PREPARED | Hints::ANYTHING))
            && let Some(link) = &mut self.link
        {
            // Ours may be gone too.
            link.forget_statements();
        }
    }

    /// The client's exchange is over.
    fn ready(&mut self, status: TransactionStatus) -> Step {
        self.meter.ready(&self.pool.pool.counts, status == TransactionStatus::Idle);
        if status == TransactionStatus::Idle || self.xid == Xid::None {
            self.xid = Xid::Unknown;
        }
        self.touched |= self.tracker.take_hints();
        if let Some(withheld) = &mut self.withheld {
            withheld.cycles += 1;
            return Step::Pass;
        }
        self.key.guard(false);
        if self.tracker.pending().len() > 0 || self.open || self.broken || !self.up.at_boundary() {
            return Step::Pass;
        }
        let Some(link) = &mut self.link else { return Step::Pass };
        link.known.all_answered();
        if status == TransactionStatus::Idle && self.touched.any(Hints::STATE) {
            self.touched = Hints::NONE;
            self.asking = Some(Box::default());
            self.key.guard(true);
            own::ask_state(link, &mut self.tracker, &self.carried.names.array());
            return Step::Swallow;
        }
        let resolve = self.proxy.settings.resolve_commit && !self.apart.on;
        let wrote = status == TransactionStatus::InBlock && self.tracker.wrote();
        if wrote && self.xid == Xid::Unknown && resolve {
            self.ask_xid(own::End::Sync);
        }
        Step::Pass
    }

    fn our_row(&mut self, body: &[u8]) -> Step {
        let Ok(Backend::DataRow(values)) = Backend::decode(b'D', body) else {
            return Step::Stop(Event::Fatal(talk::violation("invalid DataRow message")));
        };
        let mut columns = [None; 3];
        for (column, value) in columns.iter_mut().zip(values) {
            *column = value;
        }
        if let Some(asking) = &mut self.asking {
            asking.take(columns.map(Option::unwrap_or_default));
            return Step::Swallow;
        }
        if self.withheld.as_ref().is_some_and(|withheld| withheld.asked) {
            return Step::Swallow;
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        self.xid = match (columns[0], columns[1]) {
            (Some(xid), Some(lsn)) => Xid::Known(Box::new(Identity {
                xid: text(xid),
                lsn: text(lsn),
                replayed: text(columns[2].unwrap_or_default()),
            })),
            _ if matches!(self.xid, Xid::Known(_)) => return Step::Swallow,
            _ if self.xid_stale => Xid::Unknown,
            _ => Xid::None,
        };
        self.end_converted();
        Step::Swallow
    }

    /// A question of ours is answered, and with it what waited for it.
    fn release(&mut self) -> Option<Event> {
        if let Some(asking) = self.asking.take() {
            let (shares, renames) = (self.shares(), self.renames());
            self.carried.described(asking, self.tracker.statements_mut(), renames);
            self.pinned = shares && self.carried.is_of_its_own(self.begun.user());
            self.key.guard(false);
            write::ready_for_query(&mut self.to_client, self.tracker.status());
            return None;
        }
        let withheld = self.withheld.as_mut()?;
        if !withheld.asked {
            // It was the answer to another question of ours.
            return None;
        }
        if std::mem::take(&mut withheld.again) {
            withheld.asked = false;
            withheld.attempts += 1;
            return (withheld.attempts > BARRIERS_MAX).then(not_safe);
        }
        let withheld = self.withheld.take()?;
        self.key.guard(false);
        self.to_client.extend_from_slice(&withheld.bytes);
        None
    }

    /// Puts a barrier behind a commit whose wait was cancelled, as soon as there is a place for it.
    fn secure(&mut self) -> Option<Event> {
        let withheld = self.withheld.as_mut()?;
        if withheld.bytes.len() > WITHHELD_MAX {
            return Some(not_safe());
        }
        if withheld.asked || self.tracker.pending().len() > 0 {
            return None;
        }
        let link = self.link.as_mut()?;
        if !self.tracker.is_idle() || self.open || !self.up.at_boundary() {
            return Some(not_safe());
        }
        withheld.asked = true;
        own::ask_barrier(link, &mut self.tracker);
        None
    }
}

/// Does a command of this tag change the session?
fn is_of_session(tag: &[u8]) -> bool {
    let end = tag.iter().position(|byte| *byte == b' ').unwrap_or(tag.len());
    let words: [&[u8]; 9] = [
        b"SET",
        b"RESET",
        b"LISTEN",
        b"UNLISTEN",
        b"PREPARE",
        b"DEALLOCATE",
        b"DISCARD",
        b"DO",
        b"CALL",
    ];
    tag != b"PREPARE TRANSACTION" && words.contains(&&tag[..end])
}

fn too_much() -> Event {
    Event::Fatal(ErrorResponse::fatal(
        sqlstate::PROGRAM_LIMIT_EXCEEDED,
        "terminating connection because the state of the session is too large",
        "A prepared statement's text has more than 10,000 bytes.",
        "Prepare it by the protocol instead of by SQL.",
    ))
}

/// A commit may be lost, and nothing can be done to find out.
fn not_safe() -> Event {
    Event::Fatal(ErrorResponse::fatal(
        sqlstate::TRANSACTION_RESOLUTION_UNKNOWN,
        "terminating connection because a commit may not have reached the standbys",
        "Its wait for synchronous replication was cancelled.",
        "Connect again and look whether it is there.",
    ))
}
