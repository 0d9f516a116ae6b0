//! Statements outside a transaction block that can be found out about (`resolve_autocommit`).
//!
//! In the extended protocol, what commits such a statement is the Sync behind it. So the Sync waits
//! until the transaction's id is known: lost before that, nothing was committed; lost after it,
//! [`super::resolve`] finds out, as of a COMMIT.
//!
//! A simple query is its own end. So a single INSERT, UPDATE, DELETE or MERGE that comes as one goes
//! to the server by the extended protocol; its client does not see the difference, as the tag is
//! kept back until the commit is done. What was certainly rolled back, and of which the client
//! has seen nothing, is run again on the next server.

use super::{
    lost::{Where, not_carriable, rolled_back, unknown},
    own,
    resolve::Outcome,
    session::{Over, Session, Xid},
    up::{Step, Stop, string},
};
use sempre_wire::pg::{
    Piece, Scanner, Side, TransactionStatus,
    track::{Hints, Kind, Pending, Settled, Text, Verb, What, Whose},
    write,
};

/// A simple query that went to the server by the extended protocol.
pub(crate) struct Converted {
    /// As it came.
    query: Vec<u8>,
    /// Kept back of its answer: the row description up to the first row, as only then it is certain
    /// that there is no error in its place; and its tag.
    kept: Vec<u8>,
    /// Some of its rows, or its error, were passed on.
    seen: bool,
    /// The Sync behind it was sent.
    ended: bool,
}

impl Session<'_> {
    /// Is the client outside of any block, where its statements are to be found out about?
    fn resolves_autocommit(&self) -> bool {
        self.proxy.settings.resolve_autocommit
            && !self.apart.on
            && self.tracker.status() == TransactionStatus::Idle
            && !self.tracker.in_block()
            && !self.tracker.is_skipping()
            && !self.tracker.pending().any(|pending| pending.text.hints.any(Hints::BEGINS))
    }

    /// Whether the answers to an earlier exchange are still to come.
    fn has_earlier(&self) -> bool {
        self.tracker.pending().any(|pending| pending.whose == Whose::Client && pending.ends_cycle())
    }

    /// What has to happen before a Sync that may commit a statement by itself.
    pub(super) fn before_sync(&self) -> Option<Step> {
        if !self.resolves_autocommit() {
            return None;
        }
        let writes = |pending: &Pending| {
            pending.whose == Whose::Client
                && pending.kind == Kind::Execute
                && pending.text.verb == Verb::Write
        };
        if !self.tracker.wrote() && !self.tracker.pending().any(writes) {
            return None;
        }
        match self.xid {
            _ if self.has_earlier() => Some(Step::Stop(Stop::Wait)),
            Xid::Asked => Some(Step::Stop(Stop::Wait)),
            Xid::Known(_) | Xid::None if !self.xid_stale => None,
            _ => Some(Step::AskXid),
        }
    }

    /// What becomes of a simple query that is to be found out about. None: it is not such a one.
    pub(super) fn before_simple(&self, body: &[u8], whole: bool) -> Option<Step> {
        if !whole || !self.resolves_autocommit() {
            return None;
        }
        // How a text is read depends on it.
        if self.parameter(b"standard_conforming_strings") != Some(b"on") {
            return None;
        }
        let text = string(body);
        let short = Text::of(text, true);
        if !short.is_only(Verb::Write) || !short.hints.is_empty() || !stands_alone(text) {
            return None;
        }
        match self.has_earlier() || self.tracker.pending().len() > 0 {
            true => Some(Step::Stop(Stop::Wait)),
            false => Some(Step::Convert),
        }
    }

    /// Sends the simple query `raw` by the extended protocol, all but the Sync.
    pub(super) fn convert(&mut self, raw: &[u8], body: &[u8]) {
        let mut ahead = Vec::with_capacity(raw.len() + 64);
        write::parse(&mut ahead, b"", string(body), &[]);
        write::bind(&mut ahead, b"", b"", &[]);
        write::describe_portal(&mut ahead, b"");
        write::execute(&mut ahead, b"", 0);
        // A simple query leaves no unnamed statement behind.
        write::close_statement(&mut ahead, b"");
        self.meter.sent();
        self.send_as(Whose::Client, &ahead);
        self.split_sent(b'Q');
        self.ask_xid(own::End::Flush);
        self.converted = Some(Box::new(Converted {
            query: raw.to_vec(),
            kept: Vec::new(),
            seen: false,
            ended: false,
        }));
    }

    /// Sends messages of ours; whose the answers are.
    fn send_as(&mut self, whose: Whose, messages: &[u8]) {
        let mut scanner = Scanner::new(Side::Frontend);
        let mut at = 0;
        while let Ok(Some(piece)) = scanner.next(&messages[at..]) {
            // There is always room: see `has_room`.
            let _ = self.tracker.sent(whose, &piece);
            at += piece.size();
        }
        if let Some(link) = &mut self.link {
            link.out.extend_from_slice(messages);
        }
    }

    /// The transaction's id is known, or there is none as it failed: the statement may be committed.
    pub(super) fn end_converted(&mut self) {
        let Some(converted) = self.converted.as_mut().filter(|converted| !converted.ended) else {
            return;
        };
        converted.ended = true;
        self.send_sync();
    }

    fn send_sync(&mut self) {
        let mut sync = Vec::new();
        write::sync(&mut sync);
        self.send_as(Whose::Client, &sync);
    }

    /// The statement failed, and with it what stood behind it.
    fn end_failed(&mut self) {
        if self.converted.as_ref().is_none_or(|converted| converted.ended) {
            return;
        }
        self.end_converted();
        let mut close = Vec::new();
        write::close_statement(&mut close, b"");
        write::sync(&mut close);
        self.send_as(Whose::Proxy, &close);
        self.tracker.statements_mut().drop_unnamed();
    }

    /// Looks at an answer to such a query. What the client gets in its place, if not the same.
    pub(super) fn converted_answer(
        &mut self,
        piece: &Piece<'_>,
        what: &What<'_>,
    ) -> Option<Vec<u8>> {
        let converted = self.converted.as_mut()?;
        let raw = match piece {
            Piece::Whole(message) => message.raw,
            Piece::Begin { raw, .. } => raw,
            Piece::Part { .. } => &[],
        };
        match what {
            What::Answer if matches!(piece.tag(), b'1' | b'2' | b'3' | b'n') => Some(Vec::new()),
            What::Complete { .. } => {
                converted.kept.extend_from_slice(raw);
                Some(Vec::new())
            }
            What::Answer if piece.tag() == b'T' && matches!(piece, Piece::Whole(_)) => {
                converted.kept.extend_from_slice(raw);
                Some(Vec::new())
            }
            What::Answer | What::Row => {
                converted.seen = true;
                let kept = std::mem::take(&mut converted.kept);
                (!kept.is_empty()).then(|| [&kept, raw].concat())
            }
            What::Error { fatal: false, .. } => {
                converted.seen = true;
                converted.kept.clear();
                self.end_failed();
                None
            }
            _ => None,
        }
    }

    /// The exchange of such a query is over: what was kept back of its answer.
    pub(super) fn converted_ends(&mut self) -> Option<Vec<u8>> {
        self.converted.take().map(|converted| converted.kept)
    }

    /// The server of such a query is lost.
    pub(super) async fn lost_converted(
        &mut self,
        converted: Converted,
        place: &Where,
    ) -> Result<(), Over> {
        let Converted { query, kept, seen, ended } = converted;
        let outcome = match ended {
            true => self.resolve(place).await?,
            false => {
                // Nothing of it was committed. As far as the client knows, it was sent whole.
                self.send_sync();
                Outcome::RolledBack
            }
        };
        if outcome != Outcome::RolledBack || seen {
            return self.settle_autocommit(outcome, &kept);
        }
        tracing::debug!("a statement that was rolled back is run again");
        self.settle_silently();
        let behind = std::mem::replace(&mut self.from_client, query);
        self.from_client.extend_from_slice(&behind);
        self.wants_more = false;
        Ok(())
    }

    /// Can be found out about what the Sync under way committed?
    pub(super) fn knows_autocommit(&self) -> bool {
        let mut theirs = self.tracker.pending().filter(|p| p.whose == Whose::Client);
        self.proxy.settings.resolve_autocommit
            && matches!(self.xid, Xid::Known(_) | Xid::None)
            && !self.xid_stale
            && theirs.next().is_some_and(|pending| pending.kind == Kind::Sync && !pending.failed)
            && theirs.next().is_none()
    }

    /// Tells the client what became of a statement outside a block; `kept`: of its answer, what the
    /// client does not have yet.
    pub(super) fn settle_autocommit(&mut self, outcome: Outcome, kept: &[u8]) -> Result<(), Over> {
        match outcome {
            Outcome::Committed => {
                self.to_client.extend_from_slice(kept);
                let touched = self.touched;
                let rest = unknown("It was sent behind a statement whose server was lost");
                self.settle(Settled::Synced { rest: &rest })?;
                match touched.any(Hints::STATE) {
                    true => Err(not_carriable("The committed statement may have changed it.")),
                    false => Ok(()),
                }
            }
            Outcome::RolledBack => self.settle(Settled::Failed(&rolled_back())),
            Outcome::Unknown(why) => self.settle(Settled::Failed(&unknown(&why))),
        }
    }
}

/// Does it mean the same in the extended protocol? There `$1` would be a parameter.
fn stands_alone(text: &[u8]) -> bool {
    !text.windows(2).any(|pair| pair[0] == b'$' && pair[1].is_ascii_digit())
}
