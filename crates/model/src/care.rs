//! What the record knows of repositories that need care: alarms that nobody has accepted, and keys that are
//! being replaced.

use crate::{
    backup::{BackupKey, BackupMade, Backups},
    command::{Rejected, refused},
};
use serde::{Deserialize, Serialize};

/// Alarms of a repository that are kept: the first ones tell where it began.
const ALARMS_MAX: usize = 8;

/// A backup with something odd about it that nobody has accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupAlarm {
    /// The backup.
    pub backup: String,
    /// When it was made, ms since 1970.
    pub at_unix_ms: u64,
    /// What is odd, in words.
    pub words: Vec<String>,
}

impl Backups {
    /// What a backup that was made has to say.
    pub(crate) fn raise(&mut self, repository: &str, made: &BackupMade, at_unix_ms: u64) -> String {
        if made.alarms.is_empty() {
            return String::new();
        }
        let alarms = self.alarms.entry(repository.to_owned()).or_default();
        if alarms.len() < ALARMS_MAX {
            let (backup, words) = (made.id.clone(), made.alarms.clone());
            alarms.push(BackupAlarm { backup, at_unix_ms, words });
        }
        format!(", with an alarm: {}", made.alarms.join("; "))
    }

    /// Somebody has looked into the alarms of a backup.
    pub(crate) fn accept(&mut self, repository: &str, backup: &str) -> Result<String, Rejected> {
        let alarms = self.alarms.get_mut(repository);
        let index = alarms.as_ref().and_then(|all| all.iter().position(|a| a.backup == backup));
        let (Some(alarms), Some(index)) = (alarms, index) else {
            return Err(refused(format!("there is no alarm of backup {backup} in {repository}")));
        };
        alarms.remove(index);
        if alarms.is_empty() {
            self.alarms.remove(repository);
        }
        Ok(format!("the alarm of backup {backup} in {repository} is accepted"))
    }

    /// A new key is about to open a repository, beside the old one.
    pub(crate) fn rotate(
        &mut self,
        repository: &str,
        next: &BackupKey,
    ) -> Result<String, Rejected> {
        if !self.repositories.contains_key(repository) {
            return Err(refused(format!("there is no repository `{repository}`")));
        }
        if let Some(order) = self.orders.get(repository) {
            return Err(refused(format!(
                "{} is making a backup in {repository}: wait until it is done",
                order.member
            )));
        }
        if self.files_are_written(repository) {
            return Err(refused(format!(
                "files are being backed up in {repository}: wait until that is done"
            )));
        }
        if self.next_keys.contains_key(repository) {
            return Err(refused(format!("the key of {repository} is being replaced already")));
        }
        self.next_keys.insert(repository.to_owned(), next.clone());
        Ok(format!("the key of repository {repository} is being replaced"))
    }

    /// The new key opens the repository, the old one nothing any more.
    pub(crate) fn rotated(
        &mut self,
        repository: &str,
        key: &BackupKey,
    ) -> Result<String, Rejected> {
        let known = self.repositories.get_mut(repository);
        let (Some(known), true) = (known, self.next_keys.get(repository) == Some(key)) else {
            return Err(refused(format!("the key of {repository} is not being replaced by this")));
        };
        known.key = key.clone();
        self.next_keys.remove(repository);
        Ok(format!("the key of repository {repository} was replaced"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::{Repository, StoreAt};

    fn backups() -> Backups {
        let repository = Repository {
            store: StoreAt::Folder("/backup".into()),
            members: Default::default(),
            key: BackupKey("old".into()),
            made_unix_ms: 1,
        };
        let repositories = [("main".to_owned(), repository)].into();
        Backups { repositories, ..Backups::default() }
    }

    #[test]
    fn the_first_alarms_are_kept_until_they_are_accepted() {
        let mut backups = backups();
        let made = |id: usize, alarms: &[&str]| BackupMade {
            id: format!("b{id}"),
            bytes: 1,
            stored_bytes: 1,
            took_ms: 1,
            alarms: alarms.iter().map(|words| (*words).to_owned()).collect(),
        };
        assert_eq!(backups.raise("main", &made(0, &[]), 1), "");
        for id in 1..20 {
            assert!(backups.raise("main", &made(id, &["odd"]), 1).contains("odd"));
        }
        assert_eq!(backups.alarms["main"].len(), ALARMS_MAX);
        assert!(backups.accept("main", "b9").is_err() && backups.accept("x", "b1").is_err());
        for id in 1..=ALARMS_MAX {
            backups.accept("main", &format!("b{id}")).unwrap();
        }
        assert!(backups.alarms.is_empty());
    }

    #[test]
    fn a_key_is_replaced_by_the_one_that_was_agreed_upon() {
        let mut backups = backups();
        let (next, other) = (BackupKey("next".into()), BackupKey("other".into()));
        assert!(backups.rotated("main", &next).is_err(), "nobody has said so");
        backups.rotate("main", &next).unwrap();
        assert!(backups.rotate("main", &other).is_err(), "one at a time");
        assert!(backups.rotated("main", &other).is_err());
        assert_eq!(backups.repositories["main"].key.0, "old");
        backups.rotated("main", &next).unwrap();
        assert_eq!(backups.repositories["main"].key, next);
        assert!(backups.next_keys.is_empty() && backups.rotated("main", &next).is_err());
    }
}
