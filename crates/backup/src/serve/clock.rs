//! The clock that a window goes by. It is this machine's, and who can set it could end every window: so a
//! clock that jumped stops deletions, until somebody on this machine says that it is right.
//!
//! While the machine runs, the wall clock is compared with the time since it was started. Over a restart
//! only the last time noted is known: a machine that was off for longer than a day has to be confirmed, too.
//! Each restart may so hide a jump of less than a day. Backwards is safe, for everything is younger then;
//! but what is written meanwhile is dated by the wrong clock.

use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

/// A clock may be set by so much, ms.
const JUMP_MS: i64 = 24 * 3600 * 1000;
/// How often the time is noted, ms.
const NOTE_EVERY_MS: u64 = 10 * 60 * 1000;

/// What clocks say at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Since 1970, ms.
    pub wall_ms: u64,
    /// Since the machine was started, ms.
    pub up_ms: u64,
    /// Which start that was.
    pub boot: String,
}

/// Reads the clocks.
pub type Now = Arc<dyn Fn() -> Reading + Send + Sync>;

/// The machine's.
pub(super) fn real() -> Now {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let boot = boot.trim().to_owned();
    Arc::new(move || {
        let up = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let up_ms = up.tv_sec.unsigned_abs() * 1000 + up.tv_nsec.unsigned_abs() / 1_000_000;
        let wall_ms = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
        Reading { wall_ms, up_ms, boot: boot.clone() }
    })
}

/// What is noted of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Noted {
    boot: String,
    /// The wall clock when that start was, by the first look after it, ms.
    started_ms: i64,
    /// The last time noted, ms.
    wall_ms: u64,
    /// It jumped.
    #[serde(default)]
    stopped: Option<Stop>,
}

/// It jumped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stop {
    /// By so much, ms.
    by_ms: i64,
    /// To be repeated by who says that it is right now.
    code: String,
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

fn started_ms(now: &Reading) -> i64 {
    signed(now.wall_ms).saturating_sub(signed(now.up_ms))
}

/// What is noted now; `code` is for a jump that is seen now.
fn look(before: Option<Noted>, now: &Reading, confirmed: Option<&str>, code: &str) -> Noted {
    let started_ms = started_ms(now);
    let fresh =
        |stopped| Noted { boot: now.boot.clone(), started_ms, wall_ms: now.wall_ms, stopped };
    let Some(before) = before else { return fresh(None) };
    if let Some(stop) = &before.stopped {
        return match confirmed == Some(stop.code.as_str()) {
            true => fresh(None),
            false => before,
        };
    }
    let is_same = before.boot == now.boot;
    let by_ms = match is_same {
        true => started_ms.saturating_sub(before.started_ms),
        false => signed(now.wall_ms).saturating_sub(signed(before.wall_ms)),
    };
    let stopped = (by_ms.saturating_abs() > JUMP_MS).then(|| Stop { by_ms, code: code.to_owned() });
    match is_same {
        // Of one start the first look counts, or many small steps would make a large one.
        true => Noted { wall_ms: now.wall_ms, stopped, ..before },
        false => fresh(stopped),
    }
}

pub(super) struct Clock {
    file: PathBuf,
    confirmed: Option<String>,
    now: Now,
    noted: Mutex<Option<Noted>>,
}

impl Clock {
    pub(super) fn new(file: PathBuf, confirmed: Option<String>, now: Now) -> Self {
        let noted = fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok());
        Self { file, confirmed, now, noted: Mutex::new(noted) }
    }

    /// The time, ms since 1970; or why it cannot be relied on.
    pub(super) fn wall_ms(&self) -> Result<u64, String> {
        let now = (self.now)();
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let code = format!("{:08x}", rand::random::<u32>());
        let next = look(noted.clone(), &now, self.confirmed.as_deref(), &code);
        let is_due = noted.as_ref().is_none_or(|before| {
            before.boot != next.boot
                || before.stopped != next.stopped
                || next.wall_ms.abs_diff(before.wall_ms) >= NOTE_EVERY_MS
        });
        if is_due {
            self.keep(&next)?;
            *noted = Some(next.clone());
        }
        match next.stopped {
            None => Ok(now.wall_ms),
            Some(Stop { by_ms, code }) => Err(format!(
                "the clock of the machine that keeps it was set, by {} hours, or it was off for that long: nothing is deleted until its config file says that the clock is right now, by `confirm_clock = \"{code}\"` in this folder's [[repository]], and the agent is restarted",
                by_ms / 3_600_000
            )),
        }
    }

    fn keep(&self, noted: &Noted) -> Result<(), String> {
        let text = serde_json::to_vec(noted).map_err(|error| error.to_string())?;
        let half = self.file.with_extension("new");
        let write = || {
            if let Some(folder) = self.file.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::write(&half, &text)?;
            fs::File::open(&half)?.sync_all()?;
            fs::rename(&half, &self.file)
        };
        write().map_err(|error: std::io::Error| {
            format!("the time cannot be noted in {}: {error}", self.file.display())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600 * 1000;

    fn at(wall_ms: u64, up_ms: u64, boot: &str) -> Reading {
        Reading { wall_ms, up_ms, boot: boot.to_owned() }
    }

    #[test]
    fn a_clock_that_is_set_is_noticed_however_it_is_done() {
        let first = look(None, &at(1000 * DAY, DAY, "a"), None, "x");
        assert_eq!(first.stopped, None);
        let go = |before: &Noted, now: Reading| look(Some(before.clone()), &now, None, "x");
        let stops = |before: &Noted, now: Reading| go(before, now).stopped.is_some();
        // Time passes, however long nobody looks.
        assert!(!stops(&first, at(1090 * DAY, 91 * DAY, "a")));
        // Forwards, backwards.
        assert!(stops(&first, at(1031 * DAY, DAY + 5, "a")));
        assert!(stops(&first, at(990 * DAY, DAY + 5, "a")));
        // In many small steps.
        let mut noted = first.clone();
        for step in 1..40 {
            noted = go(&noted, at(1000 * DAY + step * DAY / 4, DAY + step, "a"));
        }
        assert!(noted.stopped.is_some());
        // A restart of an hour; one of a week.
        assert!(!stops(&first, at(1000 * DAY + DAY / 24, 5, "b")));
        assert!(stops(&first, at(1007 * DAY, 5, "b")));
        // It stays so, also when the clock is right again, until it is said.
        let back = go(&noted, at(1000 * DAY + 50, DAY + 50, "a"));
        assert!(back.stopped.is_some());
        let now = at(1001 * DAY, 2 * DAY, "a");
        assert!(look(Some(noted.clone()), &now, Some("y"), "z").stopped.is_some());
        let confirmed = look(Some(noted), &now, Some("x"), "z");
        assert_eq!(confirmed.stopped, None);
        // And what was said once does not count for the next.
        assert!(
            look(Some(confirmed), &at(1100 * DAY, 2 * DAY, "a"), Some("x"), "z").stopped.is_some()
        );
    }
}
