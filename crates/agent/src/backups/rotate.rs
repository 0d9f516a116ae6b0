//! Replacing the key of a repository: agreed upon first, so that the record has the one that opens it, whoever
//! dies in between.

use super::orders::{Answer, Orders, open};
use sempre_api::{ActionError, codes};
use sempre_backup::Secret;
use sempre_model::{
    Record,
    backup::{BackupChange, BackupKey},
};
use sempre_recovery::Place;

impl Orders {
    /// Replaces it, or goes on where an earlier try stopped; answers with the place and its new key.
    pub(super) async fn rotate(&self, record: &Record, name: &str) -> Answer {
        let known = self.place(record, name)?;
        // One that cannot be reached keeps its key.
        let mut opened = open(&known).await?;
        let repository = name.to_owned();
        let next = match &known.next_key {
            Some(next) => next.clone(),
            None => {
                let next = BackupKey(Secret::random().to_text());
                let change =
                    BackupChange::Rotate { repository: repository.clone(), next: next.clone() };
                self.propose(change).await?;
                next
            }
        };
        let (old, new) = (secret(&known.key)?, secret(&next)?);
        opened.rotate(&old, &new).await.map_err(unfinished)?;
        let files =
            async { Ok::<_, sempre_recovery::Error>(known.files()?.change_key(&new).await?) };
        files.await.map_err(unfinished)?;
        self.propose(BackupChange::Rotated { repository, key: next.clone() }).await?;
        let place = Place { key: next, next_key: None, ..known };
        Ok(serde_json::to_value(place).unwrap_or_default())
    }
}

fn secret(key: &BackupKey) -> Result<Secret, ActionError> {
    Secret::from_text(&key.0).map_err(unfinished)
}

fn unfinished(error: impl std::fmt::Display) -> ActionError {
    let why = format!("{error}; the same command goes on with it");
    codes::REPOSITORY.error("the key is not replaced yet", why)
}
