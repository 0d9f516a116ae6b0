//! A repository, as it is named in the record and handed to those who work with it.

use crate::Result;
use sempre_backup::{
    Error as StoreError, Folder, Patience, Remote, Repository, S3, S3Config, Secret, Store,
};
use sempre_files::Files;
use sempre_model::{
    Record,
    backup::{BackupKey, Bucket, StoreAt},
};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, sync::Arc};

/// A repository, and what opens it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub store: StoreAt,
    /// What opens it.
    pub key: BackupKey,
    /// What opens it instead, once that is done: its key is being replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_key: Option<BackupKey>,
    /// How the member that serves it is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reach: Option<Reach>,
}

/// How another member is reached, and by whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// Its addresses.
    pub hosts: Vec<String>,
    /// Its port for other members.
    pub port: u16,
    /// The folder with the certificate of who asks, and its key. Each machine has its own.
    pub tls: PathBuf,
}

impl Reach {
    /// How the member is reached that serves this, if one does, by whose certificate is in the folder `tls`.
    pub fn of(at: &StoreAt, record: &Record, tls: PathBuf) -> Option<Self> {
        let StoreAt::Member(at) = at else { return None };
        let member = record.member(&at.member)?;
        let hosts = member.paths.iter().map(|path| path.host.clone()).collect();
        Some(Self { hosts, port: member.ports.peer, tls })
    }
}

impl Place {
    /// Its store.
    pub fn store(&self) -> Result<Arc<dyn Store>> {
        store(&self.store, self.reach.as_ref())
    }

    /// Opens it.
    pub async fn open(&self) -> Result<Repository> {
        let (store, key) = (self.store()?, Secret::from_text(&self.key.0)?);
        match (Repository::open(store.clone(), &key).await, &self.next_key) {
            (Err(sempre_backup::Error::WrongKey { .. }), Some(next)) => {
                Ok(Repository::open(store, &Secret::from_text(&next.0)?).await?)
            }
            (opened, _) => Ok(opened?),
        }
    }
}

impl Place {
    /// Its files.
    pub fn files(&self) -> Result<Files> {
        let next_key = self.next_key.as_ref().map(|next| Secret::from_text(&next.0)).transpose()?;
        Ok(Files::new(self.store()?, Secret::from_text(&self.key.0)?).or_key(next_key))
    }
}

/// Amazon's own default.
const REGION: &str = "us-east-1";

fn store(at: &StoreAt, reach: Option<&Reach>) -> Result<Arc<dyn Store>> {
    Ok(match at {
        StoreAt::Folder(path) => Arc::new(Folder::new(path)),
        StoreAt::S3(bucket) => Arc::new(s3(bucket)?),
        StoreAt::Member(_) => Arc::new(remote(at, reach)?),
    })
}

fn remote(at: &StoreAt, reach: Option<&Reach>) -> Result<Remote> {
    let (StoreAt::Member(on), Some(reach)) = (at, reach) else {
        return Err(StoreError::Refused(format!(
            "{at} cannot be asked for: its member is not in the cluster, or this machine is not. Where the folder is, `--folder` with the key opens it"
        ))
        .into());
    };
    let Reach { hosts, port, tls } = reach.clone();
    Ok(Remote::new(on.member.clone(), hosts, port, tls, on.folder.clone()))
}

fn s3(at: &Bucket) -> Result<S3> {
    let config = S3Config {
        endpoint: at.endpoint.clone(),
        region: at.region.clone().unwrap_or_else(|| REGION.to_owned()),
        bucket: at.bucket.clone(),
        prefix: at.prefix.clone(),
        access_key_id: at.access_key_id.clone(),
        secret_access_key: at.secret_access_key.0.clone(),
        session_token: None,
        ca_pem: at.ca_pem.clone(),
        allow_http: at.allow_http,
    };
    Ok(S3::new(&config, Patience::default())?)
}

/// The store of a repository that is to be made. One that would let two writers both succeed is
/// refused.
pub async fn new_store(at: &StoreAt, reach: Option<&Reach>) -> Result<Arc<dyn Store>> {
    if let StoreAt::Member(_) = at {
        remote(at, reach)?.look().await?;
    }
    if let StoreAt::S3(bucket) = at {
        s3(bucket)?.probe().await?;
    }
    store(at, reach)
}
