//! What a member does for itself: `init`, `join`, `run`.

use crate::{
    arguments::RunHow,
    connect::{self, Scene},
    fail::Fail,
    logs, privileges,
};
use sempre_api::{apply_policy_changes, codes};
use sempre_model::{MemberKind, Policy, policy::PolicyError};
use sempre_net::JoinToken;
use std::io::Read;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// `KEY=VALUE`.
pub fn pair(text: &str) -> Result<(String, String), Fail> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => {
            Ok((key.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err(Fail::usage(
            format!("`{text}` cannot be used"),
            "it is not KEY=VALUE",
            "Write it like lease_ttl_ms=3s; docs/policy.md lists the keys.",
        )),
    }
}

/// An error of the policy, with its code.
pub fn policy_error(error: &PolicyError) -> Fail {
    let code = match error {
        PolicyError::UnknownKey { .. } => codes::UNKNOWN_POLICY_KEY,
        PolicyError::BadValue { .. } => codes::BAD_POLICY_VALUE,
        PolicyError::Contradiction(_) => codes::POLICY_CONTRADICTION,
    };
    Fail::coded(code, "the policy cannot be used", error.to_string())
}

/// The policy with these changes, `KEY=VALUE` each.
pub fn policy(set: &[String]) -> Result<Policy, Fail> {
    let changes = set.iter().map(|text| pair(text)).collect::<Result<Vec<_>, _>>()?;
    apply_policy_changes(&Policy::default(), &changes).map_err(|error| policy_error(&error))
}

/// `sempre init`.
pub fn init(scene: &Scene, cluster: &str, set: &[String]) -> Result<(), Fail> {
    let config = scene.read_config()?;
    let policy = policy(set)?;
    privileges::become_member(&config)?;
    connect::block_on(async {
        sempre_agent::setup::init(&config, cluster, policy)
            .await
            .map(drop)
            .map_err(|error| Fail::agent("no cluster was made", &error))
    })?;
    eprintln!("cluster `{cluster}` is made, with {} as its first member", config.name);
    eprintln!(
        "next: `sempre run` here (or `systemctl start sempre`), then `sempre token` for each further member"
    );
    Ok(())
}

/// `sempre join`.
pub fn join(scene: &Scene, token: &str, from_backup: Option<String>) -> Result<(), Fail> {
    let config = scene.read_config()?;
    let token: JoinToken = token.trim().parse().map_err(|error: sempre_net::BadToken| {
        Fail::coded(codes::TOKEN_UNKNOWN, "the token cannot be used", error.to_string())
            .next("`sempre token` on a member prints one. Copy all of it.")
            .typed()
    })?;
    if from_backup.is_some() && config.kind == MemberKind::Witness {
        let why = "a witness has no data";
        return Err(Fail::usage("--from-backup is of no use here", why, "Leave it out."));
    }
    privileges::become_member(&config)?;
    connect::block_on(async {
        sempre_agent::setup::join(&config, &token, from_backup)
            .await
            .map(drop)
            .map_err(|error| Fail::agent(format!("{} did not join", config.name), &error))
    })?;
    eprintln!("{} joined; next: `sempre run` here (or `systemctl start sempre`)", config.name);
    Ok(())
}

/// `sempre run`.
pub fn run(scene: &Scene, how: &RunHow) -> Result<(), Fail> {
    let config = scene.read_config()?;
    privileges::hurry();
    privileges::become_member(&config)?;
    logs::start(how.log_format);
    let name = config.name.clone();
    connect::block_on_threads(async {
        let (stop_in, stop) = watch::channel(false);
        let (database_in, database) = watch::channel(how.stop_database);
        if how.stop_with_input {
            let stop_in = stop_in.clone();
            // A thread, not a task: the runtime would wait for a read that never returns.
            std::thread::spawn(move || {
                while matches!(std::io::stdin().read(&mut [0; 64]), Ok(n) if n > 0) {}
                tracing::info!("the supervisor is gone, or wants all of this to end");
                database_in.send_replace(true);
                stop_in.send_replace(true);
            });
        }
        tokio::spawn(stop_on_signals(stop_in));
        sempre_agent::run::run(config, stop, database)
            .await
            .map_err(|error| Fail::agent(format!("{name} does not run"), &error))
    })
}

/// SIGTERM and SIGINT end the daemon.
async fn stop_on_signals(stop: watch::Sender<bool>) {
    signalled().await;
    stop.send_replace(true);
}

/// Returns at the first SIGTERM or SIGINT.
pub async fn signalled() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        // Without handlers the signals end the process by themselves.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
