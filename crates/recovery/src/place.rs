//! A repository, as it is named in the record and handed to those who work with it.

use crate::Result;
use sempre_backup::{Folder, Repository, Secret, Store};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, sync::Arc};

/// Where a repository's objects are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreAt {
    /// In a folder.
    Folder(PathBuf),
}

/// A repository, and what opens it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub store: StoreAt,
    /// The backup key, as text. Never shown.
    pub key: String,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Place({} in {:?})", self.name, self.store)
    }
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
        Ok(Repository::open(self.store(), &Secret::from_text(&self.key)?).await?)
    }
}
