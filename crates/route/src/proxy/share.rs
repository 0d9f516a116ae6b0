//! A session takes its server connection from the pool and gives it back.

use super::{
    attach::with_link,
    link::Link,
    pool::{ClientState, goodbye},
    session::Session,
    talk::Talk,
};
use crate::PoolMode;
use sempre_wire::pg::{Side, track::Hints, write};
use std::sync::atomic::Ordering::Relaxed;

const SET_NAME: &[u8] = b"select pg_catalog.set_config('application_name', $1, false)";

impl Session<'_> {
    /// Makes a pooled connection the session's own. None: it is of no use.
    pub(super) async fn make_own(&mut self, mut link: Link) -> Option<Link> {
        let cut = link.ticket.cut.clone();
        let taken = with_link(&cut, async {
            // An error that the client should hear comes again on a new connection.
            self.restore(&mut link).await.ok()
        });
        taken.await?;
        Some(link)
    }

    /// Does it share its connections with others, a transaction at a time?
    pub(super) fn shares(&self) -> bool {
        self.proxy.settings.pool.mode == PoolMode::Transaction && !self.secret_is_spent()
    }

    /// Does it give its connection back after each transaction, with nothing of its own on it?
    pub(super) fn lends(&self) -> bool {
        self.shares() && !self.pinned && !self.pinned_for_good
    }

    /// Do its prepared statements have names that all connections share? Then they need not be
    /// restored on another one.
    pub(super) fn renames(&self) -> bool {
        self.shares() || self.splits()
    }

    /// Gives the connection back between two transactions. True: it did.
    pub(super) fn share(&mut self) -> bool {
        if self.apart.on || !self.lends() || !self.is_idle() {
            return false;
        }
        let waits = |link: &Link| link.out.is_empty() && link.kept.is_empty() && !link.flush;
        let quiet = self.given == self.to_client.len()
            && self.from_client.is_empty()
            && !self.touched.any(Hints::STATE)
            && !self.tracker.is_out_of_step();
        let Some(link) = self.link.take_if(|link| quiet && waits(link)) else { return false };
        self.key.runs(None);
        self.entry.info.is(ClientState::Idle);
        match link.cancelling.load(Relaxed) {
            0 => self.proxy.pools.put(&self.pool, link),
            // A cancel request must not hit the next one.
            _ => goodbye(link),
        }
        true
    }

    /// Is its server connection wanted back before its end (PAUSE, RECONNECT), and can what
    /// belongs to the session be restored on another one?
    pub(super) fn is_asked_to_leave(&self) -> bool {
        self.link
            .as_ref()
            .is_some_and(|link| link.ticket.cut.is_leaving() && !link.ticket.cut.is_draining())
            && !self.secret_is_spent()
            && !self.tracker.is_out_of_step()
            && !self.touched.any(Hints::STATE)
            && self.carried.stuck(self.tracker.statements()).is_none()
    }

    /// Leaves the server at the end of the session. It stays in the pool if it is as good as new.
    pub(super) fn give_back(&mut self) {
        self.abandon_split();
        // Between two transactions nothing of its own is on it.
        if self.share() {
            return;
        }
        self.key.runs(None);
        self.entry.info.is(ClientState::Idle);
        let Some(link) = self.link.take() else { return };
        let clean = self.is_idle()
            && !self.tracker.is_out_of_step()
            && link.out.is_empty()
            && link.kept.is_empty()
            && link.down.at_boundary()
            && link.cancelling.load(Relaxed) == 0
            && self.proxy.pools.knows(&self.pool);
        match clean {
            true => self.proxy.pools.reset(self.pool.clone(), link),
            false => goodbye(link),
        }
    }
}

/// Writes the exchange that gives a connection a client's name.
pub(super) fn write_name(out: &mut Vec<u8>, name: &[u8]) {
    write::parse(out, b"", SET_NAME, &[]);
    write::bind(out, b"", b"", &[Some(name)]);
    write::execute(out, b"", 0);
    write::sync(out);
}

/// Gives a connection the client's name, whoever had it before.
pub(super) async fn set_name(link: &mut Link, name: &[u8]) -> Option<()> {
    let mut question = Vec::new();
    write_name(&mut question, name);
    let mut talk = Talk::new(&mut link.stream, Side::Backend, std::mem::take(&mut link.kept));
    let answers = talk.ask(&question, 1).await.ok()?;
    link.kept = talk.rest();
    for (name, value) in answers.parameters {
        link.reported(&name, &value);
    }
    answers.errors.is_empty().then_some(())
}
