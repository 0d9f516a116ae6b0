//! A repository, opened: objects of a store, sealed and opened by its keys.

use crate::{
    Error, Keys, Result, Secret, Store,
    names::{self, IDENTITY, KEYS, REPOSITORY},
    seal::{self, FORMAT, Kind},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Small objects are packed like this: they are few.
const SMALL_LEVEL: i32 = 3;

/// What stands in clear in a repository.
#[derive(Debug, Serialize, Deserialize)]
struct Plain {
    format: u16,
    id: String,
}

/// Whose repository it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster's random id.
    pub cluster_id: String,
    /// Its name.
    pub cluster: String,
    /// PostgreSQL's own id of the data.
    pub system_identifier: u64,
    /// When the repository was made, ms since 1970.
    pub created_unix_ms: u64,
    /// Keys the ids of blocks, so that they tell nothing of what is in them.
    pub(crate) block_key: [u8; 32],
}

impl Identity {
    /// Of a repository that is yet to be made.
    pub fn new(cluster_id: &str, cluster: &str, system_identifier: u64, now_unix_ms: u64) -> Self {
        Self {
            cluster_id: cluster_id.to_owned(),
            cluster: cluster.to_owned(),
            system_identifier,
            created_unix_ms: now_unix_ms,
            block_key: rand::random(),
        }
    }
}

/// A repository, opened. Clones share everything.
#[derive(Clone, Debug)]
pub struct Repository {
    /// Where its objects are.
    pub store: Arc<dyn Store>,
    pub(crate) keys: Arc<Keys>,
    identity: Arc<Identity>,
}

impl Repository {
    /// Makes a repository in an empty store, or goes on where an earlier try with this key stopped.
    pub async fn create(
        store: Arc<dyn Store>,
        backup_key: &Secret,
        identity: Identity,
    ) -> Result<Self> {
        let first_key = names::key(1, &backup_key.fingerprint());
        let begun = |key: &String| *key == first_key || key == IDENTITY;
        let there = store.list("").await?.into_iter().map(|listed| listed.key);
        if let Some(there) = there.into_iter().find(|key| !begun(key)) {
            let name = store.name();
            return Err(Error::Refused(format!(
                "{name} is not empty (there is {there}): a repository is made in an empty place"
            )));
        }
        let epoch = Secret::random();
        let keys = Arc::new(Keys::single(1, epoch.clone()));
        let mut repository = Self { keys, identity: Arc::new(identity), store };
        match repository.wrap(1, &epoch, backup_key).await {
            Err(Error::Exists { .. }) => {
                repository.keys = Arc::new(unwrap_keys(&*repository.store, backup_key).await?);
            }
            put => put?,
        }
        match repository.put(Kind::Identity, IDENTITY, &*repository.identity).await {
            Err(Error::Exists { .. }) => {
                let found: Identity = repository.get(Kind::Identity, IDENTITY).await?;
                let wanted = std::mem::replace(&mut repository.identity, Arc::new(found));
                repository.expect_cluster(&wanted.cluster, wanted.system_identifier)?;
            }
            put => put?,
        }
        let plain = Plain { format: FORMAT, id: format!("{:032x}", rand::random::<u128>()) };
        repository.store.barrier().await?;
        // Last: what has no such object is no repository.
        repository.store.put_new(REPOSITORY, to_json(&plain)).await?;
        repository.store.barrier().await?;
        Ok(repository)
    }

    /// Opens a repository.
    pub async fn open(store: Arc<dyn Store>, backup_key: &Secret) -> Result<Self> {
        let plain = match store.get(REPOSITORY).await {
            Err(Error::Missing { .. }) => {
                return Err(Error::NoRepository { repository: store.name().to_owned() });
            }
            plain => plain?,
        };
        let plain: Plain =
            serde_json::from_slice(&plain).map_err(|e| Error::damaged(REPOSITORY, e))?;
        if plain.format > FORMAT {
            let key = REPOSITORY.to_owned();
            return Err(Error::Format { key, found: plain.format, known: FORMAT });
        }
        let keys = unwrap_keys(&*store, backup_key).await?;
        let identity = store.get(IDENTITY).await?;
        let identity = seal::open(&keys, Kind::Identity, IDENTITY, &identity)?;
        let identity = from_json(IDENTITY, &identity)?;
        Ok(Self { store, keys: Arc::new(keys), identity: Arc::new(identity) })
    }

    /// Whose it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Refuses a repository of another cluster.
    pub fn expect_cluster(&self, cluster: &str, system_identifier: u64) -> Result<()> {
        let found = &self.identity;
        if found.system_identifier == system_identifier {
            return Ok(());
        }
        Err(Error::Foreign {
            repository: self.store.name().to_owned(),
            found: format!("cluster {} (system {})", found.cluster, found.system_identifier),
            wanted: format!("cluster {cluster} (system {system_identifier})"),
        })
    }

    /// Stores the key of an epoch, wrapped.
    pub(crate) async fn wrap(&self, epoch: u32, key: &Secret, backup_key: &Secret) -> Result<()> {
        let name = names::key(epoch, &backup_key.fingerprint());
        let wrapping = Keys::single(0, backup_key.clone());
        let object = seal::seal(&wrapping, Kind::Key, &name, &key.0, SMALL_LEVEL);
        self.store.put_new(&name, object).await
    }

    /// Stores a small object as JSON.
    pub(crate) async fn put<T: Serialize>(&self, kind: Kind, name: &str, value: &T) -> Result<()> {
        let object = seal::seal(&self.keys, kind, name, &to_json(value), SMALL_LEVEL);
        self.store.put_new(name, object).await
    }

    /// Reads what [`Repository::put`] stored.
    pub(crate) async fn get<T: DeserializeOwned>(&self, kind: Kind, name: &str) -> Result<T> {
        let object = self.store.get(name).await?;
        from_json(name, &seal::open(&self.keys, kind, name, &object)?)
    }

    /// The id of a block.
    pub(crate) fn block_id(&self, block: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&self.identity.block_key, block).as_bytes()
    }
}

/// The keys of all epochs: a backup key that opens some of them only is not, or no longer, the right one.
pub(crate) async fn unwrap_keys(store: &dyn Store, backup_key: &Secret) -> Result<Keys> {
    let (wrapping, fingerprint) = (Keys::single(0, backup_key.clone()), backup_key.fingerprint());
    let (mut epochs, mut known) = (BTreeMap::new(), BTreeSet::new());
    for listed in store.list(KEYS).await? {
        let name = &listed.key;
        let parts = name.strip_prefix(KEYS).and_then(|rest| rest.split_once('.'));
        let parts = parts.and_then(|(epoch, by)| Some((epoch.parse::<u32>().ok()?, by)));
        let Some((epoch, by)) = parts else { continue };
        known.insert(epoch);
        if by != fingerprint {
            continue;
        }
        let object = store.get(name).await?;
        let key = seal::open(&wrapping, Kind::Key, name, &object)?;
        let key = key.try_into().map_err(|_| Error::damaged(name, "it is no key"))?;
        epochs.insert(epoch, Secret(key));
    }
    if epochs.is_empty() || epochs.len() < known.len() {
        return Err(Error::WrongKey { repository: store.name().to_owned() });
    }
    Ok(Keys { epochs })
}

fn to_json<T: Serialize>(value: &T) -> Bytes {
    serde_json::to_vec(value).expect("it has only what JSON can say").into()
}

fn from_json<T: DeserializeOwned>(name: &str, json: &[u8]) -> Result<T> {
    serde_json::from_slice(json).map_err(|e| Error::damaged(name, e))
}
