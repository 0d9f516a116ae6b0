//! Every rule of both tables fires somewhere in the first few hundred seeds, and all of them pass.

use sempre_decide::{leader, member};
use sempre_sim::{run_many, stats::Stats};

#[test]
fn every_rule_is_reached() {
    let mut stats = Stats::default();
    let mut failed = Vec::new();
    run_many(20_000, 300, 2, None, |outcome| {
        stats.add(&outcome.stats);
        failed.extend(outcome.violation.map(|v| (outcome.seed, v)));
        true
    });
    assert_eq!(failed, []);
    for (rule, _) in leader::RULES {
        assert!(stats.leader_rules.contains_key(rule), "{rule} never fired");
    }
    for (rule, _) in member::RULES {
        assert!(stats.member_rules.contains_key(rule), "{rule} never fired");
    }
}
