//! A repository, as it is named in the record and handed to those who work with it.

use crate::Result;
use sempre_backup::{Folder, Repository, Secret, Store};
use sempre_model::backup::{BackupKey, StoreAt};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A repository, and what opens it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub store: StoreAt,
    /// What opens it.
    pub key: BackupKey,
}

impl Place {
    /// Its store.
    pub fn store(&self) -> Arc<dyn Store> {
        match &self.store {
            StoreAt::Folder(path) => Arc::new(Folder::new(path)),
        }
    }

    /// Opens it.
    pub async fn open(&self) -> Result<Repository> {
        Ok(Repository::open(self.store(), &Secret::from_text(&self.key.0)?).await?)
    }
}
