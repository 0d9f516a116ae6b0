//! What a failover takes from a repository of the sync set: the WAL that a standby lacks, or, where no
//! standby is left, all of the database.

use super::{Done, JobContext};
use crate::backups::place_of;
use anyhow::{Context, Result, bail};
use sempre_backup::Repository;
use sempre_decide::member::DataDir;
use sempre_model::{Timeline, command::Change, record::Fenced};
use sempre_recovery::{Position, archived_history, extend_wal};

impl JobContext {
    async fn repository(&self, name: &str) -> Result<Repository> {
        let place = place_of(&self.record, name, self.instance().layout.tls_dir.clone())
            .with_context(|| format!("there is no repository `{name}`"))?;
        Ok(place.open().await?)
    }

    /// A fenced standby takes over what the repository has beyond it. From then on it has all that was
    /// acknowledged, and may be chosen.
    pub(crate) async fn take_archived(&mut self, name: &str, to: Position) -> Result<Done> {
        let (timeline, have) = match self.read_fence().await?.fenced {
            Some(fenced) => (fenced.timeline, fenced.lsn),
            None => bail!("the standby is not fenced"),
        };
        let repository = self.repository(name).await?;
        let instance = self.instance();
        repository.expect_cluster(instance.me.as_str(), self.system_identifier()?)?;
        let segment_bytes = instance.control_data()?.wal_segment_bytes;
        let history =
            extend_wal(&repository, &instance.wal_dir(), segment_bytes, (timeline, have), to)
                .await?;
        let (member, generation) = (instance.me.clone(), self.record.generation);
        let (timeline, lsn) = (history.timeline, to.1.max(have));
        tracing::info!(repository = name, %have, %lsn, "the archived WAL is taken over");
        let fenced = Fenced { member, generation, timeline, lsn, ancestors: history.ancestors };
        Ok(Done { fenced: Some(fenced), ..Done::default() })
    }

    /// The data come from the repository, with the WAL that leads to the end of the timeline that
    /// served: what is left is a standby of nobody, which may be fenced.
    pub(crate) async fn recover(&mut self, name: &str, timeline: Timeline) -> Result<Done> {
        match self.executor.inspect().await {
            (DataDir::Missing, ..) => {}
            (DataDir::Unusable(why), ..) => bail!("{why}"),
            _ => bail!("there are data here already"),
        }
        let history = archived_history(&self.repository(name).await?, timeline).await?;
        let filled = self.fill_data(name, Some(history)).await?;
        let text = format!(
            "{}: nobody else has the data: restored from backup {} in {name}, with the WAL up to {} on timeline {}",
            self.instance().me,
            filled.backup,
            filled.end,
            filled.timeline
        );
        let mut propose = vec![Change::Note { rule: "recover-from-backup".into(), text }];
        propose.extend(self.certificate_change().await);
        self.checked(propose).await
    }

    fn system_identifier(&self) -> Result<u64> {
        let cluster = self.record.cluster.as_ref().context("not initialised")?;
        cluster.system_identifier.context("the cluster has no database yet")
    }
}
