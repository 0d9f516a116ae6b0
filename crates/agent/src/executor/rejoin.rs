//! An old primary (or a standby that does not fit) becomes a standby again: straight, by
//! rewinding, or by a fresh copy, in this order. What a rewind would discard is saved first.

use super::{Done, JobContext};
use anyhow::{Context, Result};
use sempre_guard::StopMode;
use sempre_model::{MemberId, command::Change};
use sempre_postgres::Divergence;

impl JobContext {
    pub(crate) async fn rejoin(&mut self, upstream: &MemberId) -> Result<Done> {
        let generation = self.record.generation;
        let source = self.upstream(upstream)?;
        let running = self.executor.guard.status().borrow().postmaster.is_some();
        let own = if running {
            self.executor.session().await?.position().await?
        } else {
            self.instance().end_of_wal().await?
        };
        let cluster = self.record.cluster.as_ref().context("not initialised")?;
        let theirs = self.instance().history_of(&source, &cluster.secrets.admin).await?;
        let ours = self.instance().timeline_history(own.0)?;
        let divergence = sempre_postgres::divergence(&ours, own.1, &theirs);
        let Divergence::At { lsn, bytes_discarded } = divergence else {
            tracing::info!(%upstream, "the WAL fits the primary's: straight");
            return self.checked(Vec::new()).await;
        };
        tracing::warn!(%upstream, at = %lsn, bytes_discarded, "the WAL has diverged: rewinding");
        self.stop(StopMode::Fast).await?;
        let saved = self.instance().salvage(own, lsn).await;
        let saved = match saved {
            Ok(folder) => format!("saved in {}", folder.display()),
            Err(error) => {
                tracing::error!(%error, "the diverged WAL could not be saved");
                format!("not saved: {error}")
            }
        };
        let me = self.instance().me.clone();
        let note = |text: String| Change::Note { rule: "rejoin".into(), text };
        if let Err(error) = self.instance().rewind(&source, &cluster.secrets.admin).await {
            tracing::warn!(%error, "the rewind failed: a fresh copy");
            let text = format!(
                "{me}: {bytes_discarded} bytes of diverged WAL from {lsn} {saved}; rewinding failed ({error}), so it gets a fresh copy (generation {generation})"
            );
            let mut done = self.clone_data(upstream, false).await?;
            done.propose.push(note(text));
            return Ok(done);
        }
        let text =
            format!("{me}: rewound to {lsn}; {bytes_discarded} bytes of diverged WAL {saved}");
        self.instance().prepare_role(true)?;
        let mut propose = vec![note(text)];
        propose.extend(self.certificate_change().await);
        self.checked(propose).await
    }

    pub(crate) async fn checked(&mut self, propose: Vec<Change>) -> Result<Done> {
        self.applied.checked_for = self.record.generation;
        self.applied.resting = false;
        self.executor.dir.set_applied(&self.applied)?;
        let data = Some(self.executor.inspect().await);
        Ok(Done { data, checked: true, propose, ..self.done() })
    }
}
