//! What comes from the server.

use super::pending::{Kind, Pending, Whose};
use super::tag::{self, Command};
use super::text::Verb;
use super::{Copy, Hints, Text, Tracker, Xid};
use crate::pg::backend::{Fields, TransactionStatus};
use crate::pg::scan::{Message, Piece};

/// A piece that came from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard<'a> {
    /// Whose answer it is part of. Notifications are always the client's; of notices and changed
    /// settings it says who caused them, as far as the order tells.
    pub whose: Whose,
    /// What it says.
    pub what: What<'a>,
}

/// What a piece says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What<'a> {
    /// Part of an answer, nothing to act on.
    Answer,
    /// A row (for reading answers of one's own).
    Row,
    /// A statement is complete. Of a statement outside a transaction block that runs by the
    /// extended protocol, what it did is not committed before ReadyForQuery.
    Complete {
        /// The tag, such as `INSERT 0 1`.
        tag: &'a [u8],
        /// The text it belongs to.
        text: Text,
    },
    /// A cycle is over.
    Ready(TransactionStatus),
    /// A statement failed, or, when it is fatal, the session is over.
    Error {
        /// All fields.
        fields: Fields<'a>,
        /// Is the session over?
        fatal: bool,
    },
    /// A notice.
    Notice(Fields<'a>),
    /// The notice that a wait for synchronous replication was cancelled: the commit whose answer
    /// follows may be lost. Not to be passed on as if nothing were.
    CancelledSyncWait,
    /// A setting changed (the body of a ParameterStatus).
    Setting(&'a [u8]),
    /// A NOTIFY of another session.
    Notification,
    /// A COPY begins.
    CopyBegins(Copy),
}

impl Tracker {
    /// A piece came from the server.
    pub fn heard<'a>(&mut self, piece: &Piece<'a>) -> Heard<'a> {
        let (tag, body) = match *piece {
            Piece::Whole(Message { tag, body, .. }) => (tag, body),
            Piece::Begin { tag, head, .. } => (tag, head),
            Piece::Part { .. } => return Heard { whose: self.hearing, what: What::Answer },
        };
        let whose = self.pending.front().map_or(Whose::Client, |front| front.whose);
        self.hearing = whose;
        let heard = self.answer(tag, body);
        self.hearing = heard.whose;
        heard
    }

    fn answer<'a>(&mut self, tag: u8, body: &'a [u8]) -> Heard<'a> {
        let whose = self.hearing;
        let mut what = What::Answer;
        match tag {
            // The hot ones first.
            b'D' => what = What::Row,
            b'd' => {}
            b'Z' => return self.ready(body),
            b'C' => what = self.complete(body),
            b'1' | b'2' | b'3' | b'n' => self.short(tag),
            b's' => {
                self.implicit |= !self.in_block;
                self.short(tag);
            }
            b'T' => {
                if let Some(Kind::DescribeStatement | Kind::DescribePortal) = self.front() {
                    self.pop();
                }
            }
            b't' => self.front_completed(),
            b'c' => {}
            b'I' => match self.front() {
                Some(Kind::Execute) => self.pop(),
                Some(Kind::Query) => self.front_completed(),
                _ => self.out_of_step = true,
            },
            b'E' => what = self.error(Fields::of_head(body)),
            b'N' => {
                let fields = Fields::of_head(body);
                what = What::Notice(fields);
                if fields.is_cancelled_sync_wait() {
                    self.sync_wait_cancelled = true;
                    what = What::CancelledSyncWait;
                }
            }
            b'S' => {
                if whose == Whose::Client {
                    self.hints |= Hints::SETTINGS;
                }
                if let Some(value) = body.strip_prefix(b"standard_conforming_strings\0") {
                    self.standard_strings = value == b"on\0";
                }
                what = What::Setting(body);
            }
            b'A' => return Heard { whose: Whose::Client, what: What::Notification },
            b'G' | b'H' | b'W' => what = What::CopyBegins(self.copy_begins(tag)),
            b'V' => match self.front() {
                Some(Kind::FunctionCall) => self.front_completed(),
                _ => self.out_of_step = true,
            },
            _ => {}
        }
        Heard { whose, what }
    }

    fn front(&self) -> Option<Kind> {
        self.pending.front().map(|front| front.kind)
    }

    fn pop(&mut self) {
        if let Some(front) = self.pending.pop_front()
            && front.whose == Whose::Client
        {
            self.hints |= front.text.hints;
        }
        self.drop_markers();
    }

    fn front_completed(&mut self) {
        if let Some(front) = self.pending.front_mut() {
            front.completed = front.completed.saturating_add(1);
        }
    }

    /// An answer that is one message.
    fn short(&mut self, tag: u8) {
        let Some(front) = self.pending.front() else {
            self.out_of_step = true;
            return;
        };
        match (tag, front.kind) {
            (b'1', Kind::Parse) => {
                if front.whose == Whose::Client {
                    self.statements.completed(front.name(), front.number);
                }
            }
            (b'3', Kind::CloseStatement) => {
                if front.whose == Whose::Client {
                    self.statements.closed(front.name());
                }
            }
            (b'2', Kind::Bind)
            | (b'3', Kind::ClosePortal)
            | (b'n', Kind::DescribeStatement | Kind::DescribePortal)
            | (b's', Kind::Execute) => {}
            _ => {
                self.out_of_step = true;
                return;
            }
        }
        self.pop();
    }

    fn ready<'a>(&mut self, body: &[u8]) -> Heard<'a> {
        let status = body.first().copied().and_then(TransactionStatus::from_byte);
        let status = status.unwrap_or_else(|| {
            self.out_of_step = true;
            TransactionStatus::Failed
        });
        let mut whose = Whose::Client;
        match self.pending.front() {
            Some(front) if front.ends_cycle() => {
                whose = front.whose;
                self.pop();
            }
            // A Sync that was taken for a part of COPY data was not.
            _ if self.skipping => self.skipping = false,
            _ => self.out_of_step = true,
        }
        self.status = status;
        self.in_block = status != TransactionStatus::Idle;
        self.implicit = false;
        self.copy = Copy::None;
        if self.ended_block || status == TransactionStatus::Idle {
            self.forget_transaction();
        }
        if status == TransactionStatus::Idle {
            self.portals.clear();
        }
        Heard { whose, what: What::Ready(status) }
    }

    fn forget_transaction(&mut self) {
        self.xid = Xid::Unknown;
        self.wrote = false;
        self.ended_block = false;
    }

    fn complete<'a>(&mut self, body: &'a [u8]) -> What<'a> {
        let tag = body.split(|byte| *byte == 0).next().unwrap_or_default();
        self.copy = Copy::None;
        let Some(front @ Pending { kind: Kind::Query | Kind::Execute, .. }) = self.pending.front()
        else {
            self.out_of_step = true;
            return What::Complete { tag, text: Text::UNKNOWN };
        };
        let (kind, text, client) = (front.kind, front.text, front.whose == Whose::Client);
        self.front_completed();
        if client {
            // A question of the proxy's leaves the client where it was.
            self.follow_transaction(tag, text, kind);
            self.hints |= tag::hints(tag) | text.hints;
            // The tag of EXECUTE is the one of the statement that was prepared.
            if tag == b"PREPARE" {
                self.sql_prepared |= text.hints;
            } else if text.verb == Verb::Execute || text.statements > 1 {
                self.hints |= self.sql_prepared;
            }
        }
        if kind == Kind::Execute {
            self.pop();
        }
        What::Complete { tag, text }
    }

    fn follow_transaction(&mut self, tag: &[u8], text: Text, kind: Kind) {
        match tag::command(tag) {
            Command::Begin => {
                if self.ended_block {
                    self.forget_transaction();
                }
                self.in_block = true;
            }
            Command::Rollback
                if !text.hints.any(Hints::ROLLS_BACK | Hints::COMMITS)
                    && text.verb != Verb::PrepareTransaction =>
            {
                // ROLLBACK TO: the transaction goes on.
            }
            Command::Commit | Command::Rollback | Command::PrepareTransaction => {
                self.in_block = text.hints.any(Hints::CHAINS);
                self.ended_block = true;
                self.implicit = false;
            }
            command => {
                let lasts = self.in_block || kind == Kind::Execute || text.statements > 1;
                if command == Command::Writes && lasts {
                    self.wrote = true;
                }
                if command == Command::ForgetStatements {
                    self.statements.clear();
                }
                self.implicit |= !self.in_block && lasts;
            }
        }
    }

    fn error<'a>(&mut self, fields: Fields<'a>) -> What<'a> {
        let fatal = fields.is_fatal();
        self.copy = Copy::None;
        match self.pending.front_mut() {
            _ if fatal => {}
            // Nothing was asked: the server will say more, or end it.
            None => {}
            Some(front) if front.ends_cycle() => front.failed = true,
            Some(_) => self.skip(),
        }
        What::Error { fields, fatal }
    }

    /// After an error the server overlooks everything up to Sync.
    fn skip(&mut self) {
        let mut overlooked = false;
        while let Some(front) = self.pending.front() {
            if front.kind == Kind::Sync {
                if let Some(front) = self.pending.front_mut() {
                    front.failed = true;
                }
                return;
            }
            if front.kind == Kind::Parse && front.whose == Whose::Client {
                self.statements.failed(front.name(), front.number, overlooked);
            }
            overlooked = true;
            self.pop();
        }
        self.skipping = true;
        self.sending = None;
    }

    fn copy_begins(&mut self, tag: u8) -> Copy {
        self.copy = match tag {
            b'G' => Copy::In,
            b'H' => Copy::Out,
            _ => Copy::Both,
        };
        // What was sent behind it, before it was known that this is a COPY: the server overlooks
        // Sync inside the data.
        while self.copy == Copy::In && self.pending.len() > 1 {
            match self.pending[1].kind {
                Kind::Sync => {}
                Kind::CopyEnd => self.copy = Copy::InEnded,
                _ => break,
            }
            self.pending.remove(1);
        }
        self.copy
    }
}
