//! What an operator can ask for, and how it travels over HTTP.

use crate::codes::{self, ActionError};
use sempre_model::{
    MemberId,
    restart::{RestartConditions, ScheduledRestart},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The longest a join token may be valid, seconds (30 days).
pub const TOKEN_TTL_MAX_SECONDS: u64 = 30 * 24 * 3600;
/// How long a join token is valid unless said otherwise, seconds.
pub const TOKEN_TTL_SECONDS: u64 = 3600;

/// Something an operator asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Change the primary in an orderly way.
    Switchover {
        /// To whom; without: the best standby.
        to: Option<MemberId>,
        /// Not before, ms since 1970; without: now.
        at_unix_ms: Option<u64>,
    },
    /// Take back a switchover that has not begun.
    CancelSwitchover,
    /// Replace the primary by hand.
    Failover {
        /// By whom.
        to: MemberId,
        /// Even if acknowledged commits are lost.
        allow_data_loss: bool,
    },
    /// Nothing automatic happens from now on.
    Pause,
    /// It does again.
    Resume,
    /// Restart the database of a member.
    Restart {
        /// Whose.
        member: MemberId,
    },
    /// Restart it at a time.
    ScheduleRestart {
        /// Whose.
        member: MemberId,
        /// When, and what it hangs on.
        wish: ScheduledRestart,
    },
    /// Take that back.
    CancelRestart {
        /// Whose.
        member: MemberId,
    },
    /// Read the config file again, and have the database do the same (this member alone).
    Reload,
    /// Give a member a fresh copy of the data.
    Reinit {
        /// Whom.
        member: MemberId,
        /// From this repository (empty: the only one) instead of from another member.
        from_backup: Option<String>,
    },
    /// Take a member out of the cluster.
    Remove {
        /// Whom.
        member: MemberId,
        /// Even the primary, or if the majority is at stake.
        force: bool,
    },
    /// Change keys of the policy; values as [`crate::apply_policy_changes`] reads them.
    SetPolicy(Vec<(String, String)>),
    /// Change PostgreSQL parameters; none: back to the server's own.
    SetParameters(BTreeMap<String, Option<String>>),
    /// Replace the client lines of `pg_hba.conf`.
    SetHba(Vec<String>),
    /// Several changes of the configuration, or of the pause: all of them, or none.
    Together(Vec<Action>),
    /// Give out the right to join, once. The token is in [`Done::data`].
    IssueToken {
        /// How long it is valid, seconds.
        ttl_seconds: u64,
    },
}

/// What came of an action.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// In words.
    pub message: String,
    /// The record version that holds it; 0 when the record has nothing of it.
    #[serde(default)]
    pub version: u64,
    /// More, for programs; for a token: `{"token": "...", "expires_unix_ms": ...}`.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub data: Value,
}

impl Done {
    /// With a message alone.
    pub fn said(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::default() }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct SwitchoverBody {
    to: Option<MemberId>,
    at_unix_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FailoverBody {
    to: MemberId,
    #[serde(default)]
    allow_data_loss: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MemberBody {
    member: MemberId,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReinitBody {
    member: MemberId,
    #[serde(default)]
    from_backup: Option<String>,
}

/// With a time, it is scheduled; the rest is of use only then.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RestartBody {
    member: MemberId,
    #[serde(default)]
    at_unix_ms: Option<u64>,
    #[serde(default)]
    only_if: RestartConditions,
    #[serde(default)]
    timeout_seconds: Option<u64>,
}

impl RestartBody {
    fn action(self) -> Action {
        let Self { member, at_unix_ms, only_if, timeout_seconds } = self;
        match at_unix_ms {
            None => Action::Restart { member },
            Some(at_unix_ms) => {
                let wish = ScheduledRestart { at_unix_ms, only_if, timeout_seconds };
                Action::ScheduleRestart { member, wish }
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoveBody {
    member: MemberId,
    #[serde(default)]
    force: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TokenBody {
    ttl_seconds: u64,
}

impl Default for TokenBody {
    fn default() -> Self {
        Self { ttl_seconds: TOKEN_TTL_SECONDS }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EmptyBody {}

/// A change of the configuration: what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigChange {
    /// Policy keys: a string such as `2s` or `16MB`, a number, or a boolean.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub policy: BTreeMap<String, Value>,
    /// PostgreSQL parameters; null: back to the server's own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, Value>,
    /// All client lines of `pg_hba.conf`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hba: Option<Vec<String>>,
}

impl ConfigChange {
    /// The actions that make the change, in the order they are to be done.
    pub fn actions(&self) -> Result<Vec<Action>, ActionError> {
        let mut actions = Vec::new();
        if !self.policy.is_empty() {
            let changes = self
                .policy
                .iter()
                .map(|(key, value)| Ok((key.clone(), plain(key, value)?)))
                .collect::<Result<_, ActionError>>()?;
            actions.push(Action::SetPolicy(changes));
        }
        if !self.parameters.is_empty() {
            let parameters = self
                .parameters
                .iter()
                .map(|(name, value)| match value {
                    Value::Null => Ok((name.clone(), None)),
                    value => Ok((name.clone(), Some(plain(name, value)?))),
                })
                .collect::<Result<_, ActionError>>()?;
            actions.push(Action::SetParameters(parameters));
        }
        if let Some(lines) = &self.hba {
            actions.push(Action::SetHba(lines.clone()));
        }
        Ok(actions)
    }
}

/// A scalar as text, the way PostgreSQL and the policy read it.
fn plain(key: &str, value: &Value) -> Result<String, ActionError> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(flag) => Ok(if *flag { "on" } else { "off" }.to_owned()),
        other => Err(codes::BAD_REQUEST.error(
            format!("`{key}` was not changed"),
            format!("{other} is not a string, a number or a boolean"),
        )),
    }
}

impl Action {
    /// The names that `POST /v1/NAME` knows (`switchover` and `restart` also know `DELETE`; the configuration
    /// is changed by `PATCH /v1/config`).
    pub const NAMES: [&str; 9] = [
        "switchover",
        "failover",
        "pause",
        "resume",
        "restart",
        "reload",
        "reinit",
        "remove",
        "token",
    ];

    /// Method, path and body that ask for this over HTTP.
    pub fn to_request(&self) -> (&'static str, &'static str, Value) {
        match self {
            Action::Switchover { to, at_unix_ms } => {
                ("POST", "/v1/switchover", json!({"to": to, "at_unix_ms": at_unix_ms}))
            }
            Action::CancelSwitchover => ("DELETE", "/v1/switchover", Value::Null),
            Action::Failover { to, allow_data_loss } => {
                ("POST", "/v1/failover", json!({"to": to, "allow_data_loss": allow_data_loss}))
            }
            Action::Pause => ("POST", "/v1/pause", json!({})),
            Action::Resume => ("POST", "/v1/resume", json!({})),
            Action::Restart { member } => ("POST", "/v1/restart", json!({"member": member})),
            Action::ScheduleRestart { member, wish } => (
                "POST",
                "/v1/restart",
                json!({
                    "member": member,
                    "at_unix_ms": wish.at_unix_ms,
                    "only_if": wish.only_if,
                    "timeout_seconds": wish.timeout_seconds,
                }),
            ),
            Action::CancelRestart { member } => {
                ("DELETE", "/v1/restart", json!({"member": member}))
            }
            Action::Reload => ("POST", "/v1/reload", json!({})),
            Action::Reinit { member, from_backup } => {
                ("POST", "/v1/reinit", json!({"member": member, "from_backup": from_backup}))
            }
            Action::Remove { member, force } => {
                ("POST", "/v1/remove", json!({"member": member, "force": force}))
            }
            Action::SetPolicy(changes) => {
                let policy: BTreeMap<_, _> = changes.iter().cloned().collect();
                ("PATCH", "/v1/config", json!({"policy": policy}))
            }
            Action::SetParameters(parameters) => {
                ("PATCH", "/v1/config", json!({"parameters": parameters}))
            }
            Action::SetHba(lines) => ("PATCH", "/v1/config", json!({"hba": lines})),
            Action::Together(actions) => {
                let mut all = serde_json::Map::new();
                for action in actions {
                    if let ("PATCH", _, Value::Object(part)) = action.to_request() {
                        all.extend(part);
                    }
                }
                ("PATCH", "/v1/config", Value::Object(all))
            }
            Action::IssueToken { ttl_seconds } => {
                ("POST", "/v1/token", json!({"ttl_seconds": ttl_seconds}))
            }
        }
    }

    /// Reads the body of `DELETE /v1/restart`.
    pub fn from_cancel_restart(body: Value) -> Result<Self, ActionError> {
        let MemberBody { member } = read("cancelling the restart", body)?;
        Ok(Action::CancelRestart { member })
    }

    /// Reads the body of `POST /v1/{name}`. An absent body is an empty object.
    pub fn from_request(name: &str, body: Value) -> Result<Self, ActionError> {
        let body = if body.is_null() { json!({}) } else { body };
        Ok(match name {
            "switchover" => {
                let SwitchoverBody { to, at_unix_ms } = read(name, body)?;
                Action::Switchover { to, at_unix_ms }
            }
            "failover" => {
                let FailoverBody { to, allow_data_loss } = read(name, body)?;
                Action::Failover { to, allow_data_loss }
            }
            "restart" => read::<RestartBody>(name, body)?.action(),
            "reinit" => {
                let ReinitBody { member, from_backup } = read(name, body)?;
                Action::Reinit { member, from_backup }
            }
            "remove" => {
                let RemoveBody { member, force } = read(name, body)?;
                Action::Remove { member, force }
            }
            "token" => {
                let ttl_seconds = read::<TokenBody>(name, body)?.ttl_seconds;
                if !(1..=TOKEN_TTL_MAX_SECONDS).contains(&ttl_seconds) {
                    return Err(codes::BAD_REQUEST.error(
                        "no join token was issued",
                        format!("ttl_seconds must be from 1 to {TOKEN_TTL_MAX_SECONDS}"),
                    ));
                }
                Action::IssueToken { ttl_seconds }
            }
            "pause" | "resume" | "reload" => {
                read::<EmptyBody>(name, body)?;
                match name {
                    "pause" => Action::Pause,
                    "resume" => Action::Resume,
                    _ => Action::Reload,
                }
            }
            other => {
                return Err(codes::NO_SUCH_PAGE
                    .error(format!("/v1/{other} does not exist"), "no action has this name"));
            }
        })
    }
}

fn read<T: DeserializeOwned>(name: &str, body: Value) -> Result<T, ActionError> {
    serde_json::from_value(body).map_err(|why| {
        codes::BAD_REQUEST
            .error(format!("{name} was not done"), format!("the body does not fit: {why}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member() -> MemberId {
        MemberId::new("m1").unwrap()
    }

    fn wish() -> ScheduledRestart {
        let only_if = RestartConditions { pending: true, ..RestartConditions::default() };
        ScheduledRestart { at_unix_ms: 7, only_if, timeout_seconds: Some(5) }
    }

    #[test]
    fn what_the_client_sends_is_what_the_server_reads() {
        for action in [
            Action::Switchover { to: None, at_unix_ms: Some(7) },
            Action::Switchover { to: Some(member()), at_unix_ms: None },
            Action::Failover { to: member(), allow_data_loss: true },
            Action::Pause,
            Action::Resume,
            Action::Restart { member: member() },
            Action::ScheduleRestart { member: member(), wish: wish() },
            Action::Reload,
            Action::Reinit { member: member(), from_backup: None },
            Action::Reinit { member: member(), from_backup: Some("main".into()) },
            Action::Remove { member: member(), force: true },
            Action::IssueToken { ttl_seconds: 60 },
        ] {
            let (method, path, body) = action.to_request();
            assert_eq!(method, "POST");
            let name = path.strip_prefix("/v1/").unwrap();
            assert!(Action::NAMES.contains(&name));
            assert_eq!(Action::from_request(name, body), Ok(action));
        }
        let (method, path, body) = Action::CancelRestart { member: member() }.to_request();
        assert_eq!((method, path), ("DELETE", "/v1/restart"));
        let cancel = Action::CancelRestart { member: member() };
        assert_eq!(Action::from_cancel_restart(body), Ok(cancel));
        for action in [
            Action::SetPolicy(vec![("strict".into(), "true".into())]),
            Action::SetParameters([("work_mem".to_owned(), None)].into()),
            Action::SetHba(vec!["host all all all scram-sha-256".into()]),
        ] {
            let (_, _, body) = action.to_request();
            let change: ConfigChange = serde_json::from_value(body).unwrap();
            assert_eq!(change.actions(), Ok(vec![action]));
        }
    }

    #[test]
    fn a_body_that_does_not_fit_is_refused() {
        for (name, body) in [
            ("failover", json!({})),
            ("failover", json!({"to": "Not A Name"})),
            ("switchover", json!({"tto": "m1"})),
            ("pause", json!({"why": 1})),
            ("token", json!({"ttl_seconds": 0})),
            ("restart", json!([1])),
            ("restart", json!({"member": "m1", "only_if": {"rolle": "primary"}})),
            ("nonsense", json!({})),
        ] {
            assert!(Action::from_request(name, body.clone()).is_err(), "{name} {body}");
        }
    }
}
