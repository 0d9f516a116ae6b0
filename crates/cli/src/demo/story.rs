//! What the demo says once it is up.

use super::{agents::Agents, plan::Plan, role::Login};
use crate::{connect, terminal};
use sempre_api::{Client, Status, render};
use serde_json::{Value, json};

/// For scripts: one line.
pub async fn ready(plan: &Plan, agents: &Agents, login: &Login) -> Value {
    let mut members = Vec::new();
    for spot in &plan.spots {
        let config = &spot.config;
        let rest = connect::authority(&config.addresses[0], config.ports.rest);
        members.push(json!({
            "name": config.name,
            "data_dir": config.dir.join("data"),
            "database_port": config.ports.database,
            "agent_pid": agents.pid(config.name.as_str()),
            "guard_pid": guard_pid(&rest).await,
            "rest": rest,
        }));
    }
    json!({
        "read_write": login.dsn(plan.read_write()),
        "read_only": login.dsn(plan.read_only()),
        "config": plan.spots[0].file,
        "members": members,
    })
}

async fn guard_pid(rest: &str) -> Option<u32> {
    let client = Client::new([rest], None).ok()?;
    client.status().await.ok()?.agent.guard_pid
}

/// For people.
pub fn told(plan: &Plan, status: &Status, login: &Login, agents: &Agents) -> String {
    let bold = |text: &str| {
        console::Style::new().bold().force_styling(terminal::colours()).apply_to(text).to_string()
    };
    let program = std::env::args().next().unwrap_or_else(|| "sempre".into());
    let command =
        |task: &str| format!("{program} --config {} {task}", plan.spots[0].file.display());
    let primary = status.primary.as_ref().map_or("", |name| name.as_str());
    let database = status
        .members
        .iter()
        .find(|member| member.name.as_str() == primary)
        .and_then(|member| member.database.as_ref()?.pid);
    let mut text = render::render_status(status, terminal::colours(), terminal::width());
    text += &format!(
        "\n{}\n  psql '{}'\n{}\n  psql '{}'\n",
        bold("Connect: to the primary, wherever it is"),
        login.dsn(plan.read_write()),
        bold("to a standby"),
        login.dsn(plan.read_only()),
    );
    text += &format!("\n{}\n  {}\n", bold("Watch"), command("status --watch"));
    text += &format!("\n{}\n", bold("Break it"));
    text += &format!("  {}\n", command("switchover --yes"));
    if let Some(pid) = database {
        text += &format!("  kill -9 {pid}      # the database of {primary}\n");
        text += &format!("  kill -STOP {pid}   # the same, hung\n");
    }
    let agent = agents.pid(primary);
    text += &format!("  kill -9 {agent}      # the agent of {primary}: nobody should notice\n");
    text += &format!("\n{}\n  {}\n", bold("See what happened"), command("history"));
    text += "\nCtrl-C stops all of it.\n";
    text
}

/// Why it is not ready yet.
pub fn oddities(status: &Status) -> String {
    let said: Vec<_> =
        status.oddities.iter().map(|oddity| format!("{}: {}", oddity.what, oddity.why)).collect();
    if said.is_empty() { format!("the cluster is {}", status.phase) } else { said.join("\n") }
}
