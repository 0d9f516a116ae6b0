//! Commands that change something: asked of the members, and watched until they are done.

use crate::{
    arguments::Task,
    change,
    connect::Scene,
    fail::Fail,
    show,
    terminal::{self, Progress},
};
use sempre_api::{Action, Client, Done, codes, status::MemberStatus, units};
use sempre_model::{
    MemberId,
    restart::{RestartConditions, ScheduledRestart},
};
use std::time::Duration;
use tokio::time::Instant;

/// How long a restart may take before its command gives up looking.
const RESTART_WITHIN: Duration = Duration::from_secs(90);
/// States of a member, as its status says them: its database serves, follows, or cannot.
const RUNNING: &str = "running";
const STREAMING: &str = "streaming";
const DOES_NOT_START: &str = "does not start";
/// How often a command that waits looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Does it.
pub async fn run(scene: &Scene, task: Task) -> Result<(), Fail> {
    let client = scene.client()?;
    match task {
        Task::Token { ttl } => token(scene, &client, &ttl).await,
        Task::Switchover { cancel: true, yes, .. } => {
            terminal::confirm(yes, "Take back the switchover?")?;
            simple(scene, &client, Action::CancelSwitchover).await
        }
        Task::Switchover { to, at, yes, .. } => {
            switchover(scene, &client, to, at.as_deref(), yes).await
        }
        Task::Failover { to, allow_data_loss, yes } => {
            let loss = if allow_data_loss { ", even if acknowledged commits are lost" } else { "" };
            terminal::confirm(yes, &format!("Make {to} the primary by force{loss}?"))?;
            let before = client.status().await?;
            let action = Action::Failover { to: to.clone(), allow_data_loss };
            change::ask_and_wait(scene, &client, &before, action, &format!("failover to {to}"))
                .await
        }
        Task::Pause => simple(scene, &client, Action::Pause).await,
        Task::Resume => simple(scene, &client, Action::Resume).await,
        Task::Restart { member, cancel: true, .. } => {
            simple(scene, &client, Action::CancelRestart { member }).await
        }
        Task::Restart { member, at: Some(at), .. } => {
            let (only_if, timeout_seconds) = (RestartConditions::default(), None);
            let wish =
                ScheduledRestart { at_unix_ms: moment(&at, "--at")?, only_if, timeout_seconds };
            simple(scene, &client, Action::ScheduleRestart { member, wish }).await
        }
        Task::Restart { member, .. } => restart(scene, &client, member).await,
        Task::Reload => simple(scene, &client, Action::Reload).await,
        Task::Reinit { member, from_backup, yes } => {
            let question = format!("Throw away the data of {member}, and copy them afresh?");
            terminal::confirm(yes, &question)?;
            simple(scene, &client, Action::Reinit { member, from_backup }).await?;
            eprintln!("next: `sempre status --watch` shows how it goes");
            Ok(())
        }
        Task::Remove { member, force, yes } => {
            terminal::confirm(yes, &format!("Take {member} out of the cluster?"))?;
            simple(scene, &client, Action::Remove { member, force }).await
        }
        // The others are dispatched elsewhere.
        _ => Ok(()),
    }
}

async fn simple(scene: &Scene, client: &Client, action: Action) -> Result<(), Fail> {
    let done = client.act(&action).await?;
    say(scene, &done);
    Ok(())
}

/// What came of it.
pub fn say(scene: &Scene, done: &Done) {
    if scene.json {
        show::print_json(done);
    } else {
        show::print(&format!("{}\n", done.message));
    }
}

async fn token(scene: &Scene, client: &Client, ttl: &str) -> Result<(), Fail> {
    let ttl_seconds =
        units::parse_ms(ttl).map(|ms| ms / 1_000).filter(|s| *s > 0).ok_or_else(|| {
            Fail::usage(
                format!("`{ttl}` cannot be used as --ttl"),
                "it is not a time of at least a second",
                "Write it like 30min, 1h or 2d.",
            )
        })?;
    let done = client.act(&Action::IssueToken { ttl_seconds }).await?;
    match done.data["token"].as_str() {
        _ if scene.json => show::print_json(&done.data),
        Some(token) => show::print(&format!("{token}\n")),
        None => {
            return Err(Fail::new("no token was printed", "the member's answer holds none", ""));
        }
    }
    Ok(())
}

async fn switchover(
    scene: &Scene,
    client: &Client,
    to: Option<MemberId>,
    at: Option<&str>,
    yes: bool,
) -> Result<(), Fail> {
    let at_unix_ms = at.map(|at| moment(at, "--at")).transpose()?;
    let before = client.status().await?;
    let target = to.as_ref().map_or("the best standby", |member| member.as_str());
    let when = at.map(|at| format!(" at {at}")).unwrap_or_default();
    let from = before.primary.as_ref().map_or("nobody", |member| member.as_str());
    let title = format!("switchover from {from} to {target}");
    terminal::confirm(yes, &format!("Switch over from {from} to {target}{when}?"))?;
    let action = Action::Switchover { to, at_unix_ms };
    if at_unix_ms.is_some() {
        return simple(scene, client, action).await;
    }
    change::ask_and_wait(scene, client, &before, action, &title).await
}

pub fn moment(text: &str, option: &str) -> Result<u64, Fail> {
    units::parse_time(text).map_err(|error| {
        let why = match error {
            units::BadTime::NoZone => "it has no time zone",
            units::BadTime::Unreadable => "it is not a time",
        };
        Fail::usage(
            format!("`{text}` cannot be used as {option}"),
            why,
            "Write it like 2026-01-31T03:00:00Z or 2026-01-31T03:00:00+01:00.",
        )
    })
}

fn not_started(member: &MemberId, notes: &[String]) -> Fail {
    let why = notes.first().map_or("it says nothing", String::as_str);
    let what = format!("the database of {member} was stopped, and does not start");
    Fail::coded(codes::DATABASE_DOES_NOT_START, what, why)
}

async fn restart(scene: &Scene, client: &Client, member: MemberId) -> Result<(), Fail> {
    let pid = |m: &MemberStatus| m.database.as_ref().and_then(|database| database.pid);
    let before = client.status().await?.members.into_iter().find(|m| m.name == member);
    let before = before.as_ref().and_then(pid);
    let done = client.act(&Action::Restart { member: member.clone() }).await?;
    let progress = Progress::start(format!("restarting the database of {member}"));
    let until = Instant::now() + RESTART_WITHIN;
    loop {
        let status = client.status().await.ok().filter(|s| s.record_version >= done.version);
        let seen = status.and_then(|s| s.members.into_iter().find(|m| m.name == member));
        if let Some(seen) = seen.filter(|seen| !seen.restart_requested) {
            match seen.state.as_str() {
                // What is heard of it may be older than its restart.
                RUNNING | STREAMING if before.is_none() || pid(&seen) != before => break,
                DOES_NOT_START => return Err(not_started(&member, &seen.notes)),
                _ => {}
            }
        }
        if Instant::now() > until {
            return Err(change::too_long(format!("the database of {member} is not restarted yet")));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    drop(progress);
    say(scene, &Done { message: format!("the database of {member} is restarted"), ..done });
    Ok(())
}
