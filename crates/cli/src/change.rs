//! Waiting for a change of primary, to say how long it took for the clients.

use crate::{connect::Scene, fail::Fail, show, terminal::Progress};
use sempre_api::{Action, Client, Status, codes, units};
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;

/// How long a change of primary may take before its command gives up looking.
const CHANGE_WITHIN: Duration = Duration::from_secs(60);
/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The rule of the event that says that a hand-over did not work out.
const ABORTED: &str = "hand-over-aborted";

/// Asks for a change of primary, and waits until the new one serves.
pub async fn ask_and_wait(
    scene: &Scene,
    client: &Client,
    before: &Status,
    action: Action,
    title: &str,
) -> Result<(), Fail> {
    let seen = client.events(u64::MAX, Duration::ZERO).await.map_or(0, |events| events.last);
    let done = client.act(&action).await?;
    let progress = Progress::start(title);
    let until = Instant::now() + CHANGE_WITHIN;
    loop {
        if let Ok(status) = client.status().await {
            progress.note(format!("{title}: {}", status.phase));
            if status.generation > before.generation && status.phase == "serving" && status.writable
            {
                drop(progress);
                return tell(scene, client, &status).await;
            }
            let given_up = status.generation == before.generation
                && status.phase == "serving"
                && status.record_version > done.version;
            if given_up && let Some(why) = aborted(client, seen).await {
                return Err(Fail::coded(codes::REFUSED, format!("{title} was given up"), why));
            }
        }
        if Instant::now() > until {
            return Err(too_long(format!("{title} is not complete yet")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// It may still happen.
pub fn too_long(what: impl Into<String>) -> Fail {
    Fail::coded(codes::TIMED_OUT, what, "it took longer than this command waits")
}

async fn aborted(client: &Client, seen: u64) -> Option<String> {
    let events = client.events(seen, Duration::ZERO).await.ok()?.events;
    events.into_iter().rev().find(|event| event.rule == ABORTED).map(|event| event.text)
}

async fn tell(scene: &Scene, client: &Client, status: &Status) -> Result<(), Fail> {
    let entry = client.history().await.ok().and_then(|history| {
        history.into_iter().rev().find(|e| e.generation.0 == status.generation)
    });
    let primary = status.primary.as_ref().map_or("nobody", |member| member.as_str());
    let stall_ms = entry.as_ref().map(|entry| entry.stall_ms);
    if scene.json {
        show::print_json(&json!({
            "primary": status.primary,
            "generation": status.generation,
            "stall_ms": stall_ms,
        }));
        return Ok(());
    }
    let stall = stall_ms.map(|ms| format!("; writes stood still for {}", units::show_ms(ms)));
    show::print(&format!(
        "{primary} is the primary of generation {}{}\n",
        status.generation,
        stall.unwrap_or_default()
    ));
    Ok(())
}
