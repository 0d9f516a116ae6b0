//! `sempre recover`: the majority is gone for good.

use crate::{
    connect::{self, Scene},
    fail::Fail,
    privileges, show, terminal,
};
use sempre_agent::recover::{Outlook, outlook, recover};
use sempre_api::codes;
use sempre_model::MemberId;
use serde_json::json;
use std::fmt::Write;

/// Says what may be lost, asks, and does it.
pub fn run(scene: &Scene, yes: bool) -> Result<(), Fail> {
    let config = scene.read_config()?;
    privileges::become_member(&config)?;
    refuse_running(scene, &config)?;
    let failed = |error: anyhow::Error| Fail::agent("the cluster was not re-formed", &error);
    let seen = outlook(&config).map_err(failed)?;
    eprint!("{}", told(&config.name, &seen));
    terminal::confirm(yes, &format!("Re-form the cluster from {} alone?", config.name))?;
    let generation = connect::block_on(async { recover(&config).await.map_err(failed) })?;
    if scene.json {
        show::print_json(&json!({
            "generation": generation, "member": config.name, "dropped": seen.dropped,
        }));
    } else {
        show::print(&format!(
            "the cluster is re-formed from {}, at generation {generation}\n",
            config.name
        ));
    }
    eprintln!(
        "next: `sempre run` here (or `systemctl start sempre`); then, for each other member, remove its folder and let it join anew"
    );
    Ok(())
}

/// The daemon holds the record, and would go on with the old one.
fn refuse_running(scene: &Scene, config: &sempre_agent::Config) -> Result<(), Fail> {
    let own = config.addresses.iter().map(|host| connect::authority(host, config.ports.rest));
    let client = sempre_api::Client::new(own, None)?;
    let answer = connect::block_on(async { Ok(client.status().await) })?;
    if answer.is_err() {
        return Ok(());
    }
    Err(Fail::coded(
        codes::REFUSED,
        "the cluster was not re-formed",
        format!("the daemon of {} runs", config.name),
    )
    .next(format!(
        "Stop it first (`systemctl stop sempre`). `sempre --config {} status` says whether the majority is really gone.",
        scene.config.display()
    )))
}

fn told(me: &MemberId, seen: &Outlook) -> String {
    let record = &seen.record;
    let cluster = record.cluster.as_ref().map_or("?", |cluster| cluster.name.as_str());
    let mut text = format!(
        "Cluster `{cluster}` as {me} last knew it: generation {}, {}, record version {}\n",
        record.generation,
        record.phase.name(),
        record.version
    );
    let dropped: Vec<_> = seen.dropped.iter().map(|name| name.as_str()).collect();
    if !dropped.is_empty() {
        let _ = writeln!(text, "Left out: {}", dropped.join(", "));
    }
    text += "What may be lost:\n";
    for warning in &seen.warnings {
        let _ = writeln!(text, "  - {warning}");
    }
    text
}
