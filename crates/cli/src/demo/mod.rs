//! `sempre demo`: a real cluster on this machine, to try and to break.
//!
//! This process supervises the members' agents as systemd would, and leads clients as
//! `sempre route run` would; the databases are kept by their guards, as everywhere. Whatever
//! ends this process ends all of it: the agents stop, with their databases, once their standard
//! input ends.

mod agents;
mod folder;
mod plan;
mod role;
mod story;

use crate::{
    arguments::DemoHow,
    connect::{self, Scene},
    fail::Fail,
    logs, member,
    route::Routing,
    route_style::Sessions,
    show,
    terminal::Progress,
};
use agents::Agents;
use folder::Folder;
use plan::{Plan, Spot};
use role::Login;
use sempre_api::{Action, Client, Status};
use sempre_model::Policy;
use std::time::Duration;
use tokio::time::Instant;

/// How long each step of the start may take, on a slow and busy machine.
const STEP_WITHIN: Duration = Duration::from_secs(120);
/// How often a step looks whether it is done.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The cluster's name.
const CLUSTER: &str = "demo";
/// An agent that ended this often while the demo starts will not do better.
const ENDS_MAX: usize = 3;

/// `sempre demo`.
pub fn run(scene: &Scene, how: &DemoHow) -> Result<(), Fail> {
    let folder = Folder::prepare(how.dir.as_deref())?;
    let plan = match plan(&folder, how) {
        Ok(plan) => plan,
        Err(error) => {
            // There is nothing in it to look at.
            let _ = folder.remove();
            return Err(error);
        }
    };
    logs::start_with(crate::arguments::LogFormat::Text, logs::QUIET);
    let done = connect::block_on_threads(async {
        let mut agents = Agents::new();
        let ended = tokio::select! {
            biased;
            () = member::signalled() => Ok(()),
            ended = live(scene, &plan, &mut agents) => ended,
        };
        let progress = Progress::start("stopping");
        agents.stop(&plan).await?;
        drop(progress);
        ended
    });
    // Kept for a look when it failed; its name is in the error.
    match done {
        Ok(()) => folder.remove(),
        Err(error) => {
            folder.keep();
            Err(error)
        }
    }
}

/// What the members are to be, written down.
fn plan(folder: &Folder, how: &DemoHow) -> Result<Plan, Fail> {
    let plan = Plan::new(folder.path(), how.base_port, how.members)?;
    plan.check_ports()?;
    plan.write()?;
    Ok(plan)
}

/// Brings the cluster up, tells about it, and goes on until dropped.
async fn live(scene: &Scene, plan: &Plan, agents: &mut Agents) -> Result<(), Fail> {
    let progress = Progress::start("making the first member (m1)");
    let (first, others) =
        plan.spots.split_first().ok_or_else(|| Fail::new("no members", "", ""))?;
    let secrets = sempre_agent::setup::init(&first.config, CLUSTER, Policy::default())
        .await
        .map_err(|error| Fail::agent("the first member was not made", &error))?;
    agents.start(first)?;
    wait(plan, agents, "the first member does not serve", |status| status.writable).await?;
    progress.step("making a role and a database");
    let login = Login::new();
    client(first)?.act(&Action::SetHba(role::hba())).await?;
    role::make(&first.config, &secrets.admin, &login).await?;
    for spot in others {
        progress.step(format!("{} joins", spot.config.name));
        join(first, spot).await?;
        agents.start(spot)?;
    }
    if !others.is_empty() {
        progress.step("standbys copy the data and begin to stream");
        let standbys = others.len();
        let whole = |status: &Status| is_whole(status, standbys);
        wait(plan, agents, "the standbys do not stream", whole).await?;
    }
    progress.step("routing");
    let sessions = Sessions::carried(Some(login.reader()));
    let (read_write, read_only) = (plan.read_write(), plan.read_only());
    let _routing = Routing::start(plan.rest_addresses(), read_write, read_only, None, sessions)?;
    // What is printed works from the first moment.
    for address in [plan.read_write(), plan.read_only()] {
        role::reach(&login, address, STEP_WITHIN).await?;
    }
    let status = client(first)?.status().await?;
    drop(progress);
    if scene.json {
        show::print_json(&story::ready(plan, agents, &login).await);
    } else {
        show::print(&story::told(plan, &status, &login, agents));
    }
    // Agents are restarted by their own tasks.
    std::future::pending().await
}

fn client(spot: &Spot) -> Result<Client, Fail> {
    Ok(connect::client_of(&spot.config)?)
}

async fn join(first: &Spot, spot: &Spot) -> Result<(), Fail> {
    let done = client(first)?.act(&Action::IssueToken { ttl_seconds: 600 }).await?;
    let token = done.data["token"].as_str().unwrap_or_default().parse().map_err(
        |error: sempre_net::BadToken| Fail::new("no token was given out", error.to_string(), ""),
    )?;
    sempre_agent::setup::join(&spot.config, &token, None)
        .await
        .map(drop)
        .map_err(|error| Fail::agent(format!("{} did not join", spot.config.name), &error))
}

/// Writable, everyone streams, and as many as are wished are in the sync set.
fn is_whole(status: &Status, standbys: usize) -> bool {
    let streaming = status.members.iter().filter(|member| member.state == "streaming").count();
    status.writable
        && streaming == standbys
        && status.sync.record.members.len() >= status.sync.wished.min(standbys)
        && status.sync.database.as_ref() == Some(&status.sync.record)
}

/// Waits until the first member says so.
async fn wait(
    plan: &Plan,
    agents: &Agents,
    what: &str,
    done: impl Fn(&Status) -> bool,
) -> Result<(), Fail> {
    let until = Instant::now() + STEP_WITHIN;
    let mut last = String::from("it does not answer");
    loop {
        match client(&plan.spots[0])?.status().await {
            Ok(status) if done(&status) => return Ok(()),
            Ok(status) => last = story::oddities(&status),
            Err(_) => {}
        }
        if let Some((name, log)) = agents.often_ended(ENDS_MAX) {
            return Err(Fail::new(
                format!("the agent of {name} does not run"),
                log,
                format!("Its log and folder are in {}.", plan.dir.display()),
            ));
        }
        if Instant::now() > until {
            return Err(Fail::new(
                what,
                last,
                format!("The members' logs are in {}.", plan.dir.display()),
            ));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
