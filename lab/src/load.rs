//! What an application sees: writers that insert a row every few milliseconds through one address
//! and keep every acknowledgement, and an idle session that is expected to be there afterwards.
//!
//! With [`Options::transactions`] the writers are of the kind that retries serialization failures, as
//! frameworks do: on an error that leaves the session usable they roll back and try the *same* row
//! again. A commit that was answered with an error and happened all the same is then there twice.

use crate::{
    client::{CONNECT_TIMEOUT, Session, Target, one_line},
    station::{Station, Task},
};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_postgres::{SimpleQueryMessage, error::SqlState};

/// How long a statement may take. An application gives up some day too; longer than any fault.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two tries to connect, as a polite application does it.
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);
/// Tries to read the table back, each after [`READ_PAUSE`].
const READ_TRIES: usize = 40;
const READ_PAUSE: Duration = Duration::from_millis(250);
/// Error texts kept of each writer.
const ERRORS_KEPT: usize = 20;
/// Error texts shown.
const ERRORS_SHOWN: usize = 3;
const IDLE_NAME: &str = "lab-idle";

/// How to load.
#[derive(Clone, Debug)]
pub struct Options {
    /// Through which address.
    pub target: Target,
    /// The table, made if it is missing. Fresh ones count nobody else's rows.
    pub table: String,
    /// How many write at once.
    pub writers: usize,
    /// Between an acknowledgement and the next insert.
    pub period: Duration,
    /// Explicit transactions, retried in the same session.
    pub transactions: bool,
}

impl Options {
    /// Four writers, an insert every 10 ms each.
    pub fn new(target: Target, table: impl Into<String>) -> Self {
        Self {
            target,
            table: table.into(),
            writers: 4,
            period: Duration::from_millis(10),
            transactions: false,
        }
    }
}

/// What came out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Inserts acknowledged.
    pub acked: usize,
    /// Of these, rows that are not in the table.
    pub lost: usize,
    /// Some of the lost ones: writer and number.
    pub lost_rows: Vec<(usize, i64)>,
    /// Rows whose insert ended in an error or without an answer, but that are there: allowed.
    pub unacked_but_present: usize,
    /// Rows that are there twice.
    pub duplicates: usize,
    /// The longest time any writer got no acknowledgement, ms.
    pub stall_ms: u64,
    /// The same, of each writer.
    pub stall_each_ms: Vec<u64>,
    /// From the start of the load to the beginning of the longest stall, ms.
    pub stall_began_ms: u64,
    /// Inserts and connection attempts that failed, [`Report::retried`] left out.
    pub errors: usize,
    /// Transactions that were told to be tried again (SQLSTATE 40001), and were.
    pub retried: usize,
    /// Commits whose outcome the client was told is unknown (SQLSTATE 08007).
    pub unknown: usize,
    /// The first few, with ms since the start of the load.
    pub first_errors: Vec<(u64, String)>,
    /// Open sessions that ended without having been closed by us, the idle one included.
    pub sessions_cut: usize,
    /// The idle session is still itself.
    pub idle_session_survived: bool,
    /// Median time of an insert, ms.
    pub p50_ms: f64,
    /// 99th percentile, ms.
    pub p99_ms: f64,
    /// How long it ran, ms.
    pub duration_ms: u64,
}

#[derive(Debug)]
struct Ack {
    number: i64,
    sent: Instant,
    acked: Instant,
}

#[derive(Debug, Default)]
struct Log {
    acks: Vec<Ack>,
    errors: usize,
    retried: usize,
    unknown: usize,
    texts: Vec<(Instant, String)>,
    cut: usize,
}

impl Log {
    fn failed(&mut self, text: String) {
        self.errors += 1;
        if self.texts.len() < ERRORS_KEPT {
            self.texts.push((Instant::now(), text));
        }
    }
}

type Shared = Arc<Mutex<Log>>;

fn with<T>(log: &Shared, change: impl FnOnce(&mut Log) -> T) -> T {
    change(&mut log.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A running load.
#[derive(Debug)]
pub struct Load {
    began: Instant,
    stop: watch::Sender<bool>,
    logs: Vec<Shared>,
    writers: Vec<Task<()>>,
    rest: Task<Result<Report>>,
}

impl Load {
    /// Makes the table, opens the idle session and starts the writers, all from `station`.
    pub async fn start(station: &Station, options: Options) -> Result<Self> {
        let at = options.clone();
        let idle = station
            .run(async move {
                let session = at.target.connect(IDLE_NAME, CONNECT_TIMEOUT).await?;
                let create = format!("create table if not exists {} (w int, n bigint)", at.table);
                timeout(STATEMENT_TIMEOUT, session.client.batch_execute(&create)).await??;
                Ok(session)
            })
            .await
            .context("the load could not make its table")?;
        let (stop, stopped) = watch::channel(false);
        let began = Instant::now();
        let logs: Vec<Shared> = (0..options.writers).map(|_| Shared::default()).collect();
        let writers = logs
            .iter()
            .enumerate()
            .map(|(w, log)| {
                station.spawn(write(w, options.clone(), Arc::clone(log), stopped.clone()))
            })
            .collect();
        let rest = station.spawn(conclude(began, idle, options, logs.clone(), stopped));
        Ok(Self { began, stop, logs, writers, rest })
    }

    /// When it began.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// Have all writers been acknowledged an insert that they *sent* after `instant`?
    pub fn all_written_since(&self, instant: Instant) -> bool {
        self.logs
            .iter()
            .all(|log| with(log, |log| log.acks.last().is_some_and(|ack| ack.sent > instant)))
    }

    /// Acknowledgements of the writer that has fewest.
    pub fn fewest_acks(&self) -> usize {
        self.logs.iter().map(|log| with(log, |log| log.acks.len())).min().unwrap_or_default()
    }

    /// The newest error seen, for messages.
    pub fn last_error(&self) -> Option<String> {
        self.logs
            .iter()
            .filter_map(|log| with(log, |log| log.texts.last().cloned()))
            .max_by_key(|(at, _)| *at)
            .map(|(_, text)| text)
    }

    /// Stops the writers, reads the table back and counts.
    pub async fn finish(self) -> Result<Report> {
        let _ = self.stop.send(true);
        for writer in self.writers {
            writer.join().await?;
        }
        self.rest.join().await?
    }
}

async fn write(w: usize, options: Options, log: Shared, mut stop: watch::Receiver<bool>) {
    let mut number = 0;
    // The same row once more.
    let mut again = false;
    let mut session: Option<Session> = None;
    let mut told = stop.clone();
    loop {
        let turn = async {
            let open = match &session {
                Some(open) => open,
                None => match options.target.connect(&format!("lab-{w}"), CONNECT_TIMEOUT).await {
                    Ok(open) => session.insert(open),
                    Err(error) => {
                        with(&log, |log| log.failed(one_line(&error)));
                        sleep(RECONNECT_PAUSE).await;
                        return;
                    }
                },
            };
            if !again {
                number += 1;
            }
            again = false;
            let sent = Instant::now();
            let inserted = insert(open, &options, w, number).await;
            match inserted.map(|()| Ack { number, sent, acked: Instant::now() }) {
                Ok(ack) => {
                    with(&log, |log| log.acks.push(ack));
                    // Even a sleep of nothing waits for the timer's next millisecond.
                    if !options.period.is_zero() {
                        sleep(options.period).await;
                    }
                }
                Err(error)
                    if options.transactions && is(&error, &SqlState::T_R_SERIALIZATION_FAILURE) =>
                {
                    with(&log, |log| log.retried += 1);
                    again = true;
                    if let Err(error) = ask(open, "rollback").await {
                        with(&log, |log| log.failed(format!("rollback: {}", one_line(&error))));
                        with(&log, |log| log.cut += 1);
                        session = None;
                    }
                }
                Err(error) => {
                    with(&log, |log| {
                        log.failed(one_line(&error));
                        log.unknown +=
                            usize::from(is(&error, &SqlState::TRANSACTION_RESOLUTION_UNKNOWN));
                    });
                    sleep(RECONNECT_PAUSE).await;
                    // An error of the statement alone leaves the session usable, and is no cut; but
                    // this application opens a new one all the same. Asked after the pause, because
                    // the end of a connection is noticed a moment after its last error.
                    if open.client.is_closed() {
                        with(&log, |log| log.cut += 1);
                    }
                    session = None;
                }
            }
        };
        tokio::select! {
            () = turn => {}
            _ = told.wait_for(|stop| *stop) => return,
        }
        if *stop.borrow_and_update() {
            return;
        }
    }
}

async fn insert(session: &Session, options: &Options, w: usize, number: i64) -> Result<()> {
    let statement = format!("insert into {} values ({w},{number})", options.table);
    if !options.transactions {
        return ask(session, &statement).await;
    }
    ask(session, "begin").await?;
    ask(session, &statement).await?;
    ask(session, "commit").await
}

async fn ask(session: &Session, statement: &str) -> Result<()> {
    timeout(STATEMENT_TIMEOUT, session.client.simple_query(statement))
        .await
        .with_context(|| format!("no answer to: {statement}"))??;
    Ok(())
}

fn is(error: &anyhow::Error, code: &SqlState) -> bool {
    error.downcast_ref::<tokio_postgres::Error>().and_then(|error| error.code()) == Some(code)
}

/// Waits for the end of the writing, then compares what was acknowledged with what is there.
async fn conclude(
    began: Instant,
    idle: Session,
    options: Options,
    logs: Vec<Shared>,
    mut stop: watch::Receiver<bool>,
) -> Result<Report> {
    if stop.wait_for(|stop| *stop).await.is_err() {
        bail!("the load was dropped");
    }
    let ended = Instant::now();
    let idle_session_survived = is_itself(&idle).await;
    let rows = read_back(&options).await?;
    Ok(count(began, ended, idle_session_survived, &logs, &rows))
}

async fn is_itself(idle: &Session) -> bool {
    let question = idle.client.query_one("select current_setting('application_name')", &[]);
    match timeout(Duration::from_secs(2), question).await {
        Ok(Ok(row)) => row.try_get::<_, String>(0).is_ok_and(|name| name == IDLE_NAME),
        _ => false,
    }
}

async fn read_back(options: &Options) -> Result<Vec<(usize, i64)>> {
    let mut last = None;
    for _ in 0..READ_TRIES {
        match read_rows(options).await {
            Ok(rows) => return Ok(rows),
            Err(error) => last = Some(error),
        }
        sleep(READ_PAUSE).await;
    }
    let error = last.unwrap_or_else(|| anyhow::anyhow!("never tried"));
    Err(error.context("the rows could not be read back after the load"))
}

async fn read_rows(options: &Options) -> Result<Vec<(usize, i64)>> {
    let session = options.target.connect("lab-check", CONNECT_TIMEOUT).await?;
    let select = format!("select w, n from {}", options.table);
    let rows = timeout(STATEMENT_TIMEOUT, session.client.simple_query(&select)).await??;
    rows.iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        })
        .map(|row| {
            let w = row.get(0).context("no w")?.parse()?;
            Ok((w, row.get(1).context("no n")?.parse()?))
        })
        .collect()
}

fn count(
    began: Instant,
    ended: Instant,
    idle_session_survived: bool,
    logs: &[Shared],
    rows: &[(usize, i64)],
) -> Report {
    let present: HashSet<(usize, i64)> = rows.iter().copied().collect();
    let mut acked = HashSet::new();
    let mut latencies = Vec::new();
    let mut stalls = Vec::new();
    let (mut errors, mut cut) = (0, usize::from(!idle_session_survived));
    let (mut retried, mut unknown) = (0, 0);
    let mut texts = Vec::new();
    for (w, log) in logs.iter().enumerate() {
        with(log, |log| {
            acked.extend(log.acks.iter().map(|ack| (w, ack.number)));
            latencies.extend(log.acks.iter().map(|ack| ack.acked - ack.sent));
            stalls.push(longest_gap(log.acks.iter().map(|ack| ack.acked), began, ended));
            errors += log.errors;
            retried += log.retried;
            unknown += log.unknown;
            cut += log.cut;
            texts.append(&mut log.texts);
        });
    }
    latencies.sort_unstable();
    texts.sort();
    let percentile = |p: f64| {
        let at = (latencies.len() as f64 * p) as usize;
        latencies.get(at).map_or(0.0, |l| (l.as_secs_f64() * 1e5).round() / 100.0)
    };
    let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let (stall, at) = stalls.iter().copied().max().unwrap_or((Duration::ZERO, began));
    let mut lost_rows: Vec<_> = acked.difference(&present).copied().collect();
    lost_rows.sort_unstable();
    let lost = lost_rows.len();
    lost_rows.truncate(20);
    Report {
        acked: acked.len(),
        lost,
        lost_rows,
        unacked_but_present: present.difference(&acked).count(),
        duplicates: rows.len() - present.len(),
        stall_ms: ms(stall),
        stall_each_ms: stalls.iter().map(|s| ms(s.0)).collect(),
        stall_began_ms: ms(at - began),
        errors,
        retried,
        unknown,
        first_errors: texts
            .into_iter()
            .take(ERRORS_SHOWN)
            .map(|(when, text)| (ms(when - began), text))
            .collect(),
        sessions_cut: cut,
        idle_session_survived,
        p50_ms: percentile(0.5),
        p99_ms: percentile(0.99),
        duration_ms: ms(ended - began),
    }
}

/// The longest time between two neighbours, and when it began. The ends of the load count as
/// neighbours too: a writer that never came back stalled until the end.
fn longest_gap(
    acks: impl Iterator<Item = Instant>,
    began: Instant,
    ended: Instant,
) -> (Duration, Instant) {
    let mut last = began;
    let mut longest = (Duration::ZERO, began);
    for ack in acks.chain([ended]) {
        longest = longest.max((ack.saturating_duration_since(last), last));
        last = ack;
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_that_never_comes_back_stalled_until_the_end() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let (gap, since) = longest_gap([at(10), at(200), at(210)].into_iter(), began, at(1000));
        assert_eq!((gap, since), (Duration::from_millis(790), at(210)));
    }

    #[test]
    fn what_is_missing_is_lost_and_what_is_there_without_an_answer_is_not() {
        let began = Instant::now();
        let log = Shared::default();
        with(&log, |log| {
            log.acks = (1..=3).map(|number| Ack { number, sent: began, acked: began }).collect();
        });
        let report = count(began, began, true, &[log], &[(0, 1), (0, 3), (0, 4), (0, 4)]);
        assert_eq!((report.acked, report.lost, report.lost_rows), (3, 1, vec![(0, 2)]));
        assert_eq!((report.unacked_but_present, report.duplicates), (1, 1));
    }
}
