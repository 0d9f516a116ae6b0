//! What `sempre` and its peers have in common: hosts that run something, an address to write
//! through, and Patroni's `/cluster` to see who leads.

use crate::{
    client::Target,
    http,
    process::{self, Process},
    station::Station,
    topology::{APP, Net, Topology},
};
use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use rustix::process::Signal;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, OpenOptions},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tokio::time::sleep;

/// The port every database of the lab listens on.
pub const DATABASE_PORT: u16 = 5432;
/// Where members answer `/cluster`.
pub const REST_PORT: u16 = 8008;
/// A member that takes longer to say how the cluster is counts as silent.
const VIEW_DEADLINE: Duration = Duration::from_secs(1);
/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(50);

/// One member, as another one (or itself) sees it: `/cluster` of Patroni.
#[derive(Clone, Debug, Deserialize)]
pub struct MemberView {
    /// Its name, also of its host.
    pub name: String,
    /// `leader`, `replica`, `sync_standby`, `quorum_standby`, ...
    pub role: String,
    /// `running`, `streaming`, ...
    pub state: String,
}

impl MemberView {
    /// Do commits wait for it, alone or with others?
    pub fn counts_for_commits(&self) -> bool {
        matches!(self.role.as_str(), "sync_standby" | "quorum_standby")
    }

    /// Is it the primary?
    pub fn leads(&self) -> bool {
        matches!(self.role.as_str(), "leader" | "primary" | "master")
    }
}

/// Hosts, the folder with all their files, and what was started on them.
#[derive(Debug)]
pub struct Base {
    /// The network.
    pub topology: Topology,
    /// On host `app`.
    pub app: Station,
    /// On each database host.
    pub stations: BTreeMap<String, Station>,
    /// All files are below it.
    pub root: PathBuf,
    /// Leave the files when dropped.
    pub keep: bool,
    /// How many standbys must count for commits before the cluster is whole.
    pub sync_standbys: usize,
    children: Vec<(String, Child)>,
}

impl Base {
    /// A topology of `count` hosts and an empty folder for it.
    pub fn new(count: usize) -> Result<Self> {
        let topology = Topology::new(count)?;
        let root = std::env::temp_dir().join(topology.name());
        fs::create_dir_all(root.join("logs"))
            .with_context(|| format!("could not make {}", root.display()))?;
        let app = topology.station(APP)?;
        let stations = topology
            .hosts()
            .iter()
            .map(|host| Ok((host.clone(), topology.station(host)?)))
            .collect::<Result<_>>()?;
        Ok(Self {
            topology,
            app,
            stations,
            root,
            keep: false,
            sync_standbys: 0,
            children: Vec::new(),
        })
    }

    /// Starts a program on `host` that goes on by itself; what it says is added to `logs/LOG`.
    pub fn spawn(&mut self, host: &str, log: &str, command: &mut Command) -> Result<u32> {
        self.reap();
        let path = self.root.join("logs").join(log);
        let log = OpenOptions::new().create(true).append(true).open(&path);
        let log: File = log.with_context(|| format!("could not open {}", path.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("could not start {command:?}"))?;
        let pid = child.id();
        self.children.push((host.to_owned(), child));
        Ok(pid)
    }

    /// Forgets children that ended.
    pub fn reap(&mut self) {
        self.children.retain_mut(|(_, child)| matches!(child.try_wait(), Ok(None)));
    }

    /// A folder of its own for `user`.
    pub fn folder(&self, name: &str, user: &str) -> Result<PathBuf> {
        let path = self.root.join(name);
        fs::create_dir_all(&path)?;
        own(&path, user)?;
        Ok(path)
    }

    /// Processes of `host` whose short name is `name`.
    pub fn named(&self, host: &str, name: &str) -> Vec<Process> {
        self.topology.processes(host).into_iter().filter(|p| p.name == name).collect()
    }
}

impl Drop for Base {
    fn drop(&mut self) {
        self.topology.kill_all();
        for (_, child) in &mut self.children {
            let _ = child.wait();
        }
        if !self.keep && !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.root);
        }
    }
}

/// PostgreSQL's programs: `SEMPRE_PG_BIN`, or else the newest installation of Debian's packages.
pub fn postgres_bin() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("SEMPRE_PG_BIN") {
        return Ok(given.into());
    }
    let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = installed
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path())))
        .max()
        .map(|(_, path)| path.join("bin"));
    newest.context("no PostgreSQL found; install package `postgresql`, or set SEMPRE_PG_BIN")
}

/// Makes `user` the owner of `path`.
pub fn own(path: &Path, user: &str) -> Result<()> {
    crate::shell::run(Command::new("chown").arg(format!("{user}:")).arg(path)).map(drop)
}

/// A running cluster of some make.
#[async_trait(?Send)]
pub trait Rig {
    /// `sempre`, `patroni`, ...
    fn make(&self) -> &'static str;
    /// What is the same for all.
    fn base(&self) -> &Base;
    /// The same, to change it.
    fn base_mut(&mut self) -> &mut Base;
    /// What the application connects to, from host `app`.
    fn endpoint(&self) -> Target;
    /// The database of one member itself.
    fn direct(&self, host: &str) -> Target;
    /// The data directory of a member.
    fn data_dir(&self, host: &str) -> PathBuf;
    /// Starts all that runs on a host, after a power loss.
    async fn start_host(&mut self, host: &str) -> Result<()>;
    /// Starts the manager of a host's database again, after it alone was killed.
    async fn start_agent(&mut self, host: &str) -> Result<()>;
    /// The process that manages a host's database.
    fn agent(&self, host: &str) -> Result<Process>;
    /// The process beside it that holds the lease; none if this make has no such thing.
    fn guard(&self, host: &str) -> Option<Process>;
    /// The process that watches the guard; none if this make has no such thing.
    fn warden(&self, host: &str) -> Option<Process>;
    /// Do members have disks of their own, that can be filled?
    fn fill_disk_possible(&self) -> bool;
    /// Fills the disk of a member; an error if this rig has no disks of its own.
    fn fill_disk(&self, host: &str) -> Result<()>;
    /// Gives the space back.
    fn empty_disk(&self, host: &str) -> Result<()>;
    /// What an operator would be shown.
    fn status(&self) -> String;
    /// Hands over, as an operator does it; `None`: to whom it likes.
    async fn switchover(&self, from: &str, to: Option<&str>) -> Result<()>;
}

/// The postmaster's process id, from its lock file.
pub fn postmaster(data_dir: &Path) -> Result<u32> {
    let path = data_dir.join("postmaster.pid");
    let text = fs::read_to_string(&path)
        .with_context(|| format!("no database runs at {}", data_dir.display()))?;
    text.lines().next().unwrap_or_default().trim().parse().context("no number in postmaster.pid")
}

/// How each member sees the cluster; none for those that do not answer.
pub async fn views(base: &Base) -> BTreeMap<String, Option<Vec<MemberView>>> {
    let asked = base.topology.hosts().iter().map(|host| async move {
        for net in Net::ALL {
            let address = SocketAddr::new(base.topology.address(host, net), REST_PORT);
            let task = async move { http::get(address, "/cluster", VIEW_DEADLINE).await };
            if let Ok((200, body)) = base.app.run(task).await {
                return (host.clone(), members(&body));
            }
        }
        (host.clone(), None)
    });
    futures_util::future::join_all(asked).await.into_iter().collect()
}

fn members(body: &str) -> Option<Vec<MemberView>> {
    #[derive(Deserialize)]
    struct Cluster {
        members: Vec<MemberView>,
    }
    serde_json::from_str::<Cluster>(body).ok().map(|cluster| cluster.members)
}

/// The primary, as most of the members that answer see it.
pub async fn leader(base: &Base) -> Option<String> {
    let mut votes: HashMap<String, usize> = HashMap::new();
    for view in views(base).await.into_values().flatten() {
        for member in view.into_iter().filter(MemberView::leads) {
            *votes.entry(member.name).or_default() += 1;
        }
    }
    votes.into_iter().max_by_key(|(_, count)| *count).map(|(name, _)| name)
}

/// What is missing for the cluster to be whole: all members see one running primary, the same,
/// all others streaming, and enough of them counting for commits. Without the last, a fault could
/// come while nobody may be promoted, and the stall would say nothing.
pub async fn missing(base: &Base) -> Option<String> {
    let mut leaders = Vec::new();
    for (host, view) in views(base).await {
        let Some(view) = view else { return Some(format!("{host} does not answer")) };
        if view.len() != base.topology.hosts().len() {
            return Some(format!("{host} knows of {} members", view.len()));
        }
        for member in &view {
            let wanted = if member.leads() { "running" } else { "streaming" };
            if member.state != wanted {
                let (name, role, state) = (&member.name, &member.role, &member.state);
                return Some(format!("{host} sees {name} ({role}) {state}, not {wanted}"));
            }
        }
        let counting = view.iter().filter(|m| m.counts_for_commits()).count();
        if counting < base.sync_standbys {
            let wanted = base.sync_standbys;
            return Some(format!("{host} sees {counting} standbys count, not {wanted}"));
        }
        leaders.extend(view.into_iter().filter(MemberView::leads).map(|m| m.name));
        match leaders.as_slice() {
            [] => return Some(format!("{host} sees no primary")),
            [first, rest @ ..] if rest.iter().any(|other| other != first) => {
                return Some(format!("members see several primaries: {leaders:?}"));
            }
            _ => {}
        }
    }
    None
}

/// Waits until the cluster is whole. The primary.
pub async fn wait_whole(base: &Base, deadline: Duration) -> Result<String> {
    let end = Instant::now() + deadline;
    loop {
        match missing(base).await {
            None => {
                if let Some(leader) = leader(base).await {
                    return Ok(leader);
                }
            }
            Some(what) if Instant::now() > end => {
                bail!("the cluster was not whole within {deadline:?}: {what}")
            }
            Some(_) => {}
        }
        sleep(POLL).await;
    }
}

/// Waits until `condition` says yes; `what` is for the error.
pub async fn wait_until(
    what: &str,
    deadline: Duration,
    mut condition: impl AsyncFnMut() -> bool,
) -> Result<()> {
    let end = Instant::now() + deadline;
    while !condition().await {
        if Instant::now() > end {
            bail!("waited {deadline:?} in vain until {what}");
        }
        sleep(POLL).await;
    }
    Ok(())
}

/// Waits until an application gets in at `target`.
pub async fn wait_reachable(base: &Base, target: Target, deadline: Duration) -> Result<()> {
    wait_until(&format!("{} lets clients in", target.address), deadline, async || {
        let target = target.clone();
        let task = async move { target.connect("lab", VIEW_DEADLINE).await };
        base.app.run(task).await.is_ok()
    })
    .await
}

/// Sends a signal to all database processes of a host.
pub fn signal_database(base: &Base, host: &str, signal: Signal) -> Result<()> {
    let found = base.named(host, "postgres");
    if found.is_empty() && signal != Signal::CONT {
        bail!("no database runs on {host}");
    }
    found.iter().try_for_each(|p| process::signal(p.pid, signal))
}
