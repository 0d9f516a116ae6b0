//! Copies of logical slots, before PostgreSQL 17: the slot's state file, and the snapshot that
//! decoding starts from, put into a stopped standby's data directory.
//!
//! PostgreSQL refuses to start at all with a state file that is damaged, one slot too many, or a
//! logical slot without `wal_level = logical`, so everything is checked before it is put there.

use crate::{
    Error, Instance, Result, Session, files,
    logical::{Xid, check_name},
    session::get,
    wal::segment_name,
};
use sempre_model::ids::{Lsn, Timeline};
use std::{fs, path::Path};

/// A state file is about 200 bytes; more than this is something else.
const STATE_MAX: usize = 64 << 10;
/// A snapshot holds the transactions under way, 4 bytes each; one larger is not carried.
const SNAPSHOT_MAX: i64 = 16 << 20;
/// The primary's slot may move on between reading its two files; then they are read again.
const READS_MAX: usize = 5;

/// First word of a state file.
const MAGIC: u32 = 0x0105_1CA1;
/// The checksum covers what follows it.
const CHECKED_FROM: usize = 8;
/// Where the slot's own data begins.
const DATA_AT: usize = 16;
/// Offsets below are the same from version 14 to 16.
const DATABASE_AT: usize = DATA_AT + 64;
const CATALOG_XMIN_AT: usize = DATA_AT + 76;
const RESTART_LSN_AT: usize = DATA_AT + 80;

/// A copy of a logical slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotCopy {
    /// The slot's name.
    pub name: String,
    /// WAL is needed from here on.
    pub restart_lsn: Lsn,
    /// Rows of the catalog are needed from here on.
    pub catalog_xmin: Xid,
    state: Vec<u8>,
    /// Without it, decoding from `restart_lsn` could miss changes of transactions that were under
    /// way there. A slot that has just been made has none, and needs none.
    snapshot: Option<Vec<u8>>,
}

impl Session {
    /// Copies a slot of this server as it is on disk, which is never newer than in memory.
    pub async fn copy_logical_slot(&self, name: &str) -> Result<SlotCopy> {
        check_name(name)?;
        let doing = "read a logical slot";
        let file = format!("pg_replslot/{name}/state");
        let mut before: Option<SlotCopy> = None;
        for _ in 0..READS_MAX {
            let row = self.row(doing, "SELECT pg_read_binary_file($1)", &[&file]).await?;
            let now = SlotCopy::parse(name, get(&row, 0, doing)?)?;
            match before {
                Some(copy) if copy.restart_lsn == now.restart_lsn => return Ok(copy),
                _ => {}
            }
            let sql = "SELECT pg_read_binary_file($1, 0, $2, true)";
            let most = SNAPSHOT_MAX + 1;
            let row = self.row(doing, sql, &[&snapshot_file(now.restart_lsn), &most]).await?;
            let snapshot: Option<Vec<u8>> = get(&row, 0, doing)?;
            if snapshot.as_ref().is_some_and(|s| s.len() as i64 > SNAPSHOT_MAX) {
                return Err(Error::Format {
                    what: format!("the snapshot of logical slot `{name}`"),
                    why: format!("it has more than {SNAPSHOT_MAX} bytes; try again later"),
                });
            }
            before = Some(SlotCopy { snapshot, ..now });
        }
        Err(Error::Format {
            what: format!("logical slot `{name}`"),
            why: "it moves on too quickly to be copied; try again".into(),
        })
    }
}

impl SlotCopy {
    /// Checks a state file as PostgreSQL does at its start.
    fn parse(name: &str, state: Vec<u8>) -> Result<Self> {
        let bad = |why: &str| Error::Format {
            what: format!("the state of logical slot `{name}`"),
            why: why.to_owned(),
        };
        let word = |at: usize| -> Option<u32> {
            Some(u32::from_ne_bytes(state.get(at..at + 4)?.try_into().ok()?))
        };
        let long = |at: usize| -> Option<u64> {
            Some(u64::from_ne_bytes(state.get(at..at + 8)?.try_into().ok()?))
        };
        if state.len() > STATE_MAX {
            return Err(bad("it is too long"));
        }
        let length = word(12).ok_or_else(|| bad("it is too short"))? as usize;
        if word(0) != Some(MAGIC) || DATA_AT + length != state.len() {
            return Err(bad("it is no state file, or is cut off"));
        }
        if word(4) != Some(crc32c::crc32c(&state[CHECKED_FROM..])) {
            return Err(bad("its checksum is wrong"));
        }
        let own = state[DATA_AT..].split(|b| *b == 0).next().unwrap_or_default();
        let is_logical = word(DATABASE_AT).is_some_and(|oid| oid != 0);
        let (Some(catalog_xmin), Some(restart_lsn), true) =
            (word(CATALOG_XMIN_AT), long(RESTART_LSN_AT), is_logical && own == name.as_bytes())
        else {
            return Err(bad("it is another slot's"));
        };
        Ok(Self {
            name: name.to_owned(),
            restart_lsn: Lsn(restart_lsn),
            catalog_xmin: Xid(catalog_xmin),
            state,
            snapshot: None,
        })
    }
}

impl Instance {
    /// Puts a copy of another member's logical slot into the stopped data directory, in the place
    /// of one of the same name. Write the configuration the server will start with first.
    ///
    /// The WAL from the slot's `restart_lsn` on must be here: a fresh copy of the cluster has it
    /// only after the slot's reader has read on for a while.
    pub fn install_logical_slot(&self, copy: &SlotCopy) -> Result<()> {
        let name = copy.name.as_str();
        self.refuse_running("put a logical slot into")?;
        let refuse = |why: String| Error::DataDir {
            doing: "put a logical slot into",
            data_dir: self.layout.data_dir.clone(),
            why,
        };
        if !self.has_wal(copy.restart_lsn)? {
            return Err(refuse(format!(
                "slot `{name}` needs WAL from {} on, which is not here; try again when its reader has read on",
                copy.restart_lsn
            )));
        }
        if self.configured("wal_level")?.as_deref() != Some("logical") {
            return Err(refuse(format!("slot `{name}` needs wal_level = logical")));
        }
        let slots = self.layout.data_dir.join("pg_replslot");
        let dir = slots.join(name);
        let most = self.configured("max_replication_slots")?.and_then(|v| v.parse().ok());
        let present = fs::read_dir(&slots).map_err(Error::io("read", &slots))?.count();
        if !dir.exists() && most.is_none_or(|most: usize| present >= most) {
            return Err(refuse(format!(
                "it has {present} replication slots, and max_replication_slots is {}",
                most.unwrap_or(0)
            )));
        }
        if let Some(snapshot) = &copy.snapshot {
            let file = self.layout.data_dir.join(snapshot_file(copy.restart_lsn));
            files::write_bytes_atomically(&file, snapshot)?;
        }
        // PostgreSQL removes folders of this name at a start: an unfinished one does no harm.
        let work = slots.join(format!("{name}.tmp"));
        files::remove_tree(&work)?;
        files::private_dir(&work)?;
        files::write_bytes_atomically(&work.join("state"), &copy.state)?;
        files::remove_tree(&dir)?;
        fs::rename(&work, &dir).map_err(Error::io("put in place", &dir))?;
        files::sync_dir(&slots)
    }

    /// The logical slots in the stopped data directory.
    pub fn installed_logical_slots(&self) -> Result<Vec<String>> {
        let slots = self.layout.data_dir.join("pg_replslot");
        let entries = fs::read_dir(&slots).map_err(Error::io("read", &slots))?;
        let is_logical = |dir: &Path| {
            let state = fs::read(dir.join("state")).unwrap_or_default();
            state.get(DATABASE_AT..DATABASE_AT + 4).is_some_and(|oid| oid != [0; 4])
        };
        Ok(entries
            .flatten()
            .filter(|e| is_logical(&e.path()))
            .filter_map(|e| e.file_name().into_string().ok())
            .filter(|name| check_name(name).is_ok())
            .collect())
    }

    /// Removes a logical slot from the stopped data directory: without `wal_level = logical`, the
    /// server would not start with it.
    pub fn remove_logical_slot(&self, name: &str) -> Result<()> {
        check_name(name)?;
        self.refuse_running("remove a logical slot from")?;
        let slots = self.layout.data_dir.join("pg_replslot");
        files::remove_tree(&slots.join(name))?;
        files::sync_dir(&slots)
    }

    /// Is the WAL at this position here, on whichever timeline?
    pub fn has_wal(&self, at: Lsn) -> Result<bool> {
        let bytes = self.control_data()?.wal_segment_bytes;
        let wanted = segment_name(Timeline(0), at.0 / bytes, bytes);
        let dir = self.wal_dir();
        let mut entries = fs::read_dir(&dir).map_err(Error::io("read", &dir))?.flatten();
        Ok(entries.any(|e| e.file_name().to_str().and_then(|n| n.get(8..)) == wanted.get(8..)))
    }

    /// What our configuration file says of a parameter: its last line counts.
    fn configured(&self, parameter: &str) -> Result<Option<String>> {
        let file = self.config_file();
        let text = fs::read_to_string(&file).map_err(Error::io("read", &file))?;
        let line = |line: &str| {
            let (name, value) = line.split_once('=')?;
            (name.trim() == parameter).then(|| value.trim().trim_matches('\'').to_owned())
        };
        Ok(text.lines().rev().find_map(line))
    }
}

fn snapshot_file(at: Lsn) -> String {
    format!("pg_logical/snapshots/{:X}-{:X}.snap", at.0 >> 32, at.0 & 0xFFFF_FFFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(name: &str) -> Vec<u8> {
        let mut state = vec![0; DATA_AT + 184];
        state[0..4].copy_from_slice(&MAGIC.to_ne_bytes());
        state[8..12].copy_from_slice(&2u32.to_ne_bytes());
        state[12..16].copy_from_slice(&184u32.to_ne_bytes());
        state[DATA_AT..DATA_AT + name.len()].copy_from_slice(name.as_bytes());
        state[DATABASE_AT..DATABASE_AT + 4].copy_from_slice(&5u32.to_ne_bytes());
        state[CATALOG_XMIN_AT..CATALOG_XMIN_AT + 4].copy_from_slice(&731u32.to_ne_bytes());
        state[RESTART_LSN_AT..RESTART_LSN_AT + 8].copy_from_slice(&0x1_0000_00A8u64.to_ne_bytes());
        let crc = crc32c::crc32c(&state[CHECKED_FROM..]);
        state[4..8].copy_from_slice(&crc.to_ne_bytes());
        state
    }

    #[test]
    fn a_state_file_is_read_and_damage_is_found() {
        let copy = SlotCopy::parse("feed", state("feed")).unwrap();
        assert_eq!((copy.restart_lsn, copy.catalog_xmin), (Lsn(0x1_0000_00A8), Xid(731)));
        assert_eq!(snapshot_file(copy.restart_lsn), "pg_logical/snapshots/1-A8.snap");
        SlotCopy::parse("other", state("feed")).unwrap_err();
        for length in 0..state("feed").len() {
            SlotCopy::parse("feed", state("feed")[..length].to_vec()).unwrap_err();
        }
        for at in 0..state("feed").len() {
            let mut damaged = state("feed");
            damaged[at] ^= 1;
            SlotCopy::parse("feed", damaged).unwrap_err();
        }
    }
}
