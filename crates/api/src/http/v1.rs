//! What only sempre has.

use super::{Context, POLL_MAX, Shared, act as do_act, answer, auth};
use crate::{
    Snapshot,
    action::{Action, ConfigChange},
    apply_policy_changes,
    codes::{self, ActionError},
    status as views,
};
use answer::{Query, Response};
use axum::{
    body::Body,
    extract::{OriginalUri, State},
};
use http::HeaderMap;
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};

/// How often a long poll for events looks again.
const EVENTS_LOOK: Duration = Duration::from_millis(100);
/// How long an answer waits for this member to have what was agreed.
const APPLY_TIME: Duration = Duration::from_secs(3);

type Answered = Result<Response, ActionError>;

fn finish(answered: Answered) -> Response {
    answered.unwrap_or_else(|error| answer::error(&error))
}

pub(crate) async fn status(State(shared): State<Context>) -> Response {
    answer::json(200, &views::status(&shared.backend.snapshot()))
}

pub(crate) async fn history(State(shared): State<Context>) -> Response {
    answer::json(200, &json!({"history": shared.backend.snapshot().record.history}))
}

/// `?after=SEQ&wait_ms=MS`: events with a higher number, waiting for one if there is none.
pub(crate) async fn events(
    State(shared): State<Context>,
    OriginalUri(uri): OriginalUri,
) -> Response {
    finish(find_events(&shared, &Query::of(&uri)).await)
}

async fn find_events(shared: &Shared, query: &Query) -> Answered {
    let after = query.number("after", 0)?;
    let until = tokio::time::Instant::now() + wait(query)?;
    let _permit = poll_permit(shared)?;
    loop {
        let record = shared.backend.snapshot().record;
        let newer: Vec<_> = record.events.iter().filter(|event| event.seq > after).collect();
        let now = tokio::time::Instant::now();
        if !newer.is_empty() || now >= until {
            let last = record.events.last().map_or(0, |event| event.seq);
            return Ok(answer::json(200, &json!({"events": newer, "last": last})));
        }
        tokio::time::sleep(EVENTS_LOOK.min(until - now)).await;
    }
}

fn wait(query: &Query) -> Result<Duration, ActionError> {
    Ok(Duration::from_millis(query.number("wait_ms", 0)?).min(POLL_MAX))
}

fn poll_permit(shared: &Shared) -> Result<tokio::sync::SemaphorePermit<'_>, ActionError> {
    shared.polls.try_acquire().map_err(|_| {
        codes::BUSY.error("the request was not taken up", "too many others wait here already")
    })
}

pub(crate) async fn get_config(State(shared): State<Context>) -> Response {
    answer::json(200, &config_document(&shared.backend.snapshot()))
}

/// The configuration that all members share, and who has yet to restart for it.
pub(crate) fn config_document(snapshot: &Snapshot) -> Value {
    let record = &snapshot.record;
    let pending: BTreeMap<_, _> = snapshot
        .seen
        .iter()
        .filter_map(|(name, seen)| {
            Some((name, &seen.observation.database.as_ref()?.pending_restart))
        })
        .filter(|(_, names)| !names.is_empty())
        .collect();
    json!({
        "record_version": record.version,
        "policy": record.policy,
        "parameters": record.parameters,
        "hba": record.hba,
        "pending_restart": pending,
    })
}

pub(crate) async fn patch_config(
    State(shared): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    finish(change_config(&shared, &headers, body).await)
}

async fn change_config(shared: &Shared, headers: &HeaderMap, body: Body) -> Answered {
    auth::check(shared, headers)?;
    let body = answer::read_json(body).await?;
    let change: ConfigChange = serde_json::from_value(body).map_err(|why| {
        codes::BAD_REQUEST.error("the configuration was not changed", why.to_string())
    })?;
    let actions = change.actions()?;
    if actions.is_empty() {
        return Err(codes::BAD_REQUEST.error(
            "the configuration was not changed",
            "the body names no `policy`, `parameters` or `hba`",
        ));
    }
    do_all(shared, actions).await?;
    Ok(answer::json(200, &config_document(&shared.backend.snapshot())))
}

/// Does several changes of the configuration: all of them, or none.
pub(crate) async fn do_all(shared: &Shared, actions: Vec<Action>) -> Result<(), ActionError> {
    let snapshot = shared.backend.snapshot();
    for action in &actions {
        precheck(&snapshot, action)?;
    }
    let all = match <[Action; 1]>::try_from(actions) {
        Ok([only]) => only,
        Err(none) if none.is_empty() => return Ok(()),
        Err(several) => Action::Together(several),
    };
    let done = do_act(shared, all).await?;
    wait_for_version(shared, done.version).await;
    Ok(())
}

fn precheck(snapshot: &Snapshot, action: &Action) -> Result<(), ActionError> {
    match action {
        Action::SetPolicy(changes) => apply_policy_changes(&snapshot.record.policy, changes)
            .map(|_| ())
            .map_err(ActionError::from),
        Action::Restart { member }
        | Action::ScheduleRestart { member, .. }
        | Action::CancelRestart { member }
        | Action::Reinit { member, .. }
        | Action::Remove { member, .. }
        | Action::Failover { to: member, .. }
        | Action::Switchover { to: Some(member), .. }
            if snapshot.record.member(member).is_none() =>
        {
            let known: Vec<_> = snapshot.record.members.keys().map(|name| name.as_str()).collect();
            Err(codes::UNKNOWN_MEMBER.error(
                format!("there is no member `{member}`"),
                format!("the members are: {}", known.join(", ")),
            ))
        }
        _ => Ok(()),
    }
}

/// Waits, for a moment, until this member's record has come to `version`, so that what is read
/// after a change shows it.
pub(crate) async fn wait_for_version(shared: &Shared, version: u64) {
    let until = tokio::time::Instant::now() + APPLY_TIME;
    while shared.backend.snapshot().record.version < version && tokio::time::Instant::now() < until
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// `POST /v1/NAME`.
pub(crate) async fn act(
    State(shared): State<Context>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let name = uri.path().strip_prefix("/v1/").unwrap_or_default();
    finish(try_act(&shared, name, &headers, body).await)
}

async fn try_act(shared: &Shared, name: &str, headers: &HeaderMap, body: Body) -> Answered {
    auth::check(shared, headers)?;
    let action = Action::from_request(name, answer::read_json(body).await?)?;
    precheck(&shared.backend.snapshot(), &action)?;
    let done = do_act(shared, action).await?;
    wait_for_version(shared, done.version).await;
    Ok(answer::json(200, &done))
}

pub(crate) async fn cancel_switchover(
    State(shared): State<Context>,
    headers: HeaderMap,
) -> Response {
    let cancelled = async {
        auth::check(&shared, &headers)?;
        let done = do_act(&shared, Action::CancelSwitchover).await?;
        Ok(answer::json(200, &done))
    };
    finish(cancelled.await)
}

pub(crate) async fn cancel_restart(
    State(shared): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let cancelled = async {
        auth::check(&shared, &headers)?;
        let action = Action::from_cancel_restart(answer::read_json(body).await?)?;
        precheck(&shared.backend.snapshot(), &action)?;
        let done = do_act(&shared, action).await?;
        wait_for_version(&shared, done.version).await;
        Ok(answer::json(200, &done))
    };
    finish(cancelled.await)
}

pub(crate) async fn openapi() -> Response {
    answer::with_type(200, "application/json", include_bytes!("../../openapi.json").to_vec())
}

/// `?after=VERSION&wait_ms=MS`: the routing table, once it is newer. `warming=true`: who asks still
/// logs sessions in to the target of a switchover.
pub(crate) async fn route(
    State(shared): State<Context>,
    OriginalUri(uri): OriginalUri,
) -> Response {
    let routed = async {
        let query = Query::of(&uri);
        let (after, wait) = (query.number("after", 0)?, wait(&query)?);
        let warming = query.get("warming") == Some("true");
        let _permit = poll_permit(&shared)?;
        Ok(answer::json(200, &shared.backend.route(after, wait, warming).await))
    };
    finish(routed.await)
}

/// `?generation=G`: 200 if this member is the serving primary of that generation at this moment,
/// 503 otherwise.
pub(crate) async fn verify_route(
    State(shared): State<Context>,
    OriginalUri(uri): OriginalUri,
) -> Response {
    let verified = async {
        let query = Query::of(&uri);
        if query.get("generation").is_none() {
            return Err(codes::BAD_REQUEST.error("nothing was verified", "`generation` is absent"));
        }
        let generation = query.number("generation", 0)?;
        let holds = shared.backend.verify_route(generation);
        // Who answers is part of the answer: an address may have become another member's.
        let member = shared.backend.snapshot().me;
        let said = json!({"member": member, "generation": generation, "holds": holds});
        Ok(answer::json(if holds { 200 } else { 503 }, &said))
    };
    finish(verified.await)
}
