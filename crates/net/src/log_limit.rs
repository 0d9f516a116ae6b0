//! A limit on how much a stranger can make us log.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

/// Lines a window.
const LINES: u32 = 5;
/// The window.
const WINDOW: Duration = Duration::from_secs(10);

/// Lets a few lines through a window and counts the others.
#[derive(Debug, Default)]
pub struct LogLimit {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    began: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl LogLimit {
    /// May a line be logged? If so: how many were not, since the last one that was.
    pub fn admit(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        if state.began.is_none_or(|began| now.saturating_duration_since(began) >= WINDOW) {
            state.began = Some(now);
            state.lines = 0;
        }
        if state.lines >= LINES {
            state.suppressed += 1;
            return None;
        }
        state.lines += 1;
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_leaves_a_few_lines_and_a_count() {
        let limit = LogLimit::default();
        let start = Instant::now();
        let logged = (0..1000).filter(|_| limit.admit(start).is_some()).count();
        assert_eq!(logged, LINES as usize);
        assert_eq!(limit.admit(start + WINDOW), Some(1000 - u64::from(LINES)));
        assert_eq!(limit.admit(start + WINDOW), Some(0));
    }
}
