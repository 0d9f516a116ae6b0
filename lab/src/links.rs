//! What the networks do to packets: pass, drop silently, or lose some.
//!
//! Everything is a rule in the bridges' `forward` hook, so no end sees its carrier go, as with a
//! real switch that fails. All rules are replaced in one nftables transaction: a cut of several
//! links happens at one instant.

use crate::{shell, topology::Net};
use anyhow::{Result, ensure};
use std::{
    collections::BTreeMap,
    fmt::Write,
    process::Command,
    sync::{Mutex, PoisonError},
};

/// What happens to packets in one direction of one link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flow {
    /// All pass.
    #[default]
    Pass,
    /// All vanish.
    Drop,
    /// This many per cent vanish, at random.
    Lose(u8),
}

/// Both directions of the link of one host on one network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// What the host sends.
    pub sent: Flow,
    /// What it is sent.
    pub received: Flow,
}

impl Link {
    /// Nothing passes.
    pub const CUT: Link = Link { sent: Flow::Drop, received: Flow::Drop };
    /// Everything passes.
    pub const WHOLE: Link = Link { sent: Flow::Pass, received: Flow::Pass };
}

/// The state of all links of a topology.
#[derive(Debug)]
pub struct Links {
    switch: String,
    state: Mutex<BTreeMap<(String, Net), Link>>,
}

impl Links {
    /// Links of the bridges in namespace `switch`, all whole.
    pub(crate) fn new(switch: String) -> Self {
        Self { switch, state: Mutex::default() }
    }

    /// Changes the named links at one instant; others stay as they are.
    pub fn set<'a>(&self, changes: impl IntoIterator<Item = (&'a str, Net, Link)>) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for (host, net, link) in changes {
            for flow in [link.sent, link.received] {
                ensure!(
                    !matches!(flow, Flow::Lose(p) if p > 100),
                    "more than 100 % cannot be lost"
                );
            }
            state.insert((host.to_owned(), net), link);
        }
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.switch, "nft", "-f", "-"]);
        shell::run_with_input(&mut command, &render(&state)).map(drop)
    }

    /// Makes every link whole.
    pub fn restore(&self) -> Result<()> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.set([])
    }
}

/// The whole rule set, as `nft -f` reads it.
fn render(state: &BTreeMap<(String, Net), Link>) -> String {
    let mut rules = String::new();
    for ((host, net), link) in state {
        let port = net.port(host);
        for (direction, flow) in [("iifname", link.sent), ("oifname", link.received)] {
            let _ = match flow {
                Flow::Pass => Ok(()),
                Flow::Drop => writeln!(rules, "{direction} \"{port}\" drop"),
                Flow::Lose(percent) => {
                    writeln!(rules, "{direction} \"{port}\" numgen random mod 100 < {percent} drop")
                }
            };
        }
    }
    format!(
        "add table bridge lab\ndelete table bridge lab\ntable bridge lab {{\nchain forward {{\n\
         type filter hook forward priority 0; policy accept;\n{rules}}}\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_direction_has_its_rule() {
        let link = Link { sent: Flow::Lose(30), received: Flow::Drop };
        let text = render(&BTreeMap::from([(("h1".to_owned(), Net::B), link)]));
        assert!(text.contains("iifname \"h1-b\" numgen random mod 100 < 30 drop\n"), "{text}");
        assert!(text.contains("oifname \"h1-b\" drop\n"), "{text}");
    }
}
