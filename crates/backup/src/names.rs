//! Where things are in a repository. Names tell sizes and times to who can list them, no more.

/// In clear: the format, and a random id.
pub(crate) const REPOSITORY: &str = "repository";
/// Whose repository it is.
pub(crate) const IDENTITY: &str = "identity";
/// Wrapped epoch keys.
pub(crate) const KEYS: &str = "keys/";
/// Signs of life of writers.
pub(crate) const WRITERS: &str = "writers/";
/// What became of writers: published, or revoked.
pub(crate) const BACKUPS: &str = "backups/";
/// Files of backups.
pub(crate) const SEGMENTS: &str = "segments/";
/// Blocks of files.
pub(crate) const PACKS: &str = "packs/";
/// Generations below which writers of WAL acknowledge nothing.
pub(crate) const FENCES: &str = "fences/";
/// What was said of backups later.
pub(crate) const MARKS: &str = "marks/";
pub(crate) const FORGOTTEN: &str = "forgotten";
pub(crate) const REMEMBERED: &str = "remembered";
pub(crate) const HELD: &str = "held";
pub(crate) const ACCEPTED: &str = "accepted";
pub(crate) const RELEASED: &str = "released";
/// In clear: the packs of others that a backup uses.
pub(crate) const KEEPS: &str = "keeps/";

pub(crate) fn key(epoch: u32, fingerprint: &str) -> String {
    format!("{KEYS}{epoch:08}.{fingerprint}")
}

pub(crate) fn writer(backup: &str, beat: u32) -> String {
    format!("{WRITERS}{backup}/{beat:06}")
}

/// A second copy of what the writer published.
pub(crate) fn published(backup: &str) -> String {
    format!("{WRITERS}{backup}/published")
}

pub(crate) fn backup(backup: &str) -> String {
    format!("{BACKUPS}{backup}")
}

pub(crate) fn segment(backup: &str, number: u32) -> String {
    format!("{SEGMENTS}{backup}/{number:06}")
}

pub(crate) fn pack(backup: &str, number: u32) -> String {
    format!("{PACKS}{backup}/{number:08}")
}

pub(crate) fn keeps(backup: &str) -> String {
    format!("{KEEPS}{backup}")
}

pub(crate) fn fence(below: u64) -> String {
    format!("{FENCES}{below:020}")
}

/// Reads the name of a fence. What is there under another name was not put by anybody who knows what
/// it means.
pub(crate) fn fence_of(key: &str) -> Option<u64> {
    key.strip_prefix(FENCES)?.parse().ok()
}

/// Reads the name of a pack: whose, and which.
pub(crate) fn pack_of(key: &str) -> Option<(&str, u32)> {
    let (owner, number) = key.strip_prefix(PACKS)?.split_once('/')?;
    Some((owner, number.parse().ok()?))
}

pub(crate) fn mark(backup: &str, what: &str) -> String {
    format!("{MARKS}{backup}/{what}")
}

/// The first word behind `prefix`.
pub(crate) fn owner<'a>(key: &'a str, prefix: &str) -> Option<&'a str> {
    key.strip_prefix(prefix)?.split('/').next().filter(|word| !word.is_empty())
}
