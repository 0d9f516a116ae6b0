//! `sempre backup ...`.

use crate::{
    arguments::BackupTask,
    connect::Scene,
    fail::Fail,
    files, show,
    terminal::{self, Bar},
};
use sempre_api::{
    BackupRequest, Client,
    backup::{ListedBackup, Listing, RepositoryStatus},
    codes,
    render::render_backups,
    units::{show_bytes, show_ms, show_time},
};
use sempre_model::backup::{BackupKey, Bucket, OnMember, StoreAt};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// A repository with many objects takes a while to be listed.
const LIST_WITHIN: Duration = Duration::from_secs(60);
/// How often it is looked how far a backup is.
const LOOK_EVERY: Duration = Duration::from_millis(250);

#[derive(Deserialize)]
struct Listings {
    repositories: Vec<Listing>,
}

/// Does it.
pub async fn run(scene: &Scene, task: BackupTask) -> Result<(), Fail> {
    let client = scene.client()?;
    match task {
        BackupTask::Init {
            name,
            folder,
            on,
            s3,
            s3_endpoint,
            s3_region,
            s3_credentials,
            s3_ca,
            members,
        } => {
            let store = match (folder, on, s3, s3_credentials) {
                (Some(folder), Some(member), ..) => StoreAt::Member(OnMember { member, folder }),
                (None, _, Some(place), Some(credentials)) => {
                    bucket(&place, s3_endpoint, s3_region, &credentials, s3_ca.as_deref())?
                }
                (folder, ..) => StoreAt::Folder(folder.unwrap_or_default()),
            };
            init(scene, &client, name, store, members).await
        }
        BackupTask::Detach { name, yes } => {
            terminal::confirm(yes, &format!("Keep nothing in {name} any more?"))?;
            let message = format!("{name} is no longer used; what is in it stays");
            ask(scene, &client, &BackupRequest::Detach { name }, &message).await
        }
        BackupTask::Run { files: Some(name), full, .. } => {
            files::make(scene, &client, name, full).await
        }
        BackupTask::Files { task } => files::run(scene, &client, task).await,
        BackupTask::Run { repository, member, full, files: None } => {
            make(scene, &client, BackupRequest::Run { repository, member, full }).await
        }
        BackupTask::List { repository } => list(scene, &client, repository).await,
        BackupTask::Show { backup, repository } => {
            let (place, found) = find(&client, repository, &backup).await?;
            match scene.json {
                true => show::print_json(&found),
                false => show::print(&describe(&place, &found)),
            }
            Ok(())
        }
        BackupTask::Forget { backup, repository, yes } => {
            forget(scene, &client, repository, &backup, yes).await
        }
        BackupTask::Unforget { backup, repository } => {
            let message =
                format!("{backup} is there again; `sempre backup verify` reads all of it");
            let request = BackupRequest::Unforget { repository, backup };
            ask(scene, &client, &request, &message).await
        }
        BackupTask::Hold { backup, repository, reason, release } => {
            let message = match release {
                true => format!("{backup} is no longer held"),
                false => format!("{backup} is kept until `--release`"),
            };
            let request = BackupRequest::Hold { repository, backup, release, reason };
            ask(scene, &client, &request, &message).await
        }
        // They open the repository here, and are dispatched elsewhere.
        BackupTask::Verify { .. } | BackupTask::Prune { .. } => Ok(()),
        BackupTask::Accept { backup, repository } => {
            let message = format!("the alarms of {backup} are accepted");
            ask(scene, &client, &BackupRequest::Accept { repository, backup }, &message).await
        }
        BackupTask::Key { repository, rotate } => {
            let request = match rotate {
                true => BackupRequest::RotateKey { repository },
                false => BackupRequest::Key { repository },
            };
            let place: Value = client.backups(&request, LIST_WITHIN).await?;
            if rotate {
                eprintln!("the key was replaced: the one before opens the repository no longer");
            }
            match scene.json {
                true => show::print_json(&place),
                false => {
                    show::print(&format!("{}\n", place["key"].as_str().unwrap_or_default()));
                    eprintln!(
                        "next: keep it where the machines are not. Without it, the repository is noise, to you as well."
                    );
                    let store = serde_json::from_value(place["store"].clone()).ok();
                    if let Some(place) = store.as_ref().and_then(files::restic_place) {
                        eprintln!(
                            "Files in it (`backup files`) are restic's too, with the key in a file: `restic -r {place} --password-file FILE snapshots`"
                        );
                    }
                }
            }
            Ok(())
        }
    }
}

async fn ask(
    scene: &Scene,
    client: &Client,
    request: &BackupRequest,
    message: &str,
) -> Result<(), Fail> {
    let answer: Value = client.backups(request, LIST_WITHIN).await?;
    match scene.json {
        true => show::print_json(&answer),
        false => show::print(&format!("{message}\n")),
    }
    Ok(())
}

async fn init(
    scene: &Scene,
    client: &Client,
    name: String,
    store: StoreAt,
    members: Vec<sempre_model::MemberId>,
) -> Result<(), Fail> {
    let message = format!("repository {name} is made in {store}");
    ask(scene, client, &BackupRequest::Init { name, store, members }, &message).await?;
    eprintln!(
        "next: `sempre backup run` makes the first base backup; `sempre backup key` prints the key, to be kept where the machines are not"
    );
    Ok(())
}

/// What was typed of an S3-compatible store.
fn bucket(
    place: &str,
    endpoint: Option<String>,
    region: Option<String>,
    credentials: &Path,
    ca: Option<&Path>,
) -> Result<StoreAt, Fail> {
    let read = |file: &Path| {
        std::fs::read_to_string(file).map_err(|error| {
            Fail::usage(format!("cannot read {}", file.display()), error.to_string(), "")
        })
    };
    let text = read(credentials)?;
    let value = |wanted: &str| {
        let mut pairs = text.lines().filter_map(|line| line.split_once('='));
        let found = pairs.find(|(name, _)| name.trim() == wanted);
        found.map(|(_, value)| value.trim().to_owned()).ok_or_else(|| {
            Fail::usage(
                format!("{} cannot be used", credentials.display()),
                format!("it has no line `{wanted} = ...`"),
                "Write both lines as the credentials file of the AWS tools has them.",
            )
        })
    };
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    Ok(StoreAt::S3(Box::new(Bucket {
        allow_http: endpoint.as_deref().is_some_and(|url| url.starts_with("http://")),
        endpoint,
        region,
        bucket: bucket.to_owned(),
        prefix: prefix.trim_matches('/').to_owned(),
        access_key_id: value("aws_access_key_id")?,
        secret_access_key: BackupKey(value("aws_secret_access_key")?),
        ca_pem: ca.map(read).transpose()?,
    })))
}

async fn repository_status(client: &Client, name: &str) -> Result<RepositoryStatus, Fail> {
    let known = client.status().await?.repositories;
    known.into_iter().find(|repository| repository.name == name).ok_or_else(|| {
        Fail::coded(codes::UNKNOWN_REPOSITORY, "no backup was made", format!("{name} is gone"))
    })
}

async fn make(scene: &Scene, client: &Client, request: BackupRequest) -> Result<(), Fail> {
    let begun: Value = client.backups(&request, LIST_WITHIN).await?;
    let name = begun["repository"].as_str().unwrap_or_default().to_owned();
    let member = begun["member"].as_str().unwrap_or_default().to_owned();
    let version = begun["version"].as_u64().unwrap_or(0);
    let bar = Bar::start(format!("{member} → {name}"));
    let ended = loop {
        // A member that is busy for a moment, or was replaced, is no reason to stop looking.
        if let Ok(status) = client.status().await
            && status.record_version >= version
        {
            let known = status.repositories.into_iter().find(|r| r.name == name);
            let Some(known) = known else { break repository_status(client, &name).await?.ended };
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
        Some(Ok(made)) => {
            show::print(&format!(
                "backup {} of {member} in {name}: {} in {}, {} stored\n",
                made.id,
                show_bytes(made.bytes),
                show_ms(made.took_ms),
                show_bytes(made.stored_bytes)
            ));
            made.alarms.iter().for_each(|words| eprintln!("alarm: {words}"));
        }
        Some(Err(why)) => return Err(Fail::coded(codes::NOT_BACKED_UP, "no backup was made", why)),
        None => {
            let why = "the order is gone, and nothing says what became of it";
            return Err(Fail::coded(codes::NOT_BACKED_UP, "no backup was made", why));
        }
    }
    Ok(())
}

async fn listings(client: &Client, repository: Option<String>) -> Result<Vec<Listing>, Fail> {
    let listed: Listings = client.backups(&BackupRequest::List { repository }, LIST_WITHIN).await?;
    Ok(listed.repositories)
}

async fn list(scene: &Scene, client: &Client, repository: Option<String>) -> Result<(), Fail> {
    let listings = listings(client, repository).await?;
    if scene.json {
        show::print_json(&json!({"repositories": listings}));
        return Ok(());
    }
    if listings.is_empty() {
        show::print(
            "the cluster has no repository: `sempre backup init NAME --folder PATH` makes one\n",
        );
        return Ok(());
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let now = u64::try_from(now).unwrap_or(0);
    show::print(&render_backups(&listings, now, terminal::colours(), terminal::width()));
    Ok(())
}

async fn find(
    client: &Client,
    repository: Option<String>,
    wanted: &str,
) -> Result<(Listing, ListedBackup), Fail> {
    let mut fitting = Vec::new();
    for listing in listings(client, repository).await? {
        let newest = listing.backups.last().map(|backup| backup.id.clone());
        for backup in &listing.backups {
            if backup.id.starts_with(wanted)
                || (wanted == "latest" && Some(&backup.id) == newest.as_ref())
            {
                fitting.push((listing.clone(), backup.clone()));
            }
        }
    }
    match (fitting.pop(), fitting.is_empty()) {
        (Some(found), true) => Ok(found),
        (found, _) => Err(Fail::usage(
            format!("there is no backup `{wanted}`"),
            if found.is_some() { "several begin like this" } else { "none begins like this" },
            "`sempre backup list` shows them.",
        )),
    }
}

fn describe(place: &Listing, backup: &ListedBackup) -> String {
    let ratio = backup.stored_bytes as f64 / backup.new_bytes.max(1) as f64;
    let lines = [
        ("backup", backup.id.clone()),
        ("in", format!("{} ({})", place.repository, place.place)),
        ("of", backup.member.to_string()),
        ("compared with", backup.parent.clone().unwrap_or_else(|| "nothing".into())),
        ("began", show_time(backup.began_unix_ms)),
        (
            "complete",
            format!("{}, after {}", show_time(backup.ended_unix_ms), show_ms(backup.took_ms)),
        ),
        ("timeline", backup.timeline.to_string()),
        ("WAL", format!("{} to {}, kept up to {}", backup.start, backup.stop, backup.reach)),
        ("size", show_bytes(backup.bytes)),
        ("new", show_bytes(backup.new_bytes)),
        (
            "stored",
            format!("{} ({:.0} % of what was new)", show_bytes(backup.stored_bytes), ratio * 100.0),
        ),
        ("in place", format!("{} of others", show_bytes(backup.rewritten_bytes))),
        ("hardly packs", show_bytes(backup.noise_bytes)),
        ("pages", format!("{} verified", backup.checked_pages)),
        ("held", if backup.held { "yes" } else { "no" }.to_owned()),
    ];
    let accepted = if backup.accepted { " (accepted)" } else { "" };
    let alarms = backup.alarms.iter().map(|words| ("alarm", format!("{words}{accepted}")));
    let lines = lines.into_iter().chain(alarms);
    lines.map(|(label, value)| format!("{label:<14} {value}\n")).collect()
}

async fn forget(
    scene: &Scene,
    client: &Client,
    repository: Option<String>,
    wanted: &str,
    yes: bool,
) -> Result<(), Fail> {
    let (place, found) = find(client, repository, wanted).await?;
    let index = place.backups.iter().position(|backup| backup.id == found.id).unwrap_or(0);
    let lost = match index {
        0 => match place.backups.get(1) {
            Some(next) => format!(
                "moments from {} to {} can no longer be restored",
                show_time(found.ended_unix_ms),
                show_time(next.ended_unix_ms)
            ),
            None => "it is the only one: nothing can be restored any more".to_owned(),
        },
        _ => "what it covers is restored from the one before, over more WAL".to_owned(),
    };
    eprintln!("{}: {lost}", found.id);
    terminal::confirm(yes, &format!("Forget {}?", found.id))?;
    let repository = Some(place.repository);
    let request = BackupRequest::Forget { repository, backup: found.id.clone() };
    ask(scene, client, &request, &format!("{} is forgotten", found.id)).await
}
