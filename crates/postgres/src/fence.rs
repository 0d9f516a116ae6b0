//! The exact position of a standby that takes no WAL any more.
//!
//! A standby is fenced in three steps: its configuration is written without an upstream (which
//! empties the password file first), loaded, and then this module waits for the receiver.
//!
//! That no receiver runs is not enough: the startup process reads the new configuration on its
//! own time, and could start another one with the old connection string. It would find no
//! password, though, and every member of the cluster demands one. So once the password file is
//! empty and no receiver process is there, none that could receive anything can come.
//!
//! A receiver flushes what it has written before it ends. So what is on disk then is all there
//! is, and where it ends is read from the disk itself, from the replayed position on: neither
//! `pg_last_wal_receive_lsn()` (nothing after a restart) nor the replay position (behind, while
//! it is still replaying or waiting for a conflicting query) would be exact.

use crate::{
    Error, Instance, Result, Session,
    session::{get, lsn},
    wal::{WalReader, followed_history, has_page},
};
use sempre_model::ids::{Lsn, Timeline};

const LOOK: &str = "\
SELECT pg_is_in_recovery(), current_setting('primary_conninfo') = '',
 (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walreceiver')";

impl Session {
    /// Has a standby whose configuration names no upstream stopped receiving? Then the timeline
    /// and end of the last whole record it has, exactly. None: not yet, ask again.
    pub async fn fence_position(&self) -> Result<Option<(Timeline, Lsn)>> {
        let doing = "tell whether it still receives";
        let instance = self.own_instance()?;
        if instance.knows_an_upstream() {
            return Err(Error::DataDir {
                doing: "fence",
                data_dir: instance.layout.data_dir.clone(),
                why: "its configuration names an upstream; write it without one first".into(),
            });
        }
        let row = self.row(doing, LOOK, &[]).await?;
        if !get::<bool>(&row, 0, doing)? {
            return Err(Error::DataDir {
                doing: "fence",
                data_dir: instance.layout.data_dir.clone(),
                why: "it is no standby".into(),
            });
        }
        let (loaded, receivers): (bool, i64) = (get(&row, 1, doing)?, get(&row, 2, doing)?);
        if receivers > 0 {
            if loaded {
                // The startup process ends it when it comes to it, which a long wait for a
                // conflicting query may delay.
                let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                     WHERE backend_type = 'walreceiver'";
                self.row(doing, end, &[]).await?;
            }
            return Ok(None);
        }
        if !loaded {
            return Ok(None);
        }
        self.received().await.map(Some)
    }

    /// Timeline and position: of a primary, what it has flushed; of a standby, the end of the
    /// last whole record it has.
    pub async fn position(&self) -> Result<(Timeline, Lsn)> {
        if self.is_primary().await? {
            return Ok((self.history().await?.timeline, self.flush_lsn().await?));
        }
        self.received().await
    }

    async fn received(&self) -> Result<(Timeline, Lsn)> {
        let doing = "tell its replayed position";
        let row = self.row(doing, "SELECT pg_last_wal_replay_lsn()::text", &[]).await?;
        let replayed = lsn(&row, 0, doing)?;
        let instance = self.own_instance()?;
        let control = instance.control_data()?;
        let from = (replayed.0 > 0).then_some(replayed);
        let end = instance.scan(control, true, from).await?;
        Ok((end.timeline, end.lsn))
    }

    fn own_instance(&self) -> Result<&Instance> {
        self.instance.as_ref().ok_or_else(|| Error::Format {
            what: "the session".into(),
            why: "it is with another member's server".into(),
        })
    }
}

impl Instance {
    /// The timeline of the WAL that ends at `lsn`, from the files in `pg_wal`.
    pub(crate) fn timeline_at(&self, lsn: Lsn) -> Result<Timeline> {
        let control = self.control_data()?;
        let dir = self.wal_dir();
        let history = followed_history(&dir, &control, true, lsn)?;
        for (timeline, begin) in history.begins() {
            // A newer timeline's file may be there without reaching so far.
            if begin < lsn && has_page(&dir, &control, timeline, lsn) {
                return Ok(timeline);
            }
        }
        Ok(control.timeline.max(control.min_recovery_timeline))
    }

    /// Walks the WAL of a data directory of any state; for tests and repairs.
    #[doc(hidden)]
    pub fn walk_wal(&self, from: Lsn) -> Result<(Timeline, Lsn)> {
        let control = self.control_data()?;
        let history = followed_history(&self.wal_dir(), &control, true, from)?;
        let end = WalReader::new(&self.wal_dir(), &control, &history).end_from(from);
        Ok((end.timeline, end.lsn))
    }
}
