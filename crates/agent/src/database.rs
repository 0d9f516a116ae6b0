//! The database watcher: asks the running database what it is and whether it answers, for as long
//! as the agent lives.

use crate::{clock, executor::Executor, looper::Event, state::Report};
use sempre_guard::GuardStatus;
use sempre_model::observation::Role;
use sempre_postgres::Session;
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::{mpsc, watch},
    time::timeout,
};

/// Between two observations while all is quiet.
const QUIET: Duration = Duration::from_millis(200);
/// Between two observations while something is about to change.
const LIVELY: Duration = Duration::from_millis(25);
/// Between two looks at whether a new connection is still taken.
const KNOCK_EVERY_MS: u64 = 1_000;
/// PostgreSQL's request for TLS, which its postmaster answers with one byte and a new process:
/// a cheap proof that it still takes connections.
const KNOCK: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Watches one database.
pub struct Watcher {
    executor: Arc<Executor>,
    guard: watch::Receiver<GuardStatus>,
    hang_ms: watch::Receiver<u64>,
    events: mpsc::Sender<Event>,
    session: Option<Session>,
    answered_at: u64,
    answered_pid: Option<i32>,
    knocked_at: u64,
    report: Report,
}

impl Watcher {
    pub fn new(
        executor: Arc<Executor>,
        guard: watch::Receiver<GuardStatus>,
        hang_ms: watch::Receiver<u64>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        Self {
            executor,
            guard,
            hang_ms,
            events,
            session: None,
            answered_at: 0,
            answered_pid: None,
            knocked_at: 0,
            report: Report::default(),
        }
    }

    /// Watches until the loop is gone.
    pub async fn run(mut self) {
        loop {
            let pid = self.guard.borrow_and_update().postmaster.as_ref().map(|p| p.pid);
            match pid {
                None => {
                    self.session = None;
                    self.answered_pid = None;
                    if self.guard.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
                Some(pid) => self.look(pid).await,
            }
            let report = Box::new(self.report.clone());
            if self.events.send(Event::Report(report)).await.is_err() {
                return;
            }
            let pause = if self.lively() { LIVELY } else { QUIET };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = self.guard.changed() => if changed.is_err() { return },
            }
        }
    }

    fn lively(&self) -> bool {
        let record = self.executor.record();
        !self.report.answers
            || record.phase != sempre_model::Phase::Serving
            || (self.report.database.role == Role::Standby
                && self.report.database.streaming_from.is_none())
    }

    async fn look(&mut self, pid: i32) {
        let now = clock::now_ms();
        let limit = *self.hang_ms.borrow();
        let within = Duration::from_millis(limit.max(100));
        let outcome = timeout(within, self.ask()).await;
        match outcome {
            Ok(Ok(database)) => {
                self.answered_at = clock::now_ms();
                self.answered_pid = Some(pid);
                self.report = Report { database, answers: true, hung: false };
            }
            Ok(Err(error)) => {
                tracing::debug!(error = format!("{error:#}"), "the database does not answer");
                self.session = None;
                self.unanswered(pid, now, limit);
            }
            Err(_) => {
                self.session = None;
                self.unanswered(pid, now, limit);
            }
        }
    }

    /// A database that never answered is still starting; one that did is hung after a while.
    fn unanswered(&mut self, pid: i32, now: u64, limit: u64) {
        let did = self.answered_pid == Some(pid);
        let silent = clock::now_ms().saturating_sub(self.answered_at);
        self.report.hung = did && silent >= limit;
        self.report.answers =
            did && !self.report.hung && now.saturating_sub(self.answered_at) < limit;
    }

    async fn ask(&mut self) -> anyhow::Result<sempre_model::observation::Database> {
        if self.session.is_none() {
            self.session = Some(self.executor.session().await?);
        }
        let now = clock::now_ms();
        if now.saturating_sub(self.knocked_at) >= KNOCK_EVERY_MS {
            self.knocked_at = now;
            knock(self.executor.socket()).await?;
        }
        match &mut self.session {
            Some(session) => Ok(session.observe().await?),
            None => anyhow::bail!("no session"),
        }
    }
}

async fn knock(socket: PathBuf) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(&KNOCK).await?;
    let mut answer = [0];
    stream.read_exact(&mut answer).await?;
    Ok(())
}
