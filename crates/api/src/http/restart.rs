//! Patroni's restart: at once or at a time, on conditions, and taken back. It is about the member
//! that is asked. In plain text, with Patroni's codes.

use super::{
    Context, Shared, act,
    actions::{Ended, LOOK, finish, object, read_schedule, refusal, refuse},
    answer::Response,
    auth, v1,
};
use crate::{Action, Snapshot, codes, units::show_time};
use axum::{body::Body, extract::State};
use http::HeaderMap;
use sempre_model::restart::{RestartConditions, ScheduledRestart, WantedRole};
use serde_json::{Map, Value};
use std::time::Duration;

/// How long a restart is waited for.
const RESTART_TIME: Duration = Duration::from_secs(60);

pub(crate) async fn restart(
    State(shared): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    finish(try_restart(&shared, &headers, body).await)
}

async fn try_restart(shared: &Shared, headers: &HeaderMap, body: Body) -> Ended {
    let request = object(shared, headers, body).await?;
    let snapshot = shared.backend.snapshot();
    if snapshot.record.paused && request.contains_key("schedule") {
        return refuse(500, "a restart cannot be scheduled while the cluster is paused");
    }
    let wanted = Wanted::read(&request, snapshot.now_unix_ms)?;
    match wanted.at_unix_ms {
        Some(at_unix_ms) => schedule(shared, &snapshot, at_unix_ms, wanted).await,
        None => at_once(shared, &snapshot, &wanted.only_if).await,
    }
}

async fn schedule(shared: &Shared, snapshot: &Snapshot, at_unix_ms: u64, wanted: Wanted) -> Ended {
    let Wanted { only_if, timeout_seconds, .. } = wanted;
    let wish = ScheduledRestart { at_unix_ms, only_if, timeout_seconds };
    let action = Action::ScheduleRestart { member: snapshot.me.clone(), wish };
    match act(shared, action).await {
        Ok(done) => {
            v1::wait_for_version(shared, done.version).await;
            Ok((202, "the restart is scheduled".into()))
        }
        Err(error) if error.code == codes::ALREADY_SCHEDULED => {
            refuse(409, "another restart is scheduled already")
        }
        Err(error) => Err(refusal(error)),
    }
}

async fn at_once(shared: &Shared, snapshot: &Snapshot, only_if: &RestartConditions) -> Ended {
    let member = snapshot.me.clone();
    if let Some(why) = only_if.unmet(snapshot.database(&member)) {
        return refuse(503, format!("the conditions for a restart are not met: {why}"));
    }
    let done = act(shared, Action::Restart { member: member.clone() }).await.map_err(refusal)?;
    v1::wait_for_version(shared, done.version).await;
    let until = tokio::time::Instant::now() + RESTART_TIME;
    while shared.backend.snapshot().record.restarts.contains_key(&member) {
        if tokio::time::Instant::now() >= until {
            return refuse(503, "the restart is not done yet, and goes on");
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok((200, "the database is restarted".into()))
}

pub(crate) async fn cancel_restart(State(shared): State<Context>, headers: HeaderMap) -> Response {
    let ended = async {
        auth::check(&shared, &headers).map_err(refusal)?;
        let member = shared.backend.snapshot().me;
        match act(&shared, Action::CancelRestart { member }).await {
            Ok(done) => {
                v1::wait_for_version(&shared, done.version).await;
                Ok((200, "the scheduled restart is deleted".to_owned()))
            }
            Err(error) if error.code == codes::NOTHING_TO_CANCEL => {
                refuse(404, "no restart is scheduled")
            }
            Err(error) => Err(refusal(error)),
        }
    };
    finish(ended.await)
}

/// What a request for a restart says.
#[derive(Default)]
struct Wanted {
    at_unix_ms: Option<u64>,
    only_if: RestartConditions,
    timeout_seconds: Option<u64>,
}

impl Wanted {
    fn read(request: &Map<String, Value>, now_unix_ms: u64) -> Result<Self, (u16, String)> {
        let mut wanted = Self::default();
        for (key, value) in request {
            match key.as_str() {
                "schedule" => {
                    // What is no text is no time either.
                    let at = value.as_str().unwrap_or_default();
                    wanted.at_unix_ms = Some(read_schedule(at, now_unix_ms)?);
                }
                "role" => {
                    let Ok(role) = serde_json::from_value::<WantedRole>(value.clone()) else {
                        return refuse(400, "`role` is primary, standby_leader or replica");
                    };
                    wanted.only_if.role = Some(role);
                }
                "postgres_version" => {
                    let Some(version) = value.as_str().and_then(version_number) else {
                        return refuse(400, "`postgres_version` is a version such as 15.2");
                    };
                    wanted.only_if.below_version_num = Some(version);
                }
                "timeout" => {
                    let seconds = value.as_f64().or_else(|| value.as_str()?.parse().ok());
                    let Some(seconds) = seconds.filter(|seconds| *seconds > 0.0) else {
                        return refuse(400, "`timeout` is a number of seconds above 0");
                    };
                    wanted.timeout_seconds = Some(seconds.ceil() as u64);
                }
                "restart_pending" => wanted.only_if.pending = is_true(value),
                other => return refuse(400, format!("`{other}` is not a condition for a restart")),
            }
        }
        Ok(wanted)
    }
}

fn is_true(value: &Value) -> bool {
    value.as_bool().unwrap_or_else(|| matches!(value.as_str(), Some("true" | "on" | "yes" | "1")))
}

/// `15.2` is 150002.
fn version_number(text: &str) -> Option<u32> {
    let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
    major.parse::<u32>().ok()?.checked_mul(10_000)?.checked_add(minor.parse().ok()?)
}

/// As `/patroni` and `/cluster` show it: what was asked for.
pub(super) fn document(wish: &ScheduledRestart) -> Map<String, Value> {
    let mut map = Map::new();
    let at = show_time(wish.at_unix_ms).replace('Z', "+00:00");
    map.insert("schedule".into(), at.into());
    if let Some(role) = wish.only_if.role {
        map.insert("role".into(), role.name().into());
    }
    if let Some(version) = wish.only_if.below_version_num {
        let text = format!("{}.{}", version / 10_000, version % 10_000);
        map.insert("postgres_version".into(), text.into());
    }
    if let Some(seconds) = wish.timeout_seconds {
        map.insert("timeout".into(), seconds.into());
    }
    if wish.only_if.pending {
        map.insert("restart_pending".into(), true.into());
    }
    map
}
