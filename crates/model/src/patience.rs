//! How long silence on a path means nothing.
//!
//! A dead network has to be left within a fraction of a second. A network that loses packets is
//! silent for as long, again and again, and must not be left each time: what was under way on it
//! would be cut off while TCP is about to carry it through, and whatever takes its place has to
//! begin anew over a network that is no better. The two look the same while the silence lasts, and
//! differ afterwards: a dead network does not speak again in a second. So a silence that ended is
//! remembered for a while, and a longer one is needed before the path counts as dead.
//!
//! Only a silence beside another path that goes on speaking says something of the path. When all
//! fall silent at once, the member was busy, or we were.

/// A path that speaks again after a longer silence was down, ms: that tells nothing of what silence
/// means.
const LOSSY_MAX_MS: u64 = 1_500;
/// A silence has to be so many times as long as the longest that meant nothing.
const TIMES: u64 = 2;
/// Silences are remembered for this long after the last one, ms.
const REMEMBERED_MS: u64 = 30_000;

/// When a path spoke, and what its silences have meant lately. Times are ms of one monotonic clock;
/// `usual_ms` is the silence that counts on a path that never was silent for so long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patience {
    /// When it spoke last, and since when without such a silence.
    spoke: Option<(u64, u64)>,
    /// The longest silence that meant nothing, and when the last such ended.
    longest_ms: u64,
    silent_until_ms: u64,
}

impl Patience {
    /// The path speaks. `others`: another path to the same member is [`Patience::steady`].
    pub fn speaks(&mut self, others: bool, usual_ms: u64, now_ms: u64) {
        let Some((last_ms, since_ms)) = self.spoke else {
            self.spoke = Some((now_ms, now_ms));
            return;
        };
        let silence_ms = now_ms.saturating_sub(last_ms);
        if silence_ms < usual_ms {
            self.spoke = Some((now_ms, since_ms));
            return;
        }
        self.spoke = Some((now_ms, now_ms));
        if others && silence_ms <= LOSSY_MAX_MS.max(usual_ms) {
            self.longest_ms = self.remembered(now_ms).max(silence_ms);
            self.silent_until_ms = now_ms;
        }
    }

    /// How long it has been silent, ms; none: it never spoke.
    pub fn silent_ms(&self, now_ms: u64) -> Option<u64> {
        self.spoke.map(|(last_ms, _)| now_ms.saturating_sub(last_ms))
    }

    /// It speaks, and has for some time.
    pub fn steady(&self, usual_ms: u64, now_ms: u64) -> bool {
        self.spoke.is_some_and(|(last_ms, since_ms)| {
            now_ms.saturating_sub(last_ms) < usual_ms && now_ms.saturating_sub(since_ms) >= usual_ms
        })
    }

    /// It has been silent for longer than it is at times.
    pub fn over(&self, usual_ms: u64, now_ms: u64) -> bool {
        let limit_ms = usual_ms.max(self.remembered(now_ms) * TIMES);
        self.silent_ms(now_ms).is_some_and(|silent_ms| silent_ms >= limit_ms)
    }

    fn remembered(&self, now_ms: u64) -> u64 {
        match now_ms.saturating_sub(self.silent_until_ms) < REMEMBERED_MS {
            true => self.longest_ms,
            false => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL_MS: u64 = 300;

    fn spoken(others: bool, times: &[u64]) -> Patience {
        let mut patience = Patience::default();
        times.iter().for_each(|at| patience.speaks(others, USUAL_MS, *at));
        patience
    }

    #[test]
    fn a_silence_that_ended_asks_for_a_longer_one_for_a_while() {
        let patience = spoken(true, &[1_000, 1_150]);
        assert!(!patience.over(USUAL_MS, 1_449) && patience.over(USUAL_MS, 1_450));
        // 600 ms, then 400.
        let mut patience = spoken(true, &[1_000, 1_600, 2_000]);
        assert!(!patience.over(USUAL_MS, 3_199) && patience.over(USUAL_MS, 3_200));
        let later = 2_000 + REMEMBERED_MS;
        (2_000..later).step_by(100).for_each(|at| patience.speaks(true, USUAL_MS, at));
        assert!(patience.over(USUAL_MS, later + USUAL_MS));
    }

    #[test]
    fn an_outage_and_a_silence_of_all_paths_teach_nothing() {
        assert!(spoken(true, &[1_000, 5_000, 9_000]).over(USUAL_MS, 9_300));
        assert!(spoken(false, &[1_000, 1_600, 2_200]).over(USUAL_MS, 2_500));
        assert!(!Patience::default().over(USUAL_MS, 9_000), "it never spoke");
        // Where an operator waits longer than that before a path is dead, nothing is an outage yet.
        let mut patience = Patience::default();
        [1_000, 5_000].iter().for_each(|at| patience.speaks(true, 4_000, *at));
        assert!(!patience.over(4_000, 12_999) && patience.over(4_000, 13_000));
    }

    #[test]
    fn steady_is_what_has_spoken_for_some_time() {
        assert!(!spoken(true, &[1_000]).steady(USUAL_MS, 1_100));
        assert!(spoken(true, &[1_000, 1_200, 1_400]).steady(USUAL_MS, 1_500));
        assert!(!spoken(true, &[1_000, 1_200, 1_400]).steady(USUAL_MS, 1_700), "silent now");
        assert!(!spoken(true, &[1_000, 1_200, 1_900]).steady(USUAL_MS, 2_000), "silent lately");
    }
}
