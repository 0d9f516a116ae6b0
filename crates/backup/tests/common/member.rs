//! A member that serves a folder, in this process, on the loopback; with members that ask.

use super::proxy::Proxy;
use anyhow::Result;
use async_trait::async_trait;
use bytes::Bytes;
use sempre_backup::{
    Patience, Remote,
    serve::{Now, Reading, Rule, Server},
};
use sempre_model::MemberId;
use sempre_net::{
    Authority, Caller, Handler, Identity, IsMember, Link, MEMBER_LIFETIME, PeerServer, RpcError,
    Streamed,
};
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

pub const HASTE: Patience = Patience {
    tries: 6,
    first_wait: Duration::from_millis(10),
    connect: Duration::from_secs(2),
    timeout: Duration::from_secs(2),
};

pub const DAY: i64 = 24 * 3600 * 1000;

pub fn id(name: &str) -> MemberId {
    MemberId::new(name).unwrap()
}

struct Repositories(Arc<Server>);

#[async_trait]
impl Handler for Repositories {
    async fn handle(&self, _: Caller, method: &str, _: Bytes) -> Result<Bytes, RpcError> {
        Err(RpcError::UnknownMethod(method.to_owned()))
    }

    fn streamed(&self) -> Option<Arc<dyn Streamed>> {
        Some(self.0.connection())
    }
}

/// The serving member, and all who know it.
pub struct Serving {
    pub rule: Rule,
    pub members: Arc<Mutex<BTreeSet<MemberId>>>,
    /// The machine's clocks are ahead of the real ones by so much, ms: that of the wall, and the time
    /// since it was started.
    pub ahead: Arc<[AtomicI64; 2]>,
    /// The wall clock stands at this time, ms since 1970; 0: it does not.
    pub stands: Arc<AtomicI64>,
    /// Between the member and who asks.
    pub proxy: Proxy,
    authority: Authority,
    keep: tempfile::TempDir,
    running: Option<PeerServer>,
}

impl Serving {
    pub async fn start(folder: &Path) -> Result<Self> {
        Self::by(folder, |_| {}).await
    }

    pub async fn by(folder: &Path, change: impl FnOnce(&mut Rule)) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let mut rule = Rule {
            folder: folder.to_owned(),
            window_days: None,
            quota_bytes: None,
            confirm_clock: None,
        };
        change(&mut rule);
        let members = ["w1", "m1", "m2"].map(id).into_iter().collect();
        let mut serving = Self {
            rule,
            members: Arc::new(Mutex::new(members)),
            ahead: Arc::default(),
            stands: Arc::default(),
            proxy: Proxy::start().await?,
            authority: Authority::new("test", "3f2a9c0d1e")?,
            keep: tempfile::tempdir()?,
            running: None,
        };
        for name in ["w1", "m1", "m2", "stranger"] {
            let identity = Identity::issue(&serving.authority, &id(name), MEMBER_LIFETIME)?;
            identity.save(&serving.tls(name))?;
        }
        serving.run().await?;
        Ok(serving)
    }

    /// The certificate of a member.
    pub fn tls(&self, name: &str) -> PathBuf {
        self.keep.path().join("tls").join(name)
    }

    fn now(&self) -> Now {
        let (ahead, stands) = (self.ahead.clone(), self.stands.clone());
        Arc::new(move || {
            let moved =
                |at: u64, by: usize| at.saturating_add_signed(ahead[by].load(Ordering::SeqCst));
            let wall_ms = moved(super::real_now(), 0);
            // Years ago.
            let up_ms = moved(super::real_now(), 1) - 1_600_000_000_000;
            let (wall_ms, up_ms) = match stands.load(Ordering::SeqCst) {
                0 => (wall_ms, up_ms),
                at => (at as u64, at as u64 - 1_600_000_000_000),
            };
            Reading { wall_ms, up_ms, boot: "boot".to_owned() }
        })
    }

    /// Time passes, as far as the member knows.
    pub fn pass(&self, ms: i64) {
        for ahead in self.ahead.iter() {
            ahead.fetch_add(ms, Ordering::SeqCst);
        }
    }

    /// So long after an object was written, by the member's clock, which stands there.
    pub fn stand_after(&self, key: &str, ms: i64) {
        let written = fs::metadata(self.rule.folder.join(key)).unwrap();
        let at = written.ctime() * 1000 + written.ctime_nsec() / 1_000_000 + ms;
        self.stands.store(at, Ordering::SeqCst);
    }

    /// Starts the member, by the rule as it is.
    pub async fn run(&mut self) -> Result<()> {
        let notes = self.keep.path().join("served");
        let server = Arc::new(Server::by("w1", vec![self.rule.clone()], &notes, self.now()));
        let identity = Arc::new(Identity::load(&self.tls("w1"))?);
        let members = self.members.clone();
        let is_member: IsMember = Arc::new(move |name| members.lock().unwrap().contains(name));
        let here = "127.0.0.1:0".parse()?;
        let handler = Arc::new(Repositories(server));
        let running = PeerServer::start(vec![here], identity, is_member, handler).await?;
        self.proxy.leads_to(running.local_addresses()[0]);
        self.running = Some(running);
        Ok(())
    }

    /// The member dies.
    pub async fn kill(&mut self) {
        self.running = None;
        self.proxy.cut();
    }

    pub fn store(&self) -> Arc<Remote> {
        self.store_of("m1")
    }

    pub fn store_of(&self, name: &str) -> Arc<Remote> {
        self.store_at(name, &self.rule.folder)
    }

    pub fn store_at(&self, name: &str, folder: &Path) -> Arc<Remote> {
        let (hosts, port) = (vec!["127.0.0.1".to_owned()], self.proxy.port());
        let (tls, folder) = (self.tls(name), folder.to_owned());
        Arc::new(Remote::with_patience(id("w1"), hosts, port, tls, folder, HASTE))
    }

    /// For what no store would ask.
    pub fn link(&self, name: &str) -> Link {
        Link::new(id("w1"), vec!["127.0.0.1".to_owned()], self.proxy.port(), self.tls(name))
    }
}
