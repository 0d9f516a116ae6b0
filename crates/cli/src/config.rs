//! `sempre config`: what all members share.

use crate::{arguments::ConfigTask, connect::Scene, fail::Fail, member, show, terminal};
use sempre_api::{Action, Client, apply_policy_changes, policy_edit::policy_pairs, render};
use sempre_model::{Policy, Record};
use serde::Deserialize;
use serde_json::Value;
use std::{collections::BTreeMap, io::Write, process::Command};

/// How PostgreSQL parameters are told from policy keys.
const PARAMETER: &str = "postgresql.";

/// What `/v1/config` says.
#[derive(Clone, Debug, Deserialize)]
struct Shared {
    policy: Policy,
    parameters: BTreeMap<String, String>,
    hba: Vec<String>,
    pending_restart: BTreeMap<String, Vec<String>>,
}

/// Does it.
pub async fn run(scene: &Scene, task: ConfigTask) -> Result<(), Fail> {
    let client = scene.client()?;
    match task {
        ConfigTask::Show => {
            let document = client.config().await?;
            tell(scene, &document)
        }
        ConfigTask::Set { changes } => set(scene, &client, &changes).await,
        ConfigTask::Edit => edit(scene, &client).await,
    }
}

fn read(document: &Value) -> Result<Shared, Fail> {
    serde_json::from_value(document.clone()).map_err(|error| {
        Fail::coded(
            sempre_api::codes::BAD_ANSWER,
            "the configuration cannot be read",
            error.to_string(),
        )
    })
}

fn tell(scene: &Scene, document: &Value) -> Result<(), Fail> {
    if scene.json {
        show::print_json(document);
        return Ok(());
    }
    let shared = read(document)?;
    let record = Record {
        policy: shared.policy,
        parameters: shared.parameters,
        hba: shared.hba,
        ..Record::default()
    };
    let mut text = render::render_config(&record, terminal::colours(), terminal::width());
    for (name, parameters) in &shared.pending_restart {
        text += &format!(
            "{name} has yet to restart for {} (`sempre restart {name}`)\n",
            parameters.join(", ")
        );
    }
    show::print(&text);
    Ok(())
}

type Parameters = BTreeMap<String, Option<String>>;

/// Policy keys, and PostgreSQL parameters.
fn sort(changes: &[String]) -> Result<(Vec<(String, String)>, Parameters), Fail> {
    let mut policy = Vec::new();
    let mut parameters = Parameters::new();
    for text in changes {
        let (key, value) = member::pair(text)?;
        match key.strip_prefix(PARAMETER) {
            Some(name) => {
                parameters.insert(name.to_owned(), Some(value).filter(|v| !v.is_empty()));
            }
            None => policy.push((key, value)),
        }
    }
    Ok((policy, parameters))
}

async fn set(scene: &Scene, client: &Client, changes: &[String]) -> Result<(), Fail> {
    let (policy, parameters) = sort(changes)?;
    // Checked here first, so that either all of it is asked for or nothing.
    let shared = read(&client.config().await?)?;
    apply_policy_changes(&shared.policy, &policy).map_err(|error| member::policy_error(&error))?;
    let mut actions = Vec::new();
    if !parameters.is_empty() {
        actions.push(Action::SetParameters(parameters));
    }
    if !policy.is_empty() {
        actions.push(Action::SetPolicy(policy));
    }
    ask(scene, client, actions).await
}

async fn ask(scene: &Scene, client: &Client, actions: Vec<Action>) -> Result<(), Fail> {
    let mut document = Value::Null;
    for action in actions {
        document = client.act(&action).await?.data;
    }
    if document.is_null() {
        eprintln!("nothing differs");
        return Ok(());
    }
    if scene.json {
        show::print_json(&document);
        return Ok(());
    }
    show::print("changed\n");
    // Whether it needs a restart is known once the members have loaded it.
    eprintln!(
        "`sempre config show` shows all of it, and `sempre status` restarts that are pending"
    );
    Ok(())
}

/// The configuration as it is edited: TOML, because it allows comments.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Edited {
    #[serde(default)]
    hba: Vec<String>,
    #[serde(default)]
    policy: BTreeMap<String, toml::Value>,
    #[serde(default)]
    postgresql: BTreeMap<String, toml::Value>,
}

fn as_toml(shared: &Shared) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let mut text = String::from(
        "# What all members share. Save and leave to apply; leave it as it is to change nothing.\n\
         # Client lines of pg_hba.conf; empty: each member's own file is used.\nhba = [\n",
    );
    for line in &shared.hba {
        text += &format!("  {},\n", quoted(line));
    }
    text += "]\n\n[policy]\n";
    for (key, value) in policy_pairs(&shared.policy) {
        text += &format!("{key} = {}\n", quoted(&value));
    }
    text += "\n[postgresql]\n";
    for (name, value) in &shared.parameters {
        text += &format!("{} = {}\n", quoted(name), quoted(value));
    }
    text
}

fn plain(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The actions that lead from one to the other.
fn differences(shared: &Shared, edited: &Edited) -> Vec<Action> {
    let mut actions = Vec::new();
    let before: BTreeMap<_, _> = policy_pairs(&shared.policy).into_iter().collect();
    let policy: Vec<(String, String)> = edited
        .policy
        .iter()
        .map(|(key, value)| (key.clone(), plain(value)))
        .filter(|(key, value)| before.get(key.as_str()) != Some(value))
        .collect();
    let mut parameters: Parameters = edited
        .postgresql
        .iter()
        .map(|(name, value)| (name.clone(), Some(plain(value))))
        .filter(|(name, value)| shared.parameters.get(name) != value.as_ref())
        .collect();
    for name in shared.parameters.keys().filter(|name| !edited.postgresql.contains_key(*name)) {
        parameters.insert(name.clone(), None);
    }
    if !parameters.is_empty() {
        actions.push(Action::SetParameters(parameters));
    }
    if edited.hba != shared.hba {
        actions.push(Action::SetHba(edited.hba.clone()));
    }
    if !policy.is_empty() {
        actions.push(Action::SetPolicy(policy));
    }
    actions
}

async fn edit(scene: &Scene, client: &Client) -> Result<(), Fail> {
    let shared = read(&client.config().await?)?;
    let text = in_editor(&as_toml(&shared))?;
    let edited: Edited = toml::from_str(&text)
        .map_err(|error| Fail::usage("nothing was changed", error.to_string(), ""))?;
    let actions = differences(&shared, &edited);
    for action in &actions {
        if let Action::SetPolicy(changes) = action {
            apply_policy_changes(&shared.policy, changes)
                .map_err(|error| member::policy_error(&error))?;
        }
    }
    ask(scene, client, actions).await
}

fn in_editor(text: &str) -> Result<String, Fail> {
    let failed = |why: String| Fail::new("the configuration was not edited", why, "");
    let mut file = tempfile::Builder::new()
        .prefix("sempre-config-")
        .suffix(".toml")
        .tempfile()
        .map_err(|error| failed(error.to_string()))?;
    file.write_all(text.as_bytes()).map_err(|error| failed(error.to_string()))?;
    let named = ["VISUAL", "EDITOR"].into_iter().find_map(|name| std::env::var(name).ok());
    let editor = named.filter(|name| !name.trim().is_empty()).unwrap_or_else(|| "vi".into());
    // Through a shell, as the variable may hold arguments.
    let status = Command::new("sh")
        .arg("-c")
        .arg(format!("{editor} \"$1\""))
        .arg("sh")
        .arg(file.path())
        .status()
        .map_err(|error| failed(format!("`{editor}` cannot be run: {error}")))?;
    if !status.success() {
        return Err(failed(format!("`{editor}` ended with {status}")));
    }
    std::fs::read_to_string(file.path()).map_err(|error| failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> Shared {
        Shared {
            policy: Policy::default(),
            parameters: [("work_mem".to_owned(), "64MB".to_owned())].into(),
            hba: vec!["host all \"a b\" all scram-sha-256".into()],
            pending_restart: BTreeMap::new(),
        }
    }

    #[test]
    fn what_is_left_alone_changes_nothing() {
        let edited: Edited = toml::from_str(&as_toml(&shared())).unwrap();
        assert_eq!(differences(&shared(), &edited), []);
    }

    #[test]
    fn what_was_edited_is_asked_for() {
        let text = as_toml(&shared())
            .replace("\"work_mem\" = \"64MB\"", "max_connections = 200")
            .replace("strict = \"false\"", "strict = true");
        let edited: Edited = toml::from_str(&text).unwrap();
        assert_eq!(
            differences(&shared(), &edited),
            [
                Action::SetParameters(
                    [
                        ("max_connections".to_owned(), Some("200".to_owned())),
                        ("work_mem".to_owned(), None)
                    ]
                    .into()
                ),
                Action::SetPolicy(vec![("strict".into(), "true".into())]),
            ]
        );
    }

    #[test]
    fn parameters_and_policy_are_told_apart() {
        let typed = ["strict=on", "postgresql.work_mem=64MB", "postgresql.a.b="].map(String::from);
        let (policy, parameters) = sort(&typed).unwrap();
        assert_eq!(policy, [("strict".to_owned(), "on".to_owned())]);
        assert_eq!(parameters["work_mem"].as_deref(), Some("64MB"));
        assert_eq!(parameters["a.b"], None);
        assert!(sort(&["strict".to_owned()]).is_err());
    }
}
