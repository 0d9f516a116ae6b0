//! From the client to the server: what may pass, what has to wait, and what is put in front of it.

use super::{
    own,
    pump::Event,
    session::{Session, Xid},
    talk,
};
use sempre_wire::pg::{
    Bind, BindNames, Parse, Piece, TransactionStatus,
    track::{Hints, Kind, StandIn, Text, Verb, Whose},
};
use std::{
    pin::Pin,
    sync::atomic::Ordering::Relaxed,
    task::{Context, Poll},
};
use tokio::io::AsyncWrite;

/// Messages of ours that may be put in front of one of the client.
const OUR_MESSAGES: usize = 8;

/// What became of the bytes of a client.
pub(crate) struct Looked {
    /// How many need not be looked at again.
    pub taken: usize,
    pub stop: Option<Stop>,
}

pub(crate) enum Stop {
    /// The next message has to wait for the server.
    Wait,
    /// The server does not take it.
    Broken,
    Event(Event),
}

/// What becomes of a message.
pub(super) enum Step {
    Forward,
    /// Forward this in its place.
    Replace(Vec<u8>),
    /// From here on the server gets all as it is.
    Break,
    /// Ask for the transaction's id first, then look at it again.
    AskXid,
    /// It is a simple query that goes by the extended protocol.
    Convert,
    Drop,
    Stop(Stop),
}

impl Session<'_> {
    /// Looks at what the client sent and passes it on as far as it may pass.
    pub(super) fn look_up(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Looked {
        let (mut at, mut from) = (0, 0);
        let stop = loop {
            if self.broken {
                at = bytes.len();
                break None;
            }
            let before = self.up.clone();
            let piece = match self.up.next(&bytes[at..]) {
                Ok(Some(piece)) => piece,
                Ok(None) => break None,
                Err(error) => match self.breaks(error) {
                    Step::Stop(stop) => break Some(stop),
                    _ => continue,
                },
            };
            let size = piece.size();
            match self.client_piece(&piece) {
                Step::Forward => {}
                Step::Break => continue,
                Step::Drop => {
                    self.send(&bytes[from..at]);
                    from = at + size;
                }
                Step::Replace(renamed) => {
                    self.send(&bytes[from..at]);
                    self.send(&renamed);
                    from = at + size;
                }
                Step::Convert => {
                    self.send(&bytes[from..at]);
                    from = at + size;
                    if let Piece::Whole(message) = piece {
                        self.convert(message.raw, message.body);
                    }
                }
                Step::AskXid => {
                    self.send(&bytes[from..at]);
                    from = at;
                    self.ask_xid(own::End::Flush);
                    self.up = before;
                    continue;
                }
                Step::Stop(stop) => {
                    self.up = before;
                    break Some(stop);
                }
            }
            at += size;
        };
        let rest = &bytes[from..at];
        let Some(link) = self.link.as_mut().filter(|_| !rest.is_empty()) else {
            return Looked { taken: at, stop };
        };
        let mut written = 0;
        if link.out.is_empty() {
            match Pin::new(&mut link.stream).poll_write(context, rest) {
                Poll::Ready(Ok(count)) if count > 0 => {
                    written = count;
                    link.flush = link.stream.buffers();
                    let counter = &self.proxy.shared.counters.bytes_to_server;
                    counter.fetch_add(count as u64, Relaxed);
                    self.pool.pool.counts.received.fetch_add(count as u64, Relaxed);
                }
                Poll::Pending => {}
                Poll::Ready(_) => return Looked { taken: at, stop: Some(Stop::Broken) },
            }
        }
        if written < rest.len() {
            link.out.extend_from_slice(&rest[written..]);
        }
        Looked { taken: at, stop }
    }

    fn send(&mut self, bytes: &[u8]) {
        if let Some(link) = &mut self.link {
            link.out.extend_from_slice(bytes);
        }
    }

    /// Asks for the id of the client's transaction.
    pub(super) fn ask_xid(&mut self, end: own::End) {
        let forgets = self.tracker.pending().any(|pending| {
            pending.whose == Whose::Client
                && pending.text.hints.any(Hints::PREPARED | Hints::ANYTHING)
        });
        if let Some(link) = &mut self.link {
            self.xid = Xid::Asked;
            self.xid_stale = false;
            // What stands in front of it may take our statement away.
            link.xid_prepared &= !forgets;
            own::ask_xid(link, &mut self.tracker, end);
        }
    }

    fn client_piece(&mut self, piece: &Piece<'_>) -> Step {
        if let Piece::Part { last, .. } = *piece
            && self.dropping
        {
            self.dropping = !last;
            return Step::Drop;
        }
        if self.tracker.stands_in() {
            return match self.tracker.stand_in(piece, &mut self.to_client) {
                StandIn::Answered => Step::Drop,
                StandIn::Forward => {
                    self.client_ended |= piece.tag() == b'X';
                    Step::Drop
                }
            };
        }
        let (tag, body, whole) = match *piece {
            Piece::Whole(message) => (message.tag, message.body, true),
            Piece::Begin { tag, head, .. } => (tag, head, false),
            Piece::Part { .. } => return self.sent(piece),
        };
        let step = self.client_message(piece, tag, body, whole);
        if matches!(step, Step::Drop) && !whole {
            self.dropping = true;
        }
        step
    }

    fn client_message(&mut self, piece: &Piece<'_>, tag: u8, body: &[u8], whole: bool) -> Step {
        if self.client_ended {
            return Step::Drop;
        }
        if self.converted.is_some() {
            return Step::Stop(Stop::Wait);
        }
        match tag {
            b'X' => {
                self.client_ended = true;
                self.broken = self.is_in_the_middle();
                return if self.broken { Step::Break } else { Step::Drop };
            }
            b'p' => {
                return self.breaks("invalid frontend message type 112");
            }
            _ => {}
        }
        if let Some(stop) = self.around_split(tag, body, whole) {
            return Step::Stop(stop);
        }
        let Some(link) = &self.link else {
            return match tag {
                // The rest of a COPY that was lost, and nothing to flush.
                b'd' | b'c' | b'f' | b'H' => Step::Drop,
                _ => Step::Stop(Stop::Event(Event::NeedServer)),
            };
        };
        if self.withheld.is_some() || !self.tracker.has_room(OUR_MESSAGES) {
            return Step::Stop(Stop::Wait);
        }
        if self.is_idle() && (link.ticket.cut.is_draining() || self.is_asked_to_leave()) {
            return Step::Stop(Stop::Event(Event::Drain));
        }
        if self.renames() && self.is_open_name(tag, body) {
            return Step::Stop(Stop::Wait);
        }
        match tag {
            b'Q' | b'P' | b'B' => {
                if let Some(step) = self.before_commit(tag, body, whole) {
                    return step;
                }
                if tag == b'Q'
                    && let Some(step) = self.before_simple(body, whole)
                {
                    return step;
                }
                self.open = tag != b'Q';
            }
            b'E' | b'D' | b'C' => self.open = true,
            b'S' | b'F' => {
                if tag == b'S'
                    && let Some(step) = self.before_sync()
                {
                    return step;
                }
                self.open = false;
            }
            _ => return self.sent(piece),
        }
        self.meter.sent();
        let renamed = match self.renames() {
            true => self.renamed(tag, body, piece),
            false => None,
        };
        let mut step = self.sent(piece);
        if let (Some(renamed), Step::Forward) = (renamed, &step) {
            step = Step::Replace(renamed);
        }
        if let (b'S' | b'Q' | b'F', Some(link)) = (tag, &mut self.link) {
            link.known.cycle_ends();
        }
        self.split_sent(tag);
        self.collect_names(tag, body);
        if matches!(tag, b'Q' | b'E' | b'F') {
            // What runs behind the question may get an id.
            let only_commit = |text: Text| text.is_only(Verb::Commit);
            let newest = self.tracker.pending().last();
            self.xid_stale |= !newest.is_some_and(|pending| only_commit(pending.text));
        }
        step
    }

    fn sent(&mut self, piece: &Piece<'_>) -> Step {
        match self.tracker.sent(Whose::Client, piece) {
            Ok(()) => Step::Forward,
            Err(_) => Step::Stop(Stop::Wait),
        }
    }

    /// What the client says is none of the protocol.
    fn breaks(&mut self, why: impl ToString) -> Step {
        if self.withheld.is_some() || self.converted.is_some() {
            return Step::Stop(Stop::Wait);
        }
        if self.tracker.stands_in() {
            return Step::Stop(Stop::Event(Event::Fatal(talk::violation(why))));
        }
        if self.link.is_none() {
            return Step::Stop(Stop::Event(Event::NeedServer));
        }
        self.broken = true;
        Step::Break
    }

    /// What has to happen before a message that may commit the client's block.
    fn before_commit(&mut self, tag: u8, body: &[u8], whole: bool) -> Option<Step> {
        let status = self.tracker.status();
        let begins = || self.tracker.pending().any(|p| p.text.hints.any(Hints::BEGINS));
        if !self.tracker.in_block() && status == TransactionStatus::Idle && !begins() {
            return None;
        }
        let commits = match tag {
            b'B' => match BindNames::decode(body) {
                Ok(names) => self.tracker.statements().text_of(names.statement),
                Err(_) => Text::UNKNOWN,
            },
            _ if !whole => Text::UNKNOWN,
            b'P' => {
                let name = Parse::name_of(body).map_or(0, |name| name.len() + 1);
                Text::of(string(&body[name..]), true)
            }
            _ => Text::of(string(body), true),
        };
        if !commits.hints.any(Hints::COMMITS | Hints::TWO_PHASE) {
            return None;
        }
        let known = match self.xid {
            Xid::Unknown => false,
            Xid::Known(_) => true,
            Xid::Asked | Xid::None => !self.xid_stale,
        };
        let ask = !known && self.proxy.settings.resolve_commit && !self.apart.on;
        if ask && !self.tracker.is_skipping() && status != TransactionStatus::Failed {
            let end = |p: &sempre_wire::pg::track::Pending| {
                p.whose == Whose::Client
                    && matches!(p.kind, Kind::Query | Kind::Sync | Kind::FunctionCall)
            };
            if self.tracker.pending().any(end) {
                // Whether it commits a block depends on answers that are still to come; the
                // question, asked in a block that failed meanwhile, would be an error of its own.
                return Some(Step::Stop(Stop::Wait));
            }
            return Some(Step::AskXid);
        }
        self.key.guard(true);
        None
    }

    /// Remembers the names of settings that only the application knows.
    fn collect_names(&mut self, tag: u8, body: &[u8]) {
        let settings = |text: Text| text.hints.any(Hints::SETTINGS);
        match tag {
            b'Q' if self.tracker.pending().last().is_some_and(|p| settings(p.text)) => {
                self.carried.names.collect(body);
            }
            b'P' => {
                let Ok(name) = Parse::name_of(body) else { return };
                if settings(self.tracker.statements().text_of(name)) {
                    self.carried.names.collect(&body[name.len() + 1..]);
                }
            }
            b'B' => {
                let Ok(names) = BindNames::decode(body) else { return };
                if settings(self.tracker.statements().text_of(names.statement))
                    && let Ok(bind) = Bind::decode(body)
                {
                    for value in bind.parameters.flatten() {
                        self.carried.names.collect(value);
                    }
                }
            }
            _ => {}
        }
    }
}

/// The string at the front of a message's body.
pub(super) fn string(body: &[u8]) -> &[u8] {
    body.split(|byte| *byte == 0).next().unwrap_or_default()
}
