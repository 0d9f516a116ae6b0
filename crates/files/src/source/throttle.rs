//! A limit on what is read, for all threads together.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Counts from its beginning.
#[derive(Debug)]
pub(super) struct Throttle {
    max_bytes_per_s: Option<u64>,
    began: Instant,
    bytes: AtomicU64,
}

impl Default for Throttle {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Throttle {
    pub(super) fn new(max_bytes_per_s: Option<u64>) -> Self {
        Self { max_bytes_per_s, began: Instant::now(), bytes: AtomicU64::default() }
    }

    /// So many bytes were read: waits until that was allowed.
    pub(super) fn passed(&self, bytes: u64) {
        let Some(rate) = self.max_bytes_per_s.filter(|rate| *rate > 0) else { return };
        let read = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let due = Duration::from_secs_f64(read as f64 / rate as f64);
        thread::sleep(due.saturating_sub(self.began.elapsed()));
    }
}
