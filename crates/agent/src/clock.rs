//! The two clocks. Decisions use the boot clock only; the wall clock is for display.

use sempre_decide::Millis;
use sempre_guard::{BootTime, boot_now};
use std::time::{SystemTime, UNIX_EPOCH};

/// Now, ms since the machine booted (suspended time included).
pub fn now_ms() -> Millis {
    boot_now().0 / 1_000_000
}

/// A moment of [`now_ms`] as the guard's clock counts it.
pub fn boot_time(at: Millis) -> BootTime {
    BootTime(at.saturating_mul(1_000_000))
}

/// Now, ms since 1970, for display.
pub fn now_unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
