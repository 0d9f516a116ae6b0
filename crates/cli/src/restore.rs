//! `sempre restore`: a database as it was.

use crate::{
    act,
    arguments::RestoreHow,
    connect::{self, Scene},
    fail::Fail,
    files, member, privileges, show,
    terminal::Bar,
};
use nix::unistd::Uid;
use sempre_agent::member_dir::MemberDir;
use sempre_api::{
    BackupRequest, codes,
    units::{show_bytes, show_ms},
};
use sempre_backup::{Progress, Repository, RestoreOptions};
use sempre_model::backup::{BackupKey, StoreAt};
use sempre_postgres::Installation;
use sempre_recovery::{Goal, Listen, Phase, Place, Recovered, Restore};
use serde_json::json;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// How long a member may take to say where the repository is.
const ASK_WITHIN: Duration = Duration::from_secs(10);
/// How often the bar moves.
const DRAW_EVERY: Duration = Duration::from_millis(100);
/// Files at a time.
const THREADS_MAX: usize = 8;

/// Files at a time here.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get().min(THREADS_MAX))
}

/// Does it.
pub fn run(scene: &Scene, how: &RestoreHow) -> Result<(), Fail> {
    if let Some(name) = &how.files {
        return files::restore(scene, how, name);
    }
    let goal = goal(how)?;
    let tablespaces = tablespaces(&how.tablespaces)?;
    // Asked before this becomes another user: the token is the present one's to read.
    let place = place(scene, how)?;
    if Uid::effective().is_root() {
        let user =
            scene.read_config().map(|config| config.user).unwrap_or_else(|_| how.user.clone());
        let user = privileges::find(&user)?;
        privileges::make(&how.target, &user)?;
        privileges::become_user(&user)?;
    }
    let target = std::path::absolute(&how.target).unwrap_or_else(|_| how.target.clone());
    connect::block_on_threads(async {
        let repository = place.open().await.map_err(failed)?;
        let installation = installation(&repository, how.bin_dir.as_deref()).await?;
        let threads = threads();
        let restore = Restore {
            repository: &repository,
            installation: &installation,
            target: &target,
            goal,
            backup: how.backup.as_deref(),
            options: RestoreOptions { threads, delta: how.delta, tablespaces },
            fetch_command: fetch_command()?,
        };
        if how.instant {
            return instantly(scene, how, &restore).await;
        }
        let progress = Arc::new(Progress::default());
        let what = format!("{} → {}", place.name, target.display());
        let restored = drawn(what, &progress, restore.run(progress.clone())).await;
        told(scene, &target, &restored.map_err(failed)?);
        Ok(())
    })
}

/// The repository that is meant.
pub fn place(scene: &Scene, how: &RestoreHow) -> Result<Place, Fail> {
    match (&how.folder, &how.key_file, &how.place) {
        (_, _, Some(file)) => from_file(scene, file),
        (Some(folder), Some(file), _) => from_folder(folder, file),
        _ => connect::block_on(from_cluster(scene, how.repository.clone())),
    }
}

/// Does it, with a bar.
pub async fn drawn<T>(what: String, progress: &Progress, work: impl Future<Output = T>) -> T {
    let bar = Bar::start(what);
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(DRAW_EVERY) => {
                let now = progress.snapshot();
                bar.at(now.done_bytes, now.total_bytes);
            }
        }
    }
}

/// `--instant`: a server at once.
async fn instantly(scene: &Scene, how: &RestoreHow, restore: &Restore<'_>) -> Result<(), Fail> {
    let listen = Listen { addresses: how.listen_addresses.clone(), port: how.port };
    eprintln!("{} starts on its backup", restore.target.display());
    let server = restore.run_instantly(&listen).await.map_err(failed)?;
    let ms = u64::try_from(server.answered.as_millis()).unwrap_or(u64::MAX);
    if scene.json {
        show::print_json(&json!({
            "backup": server.backup.id, "answered_ms": ms, "port": how.port, "target": restore.target,
        }));
    } else {
        show::print(&format!(
            "backup {} takes clients on port {} ({}), {} after the beginning\n",
            server.backup.id,
            how.port,
            how.listen_addresses,
            show_ms(ms)
        ));
    }
    let bar = Bar::start("bringing the files in");
    loop {
        let now = server.progress();
        bar.at(now.total_bytes.saturating_sub(now.left_bytes), now.total_bytes);
        if now.phase != Phase::BringingIn {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(DRAW_EVERY) => {}
            () = member::signalled() => {
                drop(bar);
                server.stop().await.map_err(failed)?;
                eprintln!("stopped; the same command goes on where it was");
                return Ok(());
            }
        }
    }
    drop(bar);
    server.finish().await.map_err(failed)?;
    if scene.json {
        show::print_json(&json!({"local": true}));
    } else {
        show::print("all files are here; the server goes on on them\n");
    }
    Ok(())
}

/// `sempre restore-wal`. The server takes 1 as "there is none", and more than 125 as a reason to stop.
pub fn serve(spool: &Path, file: &str, target: &Path) -> Result<(), Fail> {
    match sempre_recovery::serve_segment(spool, file, target) {
        Ok(true) => Ok(()),
        Ok(false) => std::process::exit(1),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(126)
        }
    }
}

pub fn failed(error: sempre_recovery::Error) -> Fail {
    Fail::coded(codes::NOT_RESTORED, "nothing was restored", error.to_string())
}

fn goal(how: &RestoreHow) -> Result<Goal, Fail> {
    Ok(if let Some(time) = &how.to_time {
        Goal::Time(act::moment(time, "--to-time")?)
    } else if let Some(lsn) = how.to_lsn {
        Goal::Lsn(lsn)
    } else if let Some(name) = &how.to_name {
        Goal::Name(name.clone())
    } else if let Some(id) = how.to_transaction {
        Goal::Transaction(id)
    } else if let Some(id) = how.before_transaction {
        Goal::BeforeTransaction(id)
    } else if how.to_backup {
        Goal::Backup
    } else {
        Goal::Latest
    })
}

fn tablespaces(pairs: &[String]) -> Result<BTreeMap<String, PathBuf>, Fail> {
    let pair = |text: &String| match text.split_once('=') {
        Some((oid, dir)) if oid.bytes().all(|b| b.is_ascii_digit()) && dir.starts_with('/') => {
            Ok((oid.to_owned(), PathBuf::from(dir)))
        }
        _ => Err(Fail::usage(
            format!("`{text}` cannot be used as --tablespace"),
            "it is not OID=DIR",
            "Write it like 16400=/mnt/other.",
        )),
    };
    pairs.iter().map(pair).collect()
}

fn from_folder(folder: &Path, key_file: &Path) -> Result<Place, Fail> {
    let key = std::fs::read_to_string(key_file).map_err(|error| {
        Fail::usage(format!("cannot read {}", key_file.display()), error.to_string(), "")
    })?;
    let (name, store) = (folder.display().to_string(), StoreAt::Folder(folder.to_owned()));
    let key = BackupKey(key.trim().to_owned());
    Ok(Place { name, store, key, next_key: None, reach: None })
}

fn from_file(scene: &Scene, file: &Path) -> Result<Place, Fail> {
    let unusable = |why: String| Fail::usage(format!("cannot use {}", file.display()), why, "");
    let text = std::fs::read_to_string(file).map_err(|error| unusable(error.to_string()))?;
    let place = serde_json::from_str(&text).map_err(|error| unusable(error.to_string()))?;
    Ok(as_here(scene, place))
}

/// A repository on a member is asked for with this machine's own certificate.
fn as_here(scene: &Scene, mut place: Place) -> Place {
    if let (Some(reach), Ok(config)) = (&mut place.reach, scene.read_config()) {
        reach.tls = MemberDir::new(&config).tls();
    }
    place
}

pub async fn from_cluster(scene: &Scene, repository: Option<String>) -> Result<Place, Fail> {
    let client = scene.client()?;
    let found = client.backups(&BackupRequest::Key { repository }, ASK_WITHIN).await;
    let place = found.map_err(|error| {
        Fail::from(error).next(
            "If no member answers any more: --folder PATH --key-file FILE, with the key that `sempre backup key` printed.",
        )
    })?;
    Ok(as_here(scene, place))
}

/// The programs of the version that the backups are of.
pub async fn installation(
    repository: &Repository,
    bin_dir: Option<&Path>,
) -> Result<Installation, Fail> {
    let newest = repository.backups().await.map_err(|e| failed(e.into()))?.pop();
    let major = newest.map(|backup| backup.version_num / 10_000);
    Installation::find(bin_dir, major).map_err(|error| failed(error.into()))
}

pub fn fetch_command() -> Result<Vec<String>, Fail> {
    let program = std::env::current_exe().map_err(|error| {
        Fail::new("nothing was restored", format!("where is this program? {error}"), "")
    })?;
    Ok(vec![program.to_string_lossy().into_owned(), "restore-wal".into()])
}

fn told(scene: &Scene, target: &Path, restored: &Recovered) {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (files, replay) = (ms(restored.files_took), ms(restored.replay_took));
    if scene.json {
        show::print_json(&json!({
            "target": target,
            "backup": restored.backup.id,
            "timeline": restored.timeline,
            "end": restored.end.to_string(),
            "files": restored.files.files,
            "bytes": restored.files.bytes,
            "fetched_bytes": restored.files.fetched_bytes,
            "files_ms": files,
            "replay_ms": replay,
        }));
        return;
    }
    show::print(&format!(
        "restored backup {} and the WAL behind it up to {}, into {}\n{} in {} ({} fetched), WAL in {}; timeline {}\n",
        restored.backup.id,
        restored.end,
        target.display(),
        show_bytes(restored.files.bytes),
        show_ms(files),
        show_bytes(restored.files.fetched_bytes),
        show_ms(replay),
        restored.timeline,
    ));
    eprintln!(
        "next: look at it (`pg_ctl -D {} start`), or make it a cluster: `data_dir` in a new member's config file, and `sempre init`",
        target.display()
    );
}
