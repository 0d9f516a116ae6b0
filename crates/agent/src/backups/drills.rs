//! Drills by schedule: a member restores into a spare folder beside its data directory. The folder is cleared
//! before and afterwards, whatever became of the drill before: a killed one leaves a server running there.

use sempre_guard::kill_strays;
use sempre_recovery::{spare_data, spare_folder};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::task::JoinHandle;

/// A server that is killed is gone within this time.
const STRAYS_WITHIN: Duration = Duration::from_secs(10);

/// The spare folder.
pub(super) struct Spare {
    folder: PathBuf,
    clearing: Option<JoinHandle<io::Result<()>>>,
    clear: bool,
}

impl Spare {
    /// Of this data directory. What an earlier agent left is cleared first.
    pub(super) fn of(data_dir: &Path) -> Self {
        Self { folder: spare_folder(data_dir), clearing: None, clear: false }
    }

    /// Something is put into it.
    pub(super) fn used(&mut self) {
        self.clear = false;
    }

    /// Nobody uses it now: is it clear? Sees to it otherwise.
    pub(super) async fn is_clear(&mut self) -> bool {
        if self.clear {
            return true;
        }
        match &mut self.clearing {
            Some(clearing) if clearing.is_finished() => {
                match clearing.await {
                    Ok(Ok(())) => self.clear = true,
                    Ok(Err(error)) => {
                        tracing::warn!(%error, folder = %self.folder.display(), "what a drill left cannot be removed yet");
                    }
                    Err(error) => tracing::error!(%error, "clearing after a drill failed"),
                }
                self.clearing = None;
            }
            Some(_) => {}
            None => {
                let folder = self.folder.clone();
                self.clearing = Some(tokio::task::spawn_blocking(move || remove(&folder)));
            }
        }
        self.clear
    }
}

fn remove(folder: &Path) -> io::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    if let Err(left) = kill_strays(&spare_data(folder), STRAYS_WITHIN) {
        return Err(io::Error::other(format!("processes {left:?} do not end")));
    }
    fs::remove_dir_all(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_left_is_cleared() {
        let root = tempfile::tempdir().unwrap();
        let data_dir = root.path().join("data");
        let left = spare_data(&spare_folder(&data_dir));
        fs::create_dir_all(left.join("base")).unwrap();
        let mut spare = Spare::of(&data_dir);
        while !spare.is_clear().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!spare_folder(&data_dir).exists());
        fs::create_dir_all(&left).unwrap();
        assert!(spare.is_clear().await, "nobody said that it is used");
        spare.used();
        assert!(!spare.is_clear().await);
    }
}
