//! Hosts as network namespaces on two separate networks.
//!
//! Host `hN` is `10.77.1.(10+N)` on network a and `10.77.2.(10+N)` on network b; host `app` is `.100`
//! on both. The bridges stand in a namespace of their own, so nothing is ever left in the machine's
//! own network, and several topologies can stand beside each other. Needs root.

use crate::{
    links::{Link, Links},
    process,
    shell::ip,
    station::Station,
};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

/// The host of the application.
pub const APP: &str = "app";
/// Addresses `.11` to `.99` are for database hosts.
const HOSTS_MAX: usize = 80;
/// All names of the lab begin so, followed by the process id, so that leftovers can be told.
const PREFIX: &str = "sl";
const NAMESPACES: &str = "/run/netns";

/// One of the two networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Net {
    /// 10.77.1.0/24
    A,
    /// 10.77.2.0/24
    B,
}

impl Net {
    /// Both.
    pub const ALL: [Net; 2] = [Net::A, Net::B];

    fn letter(self) -> char {
        match self {
            Net::A => 'a',
            Net::B => 'b',
        }
    }

    /// The switch's port that `host` is plugged into.
    pub(crate) fn port(self, host: &str) -> String {
        format!("{host}-{}", self.letter())
    }
}

/// Namespaces, bridges and links. Dropping it kills what runs in them and removes them.
#[derive(Debug)]
pub struct Topology {
    name: String,
    hosts: Vec<String>,
    links: Links,
}

impl Topology {
    /// `count` database hosts `h1`, `h2`, ... and host `app`, on both networks.
    pub fn new(count: usize) -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "network namespaces need root; run it with sudo"
        );
        ensure!((1..=HOSTS_MAX).contains(&count), "1 to {HOSTS_MAX} hosts, not {count}");
        sweep();
        static COUNTER: AtomicU32 = AtomicU32::new(1);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}x{number}", std::process::id());
        let hosts = (1..=count).map(|n| format!("h{n}")).collect();
        let links = Links::new(format!("{name}-sw"));
        // Made before anything else, so that a failure half-way is cleaned up by its drop.
        let topology = Self { name, hosts, links };
        topology.build().context("could not set up the network of the lab")?;
        Ok(topology)
    }

    fn build(&self) -> Result<()> {
        let switch = self.namespace("sw");
        ip(&format!("netns add {switch}"))?;
        for net in Net::ALL {
            let bridge = format!("br-{}", net.letter());
            ip(&format!("-n {switch} link add {bridge} type bridge mcast_snooping 0"))?;
            ip(&format!("-n {switch} link set dev {bridge} up"))?;
        }
        for host in self.hosts.iter().map(String::as_str).chain([APP]) {
            let namespace = self.namespace(host);
            ip(&format!("netns add {namespace}"))?;
            ip(&format!("-n {namespace} link set dev lo up"))?;
            for net in Net::ALL {
                let (port, bridge) = (net.port(host), format!("br-{}", net.letter()));
                let inside = format!("net-{}", net.letter());
                let address = self.address(host, net);
                ip(&format!(
                    "-n {switch} link add {port} type veth peer name {inside} netns {namespace}"
                ))?;
                ip(&format!("-n {switch} link set dev {port} master {bridge}"))?;
                ip(&format!("-n {switch} link set dev {port} up"))?;
                ip(&format!("-n {namespace} addr add {address}/24 dev {inside}"))?;
                ip(&format!("-n {namespace} link set dev {inside} up"))?;
            }
        }
        self.links.restore()
    }

    /// Unique among running labs; short enough to be part of paths of Unix sockets.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The database hosts.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// The links of all hosts.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// The name of the namespace of a host.
    pub fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.name)
    }

    fn namespace_file(&self, host: &str) -> PathBuf {
        Path::new(NAMESPACES).join(self.namespace(host))
    }

    /// The address of a host on a network.
    pub fn address(&self, host: &str, net: Net) -> IpAddr {
        let last = match self.hosts.iter().position(|h| h == host) {
            Some(index) => 11 + u8::try_from(index).unwrap_or(u8::MAX),
            None => 100,
        };
        Ipv4Addr::new(10, 77, if net == Net::A { 1 } else { 2 }, last).into()
    }

    /// A program that will run on `host`, as `user` (none: root).
    pub fn command(&self, host: &str, user: Option<&str>, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(host)]);
        if let Some(user) = user {
            command.arg("setpriv");
            command.args([format!("--reuid={user}"), format!("--regid={user}")]);
            command.args(["--init-groups", "--"]);
        }
        command.arg(program.as_ref());
        // A folder every user may be in.
        command.current_dir("/");
        command
    }

    /// A place to run our own tasks on `host`.
    pub fn station(&self, host: &str) -> Result<Station> {
        Station::open(&self.namespace_file(host))
    }

    /// What runs on a host.
    pub fn processes(&self, host: &str) -> Vec<process::Process> {
        process::in_namespace(&self.namespace_file(host))
    }

    /// Cuts all links of `host` silently.
    pub fn cut(&self, host: &str) -> Result<()> {
        self.links.set(Net::ALL.map(|net| (host, net, Link::CUT)))
    }

    /// Makes all links of `host` whole again.
    pub fn restore(&self, host: &str) -> Result<()> {
        self.links.set(Net::ALL.map(|net| (host, net, Link::WHOLE)))
    }

    /// As if the plug was pulled: the links go first, so that not even a FIN of the kernel gets out.
    pub fn power_off(&self, host: &str) -> Result<()> {
        self.cut(host)?;
        process::kill_namespace(&self.namespace_file(host))
    }

    /// Kills all that runs on all hosts.
    pub fn kill_all(&self) {
        for host in self.hosts.iter().map(String::as_str).chain([APP]) {
            if let Err(error) = process::kill_namespace(&self.namespace_file(host)) {
                eprintln!("lab: {error}");
            }
        }
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        self.kill_all();
        for host in self.hosts.iter().map(String::as_str).chain([APP, "sw"]) {
            if self.namespace_file(host).exists()
                && let Err(error) = ip(&format!("netns del {}", self.namespace(host)))
            {
                eprintln!("lab: {error}");
            }
        }
    }
}

/// The process id in a name of the lab, when that process is gone.
pub(crate) fn leftover(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX) else { return false };
    let Some((pid, _)) = rest.split_once('x') else { return false };
    pid.parse::<u32>().is_ok_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

/// Removes what labs left behind that were killed themselves.
fn sweep() {
    let Ok(entries) = fs::read_dir(NAMESPACES) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if leftover(&name) {
            let _ = process::kill_namespace(&entry.path());
            let _ = ip(&format!("netns del {name}"));
        }
    }
    crate::disk::sweep();
}
