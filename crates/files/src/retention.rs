//! Which snapshots are kept: by the rules of base backups, for each set by itself.

use crate::{
    Error, Files, Result, Snapshot,
    repository::{blocking, list},
};
use rustic_core::PruneOptions;
use sempre_backup::{Retention, Verdict};
use std::collections::{BTreeMap, BTreeSet};
use tokio::runtime::Handle;

/// What went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Snapshots.
    pub snapshots: Vec<String>,
}

/// What is to become of each snapshot. Those that others made with `restic` are not judged: they stay.
fn judge(snapshots: &[Snapshot], rules: &Retention, now_unix_ms: u64) -> Vec<Verdict> {
    let mut sets: BTreeMap<&str, Vec<(u64, &str)>> = BTreeMap::new();
    for snapshot in snapshots {
        if let Some(set) = &snapshot.set {
            sets.entry(set).or_default().push((snapshot.at_unix_ms, &snapshot.id));
        }
    }
    let judged = |moments| rules.judge_moments(moments, &BTreeSet::new(), now_unix_ms);
    sets.into_values().flat_map(judged).collect()
}

impl Files {
    /// What the rules say to each snapshot now. Changes nothing.
    pub async fn plan_prune(&self, rules: &Retention, now_unix_ms: u64) -> Result<Vec<Verdict>> {
        Ok(judge(&self.snapshots().await?, rules, now_unix_ms))
    }

    /// Forgets what the rules do not keep, then removes what no snapshot needs: the library marks it first,
    /// and deletes it a day later, so that backups that go on meanwhile do not lose what they count on.
    pub async fn prune(&self, rules: &Retention, now_unix_ms: u64) -> Result<Pruned> {
        let plan = self.plan_prune(rules, now_unix_ms).await?;
        let going: Vec<_> = plan.into_iter().filter(|v| !v.is_kept()).map(|v| v.id).collect();
        if going.is_empty() {
            return Ok(Pruned::default());
        }
        let (files, runtime) = (self.clone(), Handle::current());
        blocking(&self.place(), "remove old files", move || {
            let place = files.place();
            let failed = |error| Error::library("remove old files", &place)(error);
            let opened = files.open(runtime, None, None)?;
            let going: BTreeSet<&str> = going.iter().map(String::as_str).collect();
            let ids: Vec<_> = list(&opened, &place)?.iter().map(|snapshot| snapshot.id).collect();
            let gone: Vec<_> =
                ids.into_iter().filter(|id| going.contains(id.to_hex().as_str())).collect();
            opened.delete_snapshots(&gone).map_err(failed)?;
            let options = PruneOptions::default();
            let plan = opened.prune_plan(&options).map_err(failed)?;
            opened.prune(&options, plan).map_err(failed)?;
            Ok(Pruned { snapshots: gone.iter().map(|id| id.to_hex().to_string()).collect() })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_set_is_judged_by_itself_and_those_of_others_stay() {
        let snapshot = |id: &str, set: Option<&str>, at_unix_ms| Snapshot {
            id: id.into(),
            set: set.map(str::to_owned),
            member: "m1".into(),
            at_unix_ms,
            paths: Vec::new(),
            entries: 0,
            bytes: 0,
            stored_bytes: 0,
            took_ms: 0,
        };
        let all = [
            snapshot("a1", Some("a"), 1),
            snapshot("b1", Some("b"), 2),
            snapshot("x", None, 3),
            snapshot("a2", Some("a"), 4),
        ];
        let going = |rules: Retention| -> Vec<String> {
            let judged = judge(&all, &rules, 10);
            judged.into_iter().filter(|v| !v.is_kept()).map(|v| v.id).collect()
        };
        assert_eq!(going(Retention { last: 1, ..Retention::default() }), ["a1"]);
        assert!(going(Retention::default()).is_empty(), "no rule keeps all");
    }
}
