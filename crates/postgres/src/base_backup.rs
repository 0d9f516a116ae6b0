//! The bracket around a base backup: between its two ends, copying the files of a running server gives
//! something that recovery makes whole.

use crate::{Error, Result, Session};
use sempre_model::ids::{Lsn, Timeline};

/// PostgreSQL 15 gave the functions new names.
const NEW_NAMES: u32 = 150_000;

/// A base backup has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupBegun {
    /// Where recovery will begin.
    pub start: Lsn,
    /// Is the server a standby?
    pub on_standby: bool,
    /// The server's version, such as 150018.
    pub version_num: u32,
    /// PostgreSQL's identity of the cluster.
    pub system_identifier: u64,
    /// Tablespaces: object id, and where they are.
    pub tablespaces: Vec<(String, String)>,
}

/// A base backup has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupEnded {
    /// How far recovery must come.
    pub stop: Lsn,
    /// The timeline the backup began on.
    pub timeline: Timeline,
    /// What must be in the file `backup_label` of the copy.
    pub label: String,
}

impl Session {
    /// Begins a base backup. It lasts as long as this session; give it one of its own.
    pub async fn begin_backup(&self, label: &str) -> Result<BackupBegun> {
        let doing = "begin a backup";
        self.execute("SET statement_timeout = 0").await?;
        let on_standby = !self.is_primary().await?;
        let tablespaces = self
            .rows(
                doing,
                "SELECT oid::text, pg_tablespace_location(oid) FROM pg_tablespace \
                 WHERE pg_tablespace_location(oid) <> ''",
                &[],
            )
            .await?;
        let tablespaces = tablespaces.iter().map(|row| (row.get(0), row.get(1))).collect();
        let sql = match self.version_num >= NEW_NAMES {
            true => "SELECT pg_backup_start($1, true)::text",
            false => "SELECT pg_start_backup($1, true, false)::text",
        };
        let rows = self.rows(doing, sql, &[&label]).await?;
        let start = rows.first().and_then(|row| row.get::<_, String>(0).parse().ok());
        let start = start.ok_or_else(|| garbled("where the backup begins"))?;
        Ok(BackupBegun {
            start,
            on_standby,
            version_num: self.version_num,
            system_identifier: self.system_identifier,
            tablespaces,
        })
    }

    /// Ends it. Does not wait for any WAL to be archived.
    pub async fn end_backup(&self) -> Result<BackupEnded> {
        let sql = match self.version_num >= NEW_NAMES {
            true => "SELECT lsn::text, labelfile FROM pg_backup_stop(false)",
            false => "SELECT lsn::text, labelfile FROM pg_stop_backup(false, false)",
        };
        let rows = self.rows("end a backup", sql, &[]).await?;
        let (stop, label) = match rows.first() {
            Some(row) => (row.get::<_, String>(0), row.get::<_, String>(1)),
            None => return Err(garbled("where the backup ends")),
        };
        let stop = stop.parse().map_err(|_| garbled("where the backup ends"))?;
        let timeline = label.lines().find_map(|line| line.strip_prefix("START TIMELINE: "));
        let timeline = timeline.and_then(|number| number.trim().parse().ok()).map(Timeline);
        let timeline = timeline.ok_or_else(|| garbled("the timeline of the backup"))?;
        Ok(BackupEnded { stop, timeline, label })
    }
}

fn garbled(what: &str) -> Error {
    Error::Format { what: what.to_owned(), why: "the server's answer is garbled".to_owned() }
}
