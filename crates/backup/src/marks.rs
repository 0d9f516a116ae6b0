//! What was said of a backup after it was published: that it is to be forgotten, that it must be kept.

use crate::{
    Error, Repository, Result,
    manifest::Outcome,
    names::{self, ACCEPTED, BACKUPS, FORGOTTEN, HELD, MARKS, PACKS, RELEASED, REMEMBERED},
    seal::Kind,
    store::Listed,
};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Marks by the backup they are of.
pub(crate) fn by_backup(listed: &[Listed]) -> BTreeMap<&str, Vec<&str>> {
    let mut of: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for listed in listed {
        let words = listed.key.strip_prefix(MARKS).and_then(|rest| rest.split_once('/'));
        if let Some((id, mark)) = words {
            of.entry(id).or_default().push(mark);
        }
    }
    of
}

/// The number of the last mark that says this; the first has none in its name.
fn last<'a>(marks: impl Iterator<Item = &'a str>, word: &str) -> Option<u32> {
    let number = |mark: &str| match mark.strip_prefix(word)? {
        "" => Some(0),
        rest => rest.strip_prefix('.')?.parse().ok(),
    };
    marks.filter_map(number).max()
}

/// Was `yes` said, and not `no` after it? Of both at once, `yes` counts.
pub(crate) fn is_said<'a>(
    marks: impl Iterator<Item = &'a str> + Clone,
    yes: &str,
    no: &str,
) -> bool {
    let (said, unsaid) = (last(marks.clone(), yes), last(marks, no));
    said.is_some_and(|said| unsaid.is_none_or(|unsaid| said >= unsaid))
}

/// Is a backup with these marks under a hold? Of a hold and its end at once, the hold counts.
pub(crate) fn is_held<'a>(marks: impl Iterator<Item = &'a str> + Clone) -> bool {
    is_said(marks, HELD, RELEASED)
}

/// Is it to go? A hold that came as it was being forgotten wins, and so does taking that back.
pub(crate) fn is_forgotten<'a>(marks: impl Iterator<Item = &'a str> + Clone) -> bool {
    let was = last(marks.clone(), FORGOTTEN).is_some();
    was && !is_said(marks.clone(), REMEMBERED, FORGOTTEN) && !is_held(marks)
}

/// The mark that says `word` after all that was said of it and of its opposite.
fn next<'a>(marks: impl Iterator<Item = &'a str> + Clone, word: &str, opposite: &str) -> String {
    match last(marks.clone(), word).max(last(marks, opposite)) {
        None => word.to_owned(),
        Some(number) => format!("{word}.{}", number.saturating_add(1)),
    }
}

impl Repository {
    /// The marks of one backup.
    pub(crate) async fn marks(&self, backup: &str) -> Result<Vec<String>> {
        let prefix = format!("{MARKS}{backup}/");
        let listed = self.store.list(&prefix).await?;
        Ok(listed.iter().filter_map(|l| Some(l.key.strip_prefix(&prefix)?.to_owned())).collect())
    }

    /// The backups of which `is` holds, by their marks.
    async fn marked(&self, is: impl Fn(&[&str]) -> bool) -> Result<BTreeSet<String>> {
        let listed = self.store.list(MARKS).await?;
        let of = by_backup(&listed);
        Ok(of.into_iter().filter(|(_, marks)| is(marks)).map(|(id, _)| id.to_owned()).collect())
    }

    /// Backups that are no longer to be had; what they alone use goes with the next collection.
    pub(crate) async fn forgotten(&self) -> Result<BTreeSet<String>> {
        self.marked(|marks| is_forgotten(marks.iter().copied())).await
    }

    /// Backups under a legal hold.
    pub async fn held(&self) -> Result<BTreeSet<String>> {
        self.marked(|marks| is_held(marks.iter().copied())).await
    }

    /// Keeps a backup whatever retention says, until [`Repository::release`].
    pub async fn hold(&self, backup: &str, reason: &str) -> Result<()> {
        let id = self.backup(backup).await?.id;
        let before = self.marks(&id).await?;
        let is_new = !is_held(before.iter().map(String::as_str));
        if is_new {
            self.mark(&id, HELD, RELEASED, &reason).await?;
        }
        // A collection that began before this does not know of the hold: is it being forgotten, or
        // gone already? (In this order: its mark is removed last.)
        let marks = self.marks(&id).await?;
        let marks = || marks.iter().map(String::as_str);
        let is_going =
            last(marks(), FORGOTTEN).is_some() && !is_said(marks(), REMEMBERED, FORGOTTEN);
        if is_going || !self.is_published(&id).await? {
            if is_new {
                self.mark(&id, RELEASED, HELD, &()).await?;
            }
            return Err(Error::Refused(format!("backup {id} was forgotten meanwhile")));
        }
        Ok(())
    }

    /// Backups whose alarms somebody has looked into.
    pub async fn accepted(&self) -> Result<BTreeSet<String>> {
        self.marked(|marks| marks.contains(&ACCEPTED)).await
    }

    /// The alarms of a backup are no reason to worry; returns its whole name.
    pub async fn accept(&self, backup: &str) -> Result<String> {
        let backup = self.backup(backup).await?;
        match self.put(Kind::Mark, &names::mark(&backup.id, ACCEPTED), &()).await {
            Err(Error::Exists { .. }) => {}
            put => put?,
        }
        self.store.barrier().await?;
        Ok(backup.id)
    }

    async fn is_published(&self, id: &str) -> Result<bool> {
        Ok(self.store.list(BACKUPS).await?.iter().any(|l| l.key == names::backup(id)))
    }

    /// Says `word` of a backup, after all that was said before: a mark is never taken away, so that a
    /// store which keeps everything for a while need not make an exception. Somebody else may say the
    /// same just now.
    async fn mark<T: Serialize>(
        &self,
        id: &str,
        word: &str,
        opposite: &str,
        value: &T,
    ) -> Result<()> {
        let marks = self.marks(id).await?;
        let what = next(marks.iter().map(String::as_str), word, opposite);
        match self.put(Kind::Mark, &names::mark(id, &what), value).await {
            Err(Error::Exists { .. }) => {}
            put => put?,
        }
        self.store.barrier().await
    }

    /// Ends a hold.
    pub async fn release(&self, backup: &str) -> Result<()> {
        let id = self.known(backup, HELD).await?;
        match self.held().await?.contains(&id) {
            true => self.mark(&id, RELEASED, HELD, &()).await,
            false => Ok(()),
        }
    }

    /// Forgets a backup, even one whose description cannot be read. Refused while it is held.
    pub async fn forget(&self, backup: &str) -> Result<()> {
        let id = self.known(backup, FORGOTTEN).await?;
        let refused = || {
            Err(Error::Refused(format!(
                "backup {id} is under a hold: end it first (`sempre backup hold {id} --release`)"
            )))
        };
        if self.held().await?.contains(&id) {
            return refused();
        }
        let marks = self.marks(&id).await?;
        if !is_forgotten(marks.iter().map(String::as_str)) {
            self.mark(&id, FORGOTTEN, REMEMBERED, &()).await?;
        }
        // A hold set meanwhile counts, and keeps the collection from what it would have removed.
        if self.held().await?.contains(&id) {
            self.mark(&id, REMEMBERED, FORGOTTEN, &()).await?;
            return refused();
        }
        Ok(())
    }

    /// Takes it back that a backup was forgotten, if everything of it is still there.
    pub async fn unforget(&self, wanted: &str) -> Result<String> {
        let forgotten = self.forgotten().await?;
        let mut fitting: Vec<&String> =
            forgotten.iter().filter(|id| id.starts_with(wanted)).collect();
        let (Some(id), true) = (fitting.pop(), fitting.is_empty()) else {
            let there = forgotten.into_iter().collect();
            return Err(Error::NotForgotten { wanted: wanted.to_owned(), there });
        };
        self.mark(id, REMEMBERED, FORGOTTEN, &()).await?;
        // What a collection that began earlier has removed is gone.
        if let Err(error) = self.all_there(id).await {
            self.mark(id, FORGOTTEN, REMEMBERED, &()).await?;
            return Err(Error::Refused(format!("backup {id} cannot come back: {error}")));
        }
        Ok(id.clone())
    }

    /// Are the description, the lists and the packs of a backup in the repository?
    async fn all_there(&self, id: &str) -> Result<()> {
        let Outcome::Published(backup) = self.outcome(id).await? else {
            return Err(Error::Refused("it was given up".to_owned()));
        };
        let listed = self.store.list(PACKS).await?;
        let there: BTreeSet<&str> = listed.iter().map(|l| l.key.as_str()).collect();
        for number in 0..backup.sorted_segments.saturating_add(backup.late_segments) {
            for pack in self.packs_of(&names::segment(id, number)).await? {
                let key = pack.name();
                if !there.contains(key.as_str()) {
                    let repository = self.store.name().to_owned();
                    return Err(Error::Missing { key, repository });
                }
            }
        }
        Ok(())
    }

    /// The whole name of a backup: of one that can be read; of one that cannot, if it is written
    /// out; of one that has the mark already.
    async fn known(&self, wanted: &str, mark: &str) -> Result<String> {
        let marked = self.marks(wanted).await?.iter().any(|m| m == mark);
        if marked || self.catalog().await?.unreadable.contains_key(wanted) {
            return Ok(wanted.to_owned());
        }
        Ok(self.backup(wanted).await?.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_last_counts() {
        let held = |marks: &[&str]| is_held(marks.iter().copied());
        assert!(!held(&[]) && held(&["held"]) && !held(&["released"]));
        assert!(!held(&["held", "released.1"]) && held(&["held", "released.1", "held.2"]));
        assert!(!held(&["held", "held.2", "released.10"]), "by number, not by letters");
        assert!(held(&["held", "released.2", "held.2"]), "of both at once, the hold");
        assert!(!held(&["heldx", "held.", "held.x"]));
        let gone = |marks: &[&str]| is_forgotten(marks.iter().copied());
        assert!(!gone(&[]) && gone(&["forgotten"]) && !gone(&["forgotten", "held"]));
        assert!(gone(&["forgotten", "held", "released.1"]));
        assert!(!gone(&["forgotten", "remembered.1"]));
        assert!(gone(&["forgotten", "remembered.1", "forgotten.2"]));
        assert!(!gone(&["forgotten", "remembered.2", "forgotten.2"]), "of both at once, it stays");
        let marks = ["held", "released.1"];
        assert_eq!(next(marks.iter().copied(), HELD, RELEASED), "held.2");
        assert_eq!(next(marks.iter().copied(), FORGOTTEN, REMEMBERED), "forgotten");
    }
}
