//! Table and verifier for a router that runs beside an application, without an agent.
//!
//! A task for every known REST endpoint polls for tables; one loop owns the answers and publishes
//! the best. It only steers: a client is let in to a primary only after that member itself has
//! confirmed, so a stale table costs time, never a wrong answer.

use crate::{
    TABLE_PATH, Table, TableAnswer, VERIFY_PATH, VERIFY_TIMEOUT, Verifier, VerifyAnswer,
    http::Client,
    probe::{Endpoint, LANES, Pulse, probe},
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use hyper::StatusCode;
use rustls::ClientConfig;
use sempre_model::{Generation, MemberId};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time,
};

/// How long a member may keep a question about the table, ms. Also bounds how long a member that
/// vanished without a word is believed.
const POLL_WAIT_MS: u64 = 5_000;
/// How much longer than that the answer may take.
const POLL_MARGIN: Duration = Duration::from_secs(1);
/// The same while sessions are warmed up: the member is to hear of it when that is over, ms.
const POLL_WAIT_WARMING_MS: u64 = 100;
/// Pause after a failed poll.
const POLL_PAUSE: Duration = Duration::from_millis(250);
/// Tables come at most this often from one member.
const POLL_EVERY: Duration = Duration::from_millis(20);
/// Endpoints that are polled; more cannot be learned.
const ENDPOINTS_MAX: usize = 64;
/// Answers on their way to the loop; a poller that finds it full waits.
const QUEUE: usize = 64;
/// Between two looks at which addresses are dead.
const PULSE_EVERY: Duration = Duration::from_millis(50);

/// What a poller saw: the table, or that the endpoint does not answer.
type News = (Endpoint, Option<TableAnswer>);

/// Who answers where.
type Places = BTreeMap<MemberId, BTreeSet<Endpoint>>;

/// Follows the members' REST endpoints. Its tasks end when every receiver of the table is dropped.
pub struct Follower {
    places: watch::Receiver<Places>,
    tls: Option<Arc<ClientConfig>>,
    warmed: Warmed,
}

/// For whom the router has warmed up its sessions, once there is a router.
type Warmed = Arc<OnceLock<watch::Receiver<Option<MemberId>>>>;

impl Follower {
    /// Begins to follow. `members` are host and REST port of the members, several hosts of one
    /// member included; it learns of further members from them. Call it inside a tokio runtime.
    /// With `tls`, members are asked by TLS only, and believed only if it accepts them; in clear,
    /// whoever is in between could lead clients elsewhere.
    pub fn start(
        members: Vec<(String, u16)>,
        tls: Option<Arc<ClientConfig>>,
    ) -> (watch::Receiver<Arc<Table>>, Arc<dyn Verifier>) {
        let (publish, table) = watch::channel(Arc::new(Table::default()));
        let (publish_places, places) = watch::channel(Places::new());
        let (report, news) = mpsc::channel(QUEUE);
        let (beats, pulses) = mpsc::channel(QUEUE);
        let warmed = Warmed::default();
        let mut following = Following {
            publish,
            publish_places,
            report,
            answers: BTreeMap::new(),
            known: BTreeSet::new(),
            best: None,
            pulse: Pulse::new(time::Instant::now()),
            beats,
            pollers: JoinSet::new(),
            tls: tls.clone(),
            warmed: warmed.clone(),
        };
        members.into_iter().for_each(|endpoint| following.learn(endpoint));
        tokio::spawn(following.run(news, pulses));
        (table, Arc::new(Follower { places, tls, warmed }))
    }
}

#[async_trait::async_trait]
impl Verifier for Follower {
    async fn verify(&self, member: &MemberId, generation: Generation) -> bool {
        let places = self.places.borrow().get(member).cloned().unwrap_or_default();
        // All its addresses at once: one dead network must not delay the answer.
        let mut answers: FuturesUnordered<_> =
            places.iter().map(|place| ask(place, self.tls.clone(), member, generation)).collect();
        while let Some(holds) = answers.next().await {
            if holds {
                return true;
            }
        }
        false
    }

    fn warmed(&self, warmed: watch::Receiver<Option<MemberId>>) {
        // There is one read-write router beside an application.
        let _ = self.warmed.set(warmed);
    }
}

async fn ask(
    (host, port): &Endpoint,
    tls: Option<Arc<ClientConfig>>,
    member: &MemberId,
    generation: Generation,
) -> bool {
    let path = format!("{VERIFY_PATH}?generation={generation}");
    match Client::new(host, *port, tls).get(&path, VERIFY_TIMEOUT).await {
        Ok((StatusCode::OK, body)) => {
            // The whole answer is compared: another member may have taken over the address.
            let want = VerifyAnswer { member: member.clone(), generation, holds: true };
            serde_json::from_slice::<VerifyAnswer>(&body).is_ok_and(|answer| answer == want)
        }
        Ok(_) => false,
        Err(error) => {
            tracing::debug!(host, port, %error, "no answer about the lease");
            false
        }
    }
}

/// The loop that owns what is known.
struct Following {
    publish: watch::Sender<Arc<Table>>,
    publish_places: watch::Sender<Places>,
    report: mpsc::Sender<News>,
    answers: BTreeMap<Endpoint, TableAnswer>,
    known: BTreeSet<Endpoint>,
    best: Option<Table>,
    pulse: Pulse,
    beats: mpsc::Sender<Endpoint>,
    pollers: JoinSet<()>,
    tls: Option<Arc<ClientConfig>>,
    warmed: Warmed,
}

impl Following {
    async fn run(mut self, mut news: mpsc::Receiver<News>, mut beats: mpsc::Receiver<Endpoint>) {
        let mut look = time::interval(PULSE_EVERY);
        look.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(endpoint) = beats.recv() => {
                    let places = self.publish_places.borrow();
                    self.pulse.beat(endpoint, &places, time::Instant::now());
                }
                _ = look.tick() => self.publish(),
                Some((endpoint, answer)) = news.recv() => self.heard(endpoint, answer),
                () = self.publish.closed() => return,
            }
        }
    }

    fn heard(&mut self, endpoint: Endpoint, answer: Option<TableAnswer>) {
        let Some(answer) = answer else {
            // Silence is no news: what was published stays, but others are believed now.
            self.answers.remove(&endpoint);
            self.publish_best();
            return;
        };
        self.publish_places.send_if_modified(|places| {
            let mut changed = note(places, &answer.member, endpoint.clone());
            let standbys = answer.table.standbys.iter().map(|standby| &standby.target);
            for target in answer.table.primary.iter().chain(standbys) {
                let Some(rest_port) = target.rest_port else { continue };
                for host in &target.hosts {
                    changed |= note(places, &target.member, (host.clone(), rest_port));
                }
            }
            changed
        });
        let places = self.publish_places.borrow().clone();
        places.into_values().flatten().for_each(|endpoint| self.learn(endpoint));
        self.answers.insert(endpoint, answer);
        self.publish_best();
    }

    /// Polls this one too.
    fn learn(&mut self, endpoint: Endpoint) {
        if self.known.len() < ENDPOINTS_MAX && self.known.insert(endpoint.clone()) {
            for lane in 0..LANES {
                let beats = self.beats.clone();
                self.pollers.spawn(probe(endpoint.clone(), lane, self.tls.clone(), beats));
            }
            let (tls, report) = (self.tls.clone(), self.report.clone());
            self.pollers.spawn(poll(endpoint, tls, report, self.warmed.clone()));
        }
    }

    /// The newest generation counts; in it, the primary itself knows best; then, the latest.
    fn publish_best(&mut self) {
        let best = self
            .answers
            .values()
            .max_by_key(|answer| (answer.table.generation, answer.confirmed, answer.table.version));
        let Some(best) = best else { return };
        if self.best.as_ref().is_none_or(|known| best.table.generation >= known.generation) {
            self.best = Some(best.table.clone());
        }
        self.publish();
    }

    /// The best table, with what is dead from here.
    fn publish(&mut self) {
        let Some(mut table) = self.best.clone() else { return };
        table.dead_hosts =
            self.pulse.dead_hosts(&self.publish_places.borrow(), time::Instant::now());
        let dead = &table.dead_hosts;
        let targets = table.standbys.iter_mut().map(|s| &mut s.target).chain(&mut table.primary);
        for target in targets {
            // Living paths first.
            target.hosts.sort_by_key(|host| dead.contains(host));
        }
        self.publish.send_if_modified(|published| {
            let news = table != **published;
            if news {
                *published = Arc::new(table);
            }
            news
        });
    }
}

/// Notes that `member` answers at `endpoint`. True when that is new.
fn note(places: &mut Places, member: &MemberId, endpoint: Endpoint) -> bool {
    let count: usize = places.values().map(BTreeSet::len).sum();
    count < ENDPOINTS_MAX && places.entry(member.clone()).or_default().insert(endpoint)
}

/// Does the router still warm up sessions by this table?
fn is_warming(table: &Table, warmed: &Warmed) -> bool {
    let (Some(to), Some(primary)) = (&table.warm, &table.primary) else { return false };
    let done =
        |warmed: &watch::Receiver<Option<MemberId>>| warmed.borrow().as_ref() == Some(&to.member);
    to.member != primary.member && !table.draining && warmed.get().is_some_and(|w| !done(w))
}

async fn poll(
    endpoint: Endpoint,
    tls: Option<Arc<ClientConfig>>,
    report: mpsc::Sender<News>,
    warmed: Warmed,
) {
    let mut client = Client::new(endpoint.0.clone(), endpoint.1, tls);
    let (mut after, mut warming) = (0, false);
    loop {
        let answer = match table_after(&mut client, after, warming).await {
            Ok(answer) => Some(answer),
            Err(why) => {
                tracing::debug!(host = endpoint.0, port = endpoint.1, why, "no table");
                None
            }
        };
        after = answer.as_ref().map_or(0, |answer| answer.table.version);
        warming = answer.as_ref().is_some_and(|answer| is_warming(&answer.table, &warmed));
        let pause = if answer.is_some() { POLL_EVERY } else { POLL_PAUSE };
        if report.send((endpoint.clone(), answer)).await.is_err() {
            return;
        }
        time::sleep(pause).await;
    }
}

async fn table_after(
    client: &mut Client,
    after: u64,
    warming: bool,
) -> Result<TableAnswer, String> {
    let wait_ms = if warming { POLL_WAIT_WARMING_MS } else { POLL_WAIT_MS };
    let path = format!("{TABLE_PATH}?after={after}&wait_ms={wait_ms}&warming={warming}");
    let timeout = Duration::from_millis(POLL_WAIT_MS) + POLL_MARGIN;
    match client.get(&path, timeout).await {
        Ok((StatusCode::OK, body)) => {
            serde_json::from_slice(&body).map_err(|error| format!("not a table: {error}"))
        }
        Ok((status, _)) => Err(format!("the member answers {status}")),
        Err(error) => Err(error.to_string()),
    }
}
