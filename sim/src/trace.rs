//! What happened, in lines: the newest are kept for the report of a failure, all of them go into
//! a hash, so that two runs can be compared.

use crate::clock::{MS, Micros};
use std::collections::VecDeque;

/// Lines shown with a failure.
const KEPT: usize = 60;

/// The lines.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    lines: VecDeque<String>,
    print: bool,
}

impl Trace {
    /// `print`: all lines go to standard output.
    pub fn new(print: bool) -> Self {
        Self { hash: 0xCBF2_9CE4_8422_2325, lines: VecDeque::new(), print }
    }

    /// One more line.
    pub fn line(&mut self, now: Micros, line: impl FnOnce() -> String) {
        let line = format!("{:>6}.{:03} {}", now / MS, now % MS, line());
        for byte in line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
        }
        if self.print {
            println!("{line}");
        }
        if self.lines.len() == KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// Of all lines so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The newest lines.
    pub fn newest(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }
}
