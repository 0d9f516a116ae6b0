//! Checksums of PostgreSQL's pages, verified while they are copied (`storage/checksum_impl.h`).
//!
//! A page that is being written may be read half new, half old. So pages that look wrong are read again, a
//! moment after the file is done; what is wrong still is judged when the backup has ended: a page that was
//! written since the backup began is restored from the WAL, and nobody needs it. Its position in the WAL tells,
//! unless that is impossible as well: beyond the end of the backup.

use sempre_model::Lsn;
use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

/// Bytes of a page; servers with other ones are not looked at.
pub(super) const PAGE_BYTES: usize = 8192;
/// Whoever was writing a page is done after this time.
const SETTLED_AFTER: Duration = Duration::from_millis(50);
/// Wrong pages that are remembered: more are not worth telling.
const DOUBTS_MAX: usize = 100_000;
/// Wrong pages that are named.
const NAMED_MAX: usize = 8;

const LANES: usize = 32;
const PRIME: u32 = 16_777_619;
const OFFSETS: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

fn mixed(sum: u32, value: u32) -> u32 {
    let mixed = sum ^ value;
    mixed.wrapping_mul(PRIME) ^ (mixed >> 17)
}

/// The checksum of a page, by its number in the relation.
fn checksum(page: &[u8], number: u32) -> u16 {
    let mut sums = OFFSETS;
    for (row, words) in page.chunks_exact(4 * LANES).enumerate() {
        let mut values = [0; LANES];
        for (value, word) in values.iter_mut().zip(words.chunks_exact(4)) {
            *value = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        }
        if row == 0 {
            // The checksum itself, in the lower half of the third word.
            values[2] &= 0xFFFF_0000;
        }
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum = mixed(*sum, value);
        }
    }
    for sum in &mut sums {
        *sum = mixed(mixed(*sum, 0), 0);
    }
    let all = sums.iter().fold(0, |all, sum| all ^ sum) ^ number;
    u16::try_from(all % 65_535).expect("it is less") + 1
}

fn short(page: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([page[at], page[at + 1]])
}

/// Is it as it should be? Pages that were never used have no checksum.
fn is_right(page: &[u8], number: u32) -> bool {
    short(page, 14) == 0 || short(page, 8) == checksum(page, number)
}

/// The end of the last change of a page.
fn position(page: &[u8]) -> Lsn {
    let half = |at: usize| u64::from(short(page, at)) | u64::from(short(page, at + 2)) << 16;
    Lsn(half(0) << 32 | half(4))
}

/// The number of a relation's segment, by the path of its file; none: it has no pages.
fn segment_of(path: &str) -> Option<u32> {
    let is_in_database = ["base/", "global/", "pg_tblspc/"].iter().any(|b| path.starts_with(b));
    let name = path.rsplit('/').next()?;
    let (name, segment) = match name.split_once('.') {
        Some((name, segment)) => (name, segment.parse().ok()?),
        None => (name, 0),
    };
    let (digits, fork) = name.split_once('_').unwrap_or((name, "main"));
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let is_fork = ["main", "fsm", "vm", "init"].contains(&fork);
    (is_in_database && is_number && is_fork).then_some(segment)
}

/// A page whose checksum is wrong.
#[derive(Clone, Debug)]
struct Doubt {
    path: Arc<str>,
    number: u32,
    position: Lsn,
}

/// Pages whose checksums are wrong, of all threads.
#[derive(Debug, Default)]
pub(super) struct Doubts(Mutex<Vec<Doubt>>);

/// Pages that are wrong, and not because they were being written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WrongPages {
    /// How many.
    pub pages: u64,
    /// The first ones, in words.
    pub named: Vec<String>,
}

impl std::fmt::Display for WrongPages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (pages, named) = (self.pages, self.named.join(", "));
        let more = if self.named.len() as u64 == pages { "" } else { ", ..." };
        write!(f, "wrong checksums of {pages} pages: {named}{more}")
    }
}

impl Doubts {
    /// Those that were not written between `start` and `stop`.
    pub(super) fn judged(&self, start: Lsn, stop: Lsn) -> WrongPages {
        let doubts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wrong: Vec<_> =
            doubts.iter().filter(|doubt| !(start..=stop).contains(&doubt.position)).collect();
        wrong.sort_by_key(|doubt| (doubt.path.clone(), doubt.number));
        let word = |doubt: &&Doubt| format!("{} in {}", doubt.number, doubt.path);
        let named = wrong.iter().take(NAMED_MAX).map(word).collect();
        WrongPages { pages: wrong.len() as u64, named }
    }
}

/// Looks at the pages of one file.
pub(super) struct Pages {
    path: Arc<str>,
    first: u32,
    /// Offsets in the file.
    suspects: Vec<u64>,
    pub(super) checked: u64,
}

impl Pages {
    /// None if the file has none.
    pub(super) fn of(path: &str, segment_pages: u32) -> Option<Self> {
        let first = segment_of(path)?.checked_mul(segment_pages)?;
        Some(Self { path: path.into(), first, suspects: Vec::new(), checked: 0 })
    }

    fn number(&self, offset: u64) -> u32 {
        let number = u32::try_from(offset / PAGE_BYTES as u64).unwrap_or(u32::MAX);
        self.first.saturating_add(number)
    }

    /// A part of the file, from `offset` on, which is a multiple of a page.
    pub(super) fn look(&mut self, offset: u64, part: &[u8]) {
        for (index, page) in part.chunks_exact(PAGE_BYTES).enumerate() {
            let offset = offset + (index * PAGE_BYTES) as u64;
            if !is_right(page, self.number(offset)) {
                self.suspects.push(offset);
            }
            self.checked += 1;
        }
    }

    /// The file is done: what looked wrong is read again.
    pub(super) fn finish(self, file: &File, doubts: &Doubts) -> io::Result<()> {
        if self.suspects.is_empty() {
            return Ok(());
        }
        thread::sleep(SETTLED_AFTER);
        let mut page = [0; PAGE_BYTES];
        for offset in &self.suspects {
            match file.read_exact_at(&mut page, *offset) {
                // It was cut off meanwhile.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
                read => read?,
            }
            let number = self.number(*offset);
            if is_right(&page, number) {
                continue;
            }
            let doubt = Doubt { path: self.path.clone(), number, position: position(&page) };
            let mut doubts = doubts.0.lock().unwrap_or_else(PoisonError::into_inner);
            if doubts.len() < DOUBTS_MAX {
                doubts.push(doubt);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_with_pages_are_known_by_their_names() {
        for (path, segment) in [
            ("base/5/16384", Some(0)),
            ("base/5/16384.7", Some(7)),
            ("global/1262_fsm", Some(0)),
            ("pg_tblspc/16399/PG_15_202209061/5/16400_vm.1", Some(1)),
            ("base/5/16384_init", Some(0)),
            ("base/5/PG_VERSION", None),
            ("base/5/pg_filenode.map", None),
            ("global/pg_control", None),
            ("pg_xact/0000", None),
            ("base/5/16384_other", None),
        ] {
            assert_eq!(segment_of(path), segment, "{path}");
        }
    }

    #[test]
    fn a_page_that_was_written_meanwhile_is_not_wrong_and_an_impossible_one_is() {
        let doubts = Doubts::default();
        let doubt = |number: u32| Doubt {
            path: "base/5/1".into(),
            number,
            position: Lsn(u64::from(number)),
        };
        doubts.0.lock().unwrap().extend([20, 3, 10, 15, 21].map(doubt));
        let wrong = doubts.judged(Lsn(10), Lsn(20));
        let said = "wrong checksums of 2 pages: 3 in base/5/1, 21 in base/5/1";
        assert_eq!(wrong.to_string(), said);
    }
}
