//! The disk probe: room that is left, and a small write with fsync beside the data, with a
//! deadline.

use crate::{clock, looper::Event};
use sempre_model::observation::DiskState;
use std::{
    fs::OpenOptions,
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::sync::{mpsc, watch};

/// Between two probes that write.
const INTERVAL: Duration = Duration::from_secs(1);
/// Between two looks at the room, and while a probe does not come back.
const POLL: Duration = Duration::from_millis(100);
/// What is written.
const PROBE_BYTES: usize = 8 * 1024;
/// Less room than this is none: PostgreSQL needs a segment of WAL (16 MiB) at any moment, and
/// a shutdown, to hand over, needs some as well.
const ROOM_MIN_BYTES: u64 = 4 << 20;

/// Probes the folder for as long as the agent lives. A probe that does not come back within
/// `hang_ms` is a stalled disk; there is never more than one under way.
pub async fn watch_disk(
    folder: PathBuf,
    mut hang_ms: watch::Receiver<u64>,
    events: mpsc::Sender<Event>,
) {
    loop {
        let path = folder.clone();
        let began = clock::now_ms();
        let mut probe = tokio::task::spawn_blocking(move || probe(&path));
        let mut stalled = false;
        let state = loop {
            tokio::select! {
                done = &mut probe => break done.unwrap_or_else(|e| DiskState::Failing(e.to_string())),
                () = tokio::time::sleep(POLL) => {
                    let limit = *hang_ms.borrow_and_update();
                    if !stalled && clock::now_ms().saturating_sub(began) >= limit {
                        stalled = true;
                        if events.send(Event::Disk(DiskState::Stalled)).await.is_err() {
                            return;
                        }
                    }
                }
            }
        };
        let mut full = state == DiskState::Full;
        if events.send(Event::Disk(state)).await.is_err() {
            return;
        }
        let next = tokio::time::Instant::now() + INTERVAL;
        while tokio::time::Instant::now() < next {
            tokio::time::sleep(POLL).await;
            // A disk that fills up is noticed before the next write.
            if !full && !has_room(&folder) {
                full = true;
                if events.send(Event::Disk(DiskState::Full)).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Is there room for more than a few blocks, for an ordinary user?
fn has_room(folder: &Path) -> bool {
    // Where it cannot be told, the write decides.
    nix::sys::statvfs::statvfs(folder).map_or(true, |disk| {
        let blocks: u64 = disk.blocks_available();
        blocks.saturating_mul(disk.fragment_size()) >= ROOM_MIN_BYTES
    })
}

fn probe(folder: &Path) -> DiskState {
    // An empty folder must stay empty, or no database can be made or copied into it.
    if !folder.join("PG_VERSION").exists() {
        return DiskState::Healthy;
    }
    if !has_room(folder) {
        return DiskState::Full;
    }
    let path = folder.join("sempre.probe");
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
        file.write_all(&[0x5e; PROBE_BYTES])?;
        file.sync_data()
    };
    match write() {
        Ok(()) => DiskState::Healthy,
        // It was just moved away (a fresh copy takes its place).
        Err(e) if e.kind() == io::ErrorKind::NotFound => DiskState::Healthy,
        Err(e) if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            DiskState::Full
        }
        Err(e) => DiskState::Failing(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_tells_states_apart() {
        let data = || {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("PG_VERSION"), "15").unwrap();
            folder
        };
        let folder = data();
        assert_eq!(probe(folder.path()), DiskState::Healthy);
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(probe(empty.path()), DiskState::Healthy);
        assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0, "nothing is left there");
        let failing = data();
        std::fs::create_dir(failing.path().join("sempre.probe")).unwrap();
        assert!(matches!(probe(failing.path()), DiskState::Failing(_)));
        // /dev/full says what a full disk says.
        if Path::new("/dev/full").exists() {
            let full = data();
            std::os::unix::fs::symlink("/dev/full", full.path().join("sempre.probe")).unwrap();
            assert_eq!(probe(full.path()), DiskState::Full);
        }
    }
}
