//! A base backup of a running server.

use crate::{Error, Result, choose::Coverage, clock::unix_ms};
use sempre_backup::{
    Backup, COMPARED, CONTROL_FILE, Options, Progress, Repository, Source, SourceWhat, Stats,
    Writer, Writing,
};
use sempre_postgres::Instance;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// The WAL of a backup is archived within this time, or something is wrong.
const WAL_WITHIN: Duration = Duration::from_secs(120);
/// How often that is looked at.
const WAL_POLL: Duration = Duration::from_millis(300);
/// Pages of other sizes are not verified.
const PAGE_BYTES: u64 = 8192;
/// Tries to read the control file while the server writes it.
const CONTROL_TRIES: usize = 100;

/// How a base backup is made.
#[derive(Clone, Debug)]
pub struct BaseBackup<'a> {
    /// Whose.
    pub instance: &'a Instance,
    /// Password of role `sempre`.
    pub admin_password: &'a str,
    /// Where to.
    pub repository: &'a Repository,
    /// Who makes one backup at a time there: what dead attempts of theirs left is gone on with.
    pub owner: &'a str,
    /// How the files are copied.
    pub options: Options,
    /// Compare with nothing: everything is stored anew.
    pub full: bool,
    /// Make none when pages have wrong checksums.
    pub refuse_wrong_pages: bool,
}

/// Makes a base backup of a running server, primary or standby. Its WAL must be on its way into the
/// repository.
pub async fn back_up(task: &BaseBackup<'_>, progress: Arc<Progress>) -> Result<Backup> {
    let BaseBackup { instance, admin_password, repository, .. } = task;
    let began_unix_ms = unix_ms();
    let session = instance.session(admin_password).await?;
    let control = instance.control_data()?;
    repository.expect_cluster(instance.me.as_str(), control.system_identifier)?;
    let mut writer =
        Writer::announce_of(repository, began_unix_ms, !task.full, Some(task.owner)).await?;
    let doubt = doubt(repository, &mut writer).await?;
    let parent = writer.parent().cloned();
    let mut options = task.options.clone();
    options.trust_stamps &= parent.as_ref().is_some_and(|p| p.member == instance.me);
    if control.data_checksums && control.page_bytes == PAGE_BYTES {
        options.segment_pages = u32::try_from(control.segment_pages).unwrap_or(0);
    }
    let mut writing = Writing::begin(writer, options, progress.clone());
    let begun = session.begin_backup(&format!("sempre {}", writing.id())).await?;

    let data_dir = &instance.layout.data_dir;
    let listed = {
        let data_dir = data_dir.clone();
        let listing = tokio::task::spawn_blocking(move || sempre_backup::list(&data_dir));
        listing.await.unwrap_or_else(|p| std::panic::resume_unwind(p.into_panic()))?
    };
    progress.expect(listed.iter().map(size_of).sum());
    let sorted_segments = writing.copy(listed).await?;
    let kept = KeptControl::read(data_dir, &instance.layout.config_dir).await?;
    let late_segments = writing.copy(vec![kept.source()?]).await?;
    drop(kept);
    let ended = session.end_backup().await?;
    let ended_unix_ms = unix_ms();
    drop(session);

    wait_for_wal(repository, control.wal_segment_bytes, ended.timeline, begun.start, ended.stop)
        .await?;
    let wrong = writing.wrong_pages(begun.start, ended.stop);
    let stats = Stats { wrong_pages: wrong.pages, ..writing.stats() };
    let mut alarms = alarms(repository, &stats).await?;
    alarms.extend(doubt);
    if wrong.pages > 0 {
        if task.refuse_wrong_pages {
            return Err(Error::WrongPages(wrong.to_string()));
        }
        alarms.insert(0, wrong.to_string());
    }
    let backup = Backup {
        id: writing.id().to_owned(),
        parent: parent.map(|p| p.id),
        member: instance.me.clone(),
        from_standby: begun.on_standby,
        version_num: begun.version_num,
        began_unix_ms,
        ended_unix_ms,
        timeline: ended.timeline,
        start: begun.start,
        stop: ended.stop,
        wal_segment_bytes: control.wal_segment_bytes,
        label: ended.label,
        tablespaces: begun.tablespaces,
        block_bytes: sempre_backup::BLOCK_BYTES,
        sorted_segments,
        late_segments,
        stats,
        alarms,
    };
    Ok(writing.publish(backup).await?)
}

/// A parent that is not sound is none: what it has is stored anew, and that is said.
async fn doubt(repository: &Repository, writer: &mut Writer) -> Result<Option<String>> {
    let Some(parent) = writer.parent() else { return Ok(None) };
    let Some(why) = repository.probe(parent).await? else { return Ok(None) };
    tracing::error!("backup {} is not sound: {why}", parent.id);
    let said = format!("backup {} is damaged ({why}): everything was stored anew", parent.id);
    writer.forsake_parent();
    Ok(Some(said))
}

/// What is odd beside the backups before it.
async fn alarms(repository: &Repository, now: &Stats) -> Result<Vec<String>> {
    let (before, accepted) = (repository.backups().await?, repository.accepted().await?);
    let fine = before.iter().filter(|b| b.alarms.is_empty() || accepted.contains(&b.id));
    let fine: Vec<Stats> = fine.map(|backup| backup.stats).collect();
    let compared = &fine[fine.len().saturating_sub(COMPARED)..];
    Ok(sempre_backup::alarms(now, before.last().map(|backup| &backup.stats), compared))
}

fn size_of(source: &Source) -> u64 {
    match source.what {
        SourceWhat::File(bytes, _) => bytes,
        _ => 0,
    }
}

async fn wait_for_wal(
    repository: &Repository,
    segment_bytes: u64,
    timeline: sempre_model::Timeline,
    start: sempre_model::Lsn,
    stop: sempre_model::Lsn,
) -> Result<()> {
    let began = Instant::now();
    loop {
        let coverage = Coverage::read(repository, segment_bytes).await?;
        let history = coverage.newest_from(timeline, start);
        if coverage.reach(start, &history) >= stop {
            return Ok(());
        }
        if began.elapsed() > WAL_WITHIN {
            let repository = repository.store.name().to_owned();
            return Err(Error::NoWal { stop, repository, seconds: WAL_WITHIN.as_secs() });
        }
        tokio::time::sleep(WAL_POLL).await;
    }
}

/// A copy of the control file, made while the server may be writing it.
struct KeptControl(PathBuf);

impl KeptControl {
    async fn read(data_dir: &Path, beside: &Path) -> Result<Self> {
        let file = data_dir.join(CONTROL_FILE);
        let read = || fs::read(&file).map_err(Error::io("read", &file));
        let mut last = read()?;
        for _ in 0..CONTROL_TRIES {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let again = read()?;
            if again == last {
                // Backups into other repositories may be made at the same time, by other processes.
                let kept = beside.join(format!("pg_control.backup-{}", std::process::id()));
                fs::write(&kept, &again).map_err(Error::io("write", &kept))?;
                return Ok(Self(kept));
            }
            last = again;
        }
        let source = std::io::Error::other("it changes all the time");
        Err(Error::Io { doing: "read", path: file, source })
    }

    fn source(&self) -> Result<Source> {
        let metadata = fs::metadata(&self.0).map_err(Error::io("look at", &self.0))?;
        Ok(Source {
            path: CONTROL_FILE.to_owned(),
            from: self.0.clone(),
            mode: 0o600,
            what: SourceWhat::File(metadata.len(), Default::default()),
        })
    }
}

impl Drop for KeptControl {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
