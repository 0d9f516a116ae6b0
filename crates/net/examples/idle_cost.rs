//! Measures what a quiet cluster's calls cost: two members in one process, two paths, 40 calls a
//! second in all, for ten seconds; then how many calls go through one after the other.
//!
//! `cargo run --release -p sempre-net --example idle_cost`

use async_trait::async_trait;
use bytes::Bytes;
use sempre_model::{Member, MemberId, MemberKind, Path, Tags, member::Ports};
use sempre_net::{
    Authority, Caller, Handler, Identity, MEMBER_LIFETIME, PeerServer, Peers, RpcError,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

const CALLS: u32 = 400;
const INTERVAL: Duration = Duration::from_millis(25);
const IN_A_ROW: u32 = 5_000;

struct Echo;

#[async_trait]
impl Handler for Echo {
    async fn handle(&self, _: Caller, _: &str, body: Bytes) -> Result<Bytes, RpcError> {
        Ok(body)
    }
}

/// User and system time of this process so far.
fn cpu() -> Result<Duration, Box<dyn std::error::Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit_once(')').ok_or("unexpected /proc/self/stat")?.1;
    let fields: Vec<u64> = after_name.split_whitespace().filter_map(|f| f.parse().ok()).collect();
    // The state letter is no number: utime and stime are the 11th and 12th that remain.
    let ticks = fields.get(10).zip(fields.get(11)).ok_or("unexpected /proc/self/stat")?;
    Ok(Duration::from_millis((ticks.0 + ticks.1) * 10))
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let authority = Authority::new("idle", "idle")?;
    let (a, b) = (MemberId::new("a")?, MemberId::new("b")?);
    let identity = |name| Identity::issue(&authority, name, MEMBER_LIFETIME).map(Arc::new);
    let hosts = ["127.0.1.250", "127.0.2.250"];
    let port = 19_009;
    let addresses =
        hosts.iter().map(|host| format!("{host}:{port}").parse()).collect::<Result<_, _>>()?;
    let _server =
        PeerServer::start(addresses, identity(&b)?, Arc::new(|_| true), Arc::new(Echo)).await?;
    let member = Member {
        name: b.clone(),
        node: 2,
        kind: MemberKind::Data,
        paths: hosts.iter().map(|host| Path { host: (*host).to_owned() }).collect(),
        ports: Ports { peer: port, ..Ports::default() },
        zone: None,
        tags: Tags::default(),
        own_certificate: false,
    };
    let peers = Peers::new(a.clone(), vec![], identity(&a)?)?;
    peers.set_members([&member]);
    let body = Bytes::from(vec![b'x'; 2_000]);
    let limit = Duration::from_secs(1);
    for path in [0, 1] {
        peers.call_on(&b, path, "echo", body.clone(), limit).await?;
    }

    let (began, spent) = (Instant::now(), cpu()?);
    let mut tick = tokio::time::interval(INTERVAL);
    for turn in 0..CALLS {
        tick.tick().await;
        peers.call_on(&b, turn as usize % 2, "echo", body.clone(), limit).await?;
    }
    let (took, used) = (began.elapsed(), cpu()? - spent);
    let share = 100.0 * used.as_secs_f64() / took.as_secs_f64();
    println!("{CALLS} calls in {took:.1?}: {used:?} of CPU, both ends: {share:.2} % of a core");

    let (began, spent) = (Instant::now(), cpu()?);
    for _ in 0..IN_A_ROW {
        peers.call(&b, "echo", body.clone(), limit).await?;
    }
    let (took, used) = (began.elapsed(), cpu()? - spent);
    println!(
        "{IN_A_ROW} calls in a row: {:?} and {:?} of CPU each",
        took / IN_A_ROW,
        used / IN_A_ROW
    );
    println!("paths: {:?}", peers.paths(&b));
    Ok(())
}
