//! How far a long task is, shared between those who work and those who look.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Instant,
};

/// How far a task is.
#[derive(Debug)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
    throttled: AtomicU64,
    cancelled: AtomicBool,
    began: Instant,
}

impl Default for Progress {
    fn default() -> Self {
        let zero = AtomicU64::default;
        let (done, total, throttled) = (zero(), zero(), zero());
        Self { done, total, throttled, cancelled: AtomicBool::new(false), began: Instant::now() }
    }
}

/// How far a task is, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes in all; 0 while not known.
    pub total_bytes: u64,
    /// On average, bytes a second.
    pub bytes_per_s: u64,
    /// At this rate, ms.
    pub left_ms: Option<u64>,
}

impl Progress {
    /// There are this many bytes in all.
    pub fn expect(&self, bytes: u64) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many bytes more are done.
    pub fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Ends the task as soon as it looks.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    pub(crate) fn check(&self) -> Result<()> {
        match self.is_cancelled() {
            true => Err(Error::Refused("it was cancelled".to_owned())),
            false => Ok(()),
        }
    }

    /// Counts bytes of a throttled task; returns how many there are by now.
    pub(crate) fn throttled(&self, bytes: u64) -> u64 {
        self.throttled.fetch_add(bytes, Ordering::Relaxed) + bytes
    }

    /// How far it is now.
    pub fn snapshot(&self) -> Snapshot {
        let done_bytes = self.done.load(Ordering::Relaxed);
        let total_bytes = self.total.load(Ordering::Relaxed);
        let seconds = self.began.elapsed().as_secs_f64();
        let rate = done_bytes as f64 / seconds.max(0.001);
        let left = total_bytes.saturating_sub(done_bytes) as f64 / rate.max(1.0);
        let left_ms = (total_bytes > 0 && done_bytes > 0).then_some((left * 1000.0) as u64);
        Snapshot { done_bytes, total_bytes, bytes_per_s: rate as u64, left_ms }
    }
}
