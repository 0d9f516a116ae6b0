//! Patroni's actions, mapped to sempre's. They answer in plain text, with Patroni's codes.

use super::{Context, Shared, act, answer, auth, v1};
use crate::{
    Action, Snapshot,
    codes::{self, ActionError},
    units::{BadTime, parse_time},
};
use answer::Response;
use axum::{body::Body, extract::State};
use http::HeaderMap;
use sempre_model::{Generation, MemberId, Phase};
use serde_json::{Map, Value};
use std::time::Duration;

/// How long a change of primary is waited for before the answer says that it goes on.
const SWITCHOVER_TIME: Duration = Duration::from_secs(20);
/// How often is looked whether it is done.
pub(super) const LOOK: Duration = Duration::from_millis(50);

/// A code and a text: how Patroni's actions end, well or not.
pub(super) type Ended = Result<(u16, String), (u16, String)>;

pub(super) fn finish(ended: Ended) -> Response {
    let (code, text) = ended.unwrap_or_else(|refusal| refusal);
    let mut response = answer::text(code, text);
    if code == 401 {
        let value = http::HeaderValue::from_static("Basic realm=\"sempre\"");
        response.headers_mut().insert(http::header::WWW_AUTHENTICATE, value);
    }
    response
}

/// sempre's errors in the codes that Patroni documents for changes.
pub(super) fn refusal(error: ActionError) -> (u16, String) {
    let code = match error.code.entry().http {
        404 | 409 | 412 => 412,
        500.. => 503,
        other => other,
    };
    (code, error.to_string())
}

pub(super) fn refuse<T>(code: u16, text: impl Into<String>) -> Result<T, (u16, String)> {
    Err((code, text.into()))
}

/// Checks the token, then reads the body as an object.
pub(super) async fn object(
    shared: &Shared,
    headers: &HeaderMap,
    body: Body,
) -> Result<Map<String, Value>, (u16, String)> {
    auth::check(shared, headers).map_err(refusal)?;
    match answer::read_json(body).await.map_err(refusal)? {
        Value::Null => Ok(Map::new()),
        Value::Object(map) => Ok(map),
        _ => refuse(400, "the body is not a JSON object"),
    }
}

pub(crate) async fn switchover(
    State(shared): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    finish(change_primary(&shared, &headers, body, false).await)
}

pub(crate) async fn failover(
    State(shared): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    finish(change_primary(&shared, &headers, body, true).await)
}

fn text<'a>(request: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    request.get(key).and_then(Value::as_str).filter(|text| !text.is_empty())
}

async fn change_primary(shared: &Shared, headers: &HeaderMap, body: Body, failover: bool) -> Ended {
    let request = object(shared, headers, body).await?;
    let snapshot = shared.backend.snapshot();
    let action = plan_change(&snapshot, &request, failover)?;
    let scheduled = matches!(action, Action::Switchover { at_unix_ms: Some(_), .. });
    let wanted = match &action {
        Action::Switchover { to, .. } => to.clone(),
        Action::Failover { to, .. } => Some(to.clone()),
        _ => None,
    };
    let word = if matches!(action, Action::Failover { .. }) { "failover" } else { "switchover" };
    let done = act(shared, action).await.map_err(refusal)?;
    if scheduled {
        return Ok((202, "the switchover is scheduled".into()));
    }
    v1::wait_for_version(shared, done.version).await;
    let agreed = done.version.max(snapshot.record.version + 1);
    watch_change(shared, snapshot.generation(), agreed, wanted.as_ref(), word).await
}

/// What a request for a change of primary comes to, in the order in which Patroni checks it.
fn plan_change(
    snapshot: &Snapshot,
    request: &Map<String, Value>,
    failover: bool,
) -> Result<Action, (u16, String)> {
    let record = &snapshot.record;
    let leader = text(request, "leader");
    let candidate = text(request, "candidate").or_else(|| text(request, "member"));
    let scheduled = text(request, "scheduled_at");
    if request.is_empty() {
        return refuse(400, "the body is empty");
    }
    if failover && candidate.is_none() {
        return refuse(400, "a failover needs a `candidate`");
    }
    if !failover && leader.is_none() {
        return refuse(400, "a switchover needs the present `leader` by name");
    }
    let mut at_unix_ms = None;
    if let Some(at) = scheduled {
        if failover {
            return refuse(400, "a failover cannot be scheduled");
        }
        if record.paused {
            return refuse(400, "a switchover cannot be scheduled while the cluster is paused");
        }
        at_unix_ms = Some(read_schedule(at, snapshot.now_unix_ms)?);
    }
    if record.paused && candidate.is_none() {
        return refuse(400, "while the cluster is paused, a switchover needs a `candidate`");
    }
    if leader == candidate {
        return refuse(400, "`leader` and `candidate` are the same");
    }
    if leader.is_some_and(|leader| record.primary.as_ref().map(MemberId::as_str) != Some(leader)) {
        let now = record.primary.as_ref().map_or("nobody", |primary| primary.as_str());
        return refuse(412, format!("`leader` is not the primary; it is {now}"));
    }
    let to = match candidate {
        None => None,
        Some(name) => match MemberId::new(name).ok().filter(|id| record.member(id).is_some()) {
            Some(id) => Some(id),
            None => return refuse(412, format!("there is no member `{name}`")),
        },
    };
    if to.is_none() && record.data_members().count() < 2 {
        return refuse(412, "there is no other member to switch over to");
    }
    match to {
        Some(to) if failover && leader.is_none() => {
            // Patroni's failover takes the operator at his word; so does this, but what would be
            // lost must be accepted by name: see /v1/failover.
            let allow_data_loss =
                request.get("allow_data_loss").and_then(Value::as_bool).unwrap_or(false);
            Ok(Action::Failover { to, allow_data_loss })
        }
        to => Ok(Action::Switchover { to, at_unix_ms }),
    }
}

pub(super) fn read_schedule(text: &str, now_unix_ms: u64) -> Result<u64, (u16, String)> {
    match parse_time(text) {
        Err(BadTime::NoZone) => refuse(400, "the time needs a time zone"),
        Err(BadTime::Unreadable) => {
            refuse(422, "the time cannot be read; use ISO 8601, such as 2026-01-31T12:00:00+01:00")
        }
        Ok(at) if at < now_unix_ms => refuse(422, "the time is in the past"),
        Ok(at) => Ok(at),
    }
}

/// Watches a change of primary, agreed on in record version `agreed`, until it ends one way or
/// the other.
async fn watch_change(
    shared: &Shared,
    before: Generation,
    agreed: u64,
    wanted: Option<&MemberId>,
    word: &str,
) -> Ended {
    let until = tokio::time::Instant::now() + SWITCHOVER_TIME;
    loop {
        let record = shared.backend.snapshot().record;
        let settled = record.phase == Phase::Serving && record.switchover.is_none();
        if settled && record.generation > before {
            let primary = record.primary.as_ref().map_or("nobody", |primary| primary.as_str());
            return match wanted {
                Some(wanted) if wanted.as_str() != primary => {
                    Ok((200, format!("{word} to \"{primary}\" instead of \"{wanted}\"")))
                }
                _ => Ok((200, format!("{word} to \"{primary}\" is done"))),
            };
        }
        if settled && record.version >= agreed {
            let why = record.events.last().map_or("", |event| event.text.as_str());
            return refuse(503, format!("{word} failed: {why}"));
        }
        if tokio::time::Instant::now() >= until {
            let seconds = SWITCHOVER_TIME.as_secs();
            return refuse(503, format!("{word} is not done after {seconds} s, and may go on"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

pub(crate) async fn cancel_switchover(
    State(shared): State<Context>,
    headers: HeaderMap,
) -> Response {
    let ended = async {
        auth::check(&shared, &headers).map_err(refusal)?;
        match act(&shared, Action::CancelSwitchover).await {
            Ok(_) => Ok((200, "the scheduled switchover is deleted".to_owned())),
            Err(error) if error.code == codes::NOTHING_TO_CANCEL => {
                refuse(404, "no switchover is scheduled")
            }
            Err(error) if error.code == codes::OUT_OF_DATE => refuse(409, error.to_string()),
            Err(error) => Err(refusal(error)),
        }
    };
    finish(ended.await)
}

pub(crate) async fn reload(
    State(shared): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let ended = async {
        object(&shared, &headers, body).await?;
        act(&shared, Action::Reload).await.map_err(refusal)?;
        Ok((202, "the configuration is read again".to_owned()))
    };
    finish(ended.await)
}

pub(crate) async fn reinitialize(
    State(shared): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let ended = async {
        object(&shared, &headers, body).await?;
        let member = shared.backend.snapshot().me;
        match act(&shared, Action::Reinit { member, from_backup: None }).await {
            Ok(_) => Ok((200, "a fresh copy is begun".to_owned())),
            Err(error) => refuse(503, error.to_string()),
        }
    };
    finish(ended.await)
}
