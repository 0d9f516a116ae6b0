//! Whom a client may be led to, best first. Pure.

use crate::{Mode, Role, Table, Target};
use sempre_model::{Generation, MemberId};

/// A member a client may be led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub target: Target,
    pub role: Role,
    pub generation: Generation,
}

impl Candidate {
    /// Does `table` still lead there? By which of its addresses first does not matter: where paths
    /// lose packets that changes several times a second, and whoever began anew each time would
    /// never get in.
    pub fn stands_in(&self, table: &Table) -> bool {
        let same = |target: &Target| {
            target.member == self.target.member && target.port == self.target.port
        };
        self.generation == table.generation
            && match self.role {
                Role::Primary => table.primary.as_ref().is_some_and(same),
                Role::Standby => table.standbys.iter().any(|s| same(&s.target)),
                Role::Warm => table.warm.as_ref().is_some_and(same),
            }
    }
}

/// Everyone who fits, best first. `load` is what speaks against a member, such as how many sessions
/// it has; `turn` changes with every client, so that equals take turns.
pub(crate) fn candidates<L: Ord>(
    table: &Table,
    mode: Mode,
    load: impl Fn(&MemberId) -> L,
    turn: usize,
) -> Vec<Candidate> {
    let generation = table.generation;
    let as_primary =
        |target: &Target| Candidate { target: target.clone(), role: Role::Primary, generation };
    let mut out = Vec::new();
    if mode == Mode::ReadOnly {
        let mut fit: Vec<_> = table
            .standbys
            .iter()
            .filter(|s| s.lag_bytes <= table.limits.max_lag_bytes)
            .filter(|s| !table.lost.contains(&s.target.member))
            .filter(|s| table.primary.as_ref().is_none_or(|p| p.member != s.target.member))
            .collect();
        let places = fit.len().max(1);
        fit.rotate_left(turn % places);
        // A stable sort: among equals the rotation decides.
        fit.sort_by_key(|s| load(&s.target.member));
        out.extend(fit.into_iter().map(|standby| Candidate {
            target: standby.target.clone(),
            role: Role::Standby,
            generation,
        }));
        if !table.limits.read_only_fallback {
            return out;
        }
    }
    if !table.primary_stopped && !table.draining {
        out.extend(table.primary.as_ref().map(as_primary));
    }
    out
}

/// Is it a standby that may serve transactions of read-write sessions?
pub(crate) fn follows(table: &Table, candidate: &Candidate) -> bool {
    candidate.role == Role::Standby
        && table.standbys.iter().any(|s| s.follows && s.target == candidate.target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Limits, Standby};

    fn target(name: &str) -> Target {
        Target {
            member: MemberId::new(name).unwrap(),
            hosts: vec!["127.0.0.1".into()],
            port: 5432,
            rest_port: None,
        }
    }

    fn table() -> Table {
        let standby =
            |name, lag_bytes| Standby { target: target(name), lag_bytes, follows: name != "c" };
        Table {
            primary: Some(target("a")),
            standbys: vec![standby("b", 0), standby("c", 10), standby("d", 1000)],
            limits: Limits { max_lag_bytes: 100, ..Limits::default() },
            ..Table::default()
        }
    }

    fn names(table: &Table, mode: Mode, open: &[(&str, usize)], turn: usize) -> String {
        let open = |id: &MemberId| {
            open.iter().find(|(name, _)| *name == id.as_str()).map_or(0, |(_, count)| *count)
        };
        let names: Vec<_> = candidates(table, mode, open, turn)
            .into_iter()
            .map(|c| c.target.member.to_string())
            .collect();
        names.join(" ")
    }

    #[test]
    fn read_write_is_the_primary_or_nobody() {
        assert_eq!(names(&table(), Mode::ReadWrite, &[], 0), "a");
        assert_eq!(names(&Table::default(), Mode::ReadWrite, &[], 0), "");
        let stopped = Table { primary_stopped: true, ..table() };
        assert_eq!(names(&stopped, Mode::ReadWrite, &[], 0), "");
    }

    #[test]
    fn read_only_is_the_least_loaded_standby_that_does_not_lag_then_the_primary() {
        assert_eq!(names(&table(), Mode::ReadOnly, &[], 0), "b c a");
        assert_eq!(names(&table(), Mode::ReadOnly, &[], 1), "c b a");
        assert_eq!(names(&table(), Mode::ReadOnly, &[("b", 2), ("c", 1)], 0), "c b a");
        let mut strict = table();
        strict.limits.read_only_fallback = false;
        strict.lost = vec![MemberId::new("b").unwrap()];
        assert_eq!(names(&strict, Mode::ReadOnly, &[], 0), "c");
    }

    #[test]
    fn transactions_go_to_standbys_that_follow_and_never_to_the_primary() {
        let mut chosen = candidates(&table(), Mode::ReadOnly, |_| 0, 0);
        assert_eq!(chosen.len(), 3);
        chosen.retain(|candidate| follows(&table(), candidate));
        assert_eq!(chosen.len(), 1);
        assert_eq!(chosen[0].target.member.as_str(), "b");
    }

    #[test]
    fn a_promoted_standby_counts_as_the_primary_only() {
        let mut table = table();
        table.primary = Some(target("b"));
        table.limits.read_only_fallback = false;
        assert_eq!(names(&table, Mode::ReadOnly, &[], 0), "c");
    }

    #[test]
    fn the_order_of_addresses_does_not_send_a_client_back() {
        let hosts =
            |hosts: [&str; 2]| Target { hosts: hosts.map(Into::into).into(), ..target("p") };
        let mut table = Table { primary: Some(hosts(["a", "b"])), ..table() };
        let candidate = Candidate {
            target: hosts(["a", "b"]),
            role: Role::Primary,
            generation: table.generation,
        };
        table.primary = Some(hosts(["b", "a"]));
        assert!(candidate.stands_in(&table));
        table.primary = Some(Target { port: 5433, ..hosts(["a", "b"]) });
        assert!(!candidate.stands_in(&table));
        table.primary = Some(target("q"));
        assert!(!candidate.stands_in(&table));
    }
}
