//! What `pg_controldata` says of a data directory.

use crate::{Error, Instance, Result, command, error};
use sempre_model::ids::{Lsn, Timeline};
use std::{collections::BTreeMap, str::FromStr};

/// How the server of a data directory ended, or whether it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlState {
    /// It never ran.
    StartingUp,
    /// Stopped in order, as a primary.
    ShutDown,
    /// Stopped in order, as a standby.
    ShutDownInRecovery,
    /// It was stopping.
    ShuttingDown,
    /// It was recovering from a crash.
    InCrashRecovery,
    /// It is, or crashed as, a standby.
    InArchiveRecovery,
    /// It is, or crashed as, a primary.
    InProduction,
}

impl ControlState {
    /// Was it stopped in order?
    pub fn is_clean(&self) -> bool {
        matches!(self, ControlState::ShutDown | ControlState::ShutDownInRecovery)
    }

    /// Was it a standby?
    pub fn is_standby(&self) -> bool {
        matches!(self, ControlState::ShutDownInRecovery | ControlState::InArchiveRecovery)
    }
}

impl FromStr for ControlState {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Ok(match text {
            "starting up" => Self::StartingUp,
            "shut down" => Self::ShutDown,
            "shut down in recovery" => Self::ShutDownInRecovery,
            "shutting down" => Self::ShuttingDown,
            "in crash recovery" => Self::InCrashRecovery,
            "in archive recovery" => Self::InArchiveRecovery,
            "in production" => Self::InProduction,
            other => return Err(format!("unknown state `{other}`")),
        })
    }
}

/// What `pg_controldata` says of a data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlData {
    /// PostgreSQL's identity of the cluster.
    pub system_identifier: u64,
    /// How its server ended, or whether it runs.
    pub state: ControlState,
    /// Timeline of the latest checkpoint.
    pub timeline: Timeline,
    /// The latest checkpoint (restartpoint on a standby).
    pub checkpoint_lsn: Lsn,
    /// Where recovery would begin.
    pub redo_lsn: Lsn,
    /// How far a standby must replay to be consistent; 0 when it need not.
    pub min_recovery_lsn: Lsn,
    /// The timeline of that; 0 when there is none.
    pub min_recovery_timeline: Timeline,
    /// Does every page have a checksum?
    pub data_checksums: bool,
    /// Bytes of a data page.
    pub page_bytes: u64,
    /// Pages of a segment of a large relation.
    pub segment_pages: u64,
    /// Is a full page written to WAL before a hint bit changes it (rewinding needs this or
    /// checksums)?
    pub wal_log_hints: bool,
    /// Bytes of a WAL segment.
    pub wal_segment_bytes: u64,
    /// Bytes of a WAL page.
    pub wal_block_bytes: u64,
    /// Parameters a standby must have at least this large, as its primary had them.
    pub floors: BTreeMap<&'static str, u64>,
}

/// `pg_controldata`'s labels of the parameters a standby must follow.
const FLOORS: [(&str, &str); 5] = [
    ("max_connections setting", "max_connections"),
    ("max_worker_processes setting", "max_worker_processes"),
    ("max_wal_senders setting", "max_wal_senders"),
    ("max_prepared_xacts setting", "max_prepared_transactions"),
    ("max_locks_per_xact setting", "max_locks_per_transaction"),
];

impl FromStr for ControlData {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let lines: BTreeMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(label, value)| (label.trim(), value.trim()))
            .collect();
        let bad =
            |why: String| Error::Format { what: "the output of pg_controldata".to_owned(), why };
        let field = |label: &str| {
            lines.get(label).copied().ok_or_else(|| bad(format!("there is no line `{label}`")))
        };
        let number = |label: &str| -> Result<u64> {
            field(label)?.parse().map_err(|_| bad(format!("`{label}` is not a number")))
        };
        let lsn = |label: &str| -> Result<Lsn> {
            field(label)?.parse().map_err(|e| bad(format!("`{label}`: {e}")))
        };
        let timeline = |label: &str| -> Result<Timeline> {
            let n = number(label)?;
            u32::try_from(n).map(Timeline).map_err(|_| bad(format!("`{label}` is too large: {n}")))
        };
        let mut floors = BTreeMap::new();
        for (label, name) in FLOORS {
            floors.insert(name, number(label)?);
        }
        let sizes = |label: &str, max: u64| -> Result<u64> {
            let bytes = number(label)?;
            // What follows divides by it, and allocates it.
            if bytes.is_power_of_two() && (1024..=max).contains(&bytes) {
                Ok(bytes)
            } else {
                Err(bad(format!("`{label}` cannot be {bytes}")))
            }
        };
        Ok(Self {
            system_identifier: number("Database system identifier")?,
            state: field("Database cluster state")?.parse().map_err(bad)?,
            timeline: timeline("Latest checkpoint's TimeLineID")?,
            checkpoint_lsn: lsn("Latest checkpoint location")?,
            redo_lsn: lsn("Latest checkpoint's REDO location")?,
            min_recovery_lsn: lsn("Minimum recovery ending location")?,
            min_recovery_timeline: timeline("Min recovery ending loc's timeline")?,
            data_checksums: number("Data page checksum version")? != 0,
            page_bytes: sizes("Database block size", 1 << 16)?,
            segment_pages: number("Blocks per segment of large relation")?,
            wal_log_hints: field("wal_log_hints setting")? == "on",
            wal_segment_bytes: sizes("Bytes per WAL segment", 1 << 30)?,
            wal_block_bytes: sizes("WAL block size", 1 << 16)?,
            floors,
        })
    }
}

impl Instance {
    /// Reads the control file of the data directory (with `pg_controldata`, about 3 ms).
    pub fn control_data(&self) -> Result<ControlData> {
        self.control_data_of(&self.layout.data_dir)
    }

    pub(crate) fn control_data_of(&self, data_dir: &std::path::Path) -> Result<ControlData> {
        let program = self.installation.program("pg_controldata");
        let mut command = command::command(&program);
        let output = command
            .as_std_mut()
            .arg("-D")
            .arg(data_dir)
            .output()
            .map_err(error::Error::io("run", &program))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(command::failed("pg_controldata".into(), &output.status, &text));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        // A damaged control file is only warned of (since version 17 on standard error), and its
        // values are shown all the same.
        let warnings = String::from_utf8_lossy(&output.stderr);
        if [&text, &warnings].iter().any(|t| t.contains("CRC checksum does not match")) {
            return Err(Error::DataDir {
                doing: "trust the control file of",
                data_dir: data_dir.to_owned(),
                why: "its checksum does not match; make a fresh copy (sempre reinit)".into(),
            });
        }
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "\
pg_control version number:            1300
Database system identifier:           7300000000000000001
Database cluster state:               in production
pg_control last modified:             Thu 01 Jan 2026 10:00:00 AM UTC
Latest checkpoint location:           0/3000060
Latest checkpoint's REDO location:    0/3000028
Latest checkpoint's REDO WAL file:    000000010000000000000003
Latest checkpoint's TimeLineID:       1
Minimum recovery ending location:     0/0
Min recovery ending loc's timeline:   0
wal_log_hints setting:                on
max_connections setting:              100
max_worker_processes setting:         8
max_wal_senders setting:              10
max_prepared_xacts setting:           0
max_locks_per_xact setting:           64
Database block size:                  8192
Blocks per segment of large relation: 131072
WAL block size:                       8192
Bytes per WAL segment:                16777216
Data page checksum version:           1
";

    #[test]
    fn control_data_is_read() {
        let data: ControlData = SAMPLE.parse().unwrap();
        assert_eq!(data.system_identifier, 7_300_000_000_000_000_001);
        assert_eq!(data.state, ControlState::InProduction);
        assert_eq!(data.redo_lsn, Lsn(0x300_0028));
        assert!(data.data_checksums && data.wal_log_hints);
        assert_eq!(data.floors["max_prepared_transactions"], 0);
    }

    #[test]
    fn control_data_that_makes_no_sense_is_refused() {
        for (from, to) in [
            ("in production", "asleep"),
            ("16777216", "0"),
            ("0/3000060", "x"),
            ("WAL block size:", "WAL size:"),
        ] {
            let error = SAMPLE.replace(from, to).parse::<ControlData>().unwrap_err().to_string();
            assert!(error.contains("pg_controldata"), "{error}");
        }
    }
}
