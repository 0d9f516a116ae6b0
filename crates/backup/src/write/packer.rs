//! Packs: blocks of one thread, one behind the other, until there is enough for an object.

use super::Shared;
use crate::{
    Error, Result, Store,
    manifest::PackRef,
    seal::{Compressor, Kind, Sealer},
};
use bytes::Bytes;
use std::{
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Instant,
};
use tokio::{runtime::Handle, sync::Semaphore, task::JoinSet};

/// A pack is closed when it has so many bytes: enough for a disk or a store to be at its fastest.
const PACK_BYTES: usize = 16 << 20;
/// Objects on their way to the store at once: they are in memory.
const UPLOADS_MAX: usize = 3;

/// Objects on their way to the store.
pub(super) struct Uploads {
    store: Arc<dyn Store>,
    runtime: Handle,
    permits: Arc<Semaphore>,
    running: Mutex<JoinSet<Result<()>>>,
}

impl Uploads {
    pub(super) fn new(store: Arc<dyn Store>, runtime: Handle) -> Self {
        let permits = Arc::new(Semaphore::new(UPLOADS_MAX));
        Self { store, runtime, permits, running: Mutex::default() }
    }

    /// Puts an object on its way, waiting while there are too many. Fails if an earlier one did.
    pub(super) fn put(&self, name: String, object: Bytes) -> Result<()> {
        let permit = self.runtime.block_on(self.permits.clone().acquire_owned());
        let store = self.store.clone();
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(done) = running.try_join_next() {
            joined(done)?;
        }
        running.spawn_on(
            async move {
                let _permit = permit;
                store.put_new(&name, object).await
            },
            &self.runtime,
        );
        Ok(())
    }

    /// Waits for all.
    pub(super) async fn finish(&self) -> Result<()> {
        let mut running =
            std::mem::take(&mut *self.running.lock().unwrap_or_else(PoisonError::into_inner));
        while let Some(done) = running.join_next().await {
            joined(done)?;
        }
        Ok(())
    }
}

fn joined(done: std::result::Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    done.unwrap_or_else(|e| Err(Error::Refused(format!("an upload ended early: {e}"))))
}

/// Fills packs.
pub(super) struct Packer {
    shared: Arc<Shared>,
    compressor: Compressor,
    open: Option<(PackRef, Sealer)>,
    opened: Instant,
}

impl Packer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let compressor = Compressor::new(shared.options.level);
        Self { shared, compressor, open: None, opened: Instant::now() }
    }

    /// Adds a block: its pack, its offset there, its bytes there.
    pub(super) fn push(&mut self, block: &[u8]) -> Result<(PackRef, u64, u32)> {
        let shared = &self.shared;
        let (pack, sealer) = self.open.get_or_insert_with(|| {
            let number = shared.next_pack.fetch_add(1, Ordering::Relaxed);
            let pack = PackRef { backup: shared.id.clone(), number };
            let sealer = Sealer::new(&shared.repository.keys, Kind::Pack, &pack.name());
            (pack, sealer)
        });
        let place = sealer.push(block, &mut self.compressor);
        let pack = pack.clone();
        if sealer.bytes() >= PACK_BYTES || self.opened.elapsed() >= shared.options.save_every {
            self.close()?;
        }
        Ok((pack, place.offset, place.bytes))
    }

    /// Puts the pack that is being filled on its way.
    pub(super) fn close(&mut self) -> Result<()> {
        self.opened = Instant::now();
        let Some((pack, sealer)) = self.open.take() else { return Ok(()) };
        let object = sealer.finish();
        self.shared.count(|stats| stats.stored_bytes += object.len() as u64);
        self.shared.uploads.put(pack.name(), object)
    }
}
