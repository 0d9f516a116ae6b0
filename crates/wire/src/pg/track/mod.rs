//! Follows a session: what is in flight, in which transaction, with what prepared.
//!
//! [`Tracker`] sees every piece of both directions, in the order of the connection:
//! [`Tracker::sent`] before a piece goes to the server, [`Tracker::heard`] when one came from it.
//! It never holds one back and needs no answer of its own; what to do is the caller's.
//!
//! | question | asked by |
//! |---|---|
//! | whose answer is this, and what does it say | [`Tracker::heard`] |
//! | is the session between transactions, with nothing in flight | [`Tracker::is_idle`], [`Tracker::status`] |
//! | may state have changed that has to be asked for | [`Tracker::take_hints`] |
//! | what was prepared through the protocol | [`Tracker::statements`] |
//! | the transaction's id | [`Tracker::xid`], [`Tracker::wrote`]; told by [`Tracker::set_xid`] |
//! | the server is lost: what became of the work in flight | [`Tracker::outlook`] |
//! | answers in its place | [`Tracker::settle`], then [`Tracker::stand_in`] while [`Tracker::stands_in`] |
//!
//! Its limits: of a statement's text only words are looked at, so that a function which changes
//! a setting or takes an advisory lock under a name of its own is not noticed. A client that breaks
//! the protocol, or sends Sync into a COPY without ending it, may get ahead of what is tracked:
//! [`Tracker::is_out_of_step`] says so when it is noticed.

mod heard;
mod hints;
mod outlook;
mod pending;
mod settle;
mod statements;
mod tag;
mod text;

use std::collections::VecDeque;

pub use heard::{Heard, What};
pub use hints::Hints;
pub use outlook::Outlook;
pub use pending::{Kind, Pending, Whose};
pub use settle::{CannotSettle, Settled, StandIn};
pub use statements::{
    Prepared, STATEMENT_BYTES_MAX, STATEMENTS_BYTES_MAX, STATEMENTS_MAX, Statements,
};
pub use text::{Text, TextScan, Verb};

use crate::pg::backend::TransactionStatus;
use crate::pg::frontend::{BindNames, Parse};
use crate::pg::scan::{Message, Piece};

/// Messages in flight at most. A server sends its answers on when 8 KiB of them have gathered,
/// about 1,600 of the shortest; so it always answers before as many are in flight.
pub const PENDING_MAX: usize = 16_384;

/// Named portals that are remembered; what runs under a further one is taken for anything.
const PORTALS_MAX: usize = 64;

/// Too much is in flight: nothing was changed, and the piece has to wait for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{PENDING_MAX} messages are in flight")]
pub struct Full;

/// The id of the transaction that is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Xid {
    /// It was not asked for, or statements ran since it had none.
    #[default]
    Unknown,
    /// It had none: it has written nothing.
    NotAssigned,
    /// This (64 bits: `pg_current_xact_id_if_assigned`).
    Known(u64),
}

/// A COPY in progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Copy {
    /// None.
    #[default]
    None,
    /// Data goes to the server.
    In,
    /// The client has ended its data, and the server has not answered.
    InEnded,
    /// Data comes from the server.
    Out,
    /// Both ways (replication).
    Both,
}

/// A long message of the client whose text is being read.
#[derive(Clone, Debug)]
struct Sending {
    whose: Whose,
    kind: Kind,
    scan: TextScan,
    /// The text is over (a Parse has types behind it).
    over: bool,
    name: Box<[u8]>,
    /// The message so far, for a Parse; `None` once it is too long.
    raw: Option<Vec<u8>>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Tracker {
    /// At the last ReadyForQuery.
    status: TransactionStatus,
    /// In a transaction block, by what is complete since.
    in_block: bool,
    /// A block ended in this cycle.
    ended_block: bool,
    /// Statements outside a block are complete in this cycle, and not committed before its end.
    implicit: bool,
    pending: VecDeque<Pending>,
    /// After an error, up to the client's next Sync.
    skipping: bool,
    copy: Copy,
    hints: Hints,
    /// What statements prepared by SQL may do.
    sql_prepared: Hints,
    statements: Statements,
    unnamed_portal: Text,
    portals: Vec<(Box<[u8]>, Text)>,
    xid: Xid,
    wrote: bool,
    sync_wait_cancelled: bool,
    standard_strings: bool,
    sending: Option<Sending>,
    /// Whose the long message is that comes from the server.
    hearing: Whose,
    /// The client is inside a long message.
    inside: bool,
    /// Standing in for a server that was lost.
    standing_in: bool,
    /// The same: the rest of a long message is not wanted.
    swallowing: bool,
    /// The same: the error that tells the client so, encoded, until
    /// it was told.
    owed: Option<Vec<u8>>,
    out_of_step: bool,
}

impl Default for Tracker {
    fn default() -> Self {
        Self::new()
    }
}

impl Tracker {
    /// Of a session that is logged in, at its first ReadyForQuery.
    pub fn new() -> Self {
        Self {
            status: TransactionStatus::Idle,
            in_block: false,
            ended_block: false,
            implicit: false,
            pending: VecDeque::new(),
            skipping: false,
            copy: Copy::None,
            hints: Hints::NONE,
            sql_prepared: Hints::NONE,
            statements: Statements::default(),
            unnamed_portal: Text::UNKNOWN,
            portals: Vec::new(),
            xid: Xid::Unknown,
            wrote: false,
            sync_wait_cancelled: false,
            standard_strings: true,
            sending: None,
            hearing: Whose::Client,
            inside: false,
            standing_in: false,
            swallowing: false,
            owed: None,
            out_of_step: false,
        }
    }

    /// Where the session stood at the last ReadyForQuery.
    pub fn status(&self) -> TransactionStatus {
        self.status
    }

    /// Is it outside any transaction, with nothing in flight? Only then may another server take
    /// over silently.
    pub fn is_idle(&self) -> bool {
        self.status == TransactionStatus::Idle
            && self.pending.is_empty()
            && !self.inside
            && !self.stands_in()
            && !self.skipping
            && !self.implicit
            && !self.in_block
    }

    /// What was sent and is not answered, the oldest first.
    pub fn pending(&self) -> impl ExactSizeIterator<Item = &Pending> {
        self.pending.iter()
    }

    /// Can as many as this be sent at once? See [`Full`].
    pub fn has_room(&self, messages: usize) -> bool {
        self.pending.len() + messages <= PENDING_MAX
    }

    /// Is the client in an extended cycle whose Sync it has not sent, after an error?
    pub fn is_skipping(&self) -> bool {
        self.skipping
    }

    /// The COPY in progress.
    pub fn copy(&self) -> Copy {
        self.copy
    }

    /// Is a message that commits a transaction block in flight? A cancel request has to wait.
    pub fn commit_in_flight(&self) -> bool {
        self.pending.iter().any(|pending| {
            pending.text.hints.any(Hints::COMMITS | Hints::TWO_PHASE)
                && matches!(pending.kind, Kind::Query | Kind::Execute)
        })
    }

    /// What the statements that ran since the last call may have changed of the session's state.
    /// Ask when a cycle ends ([`What::Ready`]) outside a transaction.
    pub fn take_hints(&mut self) -> Hints {
        std::mem::take(&mut self.hints)
    }

    /// What the client has prepared through the protocol.
    pub fn statements(&self) -> &Statements {
        &self.statements
    }

    /// The same, to correct it.
    pub fn statements_mut(&mut self) -> &mut Statements {
        &mut self.statements
    }

    /// The prepared statement that a message sent now would find under this name, if all that is
    /// in flight succeeds.
    pub fn statement(&self, name: &[u8]) -> Option<&Prepared> {
        match self.names(name).next_back() {
            Some((_, closed)) if closed.kind == Kind::CloseStatement => None,
            Some((_, parse)) => self.statements.coming(name, parse.number),
            None => self.statements.get(name),
        }
    }

    /// Does it depend on the answers to an earlier cycle, which statement that is? In the same
    /// cycle it does not: what fails there takes all that follows with it.
    pub fn statement_is_open(&self, name: &[u8]) -> bool {
        let named = self.names(name).next_back().map(|(at, _)| at);
        let forgets = |pending: &Pending| {
            pending.whose == Whose::Client
                && pending.text.hints.any(Hints::PREPARED | Hints::ANYTHING)
        };
        let oldest = [named, self.pending.iter().position(forgets)].into_iter().flatten().min();
        oldest.is_some_and(|oldest| self.pending.range(oldest..).any(Pending::ends_cycle))
    }

    /// What is in flight and gives a name to a statement, or takes it away.
    fn names(&self, name: &[u8]) -> impl DoubleEndedIterator<Item = (usize, &Pending)> {
        self.pending.iter().enumerate().filter(move |(_, pending)| {
            pending.whose == Whose::Client
                && matches!(pending.kind, Kind::Parse | Kind::CloseStatement)
                && pending.name() == name
        })
    }

    /// The open transaction's id, as far as it is known. It stays known up to the ReadyForQuery
    /// that follows the transaction's end.
    pub fn xid(&self) -> Xid {
        self.xid
    }

    /// The server's answer to `pg_current_xact_id_if_assigned()`, asked on this connection.
    pub fn set_xid(&mut self, id: Option<u64>) {
        let may_run = |pending: &Pending| {
            pending.whose == Whose::Client
                && matches!(pending.kind, Kind::Query | Kind::Execute | Kind::FunctionCall)
                && !pending.is_answered()
                && !pending.text.ends_block()
        };
        self.xid = match id {
            Some(id) => Xid::Known(id),
            None if self.pending.iter().any(may_run) => Xid::Unknown,
            None => Xid::NotAssigned,
        };
    }

    /// Has a statement completed in the open transaction that may have written, so that it is
    /// time to ask for the transaction's id?
    pub fn wrote(&self) -> bool {
        self.wrote
    }

    /// In a transaction block, by all that is complete?
    pub fn in_block(&self) -> bool {
        self.in_block
    }

    /// Was a wait for synchronous replication cancelled since the last call? The commit that
    /// waited must not be taken for safe.
    pub fn take_cancelled_sync_wait(&mut self) -> bool {
        std::mem::take(&mut self.sync_wait_cancelled)
    }

    /// Did something come that does not fit what was sent? Then what is in flight is not known
    /// for certain any more: the session can go on, but cannot be carried to another server.
    pub fn is_out_of_step(&self) -> bool {
        self.out_of_step
    }

    /// How the client's strings are read; followed by [`Tracker::heard`] from then on.
    pub fn set_standard_strings(&mut self, on: bool) {
        self.standard_strings = on;
    }

    /// A piece goes to the server; `whose` says who made it. Messages of the proxy are put between
    /// the client's, never inside one.
    pub fn sent(&mut self, whose: Whose, piece: &Piece) -> Result<(), Full> {
        match *piece {
            Piece::Whole(Message { tag, body, raw }) => self.message(whose, tag, body, raw, true),
            Piece::Begin { tag, head, raw, .. } => {
                self.message(whose, tag, head, raw, false)?;
                self.inside = true;
                Ok(())
            }
            Piece::Part { bytes, last, .. } => {
                self.inside = !last;
                self.part(bytes, last);
                Ok(())
            }
        }
    }

    fn message(
        &mut self,
        whose: Whose,
        tag: u8,
        body: &[u8],
        raw: &[u8],
        whole: bool,
    ) -> Result<(), Full> {
        match tag {
            // Not answered, and nothing to know.
            b'd' | b'H' | b'p' | b'X' => return Ok(()),
            b'S' => self.skipping = false,
            _ if self.skipping => return Ok(()),
            _ => {}
        }
        if self.pending.len() >= PENDING_MAX {
            return Err(Full);
        }
        match tag {
            b'Q' => {
                let text = match whole {
                    true => Text::of(body, self.standard_strings),
                    false => self.begin(whose, Kind::Query, body, b"", None),
                };
                self.statements.drop_unnamed();
                self.runs(whose);
                self.push(Pending::new(Kind::Query, whose, text));
            }
            b'P' => self.parse(whose, body, raw, whole),
            b'B' => {
                if let Ok(BindNames { portal, statement, .. }) = BindNames::decode(body) {
                    let text = self.statements.text_of(statement);
                    self.set_portal(portal, text);
                } else {
                    self.set_portal(b"", Text::UNKNOWN);
                }
                self.push(Pending::new(Kind::Bind, whose, Text::default()));
            }
            b'E' => {
                let portal = body.split(|byte| *byte == 0).next().unwrap_or_default();
                let text = self.portal(portal);
                self.runs(whose);
                self.push(Pending::new(Kind::Execute, whose, text));
            }
            b'D' | b'C' => {
                let kind = match (tag, body.first()) {
                    (b'D', Some(b'S')) => Kind::DescribeStatement,
                    (b'D', _) => Kind::DescribePortal,
                    (_, Some(b'S')) => Kind::CloseStatement,
                    _ => Kind::ClosePortal,
                };
                let mut pending = Pending::new(kind, whose, Text::default());
                if kind == Kind::CloseStatement && whose == Whose::Client {
                    let name = body[1..].split(|byte| *byte == 0).next().unwrap_or_default();
                    pending.name = Some(name.into());
                }
                self.push(pending);
            }
            // The server takes no notice of a Sync inside COPY data.
            b'S' if self.copy == Copy::In => {}
            b'S' => self.push(Pending::new(Kind::Sync, whose, Text::default())),
            b'F' => {
                self.runs(whose);
                let text = Text { hints: Hints::ANYTHING, ..Text::UNKNOWN };
                self.push(Pending::new(Kind::FunctionCall, whose, text));
            }
            b'c' | b'f' if self.copy == Copy::In => self.copy = Copy::InEnded,
            b'c' | b'f' if self.copy == Copy::Both => {}
            b'c' | b'f' => self.push(Pending::new(Kind::CopyEnd, whose, Text::default())),
            _ => self.out_of_step = true,
        }
        Ok(())
    }

    fn push(&mut self, pending: Pending) {
        self.pending.push_back(pending);
        self.drop_markers();
    }

    /// The end of a COPY that is not, or no longer, in progress: the server overlooks it.
    fn drop_markers(&mut self) {
        while self.pending.front().is_some_and(|front| front.kind == Kind::CopyEnd) {
            self.pending.pop_front();
        }
    }

    /// Something runs: what had no id may get one.
    fn runs(&mut self, whose: Whose) {
        if whose == Whose::Client && self.xid == Xid::NotAssigned {
            self.xid = Xid::Unknown;
        }
    }

    fn parse(&mut self, whose: Whose, body: &[u8], raw: &[u8], whole: bool) {
        let (name, behind) = match Parse::name_of(body) {
            Ok(name) => (name, &body[name.len() + 1..]),
            Err(_) => (&b""[..], &b""[..]),
        };
        let mut pending = Pending::new(Kind::Parse, whose, Text::default());
        if whose == Whose::Client {
            pending.name = (!name.is_empty()).then(|| name.into());
            if whole {
                let text = behind.split(|byte| *byte == 0).next().unwrap_or_default();
                let text = Text::of(text, self.standard_strings);
                pending.number = self.statements.sent(name, Some(raw), text);
            } else {
                // Its text comes later; a Bind cannot come before that.
                self.begin(whose, Kind::Parse, behind, name, Some(raw));
            }
        }
        self.push(pending);
    }

    /// A long message begins.
    fn begin(
        &mut self,
        whose: Whose,
        kind: Kind,
        text: &[u8],
        name: &[u8],
        raw: Option<&[u8]>,
    ) -> Text {
        let mut sending = Sending {
            whose,
            kind,
            scan: TextScan::new(self.standard_strings),
            over: false,
            name: name.into(),
            raw: raw.map(<[u8]>::to_vec),
        };
        sending.read(text);
        self.sending = Some(sending);
        // Until all of it was read.
        Text::UNKNOWN
    }

    fn part(&mut self, bytes: &[u8], last: bool) {
        let Some(sending) = &mut self.sending else { return };
        sending.read(bytes);
        if let Some(raw) = &mut sending.raw {
            if raw.len() + bytes.len() <= STATEMENT_BYTES_MAX {
                raw.extend_from_slice(bytes);
            } else {
                sending.raw = None;
            }
        }
        if !last {
            return;
        }
        let Some(sending) = self.sending.take() else { return };
        let text = sending.scan.finish();
        let is_it =
            |pending: &&mut Pending| pending.kind == sending.kind && pending.whose == sending.whose;
        // It may be gone: a server that ends a session does not wait for the rest of a message.
        let Some(pending) = self.pending.back_mut().filter(is_it) else { return };
        match sending.kind {
            Kind::Query => pending.text = text,
            _ => {
                pending.number = self.statements.sent(&sending.name, sending.raw.as_deref(), text);
            }
        }
    }

    fn set_portal(&mut self, name: &[u8], text: Text) {
        if name.is_empty() {
            self.unnamed_portal = text;
        } else if let Some((_, known)) = self.portals.iter_mut().find(|(known, _)| **known == *name)
        {
            *known = text;
        } else if self.portals.len() < PORTALS_MAX {
            self.portals.push((name.into(), text));
        }
    }

    fn forget_portal(&mut self, name: &[u8]) {
        if name.is_empty() {
            self.unnamed_portal = Text::UNKNOWN;
        }
        self.portals.retain(|(known, _)| **known != *name);
    }

    fn portal(&self, name: &[u8]) -> Text {
        if name.is_empty() {
            return self.unnamed_portal;
        }
        let known = self.portals.iter().find(|(known, _)| **known == *name);
        known.map_or(Text::UNKNOWN, |(_, text)| *text)
    }
}

impl Sending {
    fn read(&mut self, bytes: &[u8]) {
        if self.over {
            return;
        }
        let end = bytes.iter().position(|byte| *byte == 0);
        self.over = end.is_some();
        self.scan.feed(&bytes[..end.unwrap_or(bytes.len())]);
    }
}
