//! What the server says of itself, in one round trip.

use crate::{Error, Result, Session, parse_sync, session::get};
use sempre_model::{
    ids::{Lsn, MemberId, Timeline},
    observation::{Database, Downstream, ProcessState, Role},
    record::SyncSet,
};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// A new `synchronous_standby_names` counts as in force after this time. Our own backend may have
/// read it before the last walsender did; each of them is woken by the same signal and reads it
/// at its next turn, within milliseconds.
const SYNC_SETTLES: Duration = Duration::from_millis(100);

/// Everything, as one JSON text. Functions that only work in (or out of) recovery stand in a
/// CASE. Replication connections of copies being made are left out: their names have a colon.
pub(crate) const OBSERVE: &str = "\
SELECT json_build_object(
 'recovery', r.recovery,
 'timeline', CASE WHEN r.recovery THEN NULL ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8) END,
 'flush', CASE WHEN r.recovery THEN NULL ELSE pg_current_wal_flush_lsn() END,
 'received', CASE WHEN r.recovery THEN pg_last_wal_receive_lsn() END,
 'replayed', CASE WHEN r.recovery THEN pg_last_wal_replay_lsn() END,
 'redo', (SELECT redo_lsn FROM pg_control_checkpoint()),
 'sync', current_setting('synchronous_standby_names'),
 'conninfo', current_setting('primary_conninfo'),
 'receiver', CASE WHEN r.recovery THEN (SELECT json_build_object(
   'status', w.status, 'timeline', w.received_tli, 'host', w.sender_host, 'conninfo', w.conninfo,
   'age', extract(epoch FROM clock_timestamp() - w.last_msg_receipt_time) * 1000)
   FROM pg_stat_wal_receiver w) END,
 'downstreams', (SELECT json_agg(json_build_object(
   'name', s.application_name, 'state', s.state, 'flush', s.flush_lsn, 'replay', s.replay_lsn,
   'sync_state', s.sync_state, 'replied', s.reply_time, 'addr', host(s.client_addr)))
   FROM pg_stat_replication s WHERE s.usename = 'sempre_replication'
   OR s.usename = 'sempre' AND s.application_name LIKE 'archive-%')
)::text FROM (SELECT pg_is_in_recovery() AS recovery OFFSET 0) r";

#[derive(Deserialize)]
struct Answer {
    recovery: bool,
    timeline: Option<String>,
    flush: Option<String>,
    received: Option<String>,
    replayed: Option<String>,
    redo: Option<String>,
    sync: String,
    receiver: Option<Receiver>,
    downstreams: Option<Vec<Sender>>,
}

#[derive(Deserialize)]
struct Receiver {
    status: Option<String>,
    timeline: Option<u32>,
    host: Option<String>,
    conninfo: Option<String>,
    age: Option<f64>,
}

#[derive(Deserialize)]
struct Sender {
    name: Option<String>,
    state: Option<String>,
    flush: Option<String>,
    replay: Option<String>,
    sync_state: Option<String>,
    replied: Option<String>,
    addr: Option<String>,
}

/// What a session remembers between two observations.
#[derive(Default)]
pub(crate) struct Memory {
    /// The last answer of each standby, by its own clock, and when it was first seen here.
    replies: BTreeMap<MemberId, (Option<String>, Instant)>,
    /// The synchronous set in force.
    sync: Option<SyncSet>,
    /// `synchronous_standby_names` as last seen, and since when.
    names: Option<(String, Instant)>,
    /// A position and the timeline it was found to be on.
    timeline: Option<(Lsn, Timeline)>,
}

impl Memory {
    /// The set in force: the one before, until the new names have settled.
    fn sync(&mut self, names: String, now: Instant) -> Option<SyncSet> {
        match &self.names {
            Some((known, since)) if *known == names => {
                if now.duration_since(*since) >= SYNC_SETTLES {
                    self.sync = parse_sync(&names);
                }
            }
            _ => self.names = Some((names, now)),
        }
        self.sync.clone()
    }

    /// Since the last answer, ms. The time in the answer is the standby's own clock, so only its
    /// change counts.
    fn reply_age_ms(&mut self, member: &MemberId, replied: Option<String>, now: Instant) -> u64 {
        let entry = self.replies.entry(member.clone()).or_insert_with(|| (replied.clone(), now));
        if entry.0 != replied {
            *entry = (replied, now);
        }
        u64::try_from(now.duration_since(entry.1).as_millis()).unwrap_or(u64::MAX)
    }
}

impl Session {
    /// What the database says of itself, in one round trip. Left to the caller: `generation`,
    /// `admitted`, `recovered_lsn`, `sync_since_lsn`, `pending_restart`
    /// ([`Session::pending_restart`]) and `pid`.
    ///
    /// A standby's `lsn` is what it has received and flushed, or replayed, if that is further:
    /// after a restart in recovery it grows as WAL from the disk is replayed. A primary's `sync`
    /// is what all of the server enforces for sure: a change shows 100 ms after it was loaded.
    pub async fn observe(&self) -> Result<Database> {
        let doing = "be observed";
        let row = self.client.query_one(&self.observe, &[]).await;
        let row = row.map_err(|e| Error::query(doing, &e))?;
        let text: String = get(&row, 0, doing)?;
        let answer: Answer = serde_json::from_str(&text).map_err(|e| Error::Format {
            what: "what the server says of itself".into(),
            why: e.to_string(),
        })?;
        let now = Instant::now();
        let mut memory = self.memory();
        let mut database = Database {
            process: ProcessState::Running,
            role: if answer.recovery { Role::Standby } else { Role::Primary },
            has_data: true,
            system_identifier: Some(self.system_identifier),
            version_num: Some(self.version_num),
            ..Database::default()
        };
        if answer.recovery {
            database.replay_lsn = position(answer.replayed.as_deref())?;
            database.lsn = position(answer.received.as_deref())?.max(database.replay_lsn);
            let receiver = answer.receiver.as_ref();
            if let Some(receiver) = receiver {
                database.sender_host = receiver.host.clone();
                database.receiver_age_ms = receiver.age.map(|age| age.max(0.0) as u64);
                if receiver.status.as_deref() == Some("streaming") {
                    database.streaming_from = receiver.conninfo.as_deref().and_then(upstream_of);
                }
            }
            let received = receiver.and_then(|r| r.timeline).filter(|t| *t > 0).map(Timeline);
            database.timeline = match received {
                Some(timeline) => timeline,
                None => self.timeline_on_disk(&mut memory, database.lsn),
            };
            memory.names = None;
            memory.sync = None;
        } else {
            database.lsn = position(answer.flush.as_deref())?;
            database.replay_lsn = database.lsn;
            let hex = answer.timeline.as_deref().unwrap_or_default();
            database.timeline = Timeline(u32::from_str_radix(hex, 16).unwrap_or(0));
            database.sync = memory.sync(answer.sync, now);
        }
        database.redo_bytes = database.lsn.bytes_since(position(answer.redo.as_deref())?);
        for sender in answer.downstreams.unwrap_or_default() {
            let Some(Ok(member)) = sender.name.map(MemberId::new) else { continue };
            let downstream = Downstream {
                state: sender.state.unwrap_or_default(),
                flush_lsn: position(sender.flush.as_deref())?,
                replay_lsn: position(sender.replay.as_deref())?,
                sync_state: sender.sync_state.unwrap_or_default(),
                reply_age_ms: memory.reply_age_ms(&member, sender.replied, now),
                client_addr: sender.addr,
            };
            // A connection that is dead but not ended yet may stand beside its successor.
            let entry = database.downstreams.entry(member).or_insert_with(|| downstream.clone());
            if downstream.flush_lsn > entry.flush_lsn
                || (entry.state != "streaming" && downstream.state == "streaming")
            {
                *entry = downstream;
            }
        }
        memory.replies.retain(|member, _| database.downstreams.contains_key(member));
        Ok(database)
    }

    /// The timeline a standby without a receiver is on; looked up once for each position.
    fn timeline_on_disk(&self, memory: &mut Memory, lsn: Lsn) -> Timeline {
        if let Some((_, timeline)) = memory.timeline.filter(|(known, _)| *known == lsn) {
            return timeline;
        }
        let found = self.instance.as_ref().and_then(|i| i.timeline_at(lsn).ok());
        match found {
            Some(timeline) => {
                memory.timeline = Some((lsn, timeline));
                timeline
            }
            None => Timeline(0),
        }
    }
}

/// From whom a receiver streams: our connection string says so.
fn upstream_of(conninfo: &str) -> Option<MemberId> {
    let (_, rest) = conninfo.split_once("sempre.upstream=")?;
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    let name: String = rest.chars().take_while(|c| is_name(*c)).collect();
    MemberId::new(name).ok()
}

fn position(text: Option<&str>) -> Result<Lsn> {
    text.map_or(Ok(Lsn(0)), |t| {
        t.parse().map_err(|e| Error::Format { what: "a WAL position".into(), why: format!("{e}") })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upstream_is_found_in_the_connection_string() {
        let text = "user=x options=-c sempre.upstream=db-2 target_session_attrs=any";
        assert_eq!(upstream_of(text), Some(MemberId::new("db-2").unwrap()));
        assert_eq!(upstream_of("user=x"), None);
    }

    #[test]
    fn a_new_sync_set_counts_after_it_has_settled() {
        let mut memory = Memory::default();
        let start = Instant::now();
        let later = |ms| start + Duration::from_millis(ms);
        let one = r#"ANY 1 ("b")"#.to_owned();
        assert_eq!(memory.sync(one.clone(), later(0)), None);
        assert_eq!(memory.sync(one.clone(), later(99)), None);
        assert_eq!(memory.sync(one.clone(), later(100)), parse_sync(&one));
        assert_eq!(memory.sync(String::new(), later(200)), parse_sync(&one));
        assert_eq!(memory.sync(String::new(), later(300)), parse_sync(""));
    }

    #[test]
    fn only_a_new_answer_makes_a_standby_young() {
        let mut memory = Memory::default();
        let (start, b) = (Instant::now(), MemberId::new("b").unwrap());
        let later = |ms| start + Duration::from_millis(ms);
        assert_eq!(memory.reply_age_ms(&b, Some("1".into()), later(0)), 0);
        assert_eq!(memory.reply_age_ms(&b, Some("1".into()), later(400)), 400);
        assert_eq!(memory.reply_age_ms(&b, Some("2".into()), later(500)), 0);
    }
}
