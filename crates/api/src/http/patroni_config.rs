//! `/config`: the configuration in Patroni's words, as far as it has words for it.
//!
//! Keys of sempre's policy are taken beside Patroni's. A key that sempre does not have is refused
//! by name, unless its value is the one that `GET` shows: so a document that was read, changed in
//! one place and sent back is taken.

use super::{Context, Shared, answer, auth, v1};
use crate::{
    Action,
    codes::{self, ActionError},
    policy_edit::KEYS,
};
use answer::Response;
use axum::{body::Body, extract::State};
use http::HeaderMap;
use sempre_model::{Record, policy::Durability};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

pub(crate) async fn get_config(State(shared): State<Context>) -> Response {
    answer::json(200, &document(&shared.backend.snapshot().record))
}

pub(crate) async fn patch_config(
    State(shared): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    finish(change(&shared, &headers, body, false).await)
}

pub(crate) async fn put_config(
    State(shared): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    finish(change(&shared, &headers, body, true).await)
}

fn finish(answered: Result<Response, ActionError>) -> Response {
    answered.unwrap_or_else(|error| answer::error(&error))
}

/// Patroni's document. `loop_wait` and `retry_timeout` have no counterpart; tools read them to
/// know how long to wait, so they are given as what fits the lease.
fn document(record: &Record) -> Value {
    let policy = &record.policy;
    let mut map = Map::new();
    map.insert("ttl".into(), policy.lease_ttl_ms.div_ceil(1_000).into());
    map.insert("loop_wait".into(), policy.heartbeat_ms.div_ceil(1_000).into());
    map.insert("retry_timeout".into(), policy.lease_ttl_ms.div_ceil(1_000).into());
    map.insert("maximum_lag_on_failover".into(), policy.max_lag_bytes.into());
    let mode = match policy.durability {
        Durability::Quorum => json!("quorum"),
        Durability::Sync => json!(true),
        Durability::Async => json!(false),
    };
    map.insert("synchronous_mode".into(), mode);
    map.insert("synchronous_mode_strict".into(), policy.strict.into());
    map.insert("synchronous_node_count".into(), policy.sync_count.into());
    if record.paused {
        map.insert("pause".into(), true.into());
    }
    let mut postgresql = Map::new();
    postgresql.insert("use_slots".into(), true.into());
    postgresql.insert("use_pg_rewind".into(), true.into());
    postgresql.insert("parameters".into(), json!(record.parameters));
    if !record.hba.is_empty() {
        postgresql.insert("pg_hba".into(), json!(record.hba));
    }
    map.insert("postgresql".into(), postgresql.into());
    map.into()
}

async fn change(
    shared: &Shared,
    headers: &HeaderMap,
    body: Body,
    whole: bool,
) -> Result<Response, ActionError> {
    auth::check(shared, headers)?;
    let request = match answer::read_json(body).await? {
        Value::Object(map) if !map.is_empty() => map,
        _ => return Err(refused("the body is not a JSON object with something in it")),
    };
    let record = shared.backend.snapshot().record;
    v1::do_all(shared, actions(&record, &request, whole)?).await?;
    Ok(answer::json(200, &document(&shared.backend.snapshot().record)))
}

fn refused(why: impl Into<String>) -> ActionError {
    codes::BAD_REQUEST.error("the configuration was not changed", why)
}

/// What a document comes to. With `whole`, PostgreSQL parameters that it does not name go back to
/// the server's own; policy keys that it does not name stay.
fn actions(
    record: &Record,
    request: &Map<String, Value>,
    whole: bool,
) -> Result<Vec<Action>, ActionError> {
    let present = document(record);
    let mut policy = Vec::new();
    let mut actions = Vec::new();
    for (key, value) in request {
        if key == "postgresql" {
            postgresql(record, &present, value, whole, &mut actions)?;
            continue;
        }
        if present.get(key) == Some(value) {
            continue;
        }
        let mut set = |key: &str, value: String| policy.push((key.to_owned(), value));
        match (key.as_str(), value) {
            ("ttl", value) => {
                let seconds = value.as_f64().filter(|s| (0.0..=1e6).contains(s));
                let seconds = seconds.ok_or_else(|| refused("`ttl` is a number of seconds"))?;
                set("lease_ttl_ms", format!("{:.0}", seconds * 1_000.0));
            }
            ("maximum_lag_on_failover", value) => set("max_lag_bytes", scalar(key, value)?),
            ("synchronous_mode", value) => set(
                "durability",
                match value {
                    Value::Bool(false) | Value::Null => "async".into(),
                    Value::Bool(true) => "sync".into(),
                    Value::String(word) if word == "quorum" => "quorum".into(),
                    Value::String(word) if word == "on" => "sync".into(),
                    Value::String(word) if word == "off" => "async".into(),
                    _ => return Err(refused("`synchronous_mode` is true, false or \"quorum\"")),
                },
            ),
            ("synchronous_mode_strict", value) => set("strict", scalar(key, value)?),
            ("synchronous_node_count", value) => set("sync_count", scalar(key, value)?),
            ("pause", Value::Bool(true)) => actions.push(Action::Pause),
            ("pause", Value::Bool(false) | Value::Null) if record.paused => {
                actions.push(Action::Resume);
            }
            ("pause", Value::Bool(false) | Value::Null) => {}
            (key, value) if KEYS.iter().any(|known| known.name == key) => {
                set(key, scalar(key, value)?);
            }
            (key, _) => {
                return Err(refused(format!(
                    "`{key}` is not something sempre has; see docs/policy.md"
                )));
            }
        }
    }
    if !policy.is_empty() {
        actions.insert(0, Action::SetPolicy(policy));
    }
    Ok(actions)
}

fn postgresql(
    record: &Record,
    present: &Value,
    value: &Value,
    whole: bool,
    actions: &mut Vec<Action>,
) -> Result<(), ActionError> {
    let section = value.as_object().ok_or_else(|| refused("`postgresql` is not an object"))?;
    for (key, value) in section {
        match key.as_str() {
            "parameters" => {
                let map =
                    value.as_object().ok_or_else(|| refused("`parameters` is not an object"))?;
                let changes = parameters(record, map, whole)?;
                if !changes.is_empty() {
                    actions.push(Action::SetParameters(changes));
                }
            }
            "pg_hba" => {
                let lines: Vec<String> = match value {
                    Value::Null => Vec::new(),
                    value => serde_json::from_value(value.clone())
                        .map_err(|_| refused("`pg_hba` is not a list of lines"))?,
                };
                if lines != record.hba {
                    actions.push(Action::SetHba(lines));
                }
            }
            key if present["postgresql"].get(key) == Some(value) => {}
            key => {
                return Err(refused(format!("`postgresql.{key}` is not something sempre has")));
            }
        }
    }
    Ok(())
}

fn parameters(
    record: &Record,
    wanted: &Map<String, Value>,
    whole: bool,
) -> Result<BTreeMap<String, Option<String>>, ActionError> {
    let mut changes = BTreeMap::new();
    for (name, value) in wanted {
        let value = if value.is_null() { None } else { Some(scalar(name, value)?) };
        if record.parameters.get(name) != value.as_ref() {
            changes.insert(name.clone(), value);
        }
    }
    if whole {
        let dropped = record.parameters.keys().filter(|name| !wanted.contains_key(*name));
        changes.extend(dropped.map(|name| (name.clone(), None)));
    }
    Ok(changes)
}

fn scalar(key: &str, value: &Value) -> Result<String, ActionError> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(flag) => Ok(if *flag { "on" } else { "off" }.into()),
        _ => Err(refused(format!("`{key}` is not a string, a number or a boolean"))),
    }
}
