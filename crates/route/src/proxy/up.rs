//! From the client to the server: what may pass, what has to wait, and what is put in front of it.

use super::{
    flow::{Kind, Pending},
    own,
    pump::Event,
    session::{Session, Xid},
    talk,
    text::{self, Traits, read_string},
};
use sempre_wire::pg::{BindNames, Frontend, Parse, Piece, Target, TransactionStatus, write};
use std::{
    pin::Pin,
    sync::atomic::Ordering::Relaxed,
    task::{Context, Poll},
};
use tokio::io::AsyncWrite;

/// Portals with names in one transaction whose hints are kept; of more, everything is expected.
const PORTALS_MAX: usize = 256;

/// What became of the bytes of a client.
pub(crate) struct Looked {
    /// How many need not be looked at again.
    pub taken: usize,
    pub stop: Option<Stop>,
}

pub(crate) enum Stop {
    /// The next message has to wait for the server.
    Wait,
    /// The server does not take it, and none of it was sent.
    Broken,
    Event(Event),
}

/// What becomes of a message.
pub(super) enum Step {
    Forward,
    /// Ask for the transaction's id first, then look at it again.
    AskXid,
    Drop,
    Stop(Stop),
}

impl Session<'_> {
    /// Looks at what the client sent and passes it on as far as it may pass.
    pub(super) fn look_up(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Looked {
        let clean = self.link.as_ref().is_some_and(|link| link.out.is_empty());
        let mark = (self.flow.mark(), self.up.clone(), self.parsing.len());
        let flags = (self.dropping, self.collecting);
        let (mut at, mut from) = (0, 0);
        let stop = loop {
            let before = self.up.clone();
            let piece = match self.up.next(&bytes[at..]) {
                Ok(Some(piece)) => piece,
                Ok(None) => break None,
                Err(error) => break Some(Stop::Event(Event::Fatal(talk::violation(error)))),
            };
            let size = piece.size();
            match self.client_piece(&piece) {
                Step::Forward => {}
                Step::Drop => {
                    self.send(&bytes[from..at]);
                    from = at + size;
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
                }
                Poll::Pending => {}
                Poll::Ready(_) if clean && from == 0 => {
                    // Nothing of it was sent, so it can be sent to another server.
                    self.flow.restore(mark.0);
                    self.up = mark.1;
                    self.parsing.truncate(mark.2);
                    (self.dropping, self.collecting) = flags;
                    return Looked { taken: 0, stop: Some(Stop::Broken) };
                }
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
        if let Some(link) = &mut self.link {
            self.xid = Xid::Asked;
            self.xid_stale = false;
            own::ask_xid(link, &mut self.flow, end);
        }
    }

    /// May the server be left for another one? Only between two transactions.
    pub(super) fn drainable(&self) -> bool {
        self.flow.status == TransactionStatus::Idle
            && self.quiet()
            && self.withheld.is_none()
            && self.asking.is_none()
    }

    fn client_piece(&mut self, piece: &Piece<'_>) -> Step {
        match *piece {
            Piece::Whole(message) => {
                self.client_message(message.tag, message.body, Some(message.raw))
            }
            Piece::Begin { tag, head, raw, .. } => {
                let step = self.client_message(tag, head, None);
                match step {
                    Step::Drop => self.dropping = true,
                    Step::Forward if self.collecting => {
                        if let Some((_, parse, _)) = self.parsing.last_mut() {
                            parse.extend_from_slice(raw);
                        }
                    }
                    _ => {}
                }
                step
            }
            Piece::Part { bytes, last, .. } => {
                if self.dropping {
                    self.dropping = !last;
                    return Step::Drop;
                }
                if self.collecting {
                    if let Some((_, parse, _)) = self.parsing.last_mut() {
                        parse.extend_from_slice(bytes);
                    }
                    self.collecting = !last;
                }
                Step::Forward
            }
        }
    }

    /// `raw`: all of it, when it is there; `body` is then the whole body.
    fn client_message(&mut self, tag: u8, body: &[u8], raw: Option<&[u8]>) -> Step {
        if self.client_ended {
            return Step::Drop;
        }
        match tag {
            b'X' => {
                self.client_ended = true;
                return Step::Drop;
            }
            b'p' => {
                let error = talk::violation("invalid frontend message type 112");
                return Step::Stop(Stop::Event(Event::Fatal(error)));
            }
            _ => {}
        }
        let Some(link) = &self.link else { return self.detached(tag, body, raw.is_some()) };
        if self.withheld.is_some() || self.flow.is_full() {
            return Step::Stop(Stop::Wait);
        }
        if link.ticket.cut.is_draining() && self.drainable() {
            return Step::Stop(Stop::Event(Event::Drain));
        }
        let whole = raw.is_some();
        let pending = match tag {
            b'Q' => {
                let traits = match whole {
                    true => text::traits(body.strip_suffix(&[0]).unwrap_or(body)),
                    false => Traits::UNSEEN,
                };
                if let Some(step) = self.before_commit(traits) {
                    return step;
                }
                self.runs(traits);
                Pending::client(Kind::Query, traits)
            }
            b'P' => match self.parse(body, raw) {
                Ok(pending) => pending,
                Err(step) => return step,
            },
            b'B' => {
                let Ok(names) = BindNames::decode(body) else {
                    return malformed("Bind");
                };
                let traits = match names.statement {
                    b"" => self.unnamed,
                    name => self.statement_traits(name),
                };
                if let Some(step) = self.before_commit(traits) {
                    return step;
                }
                match names.portal {
                    b"" => self.portal = traits,
                    name if !traits.is_empty() => self.name_portal(name, traits),
                    _ => {}
                }
                Pending::client(Kind::Bind, traits)
            }
            b'E' => {
                let traits = match read_string(body) {
                    Some(b"") => self.portal,
                    Some(name) => self.portal_traits(name),
                    None => return malformed("Execute"),
                };
                self.runs(traits);
                Pending::client(Kind::Execute, traits)
            }
            b'D' => {
                let named = body.first() == Some(&b'S');
                Pending { named, ..Pending::client(Kind::Describe, Traits::default()) }
            }
            b'C' => {
                if let Ok(Frontend::Close(Target::Statement(name))) = Frontend::decode(tag, body) {
                    self.carried.closed(name);
                }
                Pending::client(Kind::Close, Traits::default())
            }
            b'S' => Pending::client(Kind::Sync, Traits::default()),
            b'F' => {
                let traits = Traits::STATE.with(Traits::LASTING);
                self.runs(traits);
                Pending::client(Kind::Call, traits)
            }
            b'c' | b'f' => Pending::client(Kind::CopyEnd, Traits::default()),
            // Flush and data.
            _ => return Step::Forward,
        };
        if self.touched.has(Traits::DEALLOCATES)
            && let Some(link) = &mut self.link
        {
            // Ours may be gone too.
            (link.xid_prepared, link.state_prepared) = (false, false);
        }
        self.flow.sent(pending);
        Step::Forward
    }

    /// A statement is sent to run.
    fn runs(&mut self, traits: Traits) {
        self.touched = self.touched.with(traits);
        self.xid_stale |= !traits.has(Traits::JUST_COMMIT);
    }

    fn parse(&mut self, body: &[u8], raw: Option<&[u8]>) -> Result<Pending, Step> {
        let Ok(name) = Parse::name_of(body) else { return Err(malformed("Parse")) };
        let traits = match raw {
            Some(_) => text::traits(read_string(&body[name.len() + 1..]).unwrap_or_default()),
            None => Traits::UNSEEN,
        };
        if let Some(step) = self.before_commit(traits) {
            return Err(step);
        }
        let named = !name.is_empty();
        if !named {
            self.unnamed = traits;
        } else if !self.flow.skipping() {
            let message = raw.map(<[u8]>::to_vec).unwrap_or_default();
            self.collecting = raw.is_none();
            self.parsing.push((name.into(), message, traits));
        }
        Ok(Pending { named, ..Pending::client(Kind::Parse, traits) })
    }

    /// What has to happen before a message that may commit the client's block.
    fn before_commit(&mut self, traits: Traits) -> Option<Step> {
        if !traits.has(Traits::COMMITS) {
            return None;
        }
        let known = match self.xid {
            Xid::Unknown => false,
            Xid::Known(_) => true,
            // What runs behind the question may get an id.
            Xid::Asked | Xid::None => !self.xid_stale,
        };
        let known = known || !self.proxy.settings.resolve_commit;
        if !known && !self.flow.skipping() && self.flow.status != TransactionStatus::Failed {
            if self.flow.has_client_end() {
                // Whether it commits a block depends on answers that are still to come; the
                // question, asked in a block that failed meanwhile, would be an error of its own.
                return Some(Step::Stop(Stop::Wait));
            }
            if self.flow.status == TransactionStatus::InBlock || self.flow.begins() {
                return Some(Step::AskXid);
            }
        }
        self.key.guard(true);
        None
    }

    fn statement_traits(&self, name: &[u8]) -> Traits {
        let parsing = self.parsing.iter().rev().find(|(known, ..)| &known[..] == name);
        match parsing {
            Some((_, _, traits)) => *traits,
            // Prepared by SQL, or unknown.
            None => self.carried.traits_of(name).unwrap_or(Traits::UNSEEN),
        }
    }

    fn name_portal(&mut self, name: &[u8], traits: Traits) {
        if self.portals.len() < PORTALS_MAX {
            self.portals.push((name.into(), traits));
        }
    }

    fn portal_traits(&self, name: &[u8]) -> Traits {
        let known = self.portals.iter().rev().find(|(known, _)| &known[..] == name);
        match known {
            Some((_, traits)) => *traits,
            None if self.portals.len() < PORTALS_MAX => Traits::default(),
            None => Traits::UNSEEN,
        }
    }

    /// A message while there is no server.
    fn detached(&mut self, tag: u8, body: &[u8], whole: bool) -> Step {
        let need = Step::Stop(Stop::Event(Event::NeedServer));
        match tag {
            // The rest of a COPY that was lost, and nothing to flush.
            b'd' | b'c' | b'f' | b'H' => return Step::Drop,
            b'S' if self.flow.skipping() || !self.lost_block => {
                self.flow.clear();
                write::ready_for_query(&mut self.to_client, self.flow.status);
                return Step::Drop;
            }
            _ if self.flow.skipping() => return Step::Drop,
            _ => {}
        }
        if !self.lost_block {
            return need;
        }
        let traits = match tag {
            b'Q' if whole => text::traits(body.strip_suffix(&[0]).unwrap_or(body)),
            b'P' if whole => {
                let name = Parse::name_of(body).map_or(0, |name| name.len() + 1);
                text::traits(read_string(&body[name..]).unwrap_or_default())
            }
            b'B' => match BindNames::decode(body) {
                Ok(names) if names.statement.is_empty() => self.unnamed,
                Ok(names) => self.statement_traits(names.statement),
                Err(_) => return malformed("Bind"),
            },
            _ => Traits::default(),
        };
        self.lost_block = false;
        self.flow.status = TransactionStatus::Failed;
        if traits.has(Traits::JUST_ROLLBACK) {
            // What it wants has happened.
            return need;
        }
        self.to_client.extend_from_slice(&super::lost::rolled_back().encode());
        match tag {
            b'Q' | b'F' => {
                write::ready_for_query(&mut self.to_client, TransactionStatus::Failed);
            }
            b'S' => write::ready_for_query(&mut self.to_client, TransactionStatus::Failed),
            _ => self.flow.skip(),
        }
        Step::Drop
    }
}

fn malformed(what: &str) -> Step {
    let error = talk::violation(format!("invalid {what} message"));
    Step::Stop(Stop::Event(Event::Fatal(error)))
}
