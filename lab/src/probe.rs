//! Never two members that take writes: asked directly at each member's own database port, from
//! inside its own host, all the while.
//!
//! What proves that a member takes writes is a commit it *acknowledged*. Each was sent and
//! acknowledged at known times of one clock, so between the first acknowledgement and the last
//! sending a member took writes for certain. Two such spans of different members that overlap are a
//! violation; there are no false alarms, however slow the machine is. Spans are kept for each
//! timeline, because a member may rightly be primary again later.

use crate::{
    client::{Session, Target},
    station::{Station, Task},
};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_postgres::{SimpleQueryMessage, types::PgLsn};

/// Between two probes of a member.
const PERIOD: Duration = Duration::from_millis(20);
/// A member that takes longer to let us in is not taking writes now.
const CONNECT_DEADLINE: Duration = Duration::from_millis(500);
/// A write that takes longer is not waited for; one acknowledged later goes unnoticed.
const WRITE_DEADLINE: Duration = Duration::from_millis(1000);
/// The table probes write to.
pub const TABLE: &str = "lab_probe";

/// What counts as taking a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acceptance {
    /// On its own disk alone: the strictest.
    Local,
    /// As clients do it, with the standbys it waits for. With fast promotion an old primary may
    /// still take writes that can never be acknowledged so.
    Durable,
}

/// A time during which a member took writes, ms since the start of the probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Span {
    /// Which member.
    pub member: String,
    /// On which timeline.
    pub timeline: String,
    /// Its first write: sent, acknowledged.
    pub first_ms: (f64, f64),
    /// Its last write: sent, acknowledged.
    pub last_ms: (f64, f64),
    /// Writes acknowledged.
    pub writes: usize,
}

impl Span {
    /// From when to when it took writes for certain. With a single write the end is before the
    /// beginning: nobody knows when exactly it was taken.
    fn certain(&self) -> (f64, f64) {
        (self.first_ms.1, self.last_ms.0)
    }

    /// Was one of our writes taken while `other` took writes for certain?
    fn wrote_during(&self, other: &Span) -> bool {
        let (from, to) = other.certain();
        [self.first_ms, self.last_ms].iter().any(|(sent, acked)| from <= *sent && *acked <= to)
    }

    fn overlaps(&self, other: &Span) -> bool {
        let ((from, to), (other_from, other_to)) = (self.certain(), other.certain());
        let both = from <= to && other_from <= other_to && from.max(other_from) <= to.min(other_to);
        both || self.wrote_during(other) || other.wrote_during(self)
    }
}

/// Probes of all members.
#[derive(Debug)]
pub struct Probe {
    stop: watch::Sender<bool>,
    spans: Arc<Mutex<Vec<Span>>>,
    tasks: Vec<Task<()>>,
}

impl Probe {
    /// Starts probing each `(member, its station, its database)`. The table must be there.
    pub fn start<'a>(
        members: impl IntoIterator<Item = (&'a str, &'a Station, Target)>,
        acceptance: Acceptance,
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let spans: Arc<Mutex<Vec<Span>>> = Arc::default();
        let began = Instant::now();
        let tasks = members
            .into_iter()
            .map(|(member, station, target)| {
                let one = One {
                    member: member.to_owned(),
                    target,
                    acceptance,
                    began,
                    spans: Arc::clone(&spans),
                };
                station.spawn(one.run(stopped.clone()))
            })
            .collect();
        Self { stop, spans, tasks }
    }

    /// Ends it. All spans in which members took writes, in order of their beginning.
    pub async fn finish(self) -> Result<Vec<Span>> {
        let _ = self.stop.send(true);
        for task in self.tasks {
            task.join().await?;
        }
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone();
        spans.sort_by(|a, b| a.first_ms.0.total_cmp(&b.first_ms.0));
        Ok(spans)
    }
}

/// Pairs of members that took writes at the same time, in words.
pub fn violations(spans: &[Span]) -> Vec<String> {
    let mut found = Vec::new();
    for (index, one) in spans.iter().enumerate() {
        for other in &spans[index + 1..] {
            if one.member != other.member && one.overlaps(other) {
                let words = |s: &Span| {
                    format!(
                        "{} on timeline {} from {:.1} to {:.1} ms",
                        s.member, s.timeline, s.first_ms.0, s.last_ms.1
                    )
                };
                found.push(format!("both took writes: {}; {}", words(one), words(other)));
            }
        }
    }
    found
}

struct One {
    member: String,
    target: Target,
    acceptance: Acceptance,
    began: Instant,
    spans: Arc<Mutex<Vec<Span>>>,
}

impl One {
    async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut session = None;
        loop {
            let turn = async {
                if self.turn(&mut session).await.is_err() {
                    session = None;
                }
                sleep(PERIOD).await;
            };
            tokio::select! {
                () = turn => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }

    async fn turn(&self, session: &mut Option<Session>) -> Result<()> {
        let open = match session {
            Some(open) => open,
            None => {
                let open = self.target.connect("lab-probe", CONNECT_DEADLINE).await?;
                if self.acceptance == Acceptance::Local {
                    ask(&open, "set synchronous_commit = local").await?;
                }
                session.insert(open)
            }
        };
        // Standbys are asked first, so that their logs do not fill with refusals.
        if ask(open, "select pg_is_in_recovery()").await?.as_deref() != Some("f") {
            return Ok(());
        }
        let sent = Instant::now();
        let timeline = ask(
            open,
            &format!(
                "insert into {TABLE} values (default) returning \
                 substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"
            ),
        )
        .await?
        .context("the insert returned nothing")?;
        self.took(&timeline, sent, Instant::now());
        Ok(())
    }

    fn took(&self, timeline: &str, sent: Instant, acked: Instant) {
        let ms = |at: Instant| at.saturating_duration_since(self.began).as_secs_f64() * 1e3;
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let write = (ms(sent), ms(acked));
        let known = spans.iter_mut().find(|s| s.member == self.member && s.timeline == timeline);
        match known {
            Some(span) => {
                span.last_ms = write;
                span.writes += 1;
            }
            None => spans.push(Span {
                member: self.member.clone(),
                timeline: timeline.to_owned(),
                first_ms: write,
                last_ms: write,
                writes: 1,
            }),
        }
    }
}

async fn ask(session: &Session, statement: &str) -> Result<Option<String>> {
    let answer = timeout(WRITE_DEADLINE, session.client.simple_query(statement)).await??;
    Ok(answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }))
}

/// A member's position in its log: written if primary, replayed if standby.
pub async fn position(session: &Session) -> Result<PgLsn> {
    let statement = "select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() \
                     else pg_current_wal_lsn() end";
    let text = ask(session, statement).await?.context("no position")?;
    text.parse().map_err(|_| anyhow::anyhow!("`{text}` is no position"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(member: &str, first_ms: (f64, f64), last_ms: (f64, f64)) -> Span {
        let timeline = "1".into();
        Span { member: member.into(), timeline, first_ms, last_ms, writes: 2 }
    }

    #[test]
    fn only_overlaps_of_different_members_count() {
        let one = span("h1", (0.0, 1.0), (9.0, 10.0));
        let next = span("h2", (10.0, 11.0), (19.0, 20.0));
        let back = span("h1", (20.0, 21.0), (29.0, 30.0));
        assert!(violations(&[one.clone(), next.clone(), back.clone()]).is_empty());
        let both = span("h3", (5.0, 8.0), (19.0, 20.0));
        assert_eq!(violations(&[one.clone(), both.clone(), back]).len(), 1);
        let same = Span { member: "h1".into(), ..both };
        assert!(violations(&[one, same]).is_empty());
    }

    #[test]
    fn a_single_write_counts_only_if_all_its_time_was_somebody_elses() {
        let long = span("h1", (0.0, 1.0), (29.0, 30.0));
        let inside = span("h2", (20.0, 22.0), (20.0, 22.0));
        assert_eq!(violations(&[long.clone(), inside]).len(), 1);
        let straddling = span("h2", (28.0, 31.0), (28.0, 31.0));
        assert!(violations(&[long, straddling]).is_empty());
    }
}
