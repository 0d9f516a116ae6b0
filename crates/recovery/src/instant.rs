//! A server that runs on its backup while the files are brought in behind it.

use crate::{Error, Restore, Result, prove::Work, replay::Replay, spool::Spool};
use sempre_backup::Backup;
use sempre_instant::{Instant, Options, Progress, STATE_DIR, Serving};
use std::{
    fs::{self, DirBuilder, File},
    os::unix::fs::DirBuilderExt,
    path::Path,
    time::{Duration, Instant as Moment},
};

/// Says, among the state of what is served, that recovery has ended.
const RECOVERED: &str = "recovered";
/// A database that is made and dropped, so that every process of the server closes its files.
const CLOSER: &str = "sempre_closes_files";

/// Where the server can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// `listen_addresses`.
    pub addresses: String,
    /// Its port.
    pub port: u16,
}

/// A server that runs on its backup. Dropped before [`InstantServer::finish`], it is ended.
pub struct InstantServer {
    serving: Serving,
    server: Replay,
    work: Work,
    /// What it runs on.
    pub backup: Backup,
    /// From the beginning to a server that takes clients.
    pub answered: Duration,
}

impl Restore<'_> {
    /// Starts a server on the backup nearest before the goal, with the WAL up to there, whatever its
    /// size. It takes clients when this returns. In the end call [`InstantServer::finish`].
    pub async fn run_instantly(&self, listen: &Listen) -> Result<InstantServer> {
        let began = Moment::now();
        let backup = self.chosen().await?;
        let options = Options {
            threads: self.options.threads,
            tablespaces: self.options.tablespaces.clone(),
            // The server goes first: bringing in begins once it takes clients.
            bring_in: false,
            ..Options::default()
        };
        let mut private = DirBuilder::new();
        private.recursive(true).mode(0o700);
        private.create(self.target).map_err(Error::io("make", self.target))?;
        let serving =
            Instant::mount(self.repository.clone(), backup.clone(), self.target, options).await?;
        let started = self.start(&backup, listen).await;
        let (server, work) = match started {
            Ok(started) => started,
            Err(error) => {
                // Nobody uses it: nothing stays mounted.
                let _ = serving.stop().await;
                return Err(error);
            }
        };
        let answered = began.elapsed();
        serving.start_bringing_in()?;
        Ok(InstantServer { serving, server, work, backup, answered })
    }

    async fn start(&self, backup: &Backup, listen: &Listen) -> Result<(Replay, Work)> {
        let stage = stage(self.target);
        if stage == Stage::Fresh {
            let label = self.target.join("backup_label");
            fs::write(&label, &backup.label).map_err(Error::io("write", &label))?;
        }
        let work = Work::make(self.target)?;
        let spool_dir = work.0.join("wal");
        let mut spool = Spool::new(&spool_dir, self.repository.clone(), backup.wal_segment_bytes)?;
        let command = self.restore_command(&spool_dir);
        let (installation, target) = (self.installation, self.target);
        let mut server = match stage {
            Stage::Recovered => Replay::run(installation, target, &work.0, Some(listen))?,
            _ => {
                let listen = Some(listen);
                Replay::start(installation, target, &work.0, &self.goal, &command, listen)?
            }
        };
        tokio::select! {
            biased;
            failed = spool.serve() => match failed? {},
            session = server.recovered() => drop(session.map_err(|e| self.explain(e, backup))?),
        }
        let mark = self.target.join(STATE_DIR).join(RECOVERED);
        let marked = File::create(&mark).and_then(|file| file.sync_all());
        marked.map_err(Error::io("write", &mark))?;
        Ok((server, work))
    }
}

/// How far an earlier call came in this directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Recovery has not begun.
    Fresh,
    /// It began. (Ended, if the mark was not written in time: then it ends once more, at once.)
    Recovering,
    /// It ended, and clients may have written since: it must not begin again.
    Recovered,
}

fn stage(target: &Path) -> Stage {
    if target.join(STATE_DIR).join(RECOVERED).exists() {
        return Stage::Recovered;
    }
    // The server renames the file once it has understood it.
    match target.join("backup_label.old").exists() && !target.join("backup_label").exists() {
        true => Stage::Recovering,
        false => Stage::Fresh,
    }
}

impl InstantServer {
    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.serving.progress()
    }

    /// Waits until all is local, then lets the server go over to the local files, and waits until it holds
    /// none by the mounts. It goes on running, on files of its own, when this returns.
    pub async fn finish(mut self) -> Result<()> {
        self.serving.local().await;
        self.serving.switch().await?;
        let session = self.server.recovered().await?;
        session.execute(&format!("CREATE DATABASE {CLOSER}")).await?;
        session.execute(&format!("DROP DATABASE {CLOSER}")).await?;
        drop(session);
        self.serving.unused().await;
        self.server.leave();
        // Its configuration is in there.
        std::mem::forget(self.work);
        Ok(())
    }

    /// Stops the server, and takes the mounts away. What came in stays: the same restore goes on there.
    pub async fn stop(self) -> Result<()> {
        let Self { serving, server, work, .. } = self;
        server.stop().await?;
        serving.stop().await?;
        drop(work);
        Ok(())
    }

    /// Has the server ended by itself?
    pub fn has_ended(&mut self) -> bool {
        self.server.ended()
    }
}
