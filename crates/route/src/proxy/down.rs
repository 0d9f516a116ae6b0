//! From the server to the client: what is an answer, what is for us, and what must wait.

use super::{
    carry::Snapshot,
    flow::Owner,
    link::Farewell,
    own,
    pump::Event,
    session::{Identity, Session, Xid},
    talk,
    text::{Traits, read_string},
};
use sempre_wire::pg::{Backend, ErrorResponse, Fields, Piece, TransactionStatus, sqlstate, write};
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
        let (tag, body) = match *piece {
            Piece::Whole(message) => (message.tag, message.body),
            Piece::Begin { tag, head, .. } => (tag, head),
            // Ours are never that long, but for the texts of prepared statements.
            Piece::Part { .. } => match self.flow.front_owner() {
                None | Some(Owner::Client) => return Step::Pass,
                Some(_) => return Step::Stop(too_much()),
            },
        };
        match tag {
            b'D' | b'd' => match self.flow.front_owner() {
                None | Some(Owner::Client) => Step::Pass,
                Some(owner) if matches!(piece, Piece::Whole(_)) => self.our_row(owner, body),
                Some(_) => Step::Stop(too_much()),
            },
            b'N' => self.notice(&Fields::of_head(body)),
            b'S' => {
                if let Ok(Backend::ParameterStatus { name, value }) = Backend::decode(tag, body) {
                    self.reported(name, value);
                }
                Step::Pass
            }
            b'A' => Step::Pass,
            b'E' => self.server_error(body),
            b'C' => {
                let owner = self.flow.answered(tag).owner;
                if owner != Owner::Client {
                    return Step::Swallow;
                }
                self.completed = true;
                self.command(read_string(body).unwrap_or_default());
                Step::Pass
            }
            b'Z' => self.ready(body),
            _ => {
                let answer = self.flow.answered(tag);
                if answer.prepared && !self.parsing.is_empty() {
                    let (name, parse, traits) = self.parsing.remove(0);
                    self.carried.prepared(name, parse, traits);
                }
                match answer.owner {
                    Owner::Client => Step::Pass,
                    _ => Step::Swallow,
                }
            }
        }
    }

    fn notice(&mut self, fields: &Fields<'_>) -> Step {
        if fields.is_cancelled_sync_wait() {
            return Step::Withhold;
        }
        if matches!(fields.code(), b"57P01" | b"57P02") {
            // A server that goes down at once. It says nothing about what ran.
            if let Some(link) = &mut self.link {
                link.farewell = Farewell::Crash;
            }
            return Step::Swallow;
        }
        Step::Pass
    }

    fn server_error(&mut self, body: &[u8]) -> Step {
        let fields = Fields::of_head(body);
        if fields.is_fatal() {
            let shutdown = fields.code() == b"57P01";
            let lost = shutdown || matches!(fields.code(), b"57P02" | b"57P03");
            let Some(link) = &mut self.link else { return Step::Swallow };
            return match (lost, link.farewell) {
                (true, Farewell::None) if shutdown && self.withheld.is_none() => {
                    link.farewell = Farewell::Shutdown;
                    Step::Swallow
                }
                (true, _) => {
                    link.farewell = Farewell::Crash;
                    Step::Swallow
                }
                (false, _) => {
                    link.farewell = Farewell::Told;
                    Step::Pass
                }
            };
        }
        let answer = self.flow.answered(b'E');
        for _ in 0..answer.unprepared.min(self.parsing.len()) {
            self.parsing.remove(0);
        }
        match answer.owner {
            Owner::Client => Step::Pass,
            owner => {
                let (code, message) = talk::texts(&fields);
                tracing::warn!(?owner, code, message, "a question of the router failed");
                Step::Stop(Event::Fatal(ErrorResponse::fatal(
                    sqlstate::ADMIN_SHUTDOWN,
                    "terminating connection because the state of the session cannot be known",
                    format!("A question that routing asked failed: {message} ({code})."),
                    "Connect again.",
                )))
            }
        }
    }

    /// The client's command ended.
    fn command(&mut self, tag: &[u8]) {
        let word = tag.split(|byte| *byte == b' ').next().unwrap_or_default();
        match word {
            b"COMMIT" | b"ROLLBACK" => {
                // Another transaction may follow in the same exchange (AND CHAIN).
                (self.xid, self.wrote) = (Xid::Unknown, false);
            }
            b"SELECT" | b"FETCH" | b"BEGIN" | b"START" | b"SET" | b"SHOW" | b"RESET" | b"MOVE"
            | b"SAVEPOINT" | b"RELEASE" | b"DECLARE" | b"CLOSE" | b"LISTEN" | b"UNLISTEN"
            | b"DEALLOCATE" | b"EXPLAIN" => {}
            b"PREPARE" if tag == b"PREPARE" => {}
            b"PREPARE" => (self.xid, self.wrote) = (Xid::Unknown, false),
            _ => self.wrote = true,
        }
    }

    fn ready(&mut self, body: &[u8]) -> Step {
        let Some(status) = body.first().and_then(|byte| TransactionStatus::from_byte(*byte)) else {
            return Step::Stop(Event::Fatal(talk::violation("invalid ReadyForQuery message")));
        };
        let answer = self.flow.answered(b'Z');
        self.flow.status = status;
        match answer.owner {
            Owner::Xid => return Step::Swallow,
            Owner::State | Owner::Barrier => return Step::Release,
            Owner::Client => {}
        }
        self.completed = false;
        if status == TransactionStatus::Idle || self.xid == Xid::None {
            (self.xid, self.wrote) = (Xid::Unknown, false);
        }
        if status == TransactionStatus::Idle {
            self.portals.clear();
        }
        if let Some(withheld) = &mut self.withheld {
            withheld.cycles += 1;
            return Step::Pass;
        }
        self.key.guard(false);
        if !self.quiet() {
            return Step::Pass;
        }
        let Some(link) = &mut self.link else { return Step::Pass };
        if status == TransactionStatus::Idle
            && self.touched.has(Traits::STATE.with(Traits::LASTING))
        {
            self.touched = Traits::default();
            self.asking = Some(Box::default());
            self.key.guard(true);
            own::ask_state(link, &mut self.flow);
            return Step::Swallow;
        }
        let resolve = self.proxy.settings.resolve_commit;
        if status == TransactionStatus::InBlock && self.wrote && self.xid == Xid::Unknown && resolve
        {
            self.ask_xid(own::End::Sync);
        }
        Step::Pass
    }

    fn our_row(&mut self, owner: Owner, body: &[u8]) -> Step {
        let Ok(Backend::DataRow(values)) = Backend::decode(b'D', body) else {
            return Step::Stop(Event::Fatal(talk::violation("invalid DataRow message")));
        };
        let mut columns = [None; 3];
        for (column, value) in columns.iter_mut().zip(values) {
            *column = value;
        }
        match owner {
            Owner::Xid => {
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
            }
            Owner::State => {
                if let Some(asking) = &mut self.asking {
                    asking.take(columns.map(Option::unwrap_or_default));
                }
            }
            Owner::Barrier | Owner::Client => {}
        }
        Step::Swallow
    }

    /// A question of ours is answered, and with it what waited for it.
    fn release(&mut self) -> Option<Event> {
        if let Some(asking) = self.asking.take() {
            let snapshot: Box<Snapshot> = asking;
            self.carried.described(snapshot);
            self.key.guard(false);
            write::ready_for_query(&mut self.to_client, self.flow.status);
            return None;
        }
        let withheld = self.withheld.as_mut()?;
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
        if withheld.asked || !self.flow.is_empty() {
            return None;
        }
        let link = self.link.as_mut()?;
        let between = self.flow.quiet() && self.up.at_boundary();
        if !between || self.flow.status != TransactionStatus::Idle {
            return Some(not_safe());
        }
        withheld.asked = true;
        own::ask_barrier(link, &mut self.flow);
        None
    }
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
