//! `sempre backup verify` and `prune`: they open the repository here.

use crate::{
    connect::{self, Scene},
    fail::Fail,
    files, privileges, restore, show, terminal,
};
use sempre_api::{codes, units::show_bytes};
use sempre_backup::{Progress, Repository, VerifyOptions};
use sempre_model::Policy;
use sempre_recovery::{Place, plan_prune, prune as do_prune, retention};
use serde_json::json;
use std::sync::Arc;

/// Where the repository is, and the policy; then this process is the member's user.
fn prepare(scene: &Scene, repository: Option<String>) -> Result<(Place, Policy), Fail> {
    let config = scene.read_config()?;
    let found = connect::block_on(async {
        let place = restore::from_cluster(scene, repository).await?;
        let config = scene.client()?.config().await?;
        let policy = serde_json::from_value(config["policy"].clone());
        Ok((place, policy.map_err(|e| Fail::new("nothing was done", e.to_string(), ""))?))
    })?;
    privileges::become_member(&config)?;
    Ok(found)
}

async fn open(place: &Place) -> Result<Repository, Fail> {
    place.open().await.map_err(|error| {
        let what = format!("repository {} is not usable", place.name);
        Fail::coded(codes::REPOSITORY, what, error.to_string())
    })
}

fn failed(error: impl std::fmt::Display) -> Fail {
    Fail::coded(codes::REPOSITORY, "it was not done", error.to_string())
}

/// `sempre backup verify`.
pub fn verify(scene: &Scene, backup: Option<&str>, repository: Option<String>) -> Result<(), Fail> {
    let (place, _) = prepare(scene, repository)?;
    connect::block_on_threads(async {
        let repository = open(&place).await?;
        let progress = Arc::new(Progress::default());
        let work = async {
            let options = VerifyOptions::default();
            let mut verified = repository.verify(backup, options, progress.clone()).await?;
            if backup.is_none() {
                repository.verify_wal(&mut verified, progress.clone()).await?;
            }
            Ok::<_, sempre_backup::Error>(verified)
        };
        let verified = restore::drawn(place.name.clone(), &progress, work).await.map_err(failed)?;
        let (snapshots, damaged_files) = match backup {
            Some(_) => (0, Vec::new()),
            None => files::verify(&place).await?,
        };
        if scene.json {
            show::print_json(&json!({
                "repository": place.name,
                "snapshots_of_files": snapshots,
                "damaged_files": damaged_files,
                "backups": verified.backups,
                "objects": verified.objects,
                "bytes": verified.bytes,
                "damages": verified.damages.iter().map(|damage| json!({
                    "object": damage.key,
                    "why": damage.why,
                    "harms": damage.harms.iter().map(|harm| json!({
                        "backup": harm.backup, "files": harm.files,
                    })).collect::<Vec<_>>(),
                })).collect::<Vec<_>>(),
            }));
        } else {
            show::print(&format!(
                "{} backups, {} objects, {} read\n",
                verified.backups,
                verified.objects,
                show_bytes(verified.bytes)
            ));
            if snapshots > 0 {
                show::print(&format!("{snapshots} snapshots of files\n"));
            }
        }
        if !damaged_files.is_empty() && verified.damages.is_empty() {
            let what = format!("files in {} are damaged", place.name);
            return Err(Fail::coded(codes::REPOSITORY, what, damaged_files.join("\n")).next(
                "Databases' backups are fine. `restic repair packs` and `restic repair snapshots` (from 0.16 on) take what is damaged out; the next backup stores anew what still exists.",
            ));
        }
        if verified.damages.is_empty() {
            return Ok(());
        }
        let mut lines = damaged_files;
        for damage in &verified.damages {
            lines.push(format!("{}: {}", damage.key, damage.why));
            for harm in &damage.harms {
                let files = harm.files.map_or("an unknown number of".to_owned(), |n| n.to_string());
                lines.push(format!("  harms {files} files of {}", harm.backup));
            }
        }
        let what = format!("{} objects of {} are damaged", verified.damages.len(), place.name);
        Err(Fail::coded(codes::REPOSITORY, what, lines.join("\n")).next(
            "Backups that are not named are fine; without a segment of WAL, what lies behind it is restored from a later backup. `sempre backup run --full` stores everything anew; then forget those that are harmed.",
        ))
    })
}

/// `sempre backup prune`.
pub fn prune(
    scene: &Scene,
    repository: Option<String>,
    dry_run: bool,
    yes: bool,
) -> Result<(), Fail> {
    let (place, policy) = prepare(scene, repository)?;
    connect::block_on_threads(async {
        let repository = open(&place).await?;
        let rules = retention(&policy);
        let mut plan = plan_prune(&repository, &rules).await.map_err(failed)?;
        plan.extend(files::plan(&place, &rules).await?);
        if dry_run && scene.json {
            show::print_json(&plan);
            return Ok(());
        }
        let mut text = String::new();
        for verdict in &plan {
            let why: Vec<String> = verdict.reasons.iter().map(ToString::to_string).collect();
            let word = if verdict.is_kept() { "stays" } else { "goes " };
            text += &format!("{word}  {}  {}\n", verdict.id, why.join(", "));
        }
        if dry_run {
            show::print(&text);
            return Ok(());
        }
        eprint!("{text}");
        let going = plan.iter().filter(|verdict| !verdict.is_kept()).count();
        terminal::confirm(yes, &format!("Remove {going} backups, and what nothing refers to?"))?;
        let pruned = do_prune(&repository, &rules).await.map_err(failed)?;
        let snapshots = files::prune(&place, &rules).await?;
        if scene.json {
            show::print_json(&json!({
                "repository": place.name,
                "backups": pruned.backups,
                "snapshots_of_files": snapshots,
                "bytes": pruned.bytes,
                "wal_segments": pruned.wal_segments,
                "too_early": pruned.too_early,
                "blocked": pruned.blocked,
            }));
        } else {
            show::print(&format!(
                "{} backups, {} snapshots of files, {} and {} WAL segments removed\n",
                pruned.backups.len(),
                snapshots.len(),
                show_bytes(pruned.bytes),
                pruned.wal_segments
            ));
            if pruned.too_early > 0 {
                let count = pruned.too_early;
                show::print(&format!("{count} objects more go when their store lets them\n"));
            }
            for why in &pruned.blocked {
                show::print(&format!("stays, although it may be in nobody's use: {why}\n"));
            }
        }
        Ok(())
    })
}
