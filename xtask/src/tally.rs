//! Counting tests in what test programs print.

use std::ops::AddAssign;

/// How many tests came out how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// The number before `word` in `text`, as in `12 passed`.
fn before(text: &str, word: &str) -> Option<u64> {
    let words: Vec<&str> =
        text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).collect();
    words.windows(2).find(|pair| pair[1] == word)?[0].parse().ok()
}

/// Which program's closing lines are counted. One at a time, because programs also print what
/// others said, nextest for one the output of tests that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `test result: ok. 7 passed; 0 failed; 2 ignored; ...`
    Libtest,
    /// `Summary [ 4.7s] 12 tests run: 12 passed, 0 skipped`
    Nextest,
    /// `7 passed, 0 failed, 2 skipped`, alone on its line
    Plain,
    /// `2000 seeds passed`, or `3 of 2000 seeds FAILED: ...`
    Seeds,
}

/// What a line says of tests, if it is a closing line.
pub fn closing_line(dialect: Dialect, line: &str) -> Option<Tally> {
    let line = line.trim();
    let rest = match dialect {
        Dialect::Libtest => line.strip_prefix("test result:")?,
        Dialect::Nextest => {
            let rest = line.strip_prefix("Summary [")?;
            rest.split_once("tests run:").or_else(|| rest.split_once("test run:"))?.1
        }
        Dialect::Plain => {
            line.starts_with(|c: char| c.is_ascii_digit()).then_some(line)?;
            // Without it, it is a sentence that happens to begin so.
            before(line, "failed")?;
            line
        }
        Dialect::Seeds => return seeds(line),
    };
    Some(Tally {
        passed: before(rest, "passed")?,
        failed: before(rest, "failed").unwrap_or(0) + before(rest, "timed").unwrap_or(0),
        skipped: before(rest, "skipped").or_else(|| before(rest, "ignored")).unwrap_or(0),
    })
}

fn seeds(line: &str) -> Option<Tally> {
    let (ran, failed) = match line.split(' ').collect::<Vec<_>>()[..] {
        [ran, "seeds", "passed"] => (ran, "0"),
        [failed, "of", ran, "seeds", "FAILED:", ..] => (ran, failed),
        _ => return None,
    };
    let (ran, failed): (u64, u64) = (ran.parse().ok()?, failed.parse().ok()?);
    Some(Tally { passed: ran.saturating_sub(failed), failed, skipped: 0 })
}

/// A line without the colours of a terminal.
pub fn plain(line: &str) -> String {
    let mut text = String::new();
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        if c == '\u{1b}' {
            // A sequence ends with a letter.
            characters.by_ref().find(char::is_ascii_alphabetic);
        } else {
            text.push(c);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(passed: u64, failed: u64, skipped: u64) -> Option<Tally> {
        Some(Tally { passed, failed, skipped })
    }

    #[test]
    fn closing_lines_are_read() {
        let libtest = "test result: ok. 7 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out";
        assert_eq!(closing_line(Dialect::Libtest, libtest), tally(7, 1, 2));
        assert_eq!(closing_line(Dialect::Nextest, libtest), None);
        let nextest = "     Summary [   4.7s] 12 tests run: 9 passed (1 slow), 3 failed, 4 skipped";
        assert_eq!(closing_line(Dialect::Nextest, nextest), tally(9, 3, 4));
        let one = "Summary [ 1s] 1 test run: 0 passed, 1 timed out, 0 skipped";
        assert_eq!(closing_line(Dialect::Nextest, one), tally(0, 1, 0));
        let plain = "18 passed, 0 failed, 1 skipped";
        assert_eq!(closing_line(Dialect::Plain, plain), tally(18, 0, 1));
        assert_eq!(closing_line(Dialect::Plain, "3 passed by"), None);
        assert_eq!(closing_line(Dialect::Seeds, "2000 seeds passed"), tally(2000, 0, 0));
        assert_eq!(closing_line(Dialect::Seeds, "2 of 9 seeds FAILED: [1, 7]"), tally(7, 2, 0));
        assert_eq!(closing_line(Dialect::Seeds, "seeds passed"), None);
    }

    #[test]
    fn colours_go() {
        assert_eq!(plain("\u{1b}[32;1m  Summary\u{1b}[0m [ 1s]"), "  Summary [ 1s]");
    }
}
