//! Each member's own monotonic clock.

/// Simulated real time, microseconds since the start of the run.
pub type Micros = u64;

/// A millisecond of real time.
pub const MS: Micros = 1_000;

/// A clock that runs a little too fast or too slow, from an offset of its own.
#[derive(Clone, Debug)]
pub struct Clock {
    offset_us: i64,
    drift_ppm: i64,
}

impl Clock {
    /// `drift_ppm` against real time.
    pub fn new(offset_ms: u64, drift_ppm: i64) -> Self {
        Self { offset_us: offset_ms as i64 * 1_000, drift_ppm }
    }

    /// What it shows, ms.
    pub fn ms(&self, now: Micros) -> u64 {
        let now = now as i64;
        ((self.offset_us + now + now * self.drift_ppm / 1_000_000) / 1_000) as u64
    }

    /// When (real time) it first shows `ms`, within a microsecond or two, never too early.
    pub fn real(&self, ms: u64) -> Micros {
        let own_us = ms as i64 * 1_000 - self.offset_us;
        if own_us <= 0 {
            return 0;
        }
        let mut real =
            (own_us as i128 * 1_000_000 / (1_000_000 + self.drift_ppm) as i128) as Micros;
        while self.ms(real) < ms {
            real += 1;
        }
        real
    }

    /// The same machine after a power cycle: its monotonic clock begins anew.
    pub fn rebooted(&self, now: Micros) -> Self {
        Self { offset_us: 1_000_000 - now as i64, drift_ppm: self.drift_ppm }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_is_the_first_moment_that_shows_it() {
        for drift in [-500, 0, 500, 50_000] {
            let clock = Clock::new(77, drift);
            for ms in [78, 1_000, 90_001] {
                let at = clock.real(ms);
                assert_eq!(clock.ms(at), ms);
                assert!(clock.ms(at - 3) < ms);
            }
        }
    }
}
