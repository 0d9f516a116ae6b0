//! What is odd about a backup beside those before it, in words: pure. And what retention keeps until somebody
//! has looked.
//!
//! Who encrypts a database turns what packs well into what hardly packs at all. A backup sees that in its new
//! blocks, at no cost: their packed size is known, and so is that of the parent's blocks at the same place.
//! That much changes is no sign by itself: a usual load touches nearly every block of a small database.
//!
//! Limits: text of hexadecimal digits still packs; who encrypts slowly, or data that never packed, is not noticed.

use crate::{Backup, Reason, Stats, Verdict};
use std::collections::BTreeSet;

/// How many backups before it one is compared with.
pub const COMPARED: usize = 10;
/// Smaller blocks say nothing.
const BLOCK_MIN: usize = 8 << 10;
/// Less noise than this is never odd.
const NOISE_MIN: u64 = 8 << 20;
/// Nor is less than this share of all bytes.
const NOISE_SHARE_MIN: f64 = 0.05;
/// A smaller difference in size is never odd.
const SIZE_MIN: u64 = 32 << 20;
/// It is odd to grow so many times as much as ever before...
const GROWTH_TIMES: u64 = 10;
/// ...which is known after so many backups.
const GROWTH_KNOWN: usize = 3;

/// Does a block of so many bytes that was packed into `packed` look encrypted, or compressed already?
pub(crate) fn is_noise(bytes: usize, packed: u32) -> bool {
    bytes >= BLOCK_MIN && u64::from(packed) * 10 > bytes as u64 * 7
}

/// Did a block pack well?
pub(crate) fn packs_well(bytes: usize, packed: u32) -> bool {
    bytes >= BLOCK_MIN && u64::from(packed) * 2 < bytes as u64
}

fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

fn mb(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// What is odd about a backup. `before` are the backups before it that were fine, oldest first; `newest` is
/// the very last one, fine or not.
pub fn alarms(now: &Stats, newest: Option<&Stats>, before: &[Stats]) -> Vec<String> {
    let mut found = Vec::new();
    found.extend(noise(now, before));
    if let Some(newest) = newest {
        found.extend(size(now, newest, before));
    }
    found
}

/// Much that hardly packs is new, and that is not usual.
fn noise(now: &Stats, before: &[Stats]) -> Option<String> {
    if before.is_empty() {
        return None;
    }
    let sum = |of: fn(&Stats) -> u64| before.iter().map(of).sum::<u64>();
    let new = sum(|s| s.new_bytes);
    let is_odd = |bytes: u64, usual: f64| {
        bytes >= NOISE_MIN
            && share(bytes, now.bytes) >= NOISE_SHARE_MIN
            && share(bytes, now.new_bytes) >= 2.0 * usual + 0.1
    };
    let usual = share(sum(|s| s.noise_bytes), new);
    let turned = is_odd(now.turned_bytes, share(sum(|s| s.turned_bytes), new));
    if !turned && !is_odd(now.noise_bytes, usual) {
        return None;
    }
    let percent = |share: f64| (share * 100.0).round();
    let in_place = match turned {
        true => format!(", {} of it in place of what packed well", mb(now.turned_bytes)),
        false => String::new(),
    };
    Some(format!(
        "{} of {} that are new hardly pack ({} %; {} % are usual){in_place}: was it encrypted?",
        mb(now.noise_bytes),
        mb(now.new_bytes),
        percent(share(now.noise_bytes, now.new_bytes)),
        percent(usual),
    ))
}

fn size(now: &Stats, newest: &Stats, before: &[Stats]) -> Option<String> {
    let (was, is) = (mb(newest.bytes), mb(now.bytes));
    if now.bytes < newest.bytes / 2 && newest.bytes - now.bytes >= SIZE_MIN {
        return Some(format!("the database shrank from {was} to {is}"));
    }
    let steps = before.windows(2).map(|pair| pair[1].bytes.saturating_sub(pair[0].bytes));
    let usual = steps.max().unwrap_or(0);
    let growth = now.bytes.saturating_sub(newest.bytes);
    let is_odd = before.len() >= GROWTH_KNOWN
        && growth >= SIZE_MIN
        && growth >= newest.bytes / 2
        && growth / GROWTH_TIMES >= usual;
    is_odd.then(|| format!("the database grew from {was} to {is}; at most {} are usual", mb(usual)))
}

/// Keeps what is needed to look into alarms that nobody has accepted: the first of them, the last backup
/// before it, and the newest without an alarm. `plan` is oldest first.
pub(crate) fn keep(plan: &mut [Verdict], backups: &[Backup], accepted: &BTreeSet<String>) {
    let suspect = |id: &str| {
        !accepted.contains(id) && backups.iter().any(|b| b.id == id && !b.alarms.is_empty())
    };
    let Some(first) = plan.iter().position(|verdict| suspect(&verdict.id)) else { return };
    let newest = plan.iter().rposition(|verdict| !suspect(&verdict.id));
    plan[first].reasons.push(Reason::Alarm);
    let before = first.checked_sub(1);
    for index in before.into_iter().chain(newest.filter(|newest| Some(*newest) != before)) {
        plan[index].reasons.push(Reason::BeforeAlarm);
    }
}

#[cfg(test)]
mod tests;
