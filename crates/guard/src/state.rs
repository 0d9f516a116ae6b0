//! The guard's memory across restarts: `guard.state`, one line of header and one of JSON.
//!
//! ```text
//! sempre-guard-state 1 <crc32c of the second line, 8 hex digits>
//! {"fenced_below":7,"database":"/var/lib/postgresql/15/main"}
//! ```
//! It is replaced by rename after an fsync, so it is whole or damaged, never half new.

use crate::error::ServeError;
use sempre_model::Generation;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The file's name in the guard's directory.
pub(crate) const STATE_NAME: &str = "guard.state";
const MAGIC: &str = "sempre-guard-state";
const VERSION: &str = "1";
/// Far more than the two lines can have: a larger file is not ours.
const STATE_MAX: u64 = 64 * 1024;

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// No generation below this serves here.
    pub fenced_below: Generation,
    /// The data directory of a database that this guard started and has not seen gone. What
    /// still runs there when a new guard comes was left behind, and is killed.
    #[serde(default)]
    pub database: Option<PathBuf>,
}

impl State {
    /// Reads it; a missing file is an empty state.
    pub fn load(dir: &Path) -> Result<State, ServeError> {
        let path = dir.join(STATE_NAME);
        let file_error = |source| ServeError::File { what: "read", path: path.clone(), source };
        let size = match fs::metadata(&path) {
            Ok(m) => m.len(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(State::default()),
            Err(e) => return Err(file_error(e)),
        };
        let damaged = |reason: &str| ServeError::DamagedState {
            path: path.clone(),
            reason: reason.to_owned(),
        };
        if size > STATE_MAX {
            return Err(damaged("it is too long"));
        }
        let text = fs::read(&path).map_err(file_error)?;
        parse(&text).map_err(damaged)
    }

    /// Writes it, durably: on return it is on disk, or the old one is.
    pub fn save(&self, dir: &Path) -> io::Result<()> {
        let json = serde_json::to_string(self)?;
        let crc = crc32c::crc32c(json.as_bytes());
        let temporary = dir.join(format!("{STATE_NAME}.new"));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        write!(file, "{MAGIC} {VERSION} {crc:08x}\n{json}\n")?;
        file.sync_all()?;
        fs::rename(&temporary, dir.join(STATE_NAME))?;
        File::open(dir)?.sync_all()
    }
}

fn parse(bytes: &[u8]) -> Result<State, &'static str> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not text")?;
    let (header, rest) = text.split_once('\n').ok_or("it has no second line")?;
    let mut words = header.split(' ');
    if words.next() != Some(MAGIC) {
        return Err("it does not begin as a guard's state");
    }
    if words.next() != Some(VERSION) {
        return Err("it was written by a newer version");
    }
    let crc = words.next().and_then(|w| u32::from_str_radix(w, 16).ok()).ok_or("no checksum")?;
    let json = rest.strip_suffix('\n').ok_or("it is cut short")?;
    if crc32c::crc32c(json.as_bytes()) != crc {
        return Err("its checksum does not fit");
    }
    serde_json::from_str(json).map_err(|_| "its content cannot be read")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_it_wrote_and_names_damage() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(State::load(dir.path()).unwrap(), State::default());
        let state = State { fenced_below: Generation(7), database: Some("/data".into()) };
        state.save(dir.path()).unwrap();
        assert_eq!(State::load(dir.path()).unwrap(), state);

        let path = dir.path().join(STATE_NAME);
        let good = fs::read(&path).unwrap();
        for cut in 0..good.len() {
            assert!(parse(&good[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            // Only the checksum's own letter case may change without a change of meaning.
            let same = bad.eq_ignore_ascii_case(&good);
            assert!(same || parse(&bad).is_err(), "changed at {at}");
        }
        fs::write(&path, b"garbage").unwrap();
        let error = State::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("guard.state is damaged"), "{error}");
    }
}
