//! A drill that nobody watches: by schedule, in a spare folder beside the data directory.

use crate::{Error, Goal, Place, Restore, Result, prove};
use sempre_backup::{Progress, RestoreOptions};
use sempre_model::{Lsn, backup::Proof};
use sempre_postgres::Instance;
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

/// So much of its size a restored database takes besides: WAL, and what checks write.
const ROOM_BESIDES: u64 = 4;
/// And so much in any case.
const ROOM_LEAST_BYTES: u64 = 256 << 20;

/// A restore that is to be tried.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Drill {
    /// Whose programs are used, and whose disk.
    pub instance: Box<Instance>,
    /// From where.
    pub place: Place,
    /// How far the primary is, and for how long (ms) the archive has been behind; none: it is not known.
    pub primary: Option<(Lsn, u64)>,
    /// The user's own checks.
    pub checks: Vec<String>,
    /// Files at a time.
    pub threads: usize,
}

/// The spare folder for drills beside a data directory.
pub fn spare_folder(data_dir: &Path) -> PathBuf {
    let name = data_dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    data_dir.with_file_name(format!("{name}.sempre-drill"))
}

/// Where the database is restored in it.
pub fn spare_data(spare: &Path) -> PathBuf {
    spare.join("data")
}

impl Drill {
    /// Does it. The spare folder is empty; what is left in it is its user's to remove.
    pub async fn run(&self, fetch_command: Vec<String>, progress: Arc<Progress>) -> Result<Proof> {
        let repository = self.place.open().await?;
        let newest = repository.backups().await?.pop();
        let bytes = newest.map_or(0, |backup| backup.stats.bytes);
        let needed = bytes + bytes / ROOM_BESIDES + ROOM_LEAST_BYTES;
        let free = self.instance.free_bytes()?;
        if free < needed {
            return Err(Error::Unreachable(format!(
                "{} MB are needed beside {}, and {} are free",
                needed >> 20,
                self.instance.layout.data_dir.display(),
                free >> 20
            )));
        }
        let spare = spare_folder(&self.instance.layout.data_dir);
        fs::create_dir_all(&spare).map_err(Error::io("make", &spare))?;
        let restore = Restore {
            repository: &repository,
            installation: &self.instance.installation,
            target: &spare_data(&spare),
            goal: Goal::Latest,
            backup: None,
            options: RestoreOptions { threads: self.threads, ..RestoreOptions::default() },
            fetch_command,
        };
        Ok(prove(&restore, &self.checks, false, progress).await?.proof(self.primary))
    }
}
