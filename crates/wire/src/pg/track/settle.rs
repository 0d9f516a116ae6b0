//! Answers in place of a server that was lost.
//!
//! An answer that the caller withheld after [`Tracker::heard`] was given it (a COMMIT behind the
//! warning of a cancelled wait) counts as passed on here: it is the caller's to write, or an error
//! in its place, in front of what [`Tracker::settle`] writes.

use super::pending::{Kind, Pending, Whose};
use super::text::{Text, Verb};
use super::{Copy, Hints, Tracker};
use crate::pg::backend::TransactionStatus;
use crate::pg::error::{ErrorResponse, sqlstate};
use crate::pg::frontend::{BindNames, Parse};
use crate::pg::scan::{Message, Piece};
use crate::pg::write;

/// What became of the work in flight, found out.
#[derive(Clone, Copy, Debug)]
pub enum Settled<'a> {
    /// It failed, or nobody knows: this says so. An ERROR, not a FATAL one.
    Failed(&'a ErrorResponse),
    /// The COMMIT in flight was done.
    Committed {
        /// For what the client sent behind the COMMIT without waiting.
        rest: &'a ErrorResponse,
    },
    /// The Sync in flight committed the work in front of it, all of which was answered.
    Synced {
        /// For what the client sent behind the Sync without waiting.
        rest: &'a ErrorResponse,
    },
}

/// Answers are missing that nobody can make up: the session has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answers of the statements in front of the COMMIT are lost with the server")]
pub struct CannotSettle;

/// Whether a client's piece was answered in place of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StandIn {
    /// It was; the server must not see it.
    Answered,
    /// It was not: it is for the (new) server, or, being Terminate, for nobody.
    Forward,
}

impl Tracker {
    /// The server is lost: answers all that is in flight, in its place, into `out`. Nothing is in
    /// flight afterwards, and a new server can be attached.
    ///
    /// Must not be called when part of a long message of the server was passed on: the rest of it
    /// is missing, and the session has to end.
    ///
    /// Where the client was in a transaction block, or has not sent the Sync of a failed cycle,
    /// [`Tracker::stands_in`] is true afterwards: its messages go to [`Tracker::stand_in`] then.
    pub fn settle(&mut self, settled: Settled, out: &mut Vec<u8>) -> Result<(), CannotSettle> {
        let mut pending: Vec<Pending> = self.pending.iter().cloned().collect();
        pending.retain(|pending| pending.whose == Whose::Client && pending.kind != Kind::CopyEnd);
        let mut rest = &pending[..];
        let error = match settled {
            Settled::Failed(error) => error,
            Settled::Committed { rest: error } => {
                rest = self.committed(rest, out)?;
                error
            }
            Settled::Synced { rest: error } => {
                rest = self.synced(rest, out)?;
                error
            }
        };
        self.pending.clear();
        self.copy = Copy::None;
        self.sending = None;
        self.swallowing = self.inside;
        self.inside = false;
        let error = error.encode();
        self.failed(rest, &error, out);
        self.statements.drop_coming();
        self.portals.clear();
        self.unnamed_portal = Text::UNKNOWN;
        self.forget_settled();
        Ok(())
    }

    fn forget_settled(&mut self) {
        self.xid = super::Xid::Unknown;
        self.wrote = false;
        self.ended_block = false;
        self.implicit = false;
        self.sync_wait_cancelled = false;
    }

    /// Makes up the answers up to the COMMIT and the end of its cycle; gives what is behind.
    fn committed<'p>(
        &mut self,
        pending: &'p [Pending],
        out: &mut Vec<u8>,
    ) -> Result<&'p [Pending], CannotSettle> {
        let size = pending.iter().position(Pending::ends_cycle).map_or(pending.len(), |at| at + 1);
        let (cycle, rest) = pending.split_at(size);
        // Look first: nothing must be said before it is clear that all can be.
        let commits = |pending: &&Pending| {
            matches!(pending.kind, Kind::Query | Kind::Execute)
                && pending.text.is_only(Verb::Commit)
                && pending.completed == 0
        };
        let runs = |pending: &&Pending| {
            matches!(pending.kind, Kind::Query | Kind::Execute | Kind::FunctionCall)
        };
        if cycle.iter().filter(commits).count() != 1 || cycle.iter().filter(runs).count() != 1 {
            return Err(CannotSettle);
        }
        let chains = cycle.iter().any(|pending| pending.text.hints.any(Hints::CHAINS));
        self.in_block = chains;
        self.implicit = false;
        // The next block, begun by AND CHAIN, is lost with the server: as yet untold.
        let (status, shown) = match chains {
            true => (TransactionStatus::InBlock, TransactionStatus::Failed),
            false => (TransactionStatus::Idle, TransactionStatus::Idle),
        };
        self.status = status;
        for pending in cycle {
            match pending.kind {
                Kind::Query | Kind::Execute => write::command_complete(out, "COMMIT"),
                _ => self.make_up(pending, out),
            }
            if pending.ends_cycle() {
                write::ready_for_query(out, shown);
            }
        }
        Ok(rest)
    }

    /// Answers the Sync; gives what is behind it.
    fn synced<'p>(
        &mut self,
        pending: &'p [Pending],
        out: &mut Vec<u8>,
    ) -> Result<&'p [Pending], CannotSettle> {
        let Some((Pending { kind: Kind::Sync, .. }, rest)) = pending.split_first() else {
            return Err(CannotSettle);
        };
        (self.in_block, self.implicit) = (false, false);
        self.status = TransactionStatus::Idle;
        write::ready_for_query(out, TransactionStatus::Idle);
        Ok(rest)
    }

    /// The answer to what runs nothing.
    fn make_up(&mut self, pending: &Pending, out: &mut Vec<u8>) {
        match pending.kind {
            Kind::Parse => {
                self.statements.completed(pending.name(), pending.number);
                write::parse_complete(out);
            }
            Kind::Bind => write::bind_complete(out),
            Kind::DescribeStatement => {
                if pending.completed == 0 {
                    write::parameter_description(out, &[]);
                }
                write::no_data(out);
            }
            Kind::DescribePortal => write::no_data(out),
            Kind::CloseStatement => {
                self.statements.closed(pending.name());
                write::close_complete(out);
            }
            Kind::ClosePortal => write::close_complete(out),
            Kind::Query | Kind::Execute | Kind::FunctionCall | Kind::Sync | Kind::CopyEnd => {}
        }
    }

    /// Fails all of it, cycle by cycle.
    fn failed(&mut self, pending: &[Pending], error: &[u8], out: &mut Vec<u8>) {
        // The client has to be told once that its block is lost.
        let known = self.skipping || (self.in_block && self.status == TransactionStatus::Failed);
        let mut lost = (self.in_block || self.implicit) && !known;
        let mut in_block = self.in_block;
        let mut told_of_error = self.skipping;
        self.skipping = false;
        let mut open = false;
        for cycle in pending.chunk_by(|before, _| !before.ends_cycle()) {
            let (Some(last), first) = (cycle.last(), cycle.len() == 1) else { continue };
            let told = std::mem::take(&mut told_of_error) || last.failed;
            if !last.ends_cycle() {
                if !told {
                    out.extend_from_slice(error);
                }
                (lost, open) = (false, true);
                break;
            }
            let ends_block = in_block && first && last.text.ends_block();
            if ends_block
                && last.kind == Kind::Query
                && last.completed == 0
                && !last.failed
                && (last.text.verb == Verb::Rollback || self.status == TransactionStatus::Failed)
            {
                // Rolled back it is; that is what was asked, or what a failed block gets.
                write::command_complete(out, "ROLLBACK");
                (in_block, lost) = (false, false);
            } else {
                let nothing_missing = first && (last.kind == Kind::Sync || last.is_answered());
                if !told && (lost || !nothing_missing) {
                    match self.status {
                        TransactionStatus::Failed if in_block => refuse(out),
                        _ => out.extend_from_slice(error),
                    }
                }
                lost = false;
                // A COMMIT that fails ends its block all the same.
                in_block &= !cycle.iter().any(|pending| pending.text.ends_block());
            }
            self.status =
                if in_block { TransactionStatus::Failed } else { TransactionStatus::Idle };
            write::ready_for_query(out, self.status);
        }
        self.in_block = in_block;
        if in_block {
            self.status = TransactionStatus::Failed;
        }
        self.skipping = open || (told_of_error && pending.is_empty());
        self.owed = lost.then(|| error.to_vec());
        self.standing_in = self.skipping || self.in_block || lost;
    }

    /// Has the client to be answered by [`Tracker::stand_in`] rather than by a server?
    pub fn stands_in(&self) -> bool {
        self.swallowing || self.standing_in
    }

    /// A piece of the client, while [`Tracker::stands_in`]: answers it into `out` as a server does
    /// in a failed transaction block, up to the block's end.
    pub fn stand_in(&mut self, piece: &Piece, out: &mut Vec<u8>) -> StandIn {
        let (tag, body, raw) = match *piece {
            Piece::Part { last, .. } => {
                self.swallowing &= !last;
                return StandIn::Answered;
            }
            Piece::Whole(Message { tag, body, raw }) => (tag, body, raw),
            Piece::Begin { tag, head, raw, .. } => (tag, head, raw),
        };
        if tag == b'X' {
            return StandIn::Forward;
        }
        let whole = matches!(piece, Piece::Whole(_));
        self.swallowing = !whole;
        match tag {
            b'd' | b'c' | b'f' | b'H' | b'p' => {}
            b'S' => {
                self.skipping = false;
                if let Some(error) = self.owed.take() {
                    out.extend(error);
                }
                self.end_cycle(out);
            }
            _ if self.skipping => {}
            b'Q' | b'F' => {
                let text = match tag {
                    b'Q' if whole => Text::of(body, self.standard_strings),
                    _ => Text::UNKNOWN,
                };
                self.statements.drop_unnamed();
                if self.ends_block(text) {
                    self.rolled_back(out);
                } else if self.is_nothing(text) {
                    write::empty_query_response(out);
                } else {
                    self.say_failed(out);
                }
                self.end_cycle(out);
            }
            b'C' => {
                let name = body.get(1..).unwrap_or_default();
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                match body.first() {
                    Some(b'S') => self.statements.closed(name),
                    _ => self.forget_portal(name),
                }
                write::close_complete(out);
            }
            _ if whole && self.in_block && self.stand_in_extended(tag, body, raw, out) => {}
            _ => {
                self.say_failed(out);
                self.skipping = true;
            }
        }
        StandIn::Answered
    }

    /// The messages of the extended protocol that lead to the block's end; false: any other.
    fn stand_in_extended(&mut self, tag: u8, body: &[u8], raw: &[u8], out: &mut Vec<u8>) -> bool {
        let name = |body: &[u8]| -> Vec<u8> {
            body.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
        };
        match tag {
            b'P' => {
                let Ok(parse) = Parse::decode(body) else { return false };
                if !parse.name.is_empty() && self.statements.get(parse.name).is_some() {
                    return false;
                }
                let text = Text::of(parse.text, self.standard_strings);
                if !self.is_nothing(text) && !self.ends_block(text) {
                    return false;
                }
                let number = self.statements.sent(parse.name, Some(raw), text);
                self.statements.completed(parse.name, number);
                write::parse_complete(out);
            }
            b'B' => {
                let Ok(names) = BindNames::decode(body) else { return false };
                // A named one has to be closed before it is made again.
                if self.portals.iter().any(|(known, _)| **known == *names.portal) {
                    return false;
                }
                let text = self.statements.text_of(names.statement);
                if !self.ends_block(text) {
                    return false;
                }
                self.set_portal(names.portal, text);
                write::bind_complete(out);
            }
            b'D' => {
                let Some((kind, body)) = body.split_first() else { return false };
                let text = match kind {
                    b'S' => self.statements.text_of(&name(body)),
                    _ => self.portal(&name(body)),
                };
                if !self.is_nothing(text) && !self.ends_block(text) {
                    return false;
                }
                if *kind == b'S' {
                    write::parameter_description(out, &[]);
                }
                write::no_data(out);
            }
            b'E' => {
                let text = self.portal(&name(body));
                if !self.ends_block(text) {
                    return false;
                }
                self.rolled_back(out);
                // What follows in this cycle is for the new server.
                self.standing_in = false;
            }
            _ => return false,
        }
        true
    }

    /// Does this end the block, with ROLLBACK for an answer? A client that was not told yet that
    /// its transaction is lost may believe that its COMMIT did it, whatever the tag says: it gets
    /// the error, and the block is over by that.
    fn ends_block(&mut self, text: Text) -> bool {
        if !self.in_block || !text.ends_block() {
            return false;
        }
        let told = self.owed.is_none() || text.verb == Verb::Rollback;
        self.in_block = told;
        told
    }

    /// An empty text is taken even in a failed block (but not a Bind of it), once the loss was
    /// told.
    fn is_nothing(&self, text: Text) -> bool {
        text.statements == 0 && text.hints.is_empty() && self.owed.is_none()
    }

    fn rolled_back(&mut self, out: &mut Vec<u8>) {
        self.owed = None;
        write::command_complete(out, "ROLLBACK");
        self.in_block = false;
        self.status = TransactionStatus::Idle;
    }

    /// The error that tells of the loss, the first time; then the one of a failed block.
    fn say_failed(&mut self, out: &mut Vec<u8>) {
        match self.owed.take() {
            Some(error) => out.extend(error),
            None => refuse(out),
        }
    }

    fn end_cycle(&mut self, out: &mut Vec<u8>) {
        self.status = match self.in_block {
            true => TransactionStatus::Failed,
            false => TransactionStatus::Idle,
        };
        write::ready_for_query(out, self.status);
        self.standing_in = self.in_block;
    }
}

/// What PostgreSQL says in a failed block.
fn refuse(out: &mut Vec<u8>) {
    let error = ErrorResponse::error(
        sqlstate::IN_FAILED_TRANSACTION,
        "current transaction is aborted, commands ignored until end of transaction block",
        "",
        "",
    );
    out.extend(error.encode());
}
