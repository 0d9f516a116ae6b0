//! What a client has asked and the server has not yet answered. Pure.
//!
//! The proxy puts questions of its own between those of the client; each answer is told whose it is.

use super::text::Traits;
use sempre_wire::pg::TransactionStatus;
use std::collections::VecDeque;

/// Messages without an answer. A server flushes its answers after 8 KiB, that is after less than
/// 1,700 messages, so a client that reads never meets this limit for long.
pub(crate) const PENDING_MAX: usize = 16_384;

/// A message that is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Query,
    Parse,
    Bind,
    Describe,
    Execute,
    Close,
    Sync,
    Call,
    /// CopyDone or CopyFail, sent before the server said that it takes data. Not answered.
    CopyEnd,
}

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Client,
    /// We: which transaction is this?
    Xid,
    /// We: what belongs to the session?
    State,
    /// We: is everything before this safe?
    Barrier,
}

/// A message on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    pub kind: Kind,
    pub owner: Owner,
    pub traits: Traits,
    /// A Parse of a statement that has a name.
    pub named: bool,
}

impl Pending {
    pub fn client(kind: Kind, traits: Traits) -> Self {
        Self { kind, owner: Owner::Client, traits, named: false }
    }

    pub fn ours(kind: Kind, owner: Owner) -> Self {
        Self { kind, owner, traits: Traits::default(), named: false }
    }

    /// Is it answered with ReadyForQuery?
    pub fn ends_cycle(&self) -> bool {
        matches!(self.kind, Kind::Query | Kind::Sync | Kind::Call)
    }
}

/// What an answer was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answered {
    pub owner: Owner,
    /// A Parse of a named statement succeeded.
    pub prepared: bool,
    /// Named statements that were not prepared because of an error.
    pub unprepared: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    pending: VecDeque<Pending>,
    /// As of the last ReadyForQuery.
    pub status: TransactionStatus,
    /// After an error, the server passes over everything up to the next Sync, which was not sent yet.
    skipping: bool,
    /// The server takes data, and nothing else.
    copy_in: bool,
    /// Extended messages were sent since the last Sync.
    open: bool,
}

/// What [`Flow::restore`] needs.
#[derive(Clone, Copy)]
pub(crate) struct Mark {
    length: usize,
    skipping: bool,
    copy_in: bool,
    open: bool,
}

impl Flow {
    /// Nothing is under way: the next message begins something new.
    pub fn quiet(&self) -> bool {
        self.pending.is_empty() && !self.open && !self.skipping
    }

    pub fn is_full(&self) -> bool {
        self.pending.len() >= PENDING_MAX
    }

    /// Does the server pass over what comes, up to a Sync?
    pub fn skipping(&self) -> bool {
        self.skipping
    }

    /// Is a Sync, a Query or a function call of the client on its way?
    pub fn has_client_end(&self) -> bool {
        self.pending.iter().any(|p| p.owner == Owner::Client && p.ends_cycle())
    }

    /// Has the segment that is open begun a transaction block?
    pub fn begins(&self) -> bool {
        self.pending.iter().any(|p| p.traits.has(Traits::BEGINS))
    }

    pub fn pending(&self) -> impl DoubleEndedIterator<Item = &Pending> {
        self.pending.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Is an answer to ourselves expected next?
    pub fn front_owner(&self) -> Option<Owner> {
        self.pending.front().map(|p| p.owner)
    }

    pub fn mark(&self) -> Mark {
        Mark {
            length: self.pending.len(),
            skipping: self.skipping,
            copy_in: self.copy_in,
            open: self.open,
        }
    }

    /// What was sent since `mark` was not sent after all. (No answer came since.)
    pub fn restore(&mut self, mark: Mark) {
        self.pending.truncate(mark.length);
        (self.skipping, self.copy_in, self.open) = (mark.skipping, mark.copy_in, mark.open);
    }

    /// The server is gone, and with it everything that was asked.
    pub fn clear(&mut self) {
        self.pending.clear();
        if self.pending.capacity() > 64 {
            self.pending = VecDeque::new();
        }
        (self.skipping, self.copy_in, self.open) = (false, false, false);
    }

    /// The client got an error that we made, inside an extended exchange.
    pub fn skip(&mut self) {
        self.skipping = true;
        self.open = true;
    }

    /// A message was sent.
    pub fn sent(&mut self, message: Pending) {
        match message.kind {
            Kind::Sync if self.copy_in => return,
            Kind::CopyEnd if self.copy_in => {
                self.copy_in = false;
                return;
            }
            Kind::CopyEnd if self.pending.is_empty() => return,
            Kind::Sync => self.skipping = false,
            _ if self.skipping => return,
            _ => {}
        }
        if message.owner == Owner::Client && message.kind != Kind::CopyEnd {
            self.open = !message.ends_cycle();
        }
        self.pending.push_back(message);
    }

    /// A message of the server came. Notices, parameters and notifications are not answers, and
    /// are not told here.
    pub fn answered(&mut self, tag: u8) -> Answered {
        self.drop_copy_ends();
        let Some(front) = self.pending.front().copied() else {
            return Answered { owner: Owner::Client, prepared: false, unprepared: 0 };
        };
        let mut answer = Answered { owner: front.owner, prepared: false, unprepared: 0 };
        match tag {
            b'1' if front.kind == Kind::Parse => {
                answer.prepared = front.named;
                self.pending.pop_front();
            }
            b'2' if front.kind == Kind::Bind => self.pop(),
            b'3' if front.kind == Kind::Close => self.pop(),
            b'n' | b'T' if front.kind == Kind::Describe => self.pop(),
            b'C' | b'I' | b's' => {
                self.copy_in = false;
                if front.kind == Kind::Execute {
                    self.pop();
                }
            }
            b'G' => self.copy_begins(),
            b'Z' => {
                self.copy_in = false;
                while let Some(ended) = self.pending.pop_front() {
                    if ended.ends_cycle() {
                        answer.owner = ended.owner;
                        break;
                    }
                }
                self.drop_copy_ends();
            }
            b'E' => {
                self.copy_in = false;
                if !matches!(front.kind, Kind::Query | Kind::Call) {
                    answer.unprepared = self.fail();
                }
            }
            _ => {}
        }
        answer
    }

    fn drop_copy_ends(&mut self) {
        while self.pending.front().is_some_and(|p| p.kind == Kind::CopyEnd) {
            self.pending.pop_front();
        }
    }

    fn pop(&mut self) {
        self.pending.pop_front();
    }

    /// An error in an extended exchange: everything up to the Sync is passed over.
    fn fail(&mut self) -> usize {
        let mut unprepared = 0;
        while let Some(front) = self.pending.front() {
            if front.kind == Kind::Sync {
                return unprepared;
            }
            unprepared += usize::from(front.named);
            self.pending.pop_front();
        }
        self.skipping = true;
        unprepared
    }

    /// The server ignores Sync while it takes data: those sent ahead are never answered.
    fn copy_begins(&mut self) {
        self.copy_in = true;
        while let Some(next) = self.pending.get(1) {
            match next.kind {
                Kind::Sync => {
                    self.pending.remove(1);
                }
                Kind::CopyEnd => {
                    self.pending.remove(1);
                    self.copy_in = false;
                    return;
                }
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(kinds: &[Kind]) -> Flow {
        let mut flow = Flow::default();
        for kind in kinds {
            flow.sent(Pending::client(*kind, Traits::default()));
        }
        flow
    }

    fn answer(flow: &mut Flow, tags: &[u8]) {
        for tag in tags {
            flow.answered(*tag);
        }
    }

    #[test]
    fn a_simple_query_ends_with_ready() {
        let mut flow = flow(&[Kind::Query]);
        answer(&mut flow, b"TDDC");
        assert!(!flow.quiet());
        answer(&mut flow, b"Z");
        assert!(flow.quiet());
    }

    #[test]
    fn an_extended_exchange_is_quiet_only_after_its_sync() {
        use Kind::*;
        let mut flow = flow(&[Parse, Describe, Bind, Describe, Execute]);
        answer(&mut flow, b"1tT2TDDC");
        assert!(flow.is_empty() && !flow.quiet());
        flow.sent(Pending::client(Sync, Traits::default()));
        answer(&mut flow, b"Z");
        assert!(flow.quiet());
    }

    #[test]
    fn an_error_passes_over_to_the_sync_sent_or_not() {
        use Kind::*;
        let mut flow = flow(&[Parse, Bind, Execute, Sync, Parse, Sync]);
        answer(&mut flow, b"E");
        assert_eq!(flow.pending().count(), 3);
        answer(&mut flow, b"Z1Z");
        assert!(flow.quiet());
        flow.sent(Pending::client(Bind, Traits::default()));
        answer(&mut flow, b"E");
        assert!(flow.skipping() && !flow.quiet());
        flow.sent(Pending::client(Execute, Traits::default()));
        assert!(flow.is_empty());
        flow.sent(Pending::client(Sync, Traits::default()));
        answer(&mut flow, b"Z");
        assert!(flow.quiet());
    }

    #[test]
    fn sync_is_ignored_while_the_server_takes_data() {
        use Kind::*;
        // As libpq does: Sync behind Execute, and again behind CopyDone.
        let mut waits = flow(&[Parse, Bind, Execute, Sync]);
        answer(&mut waits, b"12G");
        waits.sent(Pending::client(CopyEnd, Traits::default()));
        waits.sent(Pending::client(Sync, Traits::default()));
        answer(&mut waits, b"CZ");
        assert!(waits.quiet());
        // All at once.
        let mut ahead = flow(&[Parse, Bind, Execute, Sync, CopyEnd, Sync]);
        answer(&mut ahead, b"12GC");
        assert!(!ahead.quiet());
        answer(&mut ahead, b"Z");
        assert!(ahead.quiet());
        // A simple one that fails while data is on its way.
        let mut fails = flow(&[Query]);
        answer(&mut fails, b"GEZ");
        fails.sent(Pending::client(CopyEnd, Traits::default()));
        assert!(fails.quiet());
    }

    #[test]
    fn answers_to_us_are_known_and_do_not_end_the_clients_exchange() {
        let mut flow = flow(&[Kind::Parse]);
        for kind in [Kind::Bind, Kind::Execute, Kind::Close] {
            flow.sent(Pending::ours(kind, Owner::Xid));
        }
        flow.sent(Pending::client(Kind::Sync, Traits::default()));
        assert_eq!(flow.answered(b'1').owner, Owner::Client);
        for tag in b"2DC3" {
            assert_eq!(flow.answered(*tag).owner, Owner::Xid);
        }
        assert_eq!(flow.answered(b'Z').owner, Owner::Client);
        assert!(flow.quiet());
    }
}
