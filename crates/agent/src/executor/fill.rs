//! The data directory of a standby, from a repository: no other member is loaded by it. Should that not
//! work, it is copied from a member after all, and said so.

use super::{Done, JobContext};
use crate::{backups, looper::Event};
use anyhow::{Context, Result, bail};
use sempre_guard::{StopMode, kill_strays};
use sempre_model::{MemberId, backup::BackupChange, command::Change};
use sempre_postgres::History;
use sempre_recovery::{Fill, Filled, Job, Said, Worked};
use std::time::Duration;

/// Files at a time.
const THREADS: usize = 2;
/// A server that a killed worker left behind is gone within this time.
const STRAYS_WITHIN: Duration = Duration::from_secs(10);

impl JobContext {
    /// Fills the data directory as the record wishes it, so that it streams from the primary.
    pub(crate) async fn fill(
        &mut self,
        repository: &str,
        from: &MemberId,
        discard: bool,
    ) -> Result<Done> {
        let cluster = self.record.cluster.as_ref().context("not initialised")?;
        let history = match &self.record.primary {
            Some(primary) => {
                let primary = self.upstream(primary)?;
                self.instance().history_of(&primary, &cluster.secrets.admin).await?
            }
            None => bail!("there is no primary to follow"),
        };
        let filled = self.fill_data(repository, Some(history)).await;
        let me = self.instance().me.clone();
        let told = |outcome| {
            let filled = BackupChange::Filled { member: me.clone(), outcome };
            Change::Backup(Box::new(filled))
        };
        match filled {
            Ok(filled) => {
                let mut propose = vec![told(Ok(words(&filled)))];
                propose.extend(discard.then(|| Change::ReinitDone(me.clone())));
                let propose = vec![Change::Together(propose)];
                let propose = propose.into_iter().chain(self.certificate_change().await).collect();
                self.checked(propose).await
            }
            Err(error) => {
                let why = format!("{error:#}");
                tracing::error!(repository, why, "not restored from the repository: copied");
                let mut done = self.clone_data(from, discard).await?;
                done.propose.push(told(Err(format!("{why}; copied from {from} instead"))));
                Ok(done)
            }
        }
    }

    /// Fills the data directory from a repository: the newest backup that leads along `history` (none:
    /// the newest there is), and all the WAL behind it, replayed. What is there is used where it is right.
    /// What is left is a standby's; interrupted or failed, it is a data directory that counts as missing.
    pub(crate) async fn fill_data(
        &mut self,
        repository: &str,
        history: Option<History>,
    ) -> Result<Filled> {
        let cluster = self.record.cluster.as_ref().context("not initialised")?;
        let system_identifier = cluster.system_identifier.context("the cluster has no database")?;
        let tls = self.instance().layout.tls_dir.clone();
        let place = backups::place_of(&self.record, repository, tls)
            .with_context(|| format!("there is no repository {repository}"))?;
        self.refuse_foreign().await?;
        self.stop(StopMode::Fast).await?;
        let data_dir = self.instance().layout.data_dir.clone();
        let strays = tokio::task::spawn_blocking(move || kill_strays(&data_dir, STRAYS_WITHIN));
        if let Err(left) = strays.await? {
            bail!("processes {left:?} of an earlier try do not end");
        }
        self.instance().begin_filling()?;
        let instance = Box::new(self.instance().clone());
        let fill = Fill { instance, place, system_identifier, history, threads: THREADS };
        let events = self.events.clone();
        let told = |said| {
            let Said::Progress(now) = said else { return };
            let (done, total) = (now.done_bytes >> 20, now.total_bytes >> 20);
            let text = match now.total_bytes {
                0 => format!("restoring from {repository}"),
                all if now.done_bytes < all => {
                    format!("restoring from {repository}: {done} of {total} MB")
                }
                _ => format!("restoring from {repository}: the files are here, replaying WAL"),
            };
            let _ = events.try_send(Event::Busy(Some(text)));
        };
        match backups::once(&Job::Fill(fill), told).await? {
            Worked::Filled(filled) => {
                self.instance().end_filling()?;
                Ok(filled)
            }
            other => bail!("its worker did something else: {other:?}"),
        }
    }
}

fn words(filled: &Filled) -> String {
    format!(
        "backup {}, {} of {} MB fetched, WAL up to {} of timeline {}",
        filled.backup,
        filled.fetched_bytes >> 20,
        filled.bytes >> 20,
        filled.end,
        filled.timeline
    )
}
