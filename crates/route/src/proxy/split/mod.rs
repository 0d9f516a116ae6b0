//! Read/write split: a read-only transaction of a read-write session runs on a standby.
//!
//! It is read-only by the client's own word (`BEGIN READ ONLY`, or its default), not by a guess.
//! The session's own connection is parked meanwhile; the one to the standby is brought to the
//! session's state and given back after the transaction ([`standbys`]). A standby serves only what
//! the session itself has written before ([`position`]). Wherever something does not fit, the
//! primary serves the transaction, as it would without all this.
//!
//! # Limits and known gaps
//!
//! - A statement that stands behind COMMIT in the same extended cycle, without a Sync in
//!   between, runs on the standby too, and fails there if it writes.
//! - What one session sees may be older than what it saw in a transaction before, on another
//!   standby; its own writes it sees always.
//! - What a function does that PostgreSQL allows in a read-only transaction of a primary but not on
//!   a standby fails (advisory locks of transactions would succeed, unseen by others). After
//!   such an error the session stays on the primary.

mod begin;
mod looks;
mod position;
mod standbys;

pub(crate) use position::Position;
pub(crate) use standbys::Standbys;

use super::{
    link::Link,
    lost::not_carriable,
    pool::{ClientState, PoolKey, goodbye, is_there},
    pump::{Event, Loss},
    session::{Over, Session},
    talk::Talk,
};
use crate::{Split, choose::Candidate, stats::count};
use position::end_of_records;
use sempre_model::Lsn;
use sempre_wire::pg::{ErrorResponse, Side, sqlstate, track::Hints, write};
use standbys::{Unfit, catch_up, is_serializable};
use std::{sync::atomic::Ordering::Relaxed, time::Duration};
use tokio::time::Instant;

/// Where the primary writes next; pages and segments of its WAL.
const POSITION: &[u8] = b"select pg_catalog.pg_current_wal_insert_lsn(), \
    pg_catalog.current_setting('wal_block_size'), \
    pg_catalog.pg_size_bytes(pg_catalog.current_setting('wal_segment_size'))";

/// What a session has to know about it.
#[derive(Default)]
pub(crate) struct Apart {
    /// Its connection is one to a standby, for one transaction.
    pub on: bool,
    /// The transaction's first message was sent.
    begun: bool,
    /// The next message is the primary's, after all.
    declined: bool,
    /// A standby refused what the session does: it is not tried again.
    stays: bool,
    /// Its own connection, meanwhile.
    pub home: Option<Box<Link>>,
    /// The session's state when it left `home`.
    revision: u64,
    pub position: Position,
    /// Its pool of connections to standbys.
    key: Option<PoolKey>,
}

impl Apart {
    /// A standby said this. Is it something that a primary would not have said?
    pub fn failed(&mut self, code: &[u8]) {
        // Not in recovery, not supported there, not in that state.
        self.stays |= self.on && matches!(code, b"25006" | b"0A000" | b"55000");
    }
}

impl Session<'_> {
    /// May its read-only transactions run on standbys?
    pub(super) fn splits(&self) -> bool {
        self.proxy.standbys.is_some() && !self.secret_is_spent()
    }

    /// Goes to a standby for the transaction that the client's next message begins, or else
    /// sees to it that the primary gets it.
    pub(super) async fn split(&mut self) -> Result<(), Over> {
        self.apart.declined = true;
        let Some(standbys) = self.proxy.standbys.as_deref() else { return Ok(()) };
        let counters = &self.proxy.shared.counters;
        let candidates = match standbys.candidates() {
            candidates if candidates.is_empty() => None,
            candidates => self.needed().await?.map(|needed| (candidates, needed)),
        };
        let Some((candidates, needed)) = candidates else {
            count(&counters.split_to_primary);
            return Ok(());
        };
        let timeout = self.proxy.settings.split.read_your_writes_timeout_ms;
        let deadline = Instant::now() + Duration::from_millis(timeout);
        for candidate in candidates {
            let member = candidate.target.member.clone();
            match self.go_to(standbys, candidate, needed, deadline).await {
                Ok(link) => {
                    self.park();
                    self.apart.on = true;
                    self.apart.begun = false;
                    self.apart.declined = false;
                    self.apart.revision = self.carried.revision();
                    self.set_link(link);
                    count(&counters.split_to_standby);
                    self.pool.pool.counts.split.fetch_add(1, Relaxed);
                    return Ok(());
                }
                Err(why) => {
                    tracing::debug!(%member, why, "a read-only transaction is not led there")
                }
            }
        }
        count(&counters.split_to_primary);
        Ok(())
    }

    /// A standby's connection in the session's state.
    async fn go_to(
        &mut self,
        standbys: &Standbys,
        candidate: Candidate,
        needed: Option<Needed>,
        deadline: Instant,
    ) -> Result<Link, String> {
        let Some(begin) = self.next_begin() else { return Err("it is not understood".into()) };
        let needed = match needed {
            Some((generation, _)) if generation != candidate.generation => {
                return Err("the primary has changed meanwhile".into());
            }
            needed => needed.map(|(_, lsn)| lsn),
        };
        let key = self.apart.key.get_or_insert_with(|| standbys.proxy.pools.key(&self.begun));
        let key = key.clone();
        let mut link = standbys.connect(&candidate, &key, &self.begun, &self.secret).await?;
        let put = |link| standbys.proxy.pools.put(&key, link);
        match catch_up(&mut link, needed, deadline).await {
            Ok((answer, waited)) => {
                let own = self.carried.setting(b"default_transaction_isolation");
                if is_serializable(begin, own, &answer) {
                    put(link);
                    return Err("standbys do not know SERIALIZABLE".into());
                }
                if waited {
                    count(&self.proxy.shared.counters.split_waited);
                }
            }
            Err(Unfit::Broken) => return Err("it does not answer".into()),
            Err(Unfit::NotNow(why)) => {
                count(&self.proxy.shared.counters.split_waited);
                put(link);
                return Err(why.into());
            }
        }
        let name: &[u8] = b"default_transaction_read_only";
        let default = self.carried.setting(name).or(link.parameter(name));
        if begin.read_only.is_none() && default != Some(b"on") {
            put(link);
            return Err("by its own settings the transaction would not be read-only".into());
        }
        self.restore(&mut link).await.map_err(|_| "the session's state cannot be restored")?;
        Ok(link)
    }

    /// What a standby must have replayed. None: it cannot be known.
    async fn needed(&mut self) -> Result<Option<Option<Needed>>, Over> {
        if !self.proxy.settings.split.read_your_writes {
            return Ok(Some(None));
        }
        let generation = self.proxy.shared.table.borrow().generation;
        if let Ok(needed) = self.apart.position.needed(generation) {
            return Ok(Some(needed.map(|lsn| (generation, lsn))));
        }
        self.attach().await?;
        let Some(mut link) = self.link.take() else { return Ok(None) };
        // The client's unnamed statement is gone by that.
        self.attached += 1;
        let Some(lsn) = self.ask_position(&mut link).await else {
            // It is lost; the session notices when it gets another one.
            self.key.runs(None);
            self.entry.info.is(ClientState::Idle);
            return Ok(None);
        };
        let generation = link.generation;
        self.link = Some(link);
        self.apart.position = Position::Known(generation, lsn);
        Ok(Some(Some((generation, lsn))))
    }

    async fn ask_position(&mut self, link: &mut Link) -> Option<Lsn> {
        let mut question = Vec::new();
        // Of what is inserted, not flushed: a commit need not be flushed when it is answered.
        write::parse(&mut question, b"", POSITION, &[]);
        write::bind(&mut question, b"", b"", &[]);
        write::execute(&mut question, b"", 0);
        write::sync(&mut question);
        let mut talk = Talk::new(&mut link.stream, Side::Backend, std::mem::take(&mut link.kept));
        let cut = link.ticket.cut.clone();
        let asked = async { talk.ask(&question, 1).await.ok() };
        let answers = super::attach::with_link(&cut, asked).await?;
        link.kept = talk.rest();
        self.to_client.extend_from_slice(&answers.notifications);
        for (name, value) in answers.parameters {
            link.reported(&name, &value);
        }
        let [Some(insert), Some(page), Some(segment)] = answers.rows.first()?.as_slice() else {
            return None;
        };
        let (page, segment) = (page.parse().ok()?, segment.parse().ok()?);
        Some(end_of_records(insert.parse().ok()?, page, segment))
    }

    /// Leaves its own connection for a while.
    fn park(&mut self) {
        let Some(link) = self.link.take() else { return };
        if !self.shares() || self.pinned || self.pinned_for_good {
            self.apart.home = Some(Box::new(link));
        } else if link.cancelling.load(Relaxed) == 0 {
            self.proxy.pools.put(&self.pool, link);
        } else {
            goodbye(link);
        }
    }

    /// After the transaction, the session goes back. None: not yet.
    pub(super) fn end_split(&mut self) -> Option<Event> {
        if !self.apart.on || !self.apart.begun || !self.is_idle() {
            return None;
        }
        // What the transaction may have changed was asked for before the client got its end.
        let stuck = match self.tracker.is_out_of_step() || self.touched.any(Hints::STATE) {
            true => Some("changed in a way that is not known".to_owned()),
            false => self.carried.stuck(self.tracker.statements()),
        };
        if let Some(stuck) = stuck {
            return Some(match not_carriable(&format!("On a standby it has {stuck}.")) {
                Over::Error(error) => Event::Fatal(error),
                Over::Silent | Over::Raw(_) => Event::ClientGone,
            });
        }
        self.abandon_split();
        Some(Event::Shared)
    }

    /// Leaves the standby, whatever it was doing, and goes back.
    pub(super) fn abandon_split(&mut self) {
        if !std::mem::take(&mut self.apart.on) {
            return;
        }
        let idle = self.is_idle() && !self.tracker.is_out_of_step();
        self.key.runs(None);
        self.entry.info.is(ClientState::Idle);
        if let (Some(link), Some(standbys)) = (self.link.take(), self.proxy.standbys.as_deref()) {
            let clean = idle
                && link.out.is_empty()
                && link.kept.is_empty()
                && link.cancelling.load(Relaxed) == 0;
            match &self.apart.key {
                Some(key) if clean && self.carried.is_of_its_own(self.begun.user()) => {
                    standbys.proxy.pools.reset(key.clone(), link);
                }
                Some(key) if clean => standbys.proxy.pools.put(key, link),
                _ => goodbye(link),
            }
        }
        self.come_home();
    }

    /// Takes its own connection again, if its state there is still the session's.
    pub(super) fn come_home(&mut self) {
        self.apart.on = false;
        let Some(mut home) = self.apart.home.take() else { return };
        let same = self.apart.revision == self.carried.revision();
        if home.ticket.cut.reason().is_some() || !is_there(&mut home) {
            // Lost meanwhile. What is given to it now would be lost with it, for nothing.
            goodbye(*home);
        } else if same {
            self.tell_parameters(&home);
            self.set_link(*home);
        } else if self.proxy.pools.knows(&self.pool) && home.cancelling.load(Relaxed) == 0 {
            self.proxy.pools.reset(self.pool.clone(), *home);
        } else {
            goodbye(*home);
        }
    }

    /// The error of a transaction whose standby is lost, or was not the place for it.
    pub(super) fn lost_apart(&mut self, loss: &Loss) -> ErrorResponse {
        let unsuited = matches!(loss, Loss::Unsuited);
        self.apart.stays |= unsuited;
        let what = match unsuited {
            true => "the transaction does what a standby cannot do for it",
            false => "the standby that served the read-only transaction was lost",
        };
        let error = sqlstate::SERIALIZATION_FAILURE;
        ErrorResponse::error(error, what, "", "Run the transaction again, in this same session.")
    }

    /// The connection that is parked is given up as soon as somebody wants it: the session can
    /// have another one.
    pub(super) fn watch_home(&mut self, context: &mut std::task::Context<'_>) {
        let Some(home) = &self.apart.home else { return };
        let cut = &home.ticket.cut;
        let wanted = cut.poll(context).is_some() || cut.is_draining() || cut.is_leaving();
        if let Some(home) = self.apart.home.take_if(|_| wanted) {
            goodbye(*home);
        }
    }
}

/// A position of a generation.
type Needed = (sempre_model::Generation, Lsn);

/// Is anything split?
pub(super) fn is_wanted(split: Split, mode: crate::Mode) -> bool {
    split != Split::Off && mode == crate::Mode::ReadWrite
}
