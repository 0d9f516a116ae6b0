//! The clock of leases: time since the machine booted, time in suspend included.
//!
//! `CLOCK_MONOTONIC` stands still while a machine (or a virtual one) is suspended, so a primary
//! that slept through its lease would believe it still held it. `CLOCK_BOOTTIME` goes on.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A moment, in nanoseconds since the machine booted. Only comparable on the same machine, and
/// only until its next boot.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct BootTime(pub u64);

impl BootTime {
    /// This moment plus `duration`.
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this moment is; zero when it is not after it.
    pub fn since(self, earlier: BootTime) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Now.
pub fn boot_now() -> BootTime {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    BootTime(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_forward_and_saturates() {
        let a = boot_now();
        let b = boot_now();
        assert!(b >= a && a.0 > 0);
        assert_eq!(a.since(a.after(Duration::from_secs(1))), Duration::ZERO);
        assert_eq!(BootTime(5).after(Duration::MAX), BootTime(u64::MAX));
    }
}
