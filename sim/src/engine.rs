//! What the fake PostgreSQL does by itself: flushes, streams, releases commits, ends.

use crate::{
    clock::MS,
    database::{Database, Receiver, Running, Sender, Waiting},
    event::{Msg, What},
    scenario::Bug,
    world::World,
};
use sempre_model::{
    observation::{DiskState, Role},
    policy::Durability,
};

/// The database's own timer.
const TICK_US: u64 = 100 * MS;
/// An idle standby replies this often.
const REPLY_US: u64 = 1_000 * MS;
/// What was sent and not answered for this long is sent again (TCP's part).
const AGAIN_US: u64 = 250 * MS;
/// Silence after which either side of a stream gives up.
const STREAM_TIMEOUT_US: u64 = 5_000 * MS;
/// Records in one message.
const CHUNK: usize = 200;

impl World {
    /// The database process ends; what it had in memory is gone.
    pub fn database_ends(&mut self, m: usize, crashed: bool, why: &str) {
        let clock = self.clock(m);
        let machine = &mut self.members[m];
        if machine.db.running == Running::Down {
            return;
        }
        machine.guard.armed = None;
        machine.guard.late = false;
        if crashed {
            machine.guard.crashed_at = Some(clock);
        }
        let life = machine.db.life + 1;
        machine.db = Database { life, ..Database::default() };
        self.clients.iter_mut().filter(|c| c.at == Some(m)).for_each(|c| c.at = None);
        self.log(|| format!("m{m}: database ends: {why}"));
    }

    /// Its own timer.
    pub fn on_database_tick(&mut self, m: usize, life: u64) {
        let now = self.now;
        let db = &mut self.members[m].db;
        if db.life != life || db.running == Running::Down {
            return;
        }
        if db.running == Running::Starting {
            if now < db.ready_at {
                let delay = db.ready_at - now;
                self.at(delay, m, What::DatabaseTick { life });
                return;
            }
            self.becomes_ready(m);
        }
        let db = &self.members[m].db;
        if db.stopping && now - db.stopping_since > STREAM_TIMEOUT_US {
            // A shutdown once begun comes to its end, whether its agent lives or not.
            self.stopped_cleanly(m);
            self.act(m);
            return;
        }
        self.tick_senders(m);
        self.tick_receiver(m);
        self.at(TICK_US, m, What::DatabaseTick { life });
    }

    fn becomes_ready(&mut self, m: usize) {
        let machine = &mut self.members[m];
        machine.db.running = Running::Up;
        machine.data.flushed = machine.data.log.len();
        let role = machine.db.role;
        if role == Role::Primary {
            machine.db.recovered = machine.data.flushed_lsn();
            machine.db.sync_since = Some(machine.db.recovered);
            machine.data.was_primary = true;
            machine.data.resting = false;
        } else {
            machine.data.was_primary = false;
        }
        self.log(|| format!("m{m}: database runs as {role:?}"));
        if role == Role::Primary {
            self.check_serving(m);
        } else {
            self.connect(m);
        }
        self.act(m);
    }

    fn tick_senders(&mut self, m: usize) {
        let now = self.now;
        let data = &self.members[m].data;
        let mut gone = Vec::new();
        let mut again = Vec::new();
        for (standby, sender) in &self.members[m].db.senders {
            if now - sender.replied_at > STREAM_TIMEOUT_US {
                gone.push(*standby);
                continue;
            }
            let acked = sender.flushed.map_or(0, |l| data.index_after(l));
            if acked < sender.sent && sender.flushed.is_some() && now - sender.replied_at > AGAIN_US
            {
                again.push((*standby, acked));
            }
        }
        for standby in gone {
            self.members[m].db.senders.remove(&standby);
            self.log(|| format!("m{m}: walsender of m{standby} timed out"));
        }
        for (standby, acked) in again {
            if let Some(sender) = self.members[m].db.senders.get_mut(&standby) {
                sender.sent = acked;
            }
        }
        self.stream(m, true);
    }

    fn tick_receiver(&mut self, m: usize) {
        let now = self.now;
        if self.members[m].db.role != Role::Standby {
            return;
        }
        let Some(receiver) = &mut self.members[m].db.receiver else {
            self.connect(m);
            return;
        };
        if now - receiver.heard_at > STREAM_TIMEOUT_US {
            self.members[m].db.receiver = None;
            return;
        }
        if now - receiver.replied_at >= REPLY_US {
            self.reply(m);
        }
    }

    /// A standby tries to stream from its upstream.
    pub fn connect(&mut self, m: usize) {
        let db = &self.members[m].db;
        let Some(upstream) = db.upstream else { return };
        if db.running != Running::Up || db.role != Role::Standby || db.receiver.is_some() {
            return;
        }
        let path = self.path_to(m, upstream);
        let session = self.rng.draw();
        let now = self.now;
        let machine = &mut self.members[m];
        // What came last is flushed before the position is said.
        machine.data.flushed = machine.data.log.len();
        let data = &machine.data;
        let msg = Msg::Connect {
            session,
            timeline: data.timeline(),
            lsn: data.flushed_lsn(),
            len: data.flushed,
            hash: data.hash(),
        };
        machine.db.receiver = Some(Receiver {
            session,
            upstream,
            streaming: false,
            heard_at: now.saturating_sub(STREAM_TIMEOUT_US - REPLY_US),
            replied_at: now,
            path,
        });
        self.send(m, upstream, path, msg);
    }

    /// The walreceiver stops; what it has written it flushes before it is gone.
    pub fn stop_receiver(&mut self, m: usize) {
        let machine = &mut self.members[m];
        machine.db.receiver = None;
        machine.data.flushed = machine.data.log.len();
    }

    /// A message for the database.
    pub fn database_hears(&mut self, m: usize, from: usize, path: usize, msg: Msg) {
        if self.members[m].db.running != Running::Up {
            return;
        }
        let now = self.now;
        match msg {
            Msg::Connect { session, timeline, lsn, len, hash } => {
                self.accept(m, from, path, session, (timeline, lsn, len, hash));
            }
            Msg::Refuse { session } => {
                let db = &mut self.members[m].db;
                if let Some(receiver) = db.receiver.as_mut().filter(|r| r.session == session) {
                    // A new attempt in a second.
                    receiver.heard_at = now.saturating_sub(STREAM_TIMEOUT_US - REPLY_US);
                }
            }
            Msg::Wal { session, start, records, timeline } => {
                self.receive(m, session, start, &records, timeline);
            }
            Msg::Flushed { session, lsn } => self.standby_flushed(m, from, session, lsn),
            Msg::ConnectArchive { session } => self.accept_archiver(m, from, path, session),
            Msg::ArchiveFlushed { session, lsn } => {
                self.standby_flushed(m, self.archiver_key(), session, lsn);
            }
            _ => {}
        }
    }

    fn accept(
        &mut self,
        m: usize,
        from: usize,
        path: usize,
        session: u64,
        (timeline, lsn, len, hash): (u32, u64, usize, u64),
    ) {
        let data = &self.members[m].data;
        if !data.history_has(timeline, lsn) {
            self.send(m, from, path, Msg::Refuse { session });
            return;
        }
        if !data.contains(lsn, hash) {
            self.violated(
                "one-history",
                format!("m{from} (timeline {timeline}, {lsn}) may stream from m{m} by PostgreSQL's rules, but its WAL is another one"),
            );
            return;
        }
        let (now, sync) = (self.now, data.sync.clone());
        let sender =
            Sender { session, sent: len, flushed: None, replied_at: now, sync, path, at: from };
        self.members[m].db.senders.insert(from, sender);
        self.stream(m, true);
        self.oracle.dirty = true;
    }

    /// Sends what is flushed and was not sent; with `keep_alive`, a sign of life to all.
    pub fn stream(&mut self, m: usize, keep_alive: bool) {
        let standbys: Vec<usize> = self.members[m].db.senders.keys().copied().collect();
        let (timeline, archiver) = (self.members[m].data.timeline_known, self.archiver_key());
        for standby in standbys {
            let machine = &mut self.members[m];
            let flushed = machine.data.flushed;
            let Some(sender) = machine.db.senders.get_mut(&standby) else { continue };
            let (start, session, path) = (sender.sent, sender.session, sender.path);
            let end = flushed.min(start + CHUNK);
            if end <= start && !keep_alive {
                continue;
            }
            sender.sent = end.max(start);
            let records =
                machine.data.log[start.min(flushed)..end.max(start.min(flushed))].to_vec();
            let to = sender.at;
            let msg = match standby == archiver {
                true => Msg::ArchiveWal { session, start, records, timeline },
                false => Msg::Wal { session, start, records, timeline },
            };
            self.send(m, to, path, msg);
        }
    }

    fn receive(
        &mut self,
        m: usize,
        session: u64,
        start: usize,
        records: &[crate::database::Rec],
        timeline: u32,
    ) {
        let now = self.now;
        let machine = &mut self.members[m];
        if machine.db.role != Role::Standby {
            return;
        }
        let Some(receiver) = machine.db.receiver.as_mut().filter(|r| r.session == session) else {
            return;
        };
        receiver.heard_at = now;
        let first = !receiver.streaming;
        receiver.streaming = true;
        machine.data.timeline_known = machine.data.timeline_known.max(timeline);
        let have = machine.data.log.len();
        if start <= have {
            let new = records.get(have - start..).unwrap_or(&[]);
            machine.data.log.extend_from_slice(new);
        }
        if machine.data.log.len() > have {
            self.flush_soon(m);
        }
        if first {
            self.reply(m);
        }
    }

    fn reply(&mut self, m: usize) {
        let now = self.now;
        let lsn = self.members[m].data.flushed_lsn();
        let Some(receiver) = &mut self.members[m].db.receiver else { return };
        receiver.replied_at = now;
        let (session, upstream, path) = (receiver.session, receiver.upstream, receiver.path);
        if receiver.streaming {
            self.send(m, upstream, path, Msg::Flushed { session, lsn });
        }
    }

    fn standby_flushed(&mut self, m: usize, standby: usize, session: u64, lsn: u64) {
        let now = self.now;
        let names: Vec<_> = self.names.iter().chain([&self.archiver_name]).collect();
        let durability = self.members[m].agent.record.policy.durability;
        let db = &mut self.members[m].db;
        let Some(sender) = db.senders.get_mut(&standby).filter(|s| s.session == session) else {
            return;
        };
        sender.replied_at = now;
        sender.flushed = Some(sender.flushed.map_or(lsn, |old| old.max(lsn)));
        let sync = sender.sync.clone();
        // A walsender releases waiters only if it is in the sync set that it knows.
        if sync.members.contains(names[standby]) {
            db.released = db.released.max(db.synced(&sync, durability, &names));
            self.release(m);
        }
        self.stream(m, false);
    }

    /// Acknowledges what may be acknowledged.
    pub fn release(&mut self, m: usize) {
        let machine = &mut self.members[m];
        if !machine.db.is_primary() {
            return;
        }
        let waits = machine.db.sync.k > 0 && self.scenario.policy.durability != Durability::Async;
        let upto = if waits { machine.db.released } else { u64::MAX };
        let upto = upto.min(machine.data.flushed_lsn());
        let count = machine.db.waiting.partition_point(|w| w.lsn <= upto);
        let done: Vec<Waiting> = machine.db.waiting.drain(..count).collect();
        for commit in done {
            self.acknowledged(m, commit);
        }
    }

    /// A flush, if none is under way.
    pub fn flush_soon(&mut self, m: usize) {
        let machine = &mut self.members[m];
        if machine.db.flushing || machine.data.flushed == machine.data.log.len() {
            return;
        }
        machine.db.flushing = true;
        let (life, upto) = (machine.db.life, machine.data.log.len());
        let longest = machine.disk.flush_us;
        let delay = self.rng.range(300, longest.max(301));
        self.at(delay, m, What::Flush { life, upto });
    }

    /// WAL is on disk.
    pub fn on_flush(&mut self, m: usize, life: u64, upto: usize) {
        let machine = &mut self.members[m];
        if machine.db.life != life || machine.db.running != Running::Up {
            return;
        }
        if machine.disk.state != DiskState::Healthy {
            self.at(50 * MS, m, What::Flush { life, upto });
            return;
        }
        machine.db.flushing = false;
        machine.data.flushed = machine.data.flushed.max(upto.min(machine.data.log.len()));
        if machine.db.role == Role::Primary {
            self.release(m);
        } else {
            self.reply(m);
        }
        self.stream(m, false);
        self.flush_soon(m);
    }

    /// A process of the database reads its configuration again.
    pub fn on_reloaded(&mut self, m: usize, life: u64, sender: Option<usize>) {
        let machine = &mut self.members[m];
        if machine.db.life != life || machine.db.running != Running::Up {
            return;
        }
        let sync = machine.data.sync.clone();
        match sender {
            None => machine.db.sync = sync,
            Some(standby) => {
                if let Some(sender) = machine.db.senders.get_mut(&standby) {
                    sender.sync = sync;
                }
            }
        }
        self.oracle.dirty = true;
        self.release(m);
    }

    /// The agent samples the flush position once every process enforces the configured set.
    pub fn sample_sync(&mut self, m: usize) {
        let machine = &mut self.members[m];
        let (data, db) = (&machine.data, &mut machine.db);
        if db.is_primary()
            && db.hung_since.is_none()
            && db.sync_since.is_none()
            && db.sync == data.sync
            && db.senders.values().all(|s| s.sync == data.sync)
        {
            db.sync_since = Some(data.flushed_lsn());
        }
    }

    /// A standby becomes primary, on a timeline of its own.
    pub fn promote_database(&mut self, m: usize) {
        self.stop_receiver(m);
        let machine = &mut self.members[m];
        let own = machine.data.timeline_known + 1;
        let generation = machine.guard.armed.map_or(0, |(g, _)| g.0 as u32);
        let alone = self.scenario.bug == Some(Bug::OwnTimelines);
        let timeline = if alone { own } else { own.max(generation) };
        machine.data.append(timeline, 100, 0);
        machine.data.flushed = machine.data.log.len();
        machine.data.was_primary = true;
        machine.db.role = Role::Primary;
        machine.db.recovered = machine.data.flushed_lsn();
        machine.db.sync = machine.data.sync.clone();
        // Enforced from its first moment.
        machine.db.sync_since = Some(machine.db.recovered);
        machine.db.upstream = None;
        for sender in machine.db.senders.values_mut() {
            sender.sync = machine.data.sync.clone();
        }
        let end = machine.db.recovered;
        self.log(|| format!("m{m}: promoted to timeline {timeline} at {end}"));
        self.check_serving(m);
        self.stream(m, false);
    }

    /// The end of a clean shutdown.
    pub fn stopped_cleanly(&mut self, m: usize) {
        self.database_ends(m, false, "shut down");
        let data = &mut self.members[m].data;
        if data.was_primary && data.flushed == data.log.len() {
            data.clean_end = Some(data.flushed_lsn());
        }
    }

    /// Goes on shutting down cleanly. True: all is flushed, here and at every standby attached.
    pub fn shut_down_database(&mut self, m: usize) -> bool {
        let now = self.now;
        let machine = &mut self.members[m];
        if machine.db.role != Role::Primary {
            return true;
        }
        if !machine.db.stopping {
            machine.db.stopping = true;
            machine.db.stopping_since = now;
            // Backends are ended; whoever waited gets no answer.
            machine.db.waiting.clear();
            let timeline = machine.data.timeline();
            machine.data.append(timeline, 100, 0);
        }
        if machine.disk.state != DiskState::Healthy {
            return false;
        }
        machine.data.flushed = machine.data.log.len();
        let end = machine.data.flushed_lsn();
        let done = machine.db.senders.values().all(|s| s.flushed.is_some_and(|l| l >= end));
        self.stream(m, false);
        done
    }
}
