//! What operators ask about backups.

use super::{Reached, order_files, source};
use crate::{clock, looper::Shown, majority, service::not_proposed};
use sempre_api::{
    ActionError, BackupRequest,
    backup::{ListedBackup, Listing, Window},
    codes,
};
use sempre_backup::{Identity, Repository, Secret};
use sempre_consensus::Consensus;
use sempre_model::{
    Command, MemberId, Record,
    backup::{self as model, BackupChange, BackupKey, OnMember, StoreAt},
    command::Change,
};
use sempre_recovery::{Coverage, Place, new_store, windows};
use serde_json::{Value, json};
use std::{collections::BTreeSet, sync::Arc};
use tokio::sync::watch;

/// Answers.
pub struct Orders {
    /// The record.
    pub consensus: Arc<dyn Consensus>,
    /// What the loop shows.
    pub shown: watch::Receiver<Arc<Shown>>,
    /// How repositories are reached.
    pub reached: Reached,
}

pub(super) type Answer = Result<Value, ActionError>;

impl Orders {
    /// Answers one request.
    pub async fn answer(&self, request: BackupRequest) -> Answer {
        let shown = self.shown.borrow().clone();
        let record = &shown.record;
        match request {
            BackupRequest::Init { name, store, members } => {
                self.init(&shown, name, store, members).await
            }
            BackupRequest::Detach { name } => {
                let version = self.propose(BackupChange::RemoveRepository { name }).await?;
                Ok(json!({"version": version}))
            }
            BackupRequest::Run { repository, member, full } => {
                let repository = which(record, repository.as_deref())?.to_owned();
                let member = match member {
                    Some(member) => member,
                    None => source(&shown, &repository).ok_or_else(|| {
                        codes::NOT_BACKED_UP.error(
                            "no backup was begun",
                            format!("no member with a running database reaches {repository}"),
                        )
                    })?,
                };
                let order = BackupChange::Order {
                    repository: repository.clone(),
                    member: member.clone(),
                    full,
                };
                let version = self.propose(order).await?;
                Ok(json!({"repository": repository, "member": member, "version": version}))
            }
            BackupRequest::List { repository } => {
                let names: Vec<&str> = match repository.as_deref() {
                    Some(name) => vec![which(record, Some(name))?],
                    None => record.backups.repositories.keys().map(String::as_str).collect(),
                };
                let mut listings = Vec::new();
                for name in names {
                    listings.push(listing(&self.place(record, name)?).await?);
                }
                Ok(json!({"repositories": listings}))
            }
            BackupRequest::Forget { repository, backup } => {
                let opened = self.open(record, repository.as_deref()).await?;
                opened.forget(&backup).await.map_err(unusable)?;
                self.accepted(record, which(record, repository.as_deref())?, &backup).await?;
                Ok(json!({"forgotten": backup}))
            }
            BackupRequest::Unforget { repository, backup } => {
                let opened = self.open(record, repository.as_deref()).await?;
                let backup = opened.unforget(&backup).await.map_err(unusable)?;
                Ok(json!({"remembered": backup}))
            }
            BackupRequest::Hold { repository, backup, release, reason } => {
                let opened = self.open(record, repository.as_deref()).await?;
                match release {
                    true => opened.release(&backup).await.map_err(unusable)?,
                    false => opened.hold(&backup, &reason).await.map_err(unusable)?,
                }
                Ok(json!({"backup": backup, "held": !release}))
            }
            BackupRequest::Accept { repository, backup } => {
                let name = which(record, repository.as_deref())?;
                let opened = open(&self.place(record, name)?).await?;
                let backup = match opened.accept(&backup).await {
                    // It was forgotten; its alarm is still told.
                    Err(sempre_backup::Error::NoBackup { .. }) if told(record, name, &backup) => {
                        backup
                    }
                    accepted => accepted.map_err(unusable)?,
                };
                self.accepted(record, name, &backup).await?;
                Ok(json!({"accepted": backup}))
            }
            BackupRequest::RotateKey { repository } => {
                self.rotate(record, which(record, repository.as_deref())?).await
            }
            BackupRequest::Files(request) => self.answer_files(&shown, request).await,
            BackupRequest::Prove { repository, outcome } => {
                let version = self.propose(BackupChange::Prove { repository, outcome }).await?;
                Ok(json!({"version": version}))
            }
            BackupRequest::Key { repository } => {
                let place = self.place(record, which(record, repository.as_deref())?)?;
                Ok(serde_json::to_value(place).unwrap_or_default())
            }
        }
    }

    async fn init(
        &self,
        shown: &Shown,
        name: String,
        at: StoreAt,
        members: Vec<MemberId>,
    ) -> Answer {
        let what = format!("no repository {name} was made");
        let record = &shown.record;
        let identified = record.cluster.as_ref().and_then(|c| Some((c, c.system_identifier?)));
        let Some((cluster, system_identifier)) = identified else {
            return Err(codes::NOT_INITIALISED.error(what, "the cluster has no database yet"));
        };
        if record.backups.repositories.contains_key(&name) {
            return Err(codes::REFUSED.error(what, "there is one of this name already"));
        }
        if let StoreAt::Folder(folder) | StoreAt::Member(OnMember { folder, .. }) = &at
            && !folder.is_absolute()
        {
            let why = format!("{} is no absolute path", folder.display());
            return Err(codes::BAD_REQUEST.error(what, why));
        }
        let serves = match &at {
            StoreAt::Member(on) => Some(&on.member),
            _ => None,
        };
        let named = members.iter().chain(serves);
        if let Some(unknown) = named.into_iter().find(|m| record.member(m).is_none()) {
            return Err(codes::UNKNOWN_MEMBER.error(what, format!("there is no member {unknown}")));
        }
        majority::there(&self.shown).await?;
        let (key, now) = (Secret::random(), clock::now_unix_ms());
        let identity = Identity::new(&cluster.id, &cluster.name, system_identifier, now);
        let made = async {
            let (at, reach) = self.reached.store(record, at.clone());
            let store = new_store(&at, reach.as_ref()).await?;
            Ok::<_, sempre_recovery::Error>(Repository::create(store, &key, identity).await?)
        };
        made.await.map_err(|error| codes::REPOSITORY.error(what, error.to_string()))?;
        let repository = model::Repository {
            store: at,
            members: members.into_iter().collect::<BTreeSet<_>>(),
            key: BackupKey(key.to_text()),
            made_unix_ms: now,
        };
        let change = BackupChange::PutRepository { name: name.clone(), repository };
        let version = self.propose(change).await?;
        Ok(json!({"repository": name, "key_fingerprint": key.fingerprint(), "version": version}))
    }

    /// The alarms of a backup are told no longer.
    async fn accepted(&self, record: &Record, name: &str, backup: &str) -> Result<(), ActionError> {
        if told(record, name, backup) {
            let (repository, backup) = (name.to_owned(), backup.to_owned());
            self.propose(BackupChange::Accept { repository, backup }).await?;
        }
        Ok(())
    }

    pub(super) fn place(&self, record: &Record, name: &str) -> Result<Place, ActionError> {
        self.reached.place(record, name).ok_or_else(|| {
            codes::UNKNOWN_REPOSITORY.error("nothing was done", format!("there is no `{name}`"))
        })
    }

    async fn open(&self, record: &Record, name: Option<&str>) -> Result<Repository, ActionError> {
        open(&self.place(record, which(record, name)?)?).await
    }

    pub(super) async fn propose(&self, change: BackupChange) -> Result<u64, ActionError> {
        majority::there(&self.shown).await?;
        let change = Change::Backup(Box::new(change));
        let command = Command { at_unix_ms: clock::now_unix_ms(), change };
        let proposed = self.consensus.propose(command).await;
        proposed.map(|record| record.version).map_err(not_proposed)
    }
}

/// Does the record tell of an alarm of this backup?
fn told(record: &Record, repository: &str, backup: &str) -> bool {
    let alarms = record.backups.alarms.get(repository);
    alarms.is_some_and(|alarms| alarms.iter().any(|alarm| alarm.backup == backup))
}

/// The repository of this name, or the only one.
pub(super) fn which<'a>(record: &'a Record, name: Option<&str>) -> Result<&'a str, ActionError> {
    let known = &record.backups.repositories;
    let found = match name {
        Some(name) => known.get_key_value(name).map(|(name, _)| name),
        None if known.len() == 1 => known.keys().next(),
        None => None,
    };
    found.map(String::as_str).ok_or_else(|| {
        let names: Vec<_> = known.keys().map(String::as_str).collect();
        let why = match (name, names.is_empty()) {
            (_, true) => "the cluster has no repository yet".to_owned(),
            (Some(name), false) => format!("there is no `{name}`; there are {}", names.join(", ")),
            (None, false) => format!("there are {}: name one", names.join(", ")),
        };
        codes::UNKNOWN_REPOSITORY.error("nothing was done", why)
    })
}

pub(super) async fn open(place: &Place) -> Result<Repository, ActionError> {
    place.open().await.map_err(|error| {
        codes::REPOSITORY
            .error(format!("repository {} is not usable", place.name), error.to_string())
    })
}

fn unusable(error: sempre_backup::Error) -> ActionError {
    codes::REPOSITORY.error("nothing was done", error.to_string())
}

async fn listing(place: &Place) -> Result<Listing, ActionError> {
    let opened = open(place).await?;
    let read = async {
        let backups = opened.backups().await?;
        let segment_bytes = backups.last().map_or(16 << 20, |backup| backup.wal_segment_bytes);
        let coverage = Coverage::read(&opened, segment_bytes).await?;
        let held = opened.held().await?;
        let accepted = opened.accepted().await?;
        let stored = opened.store.list("").await?.iter().map(|listed| listed.bytes).sum();
        Ok::<_, sempre_recovery::Error>((backups, coverage, held, accepted, stored))
    };
    let (backups, coverage, held, accepted, stored_bytes) = read.await.map_err(|error| {
        codes::REPOSITORY
            .error(format!("repository {} is not usable", place.name), error.to_string())
    })?;
    let files = order_files::snapshots(place).await?;
    let windows = windows(&backups, &coverage, clock::now_unix_ms());
    let listed = |backup: sempre_backup::Backup| ListedBackup {
        held: held.contains(&backup.id),
        accepted: accepted.contains(&backup.id),
        rewritten_bytes: backup.stats.rewritten_bytes,
        noise_bytes: backup.stats.noise_bytes,
        checked_pages: backup.stats.checked_pages,
        alarms: backup.alarms.clone(),
        reach: coverage.reach_of(&backup),
        id: backup.id,
        parent: backup.parent,
        member: backup.member,
        began_unix_ms: backup.began_unix_ms,
        ended_unix_ms: backup.ended_unix_ms,
        timeline: backup.timeline,
        start: backup.start,
        stop: backup.stop,
        bytes: backup.stats.bytes,
        new_bytes: backup.stats.new_bytes,
        stored_bytes: backup.stats.stored_bytes,
        took_ms: backup.stats.took_ms,
    };
    Ok(Listing {
        repository: place.name.clone(),
        place: place.store.to_string(),
        backups: backups.into_iter().map(listed).collect(),
        windows: windows
            .into_iter()
            .map(|w| Window {
                from_unix_ms: w.from_unix_ms,
                to_unix_ms: w.to_unix_ms,
                open: w.open,
            })
            .collect(),
        stored_bytes,
        files,
    })
}
