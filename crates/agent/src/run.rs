//! The daemon: puts the parts together, runs the loop, stops in order.

use crate::{
    Config,
    backups::{Keeper, Reached},
    certificate::{Renewal, certificate_addresses},
    clock,
    data_plane::DataPlane,
    database::Watcher,
    disk,
    executor::Executor,
    logical_slots::SlotKeeper,
    looper::{EVENTS_MAX, Looper, Shown},
    member_dir::{MemberDir, Who},
    membership::Duty,
    notify::Manager,
    peers::{PeerHandler, PeerTransport, REENTER, ReenterAnswer},
    rest_tls, route_style,
    service::{PeerVerifier, Service},
    state::State,
    warmth::{Followers, Warmth},
};
use anyhow::{Context, Result};
use bytes::Bytes;
use sempre_api::codes;
use sempre_backup::serve::Server;
use sempre_consensus::{Consensus, ConsensusConfig, OpenError, RaftConsensus};
use sempre_guard::{GuardClient, SpawnBinary};
use sempre_model::{Command, Member, MemberId, MemberKind, Record, command::Change};
use sempre_net::{Handler, Identity, PeerServer, Peers};
use sempre_route::{Mode, Router, Table};
use std::{
    collections::BTreeMap,
    net::{SocketAddr, ToSocketAddrs},
    sync::{Arc, Mutex, OnceLock, RwLock},
    time::Duration,
};
use tokio::sync::{mpsc, watch};

/// How long a member whose record was lost asks the others to be let in again.
const REENTER_WITHIN: Duration = Duration::from_secs(5);

/// Runs the member until `stop` fires. The guard and the database keep running, unless
/// `stop_database` says otherwise.
pub async fn run(
    config: Config,
    mut stop: watch::Receiver<bool>,
    stop_database: watch::Receiver<bool>,
) -> Result<()> {
    raise_file_limit();
    let dir = MemberDir::new(&config);
    let Some(mut who) = dir.who()? else {
        let what = format!("{} holds no member yet", dir.root().display());
        let why = "neither `sempre init` nor `sempre join` was completed there";
        let next = "`sempre init` makes a cluster, `sempre join TOKEN` joins one.";
        return Err(codes::NOT_INITIALISED.error(what, why).next(next).into());
    };
    if who.name != config.name {
        let what = format!("{} belongs to member {}", dir.root().display(), who.name);
        let why = format!("the config file names {}", config.name);
        let next = "Correct `name` or `dir` in the config file; a member keeps its name.";
        return Err(codes::CONFIG_FILE.error(what, why).next(next).into());
    }
    dir.create()?;
    let identity = Identity::load(&dir.tls());
    let identity =
        Arc::new(identity.with_context(|| format!("{} cannot be used", dir.tls().display()))?);
    let my_paths = config.member(who.node).paths;
    let peers = Arc::new(Peers::new(config.name.clone(), my_paths, identity.clone())?);
    let (events_in, events) = mpsc::channel(EVENTS_MAX);
    let served = Server::new(config.name.as_str(), config.repository.clone(), &dir.served());
    let reached = Reached { me: config.name.clone(), tls: dir.tls(), server: Arc::new(served) };
    let handler = Arc::new(PeerHandler {
        events: events_in.clone(),
        consensus: OnceLock::new(),
        shown: OnceLock::new(),
        repositories: reached.server.clone(),
    });
    let transport =
        Arc::new(PeerTransport { peers: peers.clone(), nodes: RwLock::new(BTreeMap::new()) });
    let consensus = open_record(&dir, &mut who, &peers, &transport).await?;
    let record = consensus.record().borrow().clone();
    transport.set_nodes(&record);
    peers.set_members(record.members.values());
    let members = consensus.record();
    let is_member = Arc::new(move |name: &MemberId| {
        let record = members.borrow();
        // A member that just joined has an empty record, and must hear the others to fill it.
        record.cluster.is_none() || record.members.contains_key(name)
    });
    let _ = handler.consensus.set(consensus.clone());
    let server = PeerServer::start(
        addresses(&config, config.ports.peer)?,
        identity.clone(),
        is_member,
        handler.clone() as Arc<dyn Handler>,
    )
    .await
    .context("the port for other members")?;

    let guard_dir = dir.run();
    let guard =
        GuardClient::connect_or_spawn(&guard_dir, SpawnBinary::this_program(&guard_dir)).await?;
    let executor = Arc::new(Executor::new(&config, &dir, guard.clone(), record.clone())?);
    let applied = dir.applied();
    let voter = (consensus.promised(), consensus.longest_grant_ms());
    let mut state = State::new(who.clone(), record.clone(), voter, applied);
    // What runs may have been configured by an older agent.
    state.settings_differ = true;
    if config.kind == MemberKind::Data {
        executor.look_at_certificate().await;
        let (data, identifier, clean_end) = executor.inspect().await;
        state.data = data;
        state.system_identifier = identifier;
        state.clean_end = clean_end;
    }
    let (shown_in, shown) = watch::channel(Arc::new(Shown::empty(&state)));
    let _ = handler.shown.set(shown.clone());
    let (table_in, table) = watch::channel(Arc::new(Table::default()));
    let followers = Followers::default();
    let service = Arc::new(Service {
        consensus: consensus.clone(),
        shown: shown.clone(),
        table: table.clone(),
        identity: identity.clone(),
        events: events_in.clone(),
        routers: Mutex::new(Vec::new()),
        followers: followers.clone(),
        instance: (config.kind == MemberKind::Data).then(|| executor.instance.clone()),
        reached: reached.clone(),
    });
    let transport_of_rest = rest_tls::transport(&config.rest, identity.clone())?;
    let listen = addresses(&config, config.ports.rest)?;
    let api = sempre_api::serve_with(listen, service.clone(), transport_of_rest)
        .context("the REST port")?;
    let mut routers = Vec::new();
    let data_plane = config.route.enabled.then(DataPlane::start).transpose()?;
    if let Some(data_plane) = &data_plane {
        let verifier = Arc::new(PeerVerifier {
            peers: peers.clone(),
            shown: shown.clone(),
            agent: tokio::runtime::Handle::current(),
        });
        let style = route_style::of(&config, &identity, executor.clone(), table.clone())?;
        for (port, mode) in
            [(config.ports.read_write, Mode::ReadWrite), (config.ports.read_only, Mode::ReadOnly)]
        {
            let listen = addresses(&config, port)?;
            let (style, verifier) = (style.clone(), verifier.clone());
            let table = table.clone();
            let router =
                data_plane.within(|| Router::start_in(style, listen, mode, table, verifier));
            routers.push(Arc::new(router?));
        }
        *service.routers.lock().unwrap_or_else(|e| e.into_inner()) = routers.clone();
    }

    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(keep_nodes(consensus.record(), transport.clone(), dir.clone()));
    let renewal = Renewal {
        identity: identity.clone(),
        dir: dir.clone(),
        peers: peers.clone(),
        consensus: consensus.clone(),
        addresses: certificate_addresses(&config.member(who.node)),
    };
    tasks.spawn(renewal.keep(events_in.clone()));
    tasks.spawn(announce(config.clone(), executor.own_certificate(), consensus.clone()));
    if config.kind == MemberKind::Data {
        let (hang_in, hang) = watch::channel(record.policy.hang_ms);
        tasks.spawn(keep_hang_ms(consensus.record(), hang_in));
        tasks.spawn(disk::watch_disk(dir.data(), hang.clone(), events_in.clone()));
        tasks.spawn(Watcher::new(executor.clone(), guard.status(), hang, events_in.clone()).run());
        let (events, shown) = (events_in.clone(), shown.clone());
        let keeper = SlotKeeper::new(executor.clone(), consensus.clone(), shown, events);
        tasks.spawn(keeper.run());
    }
    // The very binary that runs, even when its file was replaced by an upgrade.
    let program = "/proc/self/exe".into();
    let (to_loop, view) = (events_in.clone(), shown.clone());
    let keeper = Keeper::new(executor.clone(), consensus.clone(), view, to_loop, program, reached);
    tasks.spawn(keeper.run());
    tracing::info!(member = %who.name, node = who.node, "running");
    let looper = Looper {
        state,
        consensus: consensus.clone(),
        peers,
        guard: guard.clone(),
        executor: executor.clone(),
        events: events_in,
        shown: shown_in,
        table: table_in,
        job: None,
        fencing: None,
        promising: false,
        writing_longest: false,
        proposing: false,
        membership: Duty::default(),
        under_way: BTreeMap::new(),
        last_beat: 0,
        acted: 0,
        news: false,
        sync_written_at: 0,
        kept_house_at: 0,
        inspect_due: false,
        settings_change: 0,
        reconnecting: false,
        table_key: None,
        warmth: Warmth::new(&routers, followers),
    };
    let looping = tokio::spawn(looper.run(events, stop.clone()));
    let manager = Arc::new(Manager::from_env());
    manager.ready();
    let alive = (manager.clone(), shown.clone());
    tasks.spawn(async move { alive.0.stay_alive(alive.1).await });
    let _ = stop.wait_for(|stop| *stop).await;
    tracing::info!("stopping");
    manager.stopping();
    tasks.shutdown().await;
    let _ = looping.await;
    for router in routers {
        if let Ok(router) = Arc::try_unwrap(router) {
            router.shutdown().await;
        }
    }
    api.shutdown().await;
    server.shutdown().await;
    if *stop_database.borrow() {
        executor.shut_down().await;
    }
    consensus.shutdown().await;
    Ok(())
}

/// Opens the record. A damaged one is set aside, and the member asks the others to be let in
/// again under a new Raft node: the old one may have voted, and must never vote again.
async fn open_record(
    dir: &MemberDir,
    who: &mut Who,
    peers: &Arc<Peers>,
    transport: &Arc<PeerTransport>,
) -> Result<Arc<dyn Consensus>> {
    let known = dir.members();
    let open =
        |node| RaftConsensus::open(ConsensusConfig::new(dir.record(), node), transport.clone());
    let damage = match open(who.node).await {
        Ok(consensus) => return Ok(Arc::new(consensus)),
        Err(error @ OpenError::Corrupt { .. }) => {
            tracing::error!(%error, "the record is damaged; asking the others");
            error
        }
        Err(other) => return Err(other.into()),
    };
    peers.set_members(&known);
    let mut node = None;
    for member in known.iter().filter(|m| m.name != who.name) {
        let call = peers.call(&member.name, REENTER, Bytes::new(), REENTER_WITHIN).await;
        match call {
            Ok(bytes) => {
                node = Some(serde_json::from_slice::<ReenterAnswer>(&bytes)?.node);
                break;
            }
            Err(error) => tracing::warn!(%error, "not let in again yet"),
        }
    }
    let Some(node) = node else {
        let what = "the record is damaged, and no other member answers to let this one in again";
        let next =
            "Start the other members first. If they are gone for good, see `sempre recover`.";
        return Err(codes::RECORD_CORRUPT.error(what, damage.to_string()).next(next).into());
    };
    let aside = sempre_consensus::quarantine(&dir.record())?;
    tracing::warn!(aside = %aside.display(), node, "the damaged record was set aside");
    who.node = node;
    dir.set_who(who)?;
    Ok(Arc::new(open(node).await?))
}

/// Where a port is listened on: every address of the member, and the loopback.
fn addresses(config: &Config, port: u16) -> Result<Vec<SocketAddr>> {
    let mut list = Vec::new();
    for host in &config.addresses {
        let found = (host.as_str(), port)
            .to_socket_addrs()
            .with_context(|| format!("`{host}` in `addresses` is no address of this machine"))?;
        list.extend(found);
    }
    if !list.iter().any(|a: &SocketAddr| a.ip().is_loopback()) {
        list.push(SocketAddr::from(([127, 0, 0, 1], port)));
    }
    list.sort();
    list.dedup();
    Ok(list)
}

async fn keep_nodes(
    mut record: watch::Receiver<Arc<Record>>,
    transport: Arc<PeerTransport>,
    dir: MemberDir,
) {
    let mut known = Vec::new();
    record.mark_changed();
    while record.changed().await.is_ok() {
        let record = record.borrow_and_update().clone();
        transport.set_nodes(&record);
        let members: Vec<_> = record.members.values().cloned().collect();
        if members != known {
            let rest = record.cluster.as_ref().map(|c| c.secrets.rest.as_str());
            if let Err(error) = dir.set_members(&members).and_then(|()| dir.set_rest_token(rest)) {
                tracing::warn!(%error, "the members' addresses could not be kept");
            }
            known = members;
        }
    }
}

async fn keep_hang_ms(mut record: watch::Receiver<Arc<Record>>, hang: watch::Sender<u64>) {
    while record.changed().await.is_ok() {
        hang.send_replace(record.borrow_and_update().policy.hang_ms);
    }
}

/// The config file may name new addresses, ports or tags: the record is told, once it is known
/// that they differ.
async fn announce(config: Config, own_certificate: bool, consensus: Arc<dyn Consensus>) {
    let mut record = consensus.record();
    loop {
        let known = record.borrow_and_update().member(&config.name).cloned();
        if let Some(known) = known {
            let wished = Member { own_certificate, ..config.member(known.node) };
            if wished == known {
                return;
            }
            let change = Change::PutMember { member: Box::new(wished), token_hash: None };
            let command = Command { at_unix_ms: clock::now_unix_ms(), change };
            match consensus.propose(command).await {
                Ok(_) => return,
                Err(error) => {
                    tracing::warn!(%error, "the record does not know this member's new address yet")
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        } else if record.changed().await.is_err() {
            return;
        }
    }
}

/// Each routed session needs two descriptors: as many as the system allows.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
