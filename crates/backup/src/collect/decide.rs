//! What may go: pure, from what was listed and what was read of it.
//!
//! Not knowing never deletes: where a root, or the parent of a live writer, cannot be read, everything that
//! it might need stays, and the plan says so.

use crate::{
    marks::{by_backup, is_forgotten},
    names::{self, BACKUPS, KEEPS, MARKS, PACKS, SEGMENTS, WRITERS},
    store::Listed,
    writer::LEASE,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What became of a writer, as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It published a backup with so many segments.
    Published(u32),
    /// It was given up.
    Revoked,
    /// This one goes on with what it stored.
    Adopted(String),
    /// One of both: its object cannot be read, and this is why.
    Unreadable(String),
}

/// A repository, as found. Each list was begun when the one before it was complete, in the order of
/// the fields up to `backups`: see the module above.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    pub(super) now_unix_ms: u64,
    pub(super) marks: Vec<Listed>,
    pub(super) packs: Vec<Listed>,
    pub(super) segments: Vec<Listed>,
    /// Lists of what backups use, in clear.
    pub(super) keeps: Vec<Listed>,
    pub(super) writers: Vec<Listed>,
    pub(super) backups: Vec<Listed>,
    /// Unfinished objects that no key leads to.
    pub(super) leftovers: Vec<Listed>,
    /// Of what is in `backups`.
    pub(super) fates: BTreeMap<String, Fate>,
    /// Who took over from a dead attempt, and was announced after `writers` was listed.
    pub(super) late: BTreeSet<String>,
    /// Parents of writers without an outcome; or why they are not known.
    pub(super) parents: BTreeMap<String, Result<Option<String>, String>>,
}

/// A writer that has been silent for longer than its lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silent {
    /// Its backup.
    pub id: String,
    /// For so long, ms.
    pub silent_ms: u64,
}

/// Backups whose packs stay, and what must be read to know these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Roots {
    /// Keys of segments.
    pub(super) segments: BTreeSet<String>,
    /// Why it is not known what else is needed.
    pub(super) unknown: Vec<String>,
}

/// What is removed, in this order; the marks only when all else is gone for good.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Writers that are given up first.
    pub revoke: Vec<Silent>,
    /// Half-written objects of processes that died.
    pub leftovers: Vec<Listed>,
    /// Blocks that no backup uses.
    pub packs: Vec<Listed>,
    /// Lists of files, and signs of life, of what was forgotten or given up.
    pub files: Vec<Listed>,
    /// Descriptions of what was forgotten.
    pub backups: Vec<Listed>,
    /// That it was forgotten.
    pub marks: Vec<Listed>,
    /// So many objects would go, and the store keeps them for a while yet: a later collection takes them.
    #[serde(default)]
    pub too_early: usize,
    /// Why things stay that nothing may need any more. Not empty: somebody has to look.
    pub blocked: Vec<String>,
}

impl Plan {
    /// Everything that is removed.
    pub fn all(&self) -> impl Iterator<Item = &Listed> {
        let lists = [&self.leftovers, &self.packs, &self.files, &self.backups, &self.marks];
        lists.into_iter().flatten()
    }

    /// How much that is.
    pub fn bytes(&self) -> u64 {
        self.all().map(|listed| listed.bytes).sum()
    }
}

fn lease_ms() -> u64 {
    u64::try_from(LEASE.as_millis()).expect("a lease is short")
}

impl View {
    fn is_old(&self, listed: &Listed) -> bool {
        self.now_unix_ms.saturating_sub(listed.written_unix_ms) > lease_ms()
    }

    /// When each writer gave its newest sign of life.
    fn signs(&self) -> BTreeMap<&str, u64> {
        let mut newest = BTreeMap::new();
        for listed in &self.writers {
            let Some(id) = names::owner(&listed.key, WRITERS) else { continue };
            let newest = newest.entry(id).or_insert(0);
            *newest = listed.written_unix_ms.max(*newest);
        }
        newest
    }

    fn forgotten(&self) -> BTreeSet<&str> {
        let marked = by_backup(&self.marks).into_iter();
        marked.filter(|(_, marks)| is_forgotten(marks.iter().copied())).map(|(id, _)| id).collect()
    }

    /// Writers that may still publish.
    pub(super) fn live(&self) -> BTreeSet<&str> {
        self.signs().into_keys().filter(|id| !self.fates.contains_key(*id)).collect()
    }

    /// Writers without an outcome, silent for longer than the lease.
    pub(super) fn silent(&self) -> Vec<Silent> {
        let signs = self.signs().into_iter().filter(|(id, _)| !self.fates.contains_key(*id));
        signs
            .map(|(id, newest)| (id, self.now_unix_ms.saturating_sub(newest)))
            .filter(|(_, silent_ms)| *silent_ms > lease_ms())
            .map(|(id, silent_ms)| Silent { id: id.to_owned(), silent_ms })
            .collect()
    }

    /// Parents of live writers.
    fn parents(&self) -> BTreeSet<&str> {
        let known = self.parents.iter().filter(|(id, _)| !self.fates.contains_key(*id));
        known.filter_map(|(_, parent)| parent.as_ref().ok()?.as_deref()).collect()
    }

    /// Is there a live writer whose parent is not known?
    fn unknown_parents(&self) -> Vec<String> {
        let unknown = |id: &&str| match self.parents.get(*id) {
            Some(Ok(_)) => None,
            Some(Err(why)) => Some(why.clone()),
            None => Some(format!("what the writer of {id} said of itself was not read")),
        };
        self.live().iter().filter_map(unknown).collect()
    }

    /// Which backups need their packs. Silent writers have been revoked by now.
    pub(super) fn roots(&self) -> Roots {
        let (forgotten, parents) = (self.forgotten(), self.parents());
        let mut roots = Roots { unknown: self.unknown_parents(), ..Roots::default() };
        let published = self.fates.keys().map(String::as_str);
        for id in published.chain(parents.iter().copied()).collect::<BTreeSet<_>>() {
            if forgotten.contains(id) && !parents.contains(id) {
                continue;
            }
            match self.fates.get(id) {
                Some(Fate::Published(count)) => {
                    roots.segments.extend((0..*count).map(|number| names::segment(id, number)));
                }
                Some(Fate::Revoked | Fate::Adopted(_)) => {}
                Some(Fate::Unreadable(why)) => roots.unknown.push(why.clone()),
                // A parent that was forgotten before its writer was announced is being removed:
                // the writer does not use it. What is left of it stays, all the same.
                None => {
                    let of = |l: &&Listed| names::owner(&l.key, SEGMENTS) == Some(id);
                    let left = self.segments.iter().filter(of);
                    roots.segments.extend(left.map(|l| l.key.clone()));
                }
            }
        }
        roots
    }

    /// Could any pack go? If not, the segments need not be read.
    pub(super) fn has_candidates(&self) -> bool {
        let (live, forgotten, parents) = (self.live(), self.forgotten(), self.parents());
        let is_root = |id: &str| match self.fates.get(id) {
            Some(Fate::Revoked | Fate::Adopted(_)) | None => false,
            Some(_) => !forgotten.contains(id) || parents.contains(id),
        };
        let owners = self.packs.iter().filter_map(|l| names::owner(&l.key, PACKS));
        owners.into_iter().any(|id| !live.contains(id) && !is_root(id))
    }

    /// What goes. `needed` are the keys of the packs that segments of roots name; none if that is
    /// not known, for the reasons given.
    pub(super) fn sweep(
        &self,
        revoke: Vec<Silent>,
        needed: Result<&BTreeSet<String>, Vec<String>>,
    ) -> Plan {
        let live = self.live();
        let old = |list: &[Listed]| -> Vec<Listed> {
            list.iter().filter(|l| self.is_old(l)).cloned().collect()
        };
        let mut plan = Plan { revoke, leftovers: old(&self.leftovers), ..Plan::default() };
        match needed {
            Ok(needed) => {
                let goes = |l: &&Listed| {
                    let id = self.known_form(l, PACKS);
                    id.is_some_and(|id| {
                        !live.contains(id) && self.is_settled(id, l) && !self.is_lent(id)
                    }) && !needed.contains(&l.key)
                };
                plan.packs = self.packs.iter().filter(goes).cloned().collect();
            }
            Err(why) => plan.blocked = why,
        }
        self.sweep_forgotten(&live, &mut plan);
        plan
    }

    /// Forgotten backups that nobody needs, and what is left of revoked writers.
    fn sweep_forgotten(&self, live: &BTreeSet<&str>, plan: &mut Plan) {
        let (forgotten, parents) = (self.forgotten(), self.parents());
        let parents_known = self.unknown_parents().is_empty();
        let going = |id: &str| parents_known && forgotten.contains(id) && !parents.contains(id);
        let goes = |l: &Listed, id: &str| {
            let dead = match self.fates.get(id) {
                Some(Fate::Revoked) => true,
                Some(Fate::Adopted(_)) => !self.is_lent(id),
                Some(_) => false,
                // Its announcement is gone, as is its outcome.
                None => {
                    parents_known
                        && !live.contains(id)
                        && !parents.contains(id)
                        && self.is_settled(id, l)
                }
            };
            dead || going(id)
        };
        let files = self.segments.iter().filter_map(|l| Some((l, self.known_form(l, SEGMENTS)?)));
        let signs = self.writers.iter().filter_map(|l| Some((l, self.known_form(l, WRITERS)?)));
        let keeps = self.keeps.iter().filter_map(|l| Some((l, names::owner(&l.key, KEEPS)?)));
        let files = files.chain(signs).chain(keeps).filter(|(l, id)| goes(l, id));
        plan.files = files.map(|(l, _)| l.clone()).collect();
        // Tombstones stay for ever: a writer may be paused for as long. So does what may be one.
        let ends =
            |id: &str| going(id) && matches!(self.fates.get(id), Some(Fate::Published(_)) | None);
        let described = self.backups.iter().filter(|l| {
            let id = names::owner(&l.key, BACKUPS);
            id.is_some_and(|id| ends(id) && self.fates.contains_key(id))
        });
        plan.backups = described.cloned().collect();
        let marks = self.marks.iter().filter(|l| {
            let id = names::owner(&l.key, MARKS);
            id.is_some_and(ends)
        });
        plan.marks = marks.cloned().collect();
    }

    /// Attempts that took over from dead ones, and of which nothing else is known.
    pub(super) fn unknown_adopters(&self) -> BTreeSet<String> {
        let signs = self.signs();
        let adopters = self.fates.values().filter_map(|fate| match fate {
            Fate::Adopted(by) => Some(by),
            _ => None,
        });
        let unknown =
            |by: &&String| !self.fates.contains_key(*by) && !signs.contains_key(by.as_str());
        adopters.filter(unknown).cloned().collect()
    }

    /// Does an attempt that may still publish go on with what this one stored?
    fn is_lent(&self, id: &str) -> bool {
        let (live, mut id) = (self.live(), id);
        // Each attempt takes over from older ones: this ends, unless somebody made a circle.
        for _ in 0..=self.fates.len() {
            let Some(Fate::Adopted(by)) = self.fates.get(id) else { return false };
            if live.contains(by.as_str()) || self.late.contains(by) {
                return true;
            }
            id = by;
        }
        true
    }

    /// An object whose owner left no trace may be of a writer whose announcement was lost: it is
    /// taken for garbage when it is older than the lease.
    fn is_settled(&self, id: &str, listed: &Listed) -> bool {
        self.fates.contains_key(id) || self.is_old(listed)
    }

    /// The owner, if it is an object as this version writes them: nothing else is touched.
    fn known_form<'a>(&self, listed: &'a Listed, prefix: &str) -> Option<&'a str> {
        let id = names::owner(&listed.key, prefix)?;
        let number = listed.key.strip_prefix(prefix)?.strip_prefix(id)?.strip_prefix('/')?;
        let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
        (is_number || listed.key == names::published(id)).then_some(id)
    }
}
