//! One pack.

use super::references::Places;
use crate::{
    Repository,
    seal::{HEADER_BYTES, Kind, Opener, Unpacker},
};
use std::collections::BTreeSet;

/// What is wrong with a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bad {
    pub(super) why: String,
    /// Offsets of the blocks that cannot be had; none: no block can.
    pub(super) places: Option<BTreeSet<u64>>,
}

/// Opens every frame, and compares the blocks that are wanted with what they must be.
pub(super) fn check_pack(
    repository: &Repository,
    name: &str,
    object: &[u8],
    wanted: &Places,
) -> Option<Bad> {
    let opener = match Opener::new(&repository.keys, Kind::Pack, name, object) {
        Ok(opener) => opener,
        Err(error) => return Some(Bad { why: error.to_string(), places: None }),
    };
    let mut unpacker = Unpacker::new();
    let mut why: Option<String> = None;
    let mut bad = BTreeSet::new();
    let mut checked = BTreeSet::new();
    let mut at = HEADER_BYTES as u64;
    while let Some(rest) = usize::try_from(at).ok().and_then(|at| object.get(at..))
        && !rest.is_empty()
    {
        match opener.open_with(at, rest, &mut unpacker) {
            Ok(Some(bytes)) => {
                let id = repository.block_id(unpacker.content());
                for ((_, length), ids) in wanted.range((at, 0)..=(at, u32::MAX)) {
                    if *length as usize != bytes || ids.iter().any(|wanted| *wanted != id) {
                        why.get_or_insert(format!("the block at {at} is not the one it must be"));
                        bad.insert(at);
                    }
                }
                checked.insert(at);
                at += bytes as u64;
                continue;
            }
            Ok(None) => why.get_or_insert(format!("{name} is damaged: it is cut short at {at}")),
            Err(error) => why.get_or_insert(error.to_string()),
        };
        // The blocks behind it are found without it.
        match wanted.range((at + 1, 0)..).next() {
            Some(((next, _), _)) => at = *next,
            None => break,
        }
    }
    let missed = wanted.keys().map(|(offset, _)| *offset).filter(|at| !checked.contains(at));
    bad.extend(missed);
    if let Some(first) = bad.first() {
        why.get_or_insert(format!("{name} is damaged: the block at {first} is missing"));
    }
    why.map(|why| Bad { why, places: Some(bad) })
}
