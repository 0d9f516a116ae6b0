//! Every fault by name: what is done, how long it lasts, and the write stall it may cost.

use crate::{
    links::{Flow, Link},
    process,
    rig::{self, Rig, wait_until},
    topology::{APP, Net},
};
use anyhow::{Context, Result};
use rustix::process::Signal;
use serde::{Serialize, Serializer};
use std::{str::FromStr, time::Duration};

/// How long the kernel may take to end a killed process.
const DEATH_DEADLINE: Duration = Duration::from_secs(5);

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Planned: an operator hands over to another member.
    Switchover,
    /// The primary's postmaster is killed.
    DatabaseKilled,
    /// The primary's host loses its power.
    HostLost,
    /// The primary's host is cut off from everyone on all networks.
    CutOff,
    /// All the primary hears gets lost.
    OneWayIn,
    /// All the primary sends gets lost.
    OneWayOut,
    /// All processes of the primary's database stop without ending.
    Hung,
    /// The primary's disk is full.
    DiskFull,
    /// Network a fails for everyone.
    NetworkALost,
    /// Network b fails for everyone.
    NetworkBLost,
    /// A standby's host loses its power.
    StandbyLost,
    /// A standby's host is cut off from everyone on all networks.
    StandbyCutOff,
    /// The primary's agent is killed, and started again at once, as systemd does it.
    AgentKilled,
    /// The primary's agent is killed and not started again for a while.
    AgentGone,
    /// The primary's agent is stopped without ending.
    AgentPaused,
    /// The primary's guard is killed.
    GuardKilled,
    /// The primary's guard is stopped without ending.
    GuardPaused,
    /// The process that watches the primary's guard is killed.
    WardenKilled,
    /// Of the packets from and to the primary 30 % are lost.
    PacketLoss,
    /// All hosts lose their power at once and come back.
    PowerCycle,
}

/// What is known of a fault.
struct Facts {
    fault: Fault,
    name: &'static str,
    what: &'static str,
    /// The write stall that is the aim, ms; none where there is no aim.
    stall_ms: Option<u64>,
    /// Errors that are the aim.
    no_errors: bool,
    /// How long it lasts at least before it is healed, ms.
    lasts_ms: u64,
}

const fn facts(
    fault: Fault,
    name: &'static str,
    stall_ms: Option<u64>,
    lasts_ms: u64,
    what: &'static str,
) -> Facts {
    Facts { fault, name, what, stall_ms, no_errors: matches!(fault, Fault::Switchover), lasts_ms }
}

/// All of them, in the order they are run.
const FACTS: [Facts; 20] = [
    facts(Fault::Switchover, "switchover", Some(300), 2_000, "planned switchover"),
    facts(Fault::DatabaseKilled, "db-killed", Some(1_000), 3_000, "primary's database killed"),
    facts(Fault::HostLost, "host-lost", Some(3_000), 3_000, "primary's host loses power"),
    facts(Fault::CutOff, "cut-off", Some(3_000), 4_000, "primary cut off on all networks"),
    facts(Fault::OneWayIn, "one-way-in", Some(3_000), 4_000, "primary hears nobody"),
    facts(Fault::OneWayOut, "one-way-out", Some(3_000), 4_000, "nobody hears the primary"),
    facts(Fault::Hung, "hung", Some(4_000), 5_000, "primary's database stopped (SIGSTOP)"),
    facts(Fault::NetworkALost, "network-a-lost", Some(500), 4_000, "network a fails"),
    facts(Fault::NetworkBLost, "network-b-lost", Some(500), 4_000, "network b fails"),
    facts(Fault::StandbyLost, "standby-lost", Some(1_500), 4_000, "a standby's host loses power"),
    facts(Fault::StandbyCutOff, "standby-cut-off", Some(1_500), 4_000, "a standby cut off"),
    facts(Fault::AgentKilled, "agent-killed", Some(300), 4_000, "agent killed, restarted at once"),
    facts(Fault::AgentGone, "agent-gone", Some(3_000), 6_000, "agent killed for a while"),
    facts(Fault::AgentPaused, "agent-paused", Some(3_000), 6_000, "agent stopped (SIGSTOP)"),
    facts(Fault::GuardKilled, "guard-killed", Some(3_000), 4_000, "guard killed"),
    facts(Fault::GuardPaused, "guard-paused", Some(3_000), 6_000, "guard stopped (SIGSTOP)"),
    facts(Fault::WardenKilled, "warden-killed", Some(3_000), 4_000, "guard's warden killed"),
    // TCP by itself: half of all exchanges need to be repeated, a few of them six times, and the
    // database's own connections double the pause before each. Six are 13 s.
    facts(
        Fault::PacketLoss,
        "packet-loss",
        Some(15_000),
        6_000,
        "30 % of the primary's packets lost",
    ),
    facts(Fault::PowerCycle, "power-cycle", None, 3_000, "all hosts lose power and come back"),
    // Last: it needs a cluster with disks of its own.
    facts(Fault::DiskFull, "disk-full", Some(1_000), 4_000, "primary's disk full"),
];

impl Fault {
    /// All, in the order they are run.
    pub fn all() -> impl Iterator<Item = Fault> {
        FACTS.iter().map(|facts| facts.fault)
    }

    fn facts(self) -> &'static Facts {
        // Each variant has its line: a test says so.
        FACTS.iter().find(|facts| facts.fault == self).unwrap_or(&FACTS[0])
    }

    /// As given on a command line.
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    /// In words.
    pub fn what(self) -> &'static str {
        self.facts().what
    }

    /// The longest write stall that is the aim, ms.
    pub fn stall_target_ms(self) -> Option<u64> {
        self.facts().stall_ms
    }

    /// Is the aim that clients see no error at all?
    pub fn no_errors_expected(self) -> bool {
        self.facts().no_errors
    }

    /// How long it lasts at least.
    pub fn lasts(self) -> Duration {
        Duration::from_millis(self.facts().lasts_ms)
    }

    /// Why it cannot be caused in this rig, if so.
    pub fn unsuitable(self, rig: &dyn Rig, primary: &str) -> Option<&'static str> {
        match self {
            Fault::GuardKilled if rig.guard(primary).is_none() => Some("there is no guard"),
            Fault::GuardPaused if rig.guard(primary).is_none() => Some("there is no guard"),
            Fault::WardenKilled if rig.warden(primary).is_none() => Some("there is no warden"),
            Fault::DiskFull if rig.fill_disk_possible() => None,
            Fault::DiskFull => Some("no disks of its own"),
            Fault::NetworkALost | Fault::NetworkBLost if rig.make() != "sempre" => {
                Some("uses one network only")
            }
            _ => None,
        }
    }

    /// Causes it. `primary` leads; `standby` is another member.
    pub async fn inject(self, rig: &mut dyn Rig, primary: &str, standby: &str) -> Result<()> {
        let topology = &rig.base().topology;
        let both = |host, link| topology.links().set(Net::ALL.map(|net| (host, net, link)));
        match self {
            Fault::Switchover => rig.switchover(primary, None).await,
            Fault::DatabaseKilled => {
                process::signal(rig::postmaster(&rig.data_dir(primary))?, Signal::KILL)
            }
            Fault::HostLost => topology.power_off(primary),
            Fault::StandbyLost => topology.power_off(standby),
            Fault::CutOff => topology.cut(primary),
            Fault::StandbyCutOff => topology.cut(standby),
            Fault::OneWayIn => both(primary, Link { received: Flow::Drop, ..Link::WHOLE }),
            Fault::OneWayOut => both(primary, Link { sent: Flow::Drop, ..Link::WHOLE }),
            Fault::PacketLoss => {
                both(primary, Link { sent: Flow::Lose(30), received: Flow::Lose(30) })
            }
            Fault::Hung => rig::signal_database(rig.base(), primary, Signal::STOP),
            Fault::DiskFull => rig.fill_disk(primary),
            Fault::NetworkALost => set_network(rig, Net::A, Link::CUT),
            Fault::NetworkBLost => set_network(rig, Net::B, Link::CUT),
            Fault::AgentKilled => {
                kill(rig.agent(primary)?.pid).await?;
                rig.start_agent(primary).await
            }
            Fault::AgentGone => kill(rig.agent(primary)?.pid).await,
            Fault::AgentPaused => process::signal(rig.agent(primary)?.pid, Signal::STOP),
            Fault::GuardKilled => {
                kill(rig.guard(primary).context("there is no guard to kill")?.pid).await
            }
            Fault::GuardPaused => {
                let guard = rig.guard(primary).context("there is no guard to stop")?;
                process::signal(guard.pid, Signal::STOP)
            }
            Fault::WardenKilled => {
                kill(rig.warden(primary).context("there is no warden to kill")?.pid).await
            }
            Fault::PowerCycle => {
                let hosts = topology.hosts().to_vec();
                // All at one instant: nobody sees another one go first.
                topology.links().set(
                    hosts
                        .iter()
                        .flat_map(|host| Net::ALL.map(|net| (host.as_str(), net, Link::CUT))),
                )?;
                hosts.iter().try_for_each(|host| topology.power_off(host))?;
                topology.links().restore()?;
                for host in &hosts {
                    rig.start_host(host).await?;
                }
                Ok(())
            }
        }
    }

    /// Ends it.
    pub async fn heal(self, rig: &mut dyn Rig, primary: &str, standby: &str) -> Result<()> {
        match self {
            Fault::Switchover
            | Fault::DatabaseKilled
            | Fault::AgentKilled
            | Fault::GuardKilled
            | Fault::WardenKilled
            | Fault::PowerCycle => Ok(()),
            Fault::HostLost | Fault::StandbyLost => {
                let host = if self == Fault::HostLost { primary } else { standby };
                rig.base().topology.restore(host)?;
                rig.start_host(host).await
            }
            Fault::CutOff
            | Fault::StandbyCutOff
            | Fault::OneWayIn
            | Fault::OneWayOut
            | Fault::PacketLoss
            | Fault::NetworkALost
            | Fault::NetworkBLost => rig.base().topology.links().restore(),
            Fault::Hung => rig::signal_database(rig.base(), primary, Signal::CONT),
            Fault::DiskFull => rig.empty_disk(primary),
            // It may be gone meanwhile, killed by its warden.
            Fault::GuardPaused => match rig.guard(primary) {
                Some(guard) => process::signal(guard.pid, Signal::CONT),
                None => Ok(()),
            },
            Fault::AgentGone => rig.start_agent(primary).await,
            Fault::AgentPaused => process::signal(rig.agent(primary)?.pid, Signal::CONT),
        }
    }
}

fn set_network(rig: &dyn Rig, net: Net, link: Link) -> Result<()> {
    let topology = &rig.base().topology;
    let hosts = topology.hosts().iter().map(String::as_str).chain([APP]);
    topology.links().set(hosts.map(|host| (host, net, link)))
}

async fn kill(pid: u32) -> Result<()> {
    process::signal(pid, Signal::KILL)?;
    wait_until("a killed process is gone", DEATH_DEADLINE, async || {
        process::describe(pid).is_none()
    })
    .await
}

impl Serialize for Fault {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl FromStr for Fault {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        Fault::all().find(|fault| fault.name() == name).ok_or_else(|| {
            let names: Vec<_> = Fault::all().map(Fault::name).collect();
            format!("there is no fault `{name}`; the faults are: all, {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_has_its_own_line_and_name() {
        for facts in &FACTS {
            assert_eq!(facts.fault.facts().name, facts.name);
            assert_eq!(facts.name.parse(), Ok(facts.fault));
        }
        assert!("nope".parse::<Fault>().unwrap_err().contains("db-killed"));
    }
}
