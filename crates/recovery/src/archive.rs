//! Keeping a server's WAL in a repository: streamed as to a standby, durable before the server hears of it.

use crate::{Error, Result, choose::Coverage, clock::unix_ms};
use sempre_backup::{Repository, WalWriter};
use sempre_model::{Lsn, Timeline, backup::ArchiveView};
use sempre_postgres::{History, Instance, Replication, Streamed, Upstream};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// The server hears of us at least this often.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// A server that sends nothing for this long, although it hears of us, is gone.
const SILENCE: Duration = Duration::from_secs(15);
/// So much is taken before it is flushed, if more is there already: commits wait for the flush.
const BATCH_BYTES: u64 = 4 << 20;
/// PostgreSQL's error when WAL that was asked for is not kept any more.
const WAL_REMOVED: &str = "58P01";

/// Whom the WAL comes from.
#[derive(Clone, Serialize, Deserialize)]
pub enum Feed {
    /// The server of this instance, over its private socket, with the password of role `sempre`.
    Local(String),
    /// Another member's.
    Remote(Upstream),
}

/// Keeps WAL.
pub struct Archive<'a> {
    /// Whose programs and certificates are used.
    pub instance: &'a Instance,
    /// Whom it comes from.
    pub feed: Feed,
    /// What the connection is called: `application_name`.
    pub name: String,
    /// The slot that keeps what was not archived yet; none: nobody keeps it.
    pub slot: Option<String>,
    /// Where to.
    pub repository: Repository,
    /// The generation whose WAL it is, if commits may wait for this: then nothing is said to be durable
    /// before it is known that no newer generation has fenced the repository.
    pub generation: Option<u64>,
}

impl Archive<'_> {
    /// Keeps on until something fails; tells `told` how far it is, after each flush.
    pub async fn run(&self, mut told: impl FnMut(ArchiveView)) -> Result<std::convert::Infallible> {
        let mut link = match &self.feed {
            Feed::Local(password) => self.instance.replication(password, &self.name).await?,
            Feed::Remote(upstream) => {
                self.instance.remote_replication(upstream, &self.name).await?
            }
        };
        let server = link.identify().await?;
        self.repository.expect_cluster(self.instance.me.as_str(), server.system_identifier)?;
        let segment_bytes = link.wal_segment_bytes().await?;
        if let Some(slot) = &self.slot {
            link.ensure_slot(slot).await?;
        }
        let history = self.keep_histories(&mut link, server.timeline).await?;
        let coverage = Coverage::read(&self.repository, segment_bytes).await?;
        let mut gap = self.gap_before(&coverage).await?;
        let (mut timeline, mut at) = match coverage.end_along(&history) {
            Some((timeline, end)) => {
                if timeline == server.timeline && end > server.flushed {
                    let (archived, server) = (end, server.flushed);
                    return Err(Error::ServerBehind { timeline, archived, server });
                }
                (timeline, end)
            }
            // As far back as there is: a base backup may begin at the last checkpoint.
            None => {
                let kept = match &self.slot {
                    Some(slot) => link.slot_start(slot).await?,
                    None => None,
                };
                (server.timeline, kept.unwrap_or(server.flushed))
            }
        };
        // What is there already may have been stored by a writer that was fenced.
        self.check_fence().await?;
        let (mut server_end, mut up_to_date) = (server.flushed, Instant::now());
        loop {
            let start = Lsn(at.0 - at.0 % segment_bytes);
            let started = match link.start(self.slot.as_deref(), start, timeline).await {
                Err(sempre_postgres::Error::Query { code: Some(code), .. })
                    if code == WAL_REMOVED && gap.is_none() =>
                {
                    // What is gone is gone. From here on it is kept again; recovery over the gap
                    // is impossible, and said so wherever the window is shown.
                    let now = Lsn(server.flushed.0 - server.flushed.0 % segment_bytes);
                    tracing::error!("WAL from {start} to {now} was removed before it was archived");
                    gap = Some((start, now));
                    (timeline, at) = (server.timeline, now);
                    continue;
                }
                started => started?,
            };
            let (next, switched) = match started {
                Some(ended) => ended,
                None => {
                    let mut writer =
                        WalWriter::new(self.repository.clone(), timeline, start, segment_bytes)?;
                    let mut told = |writer: &WalWriter, server: Lsn| {
                        let flushed = writer.flushed();
                        if flushed >= server {
                            up_to_date = Instant::now();
                        }
                        let behind_ms = up_to_date.elapsed().as_millis();
                        let behind_ms = match flushed >= server {
                            true => 0,
                            false => u64::try_from(behind_ms).unwrap_or(u64::MAX),
                        };
                        let server = server.max(flushed);
                        told(ArchiveView { timeline, flushed, server, gap, behind_ms });
                    };
                    // What an earlier connection has reported stays true meanwhile.
                    self.stream(&mut link, &mut writer, at, &mut server_end, &mut told).await?
                }
            };
            self.keep_histories(&mut link, next).await?;
            (timeline, at) = (next, switched);
        }
    }

    /// Streams to the end of the timeline.
    async fn stream(
        &self,
        link: &mut Replication,
        writer: &mut WalWriter,
        known: Lsn,
        server_end: &mut Lsn,
        told: &mut impl FnMut(&WalWriter, Lsn),
    ) -> Result<(Timeline, Lsn)> {
        let mut ticks = interval(REPORT_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        // What may be said to be durable: what it was looked for a fence after.
        let mut safe = known;
        loop {
            let streamed = tokio::select! {
                streamed = link.next() => streamed?,
                _ = ticks.tick() => {
                    if heard.elapsed() > SILENCE {
                        return Err(sempre_postgres::Error::TimedOut {
                            what: "the server's WAL".to_owned(),
                            after: SILENCE,
                        }.into());
                    }
                    link.report(safe, unix_ms(), true).await?;
                    told(writer, *server_end);
                    continue;
                }
            };
            heard = Instant::now();
            match streamed {
                Streamed::Wal { start, bytes } => {
                    writer.write(start, &bytes).await?;
                    *server_end = (*server_end).max(writer.end());
                    let waiting = writer.end().bytes_since(writer.flushed());
                    if link.has_more() && waiting < BATCH_BYTES {
                        continue;
                    }
                    writer.flush().await?;
                    self.check_fence().await?;
                    safe = safe.max(writer.flushed());
                    link.report(safe, unix_ms(), false).await?;
                    told(writer, *server_end);
                }
                Streamed::Alive { end, reply } => {
                    *server_end = (*server_end).max(end);
                    if reply {
                        link.report(safe, unix_ms(), false).await?;
                    }
                }
                Streamed::Ended => {
                    writer.flush().await?;
                    self.check_fence().await?;
                    return Ok(link.ended().await?);
                }
            }
        }
    }

    /// Whether the WAL behind the newest base backup has a gap, and where.
    async fn gap_before(&self, coverage: &Coverage) -> Result<Option<(Lsn, Lsn)>> {
        let Some(newest) = self.repository.backups().await?.pop() else { return Ok(None) };
        Ok(coverage.gap_behind(&newest))
    }

    /// After WAL is durable, before anybody is told.
    async fn check_fence(&self) -> Result<()> {
        match self.generation {
            Some(generation) => Ok(self.repository.expect_unfenced(generation).await?),
            None => Ok(()),
        }
    }

    /// Keeps the history of a timeline and of those it came from.
    async fn keep_histories(&self, link: &mut Replication, timeline: Timeline) -> Result<History> {
        if timeline.0 <= 1 {
            return Ok(History::first());
        }
        let text = link.history(timeline).await?;
        self.repository.put_history(timeline, &text).await?;
        let history = History::parse(timeline, &text)?;
        let have = self.repository.list_wal().await?.histories;
        for (ancestor, _) in &history.ancestors {
            if ancestor.0 > 1 && !have.contains(ancestor) {
                let text = link.history(*ancestor).await?;
                self.repository.put_history(*ancestor, &text).await?;
            }
        }
        Ok(history)
    }
}
