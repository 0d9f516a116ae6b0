//! `sempre drill ...`: what must work is tried before it is needed.

use crate::{
    arguments::DrillTask,
    connect::{self, Scene},
    fail::Fail,
    privileges, restore, show,
};
use sempre_api::{BackupRequest, codes, units::show_ms};
use sempre_backup::{Progress, RestoreOptions};
use sempre_recovery::{Goal, Restore, prove};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

/// How long a member may take to write down what came of it.
const TELL_WITHIN: Duration = Duration::from_secs(20);

/// Does it.
pub fn run(scene: &Scene, task: DrillTask) -> Result<(), Fail> {
    let DrillTask::Restore { target, repository, check, keep, bin_dir } = task;
    let config = scene.read_config()?;
    let place = connect::block_on(restore::from_cluster(scene, repository))?;
    let client = scene.client()?;
    if nix::unistd::Uid::effective().is_root() {
        let user = privileges::find(&config.user)?;
        privileges::make(&target, &user)?;
        privileges::become_user(&user)?;
    }
    let target = std::path::absolute(&target).unwrap_or(target);
    let tried = connect::block_on_threads(async {
        let repository = place.open().await.map_err(restore::failed)?;
        let bin_dir = bin_dir.or_else(|| config.postgres.bin_dir.clone());
        let installation = restore::installation(&repository, bin_dir.as_deref()).await?;
        let options = RestoreOptions { threads: restore::threads(), ..RestoreOptions::default() };
        let restore = Restore {
            repository: &repository,
            installation: &installation,
            target: &target,
            goal: Goal::Latest,
            backup: None,
            options,
            fetch_command: restore::fetch_command()?,
        };
        let progress = Arc::new(Progress::default());
        // How far the primary is now: what is not restored of that would be lost.
        let known = client.status().await.ok().map(|status| status.repositories);
        let known = known.into_iter().flatten().find(|known| known.name == place.name);
        let primary = known.and_then(|k| Some((k.archive?.server, k.rpo_ms.unwrap_or_default())));
        let what = format!("{} → {}", place.name, target.display());
        let work = prove(&restore, &check, keep, progress.clone());
        let proved = restore::drawn(what, &progress, work).await;
        let outcome = match &proved {
            Ok(proved) => Ok(proved.proof(primary)),
            Err(error) => Err(error.to_string()),
        };
        let told = BackupRequest::Prove { repository: place.name.clone(), outcome };
        let told: Result<Value, _> = client.backups(&told, TELL_WITHIN).await;
        Ok((proved, told, primary))
    });
    let (proved, told, primary) = tried?;
    let proved = proved.map_err(|error| {
        Fail::coded(codes::NOT_RESTORED, "the restore was not proved", error.to_string())
    })?;
    let proof = proved.proof(primary);
    if scene.json {
        show::print_json(&json!({
            "repository": place.name,
            "backup": proof.backup,
            "rto_ms": proof.rto_ms,
            "files_ms": u64::try_from(proved.recovered.files_took.as_millis()).unwrap_or(u64::MAX),
            "replay_ms": u64::try_from(proved.recovered.replay_took.as_millis()).unwrap_or(u64::MAX),
            "bytes": proof.bytes,
            "checks": proof.checks,
            "lost_bytes": proof.lost_bytes,
            "rpo_ms": proof.rpo_ms,
        }));
    } else {
        show::print(&format!(
            "proved: {} and all the WAL behind it, restored and answering after {}{}; checked by {}\n",
            proof.backup,
            show_ms(proof.rto_ms),
            match (proof.lost_bytes, proof.rpo_ms) {
                (Some(0), _) => ", with all that the primary had when it began".to_owned(),
                (Some(bytes), Some(ms)) => {
                    format!(", without the last {bytes} bytes of WAL ({})", show_ms(ms))
                }
                _ => String::new(),
            },
            if proof.checks.is_empty() { "nothing".to_owned() } else { proof.checks.join(", ") }
        ));
    }
    told.map(|_| ()).map_err(Fail::from)
}
