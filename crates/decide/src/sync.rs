//! Rule 1: which changes of the sync set lose no acknowledged commit, and in which order.
//!
//! Two sets are in play: the *relied* one in the record (a failover fences |S| - k + 1 of it) and
//! the *enforced* one in the database (a commit waits for k' of S'). A commit survives if every
//! k'-subset of S' has a member in every (|S| - k + 1)-subset of S:
//!
//! * [`future_commits_safe`]: that holds for what the database enforces;
//! * [`past_commits_safe`]: what the old relied set guaranteed, the new one guarantees as well.
//!
//! Every change goes by the same three moves, of which some fall away:
//! 1. relied -> [`hull`]: the union of all sets with the smallest k; always safe;
//! 2. enforced -> target;
//! 3. relied -> target, once k of the target have flushed past the position sampled after 2.
//!
//! Where k falls with S this shrinks the record first and the database second; where k stays, the
//! database must go first. An order fixed once and for all would be wrong for one of the two.

use sempre_model::SyncSet;

/// How many of `from` are outside `of`.
fn outside(from: &SyncSet, of: &SyncSet) -> usize {
    from.members.difference(&of.members).count()
}

/// Does a failover that relies on `relied` find every commit the database acknowledges while it
/// enforces `enforced`?
///
/// `relied.k == 0` relies on nothing: no failover is possible, so nothing can be lost by one.
pub fn future_commits_safe(relied: &SyncSet, enforced: &SyncSet) -> bool {
    relied.k == 0 || enforced.k >= relied.k + outside(enforced, relied)
}

/// Does `new` find every commit that `old` finds, without looking at any position?
pub fn past_commits_safe(old: &SyncSet, new: &SyncSet) -> bool {
    new.k == 0 || old.k >= new.k + outside(old, new)
}

/// The set that may be relied on while the database goes from one of `enforced` to `target`.
pub fn hull(relied: &SyncSet, enforced: &[&SyncSet], target: &SyncSet) -> SyncSet {
    let all = || enforced.iter().copied().chain([relied, target]);
    SyncSet {
        members: all().flat_map(|s| s.members.iter().cloned()).collect(),
        k: all().map(|s| s.k).min().unwrap_or(0),
    }
}

/// How many members of S must be fenced before one of them may be promoted; none if no number
/// is enough.
pub fn fences_needed(relied: &SyncSet) -> Option<usize> {
    let members = relied.members.len();
    (relied.k >= 1 && relied.k <= members).then(|| members - relied.k + 1)
}

/// What the primary's database is to enforce under this record: the wanted set, as soon as a
/// failover by the relied one finds its commits.
pub fn enforceable<'a>(relied: &'a SyncSet, wanted: &'a SyncSet) -> &'a SyncSet {
    if future_commits_safe(relied, wanted) { wanted } else { relied }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sempre_model::MemberId;
    use std::collections::BTreeSet;

    fn set(bits: u8, k: usize) -> SyncSet {
        let members: BTreeSet<_> = (0..5u8)
            .filter(|i| bits & (1 << i) != 0)
            .map(|i| MemberId::new(format!("m{i}")).unwrap())
            .collect();
        let k = k.min(members.len());
        SyncSet { members, k }
    }

    fn subsets(s: &SyncSet, size: usize) -> Vec<BTreeSet<MemberId>> {
        let all: Vec<_> = s.members.iter().cloned().collect();
        (0u32..1 << all.len())
            .filter(|bits| bits.count_ones() as usize == size)
            .map(|bits| {
                all.iter()
                    .enumerate()
                    .filter(|(i, _)| bits & (1 << i) != 0)
                    .map(|(_, m)| m.clone())
                    .collect()
            })
            .collect()
    }

    /// The definition itself, by trying every pair of subsets.
    fn safe_by_definition(relied: &SyncSet, enforced: &SyncSet) -> bool {
        let Some(fences) = fences_needed(relied) else { return true };
        subsets(enforced, enforced.k).iter().all(|acknowledged| {
            subsets(relied, fences).iter().all(|fenced| !acknowledged.is_disjoint(fenced))
        })
    }

    #[test]
    fn the_formula_is_the_definition() {
        for relied in 0..32 {
            for enforced in 0..32 {
                for k in 0..=3 {
                    for k2 in 0..=3 {
                        let (relied, enforced) = (set(relied, k), set(enforced, k2));
                        assert_eq!(
                            future_commits_safe(&relied, &enforced),
                            safe_by_definition(&relied, &enforced),
                            "{relied:?} {enforced:?}"
                        );
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn every_change_goes_by_three_safe_moves(
            from in 0u8..32, k in 0usize..4, to in 0u8..32, k2 in 0usize..4,
        ) {
            let (from, target) = (set(from, k), set(to, k2));
            let hull = hull(&from, &[&from], &target);
            prop_assert!(past_commits_safe(&from, &hull));
            prop_assert!(future_commits_safe(&hull, &from));
            prop_assert!(future_commits_safe(&hull, &target));
            prop_assert!(future_commits_safe(&target, &target));
            prop_assert_eq!(enforceable(&hull, &target), &target);
        }
    }

    #[test]
    fn neither_fixed_order_is_right_for_every_change() {
        let (two, one, none) = (set(0b11, 1), set(0b01, 1), set(0, 0));
        // k stays: the record first would lose what only the other one flushed.
        assert!(!past_commits_safe(&two, &one));
        assert!(future_commits_safe(&two, &one), "so the database goes first");
        // k falls: the database first would lose what nobody flushed.
        assert!(!future_commits_safe(&one, &none));
        assert!(past_commits_safe(&one, &none), "so the record goes first");
    }
}
