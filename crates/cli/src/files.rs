//! `sempre backup files ...`, and what other commands do for files.

use crate::{
    arguments::{FilesTask, RestoreHow},
    connect::{self, Scene},
    fail::Fail,
    restore, show,
    terminal::Bar,
};
use nix::unistd::Uid;
use sempre_api::{
    BackupRequest, Client,
    backup::{FilesRequest, FilesStatus},
    codes,
    units::{show_bytes, show_ms, show_time},
};
use sempre_backup::{Progress, Retention};
use sempre_model::backup::StoreAt;
use sempre_recovery::{FilesError, Place};
use serde_json::{Value, json};
use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// How long a member may take to answer.
const ASK_WITHIN: Duration = Duration::from_secs(60);
/// How often it is looked how far a backup is.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Does it.
pub async fn run(scene: &Scene, client: &Client, task: FilesTask) -> Result<(), Fail> {
    match task {
        FilesTask::Add { name, member, paths, excludes, repository } => {
            let message = format!("files {name} of {member} are backed up from now on\n");
            let next = format!(
                "next: `sempre backup run --files {name}` makes the first backup; policy `backup_interval_ms` makes the others"
            );
            let request = FilesRequest::Add { name, repository, member, paths, excludes };
            ask(scene, client, request, &message).await?;
            eprintln!("{next}");
            Ok(())
        }
        FilesTask::Remove { name } => {
            let message = format!("files {name} are no longer backed up; their snapshots stay\n");
            ask(scene, client, FilesRequest::Remove { name }, &message).await
        }
        FilesTask::List => {
            let status = client.status().await?;
            let all: Vec<FilesStatus> =
                status.repositories.into_iter().flat_map(|repository| repository.files).collect();
            match scene.json {
                true => show::print_json(&json!({"files": all})),
                false => show::print(&table(&all)),
            }
            Ok(())
        }
    }
}

async fn ask(
    scene: &Scene,
    client: &Client,
    request: FilesRequest,
    message: &str,
) -> Result<(), Fail> {
    let answer: Value = client.backups(&BackupRequest::Files(request), ASK_WITHIN).await?;
    match scene.json {
        true => show::print_json(&answer),
        false => show::print(message),
    }
    Ok(())
}

fn table(all: &[FilesStatus]) -> String {
    if all.is_empty() {
        return "no files are backed up: `sempre backup files add NAME --path PATH --member MEMBER` adds some\n".to_owned();
    }
    let mut text = String::new();
    for files in all {
        let state = match (&files.order, &files.ended, files.newest_unix_ms) {
            (Some(_), ..) => "being backed up".to_owned(),
            (None, Some(ended), _) if ended.outcome.is_err() => "the last backup failed".to_owned(),
            (None, _, Some(newest)) => format!("backed up at {}", show_time(newest)),
            _ => "not backed up yet".to_owned(),
        };
        let set = &files.set;
        text += &format!("{}  {} → {}  {state}\n", files.name, set.member, set.repository);
        set.paths.iter().for_each(|path| text += &format!("  {}\n", path.display()));
        set.excludes.iter().for_each(|glob| text += &format!("  without {glob}\n"));
    }
    text
}

/// `sempre backup run --files NAME`.
pub async fn make(scene: &Scene, client: &Client, name: String, full: bool) -> Result<(), Fail> {
    let request = BackupRequest::Files(FilesRequest::Run { name: name.clone(), full });
    let begun: Value = client.backups(&request, ASK_WITHIN).await?;
    let member = begun["member"].as_str().unwrap_or_default().to_owned();
    let version = begun["version"].as_u64().unwrap_or(0);
    let bar = Bar::start(format!("{name} of {member}"));
    let failed = |why: &str| Fail::coded(codes::NOT_BACKED_UP, "no backup was made", why);
    let ended = loop {
        // A member that is busy for a moment, or was replaced, is no reason to stop looking.
        if let Ok(status) = client.status().await
            && status.record_version >= version
        {
            let mut all = status.repositories.into_iter().flat_map(|r| r.files);
            let Some(known) = all.find(|files| files.name == name) else {
                return Err(failed("the files were removed meanwhile"));
            };
            if known.order.as_ref().is_none_or(|order| order.version != version) {
                break known.ended;
            }
            if let Some(progress) = known.progress {
                bar.at(progress.done_bytes, progress.total_bytes);
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    drop(bar);
    match ended.map(|ended| ended.outcome) {
        Some(Ok(made)) if scene.json => show::print_json(&made),
        Some(Ok(made)) => show::print(&format!(
            "snapshot {} of {name}: {} in {}, {} stored\n",
            short(&made.id),
            show_bytes(made.bytes),
            show_ms(made.took_ms),
            show_bytes(made.stored_bytes)
        )),
        Some(Err(why)) => return Err(failed(&why)),
        None => return Err(failed("the order is gone, and nothing says what became of it")),
    }
    Ok(())
}

/// As `restic` shows it.
fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

/// `sempre restore --files NAME`. Root stays root: owners are to come back.
pub fn restore(scene: &Scene, how: &RestoreHow, name: &str) -> Result<(), Fail> {
    let place = restore::place(scene, how)?;
    let failed = |error: sempre_recovery::Error| match error {
        sempre_recovery::Error::Files(FilesError::Incomplete { .. }) => {
            Fail::coded(codes::NOT_RESTORED, "not everything is as it was", error.to_string())
        }
        error => restore::failed(error),
    };
    connect::block_on_threads(async {
        let progress = Arc::new(Progress::default());
        let what = format!("{name} → {}", how.target.display());
        let (snapshot, threads) = (how.snapshot.as_deref(), restore::threads());
        let work = async {
            let files = place.files()?;
            Ok(files.restore(name, snapshot, &how.target, threads, progress.clone()).await?)
        };
        let restored = restore::drawn(what, &progress, work).await.map_err(failed)?;
        if scene.json {
            show::print_json(&json!({
                "target": how.target,
                "snapshot": restored.snapshot,
                "entries": restored.entries,
                "bytes": restored.bytes,
            }));
        } else {
            show::print(&format!(
                "restored snapshot {} of {}: {} files and folders, {}, below {}\n",
                short(&restored.snapshot.id),
                show_time(restored.snapshot.at_unix_ms),
                restored.entries,
                show_bytes(restored.bytes),
                how.target.display()
            ));
        }
        if !Uid::effective().is_root() {
            eprintln!("owners are this user: only root gives files away");
        }
        Ok(())
    })
}

/// For `sempre backup verify`: how many snapshots there are, and what is damaged.
pub async fn verify(place: &Place) -> Result<(usize, Vec<String>), Fail> {
    let progress = Arc::new(Progress::default());
    let work =
        async { Ok::<_, sempre_recovery::Error>(place.files()?.check(progress.clone()).await?) };
    let checked = restore::drawn(format!("{}: files", place.name), &progress, work).await;
    let checked = checked.map_err(|error| {
        let what = format!("the files of {} are not usable", place.name);
        Fail::coded(codes::REPOSITORY, what, error.to_string())
    })?;
    Ok((checked.snapshots, checked.damages))
}

/// For `sempre backup prune`: a line for each snapshot, and how many go.
pub async fn plan(place: &Place, rules: &Retention) -> Result<Vec<sempre_backup::Verdict>, Fail> {
    let work = async { Ok(place.files()?.plan_prune(rules, now()).await?) };
    work.await.map_err(unpruned)
}

/// For `sempre backup prune`: does it; returns which snapshots went.
pub async fn prune(place: &Place, rules: &Retention) -> Result<Vec<String>, Fail> {
    let work = async { Ok(place.files()?.prune(rules, now()).await?.snapshots) };
    work.await.map_err(unpruned)
}

fn unpruned(error: sempre_recovery::Error) -> Fail {
    Fail::coded(codes::REPOSITORY, "files were not looked at", error.to_string())
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    u64::try_from(now).unwrap_or(u64::MAX)
}

/// How `restic` opens the files of a repository, if it can.
pub fn restic_place(store: &StoreAt) -> Option<String> {
    match store {
        StoreAt::Folder(folder) => Some(folder.join("files").display().to_string()),
        StoreAt::S3(at) => {
            let region = at.region.as_deref().unwrap_or("us-east-1");
            let amazon = format!("https://s3.{region}.amazonaws.com");
            let endpoint = at.endpoint.clone().unwrap_or(amazon);
            let prefix =
                if at.prefix.is_empty() { String::new() } else { format!("/{}", at.prefix) };
            Some(format!("s3:{endpoint}/{}{prefix}/files", at.bucket))
        }
        // Where the folder is, on that member, it does.
        StoreAt::Member(_) => None,
    }
}
