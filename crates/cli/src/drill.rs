//! `sempre drill ...`: what must work is tried before it is needed.

use crate::{
    arguments::DrillTask,
    connect::{self, Scene},
    fail::Fail,
    privileges, restore, show,
};
use sempre_api::{BackupRequest, codes, units::show_ms};
use sempre_backup::{Progress, RestoreOptions};
use sempre_model::backup::Proof;
use sempre_recovery::{Goal, Proved, Restore, prove};
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
        let what = format!("{} → {}", place.name, target.display());
        let work = prove(&restore, &check, keep, progress.clone());
        let proved = restore::drawn(what, &progress, work).await;
        let outcome = match &proved {
            Ok(proved) => Ok(proof(proved)),
            Err(error) => Err(error.to_string()),
        };
        let told = BackupRequest::Prove { repository: place.name.clone(), outcome };
        let told: Result<Value, _> = client.backups(&told, TELL_WITHIN).await;
        Ok((proved, told))
    });
    let (proved, told) = tried?;
    let proved = proved.map_err(|error| {
        Fail::coded(codes::NOT_RESTORED, "the restore was not proved", error.to_string())
    })?;
    let proof = proof(&proved);
    if scene.json {
        show::print_json(&json!({
            "repository": place.name,
            "backup": proof.backup,
            "rto_ms": proof.rto_ms,
            "files_ms": u64::try_from(proved.recovered.files_took.as_millis()).unwrap_or(u64::MAX),
            "replay_ms": u64::try_from(proved.recovered.replay_took.as_millis()).unwrap_or(u64::MAX),
            "bytes": proof.bytes,
            "checks": proof.checks,
        }));
    } else {
        show::print(&format!(
            "proved: {} and all the WAL behind it, restored and answering after {}; checked by {}\n",
            proof.backup,
            show_ms(proof.rto_ms),
            if proof.checks.is_empty() { "nothing".to_owned() } else { proof.checks.join(", ") }
        ));
    }
    told.map(|_| ()).map_err(Fail::from)
}

fn proof(proved: &Proved) -> Proof {
    Proof {
        backup: proved.recovered.backup.id.clone(),
        at_unix_ms: 0,
        rto_ms: u64::try_from(proved.rto.as_millis()).unwrap_or(u64::MAX),
        bytes: proved.recovered.files.bytes,
        checks: proved.checks.clone(),
    }
}
