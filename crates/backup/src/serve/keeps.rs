//! Which older packs a backup uses, in clear, so that whoever keeps them knows without the key: the
//! object `keeps/BACKUP`. A line for each backup that they are of: its name, and their numbers.
//!
//! ```text
//! 20260131T030000Z-0a1b2c3d 0-57,60
//! ```

use crate::names::{self, KEEPS};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
    fs,
    path::Path,
    sync::{Mutex, PoisonError},
};

/// A list that is larger is not read, and keeps everything: one of 10 TB of scattered packs is smaller.
const BYTES_MAX: u64 = 64 << 20;

/// Packs, by whose they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Keeps(BTreeMap<String, BTreeSet<u32>>);

impl Keeps {
    /// Adds a pack.
    pub(crate) fn add(&mut self, owner: &str, number: u32) {
        match self.0.get_mut(owner) {
            Some(numbers) => drop(numbers.insert(number)),
            None => drop(self.0.insert(owner.to_owned(), BTreeSet::from([number]))),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As it is stored.
    pub(crate) fn to_text(&self) -> String {
        let mut text = String::new();
        for (owner, numbers) in &self.0 {
            let mut ranges: Vec<(u32, u32)> = Vec::new();
            for number in numbers {
                match ranges.last_mut() {
                    Some((_, last)) if *last + 1 == *number => *last = *number,
                    _ => ranges.push((*number, *number)),
                }
            }
            let _ = write!(text, "{owner} ");
            for (index, (first, last)) in ranges.iter().enumerate() {
                let comma = if index == 0 { "" } else { "," };
                let _ = match first == last {
                    true => write!(text, "{comma}{first}"),
                    false => write!(text, "{comma}{first}-{last}"),
                };
            }
            text.push('\n');
        }
        text
    }
}

/// The same as it is looked things up in: ranges, however many numbers a line claims to have.
#[derive(Debug, Default)]
struct Ranges(HashMap<String, Vec<(u32, u32)>>);

impl Ranges {
    fn read(text: &str) -> Option<Self> {
        let mut owners: HashMap<String, Vec<(u32, u32)>> = HashMap::new();
        for line in text.lines() {
            let (owner, numbers) = line.split_once(' ')?;
            let ranges = owners.entry(owner.to_owned()).or_default();
            for range in numbers.split(',') {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                ranges.push((first.parse().ok()?, last.parse().ok()?));
            }
        }
        Some(Self(owners))
    }

    fn have(&self, owner: &str, number: u32) -> bool {
        let ranges = self.0.get(owner).map_or(&[][..], Vec::as_slice);
        ranges.iter().any(|(first, last)| (*first..=*last).contains(&number))
    }
}

/// What lists of backups say, each read once.
#[derive(Default)]
pub(super) struct Young(Mutex<HashMap<String, Option<Ranges>>>);

impl Young {
    /// The backup for which a pack is kept, of those that `counts` says count.
    pub(super) fn keeper_of(
        &self,
        root: &Path,
        pack: &str,
        counts: impl Fn(&str) -> bool,
    ) -> std::io::Result<Option<String>> {
        let Some((owner, number)) = names::pack_of(pack) else { return Ok(None) };
        let entries = match fs::read_dir(root.join(KEEPS)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            entries => entries?,
        };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if !counts(&name) {
                known.remove(&name);
                continue;
            }
            if !known.contains_key(&name) {
                let path = root.join(KEEPS).join(&name);
                let is_small = fs::metadata(&path).is_ok_and(|file| file.len() <= BYTES_MAX);
                let text = if is_small { fs::read_to_string(&path).ok() } else { None };
                // One that cannot be read may name anything.
                known.insert(name.clone(), text.as_deref().and_then(Ranges::read));
            }
            let list = known.get(&name).and_then(Option::as_ref);
            if list.is_none_or(|list| list.have(owner, number)) {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_back_and_bad_ones_are_not() {
        let mut keeps = Keeps::default();
        assert!(keeps.is_empty());
        for number in [0, 1, 2, 7, 9, 10, u32::MAX] {
            keeps.add("a", number);
        }
        keeps.add("b", 3);
        let text = keeps.to_text();
        assert_eq!(text, "a 0-2,7,9-10,4294967295\nb 3\n");
        let ranges = Ranges::read(&text).unwrap();
        assert!(ranges.have("a", 10) && ranges.have("b", 3) && ranges.have("a", u32::MAX));
        assert!(!ranges.have("a", 3) && !ranges.have("c", 0));
        for bad in ["a", "a x", "a 1-", "a 1,,2", "a 99999999999", "a 1 2"] {
            assert!(Ranges::read(bad).is_none(), "{bad}");
        }
    }
}
