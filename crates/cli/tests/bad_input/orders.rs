//! Orders that would hurt, or that make no sense now: refused, and everything stays as it was.

use crate::{
    common::until,
    rig::{self, Member},
};
use serde_json::Value;
use std::path::Path;

/// m1 is primary, m2 a standby, m3 never to be primary.
fn three(folder: &Path) -> [Member; 3] {
    let first = Member::new(folder, "m1", "").serving(&[]);
    let tags = "[tags]\nnever_primary = true\n";
    let others = [Member::new(folder, "m2", ""), Member::new(folder, "m3", tags)];
    let [second, third] = others.map(|mut member| {
        let token = first.sempre(&["token"]).ok().out.clone();
        member.sempre(&["join", token.trim()]).ok();
        member.start();
        member
    });
    first.until("both stream", |status| {
        let members = status["members"].as_array().unwrap();
        members.iter().filter(|member| member["state"] == "streaming").count() == 2
            && status["raft"]["voters"] == 3
            && status["sync"]["record"]["members"].as_array().is_some_and(|s| !s.is_empty())
    });
    [first, second, third]
}

fn serving(status: &Value) -> bool {
    status["phase"] == "serving" && status["writable"] == true && status["primary"] == "m1"
}

#[test]
fn orders_that_would_hurt_are_refused() {
    let folder = rig::folder();
    let [first, second, mut third] = three(folder.path());
    first.open();
    first.sql("create table kept (i int); insert into kept values (42)");
    let generation = first.status().unwrap()["generation"].clone();
    let order = |words: &str| second.sempre(&words.split(' ').collect::<Vec<_>>());

    // Members that are not there, are it already, or may never be.
    order("switchover --to m9 --yes").refused(3, "SEMPRE-0020", &["m1, m2, m3"]);
    order("switchover --to m1 --yes").refused(3, "SEMPRE-0022", &["m1 is the primary"]);
    order("switchover --to m3 --yes").refused(3, "SEMPRE-0021", &["m3"]);
    order("failover --to m9 --yes").refused(3, "SEMPRE-0020", &["m9"]);
    order("failover --to m3 --yes").refused(3, "SEMPRE-0021", &["m3"]);
    order("failover --to m1 --yes").refused(3, "SEMPRE-0022", &[]);
    order("restart m9").refused(3, "SEMPRE-0020", &[]);
    order("reinit m9 --yes").refused(3, "SEMPRE-0020", &[]);
    order("reinit m1 --yes").refused(3, "SEMPRE-0028", &["m1 is the primary", "switchover"]);
    order("remove m9 --yes").refused(3, "SEMPRE-0020", &[]);
    order("remove m1 --yes").refused(3, "SEMPRE-0028", &["m1 is the primary", "switchover"]);
    order("switchover --cancel --yes").refused(3, "SEMPRE-0025", &[]);
    // Nobody to ask.
    order("switchover").refused(2, "", &["--yes"]);
    order("remove m2").refused(2, "", &["--yes"]);
    // Times that are none, or have no zone; one long past is one for now, so refused as above.
    order("switchover --at noon --yes").refused(2, "", &["2026-01-31T03:00:00Z"]);
    order("switchover --at 2026-01-31T03:00:00 --yes").refused(2, "", &["no time zone"]);
    // A REST token that is wrong.
    std::fs::rename(second.root.join("rest.token"), second.root.join("aside")).unwrap();
    order("pause").refused(3, "SEMPRE-0001", &["--config"]);
    std::fs::rename(second.root.join("aside"), second.root.join("rest.token")).unwrap();

    // The target lags: what it replays from has stopped, and the primary went on.
    let standby_pid: i32 = {
        let status = first.status().unwrap();
        let members = status["members"].as_array().unwrap();
        let member = members.iter().find(|member| member["name"] == "m2").unwrap();
        i32::try_from(member["database"]["pid"].as_i64().unwrap()).unwrap()
    };
    order("config set switchover_max_lag_bytes=1MB durability=async").ok();
    until("nobody is waited for", || {
        first.try_sql("show synchronous_standby_names").ok().filter(String::is_empty)
    });
    let receiver = walreceiver_below(standby_pid);
    signal(receiver, nix::sys::signal::Signal::SIGSTOP);
    first.sql("create table big as select repeat('x', 500) from generate_series(1, 20000)");
    // (By the one that is asked to order it, too.)
    for asked in [&first, &second] {
        asked.until("the lag is seen", |status| {
            let members = status["members"].as_array().unwrap();
            let lag = |member: &Value| member["database"]["receive_lag_bytes"].as_u64();
            members.iter().any(|m| m["name"] == "m2" && lag(m).is_some_and(|lag| lag > 2 << 20))
        });
    }
    let said = order("switchover --to m2 --yes");
    signal(receiver, nix::sys::signal::Signal::SIGCONT);
    said.refused(3, "SEMPRE-0023", &["m2", "switchover_max_lag_bytes"]);

    // The majority: with m3 silent, m2 is needed.
    third.stop();
    for asked in [&first, &second] {
        asked.until_odd(&["m3 is silent"]);
    }
    order("remove m2 --yes").refused(3, "SEMPRE-0029", &["--force"]);

    let status = first.until("nothing changed", serving);
    assert_eq!(status["generation"], generation);
    assert_eq!(status["members"].as_array().unwrap().len(), 3);
    assert_eq!(first.sql("select i from kept"), "42");
    // Forced, it is done.
    order("remove m3 --force --yes").ok();
    first.until("m3 is out", |status| status["members"].as_array().unwrap().len() == 2);
}

/// The process that receives WAL, a child of this server.
fn walreceiver_below(postmaster: i32) -> i32 {
    let children = until("a walreceiver", || {
        let file = format!("/proc/{postmaster}/task/{postmaster}/children");
        let children = std::fs::read_to_string(file).ok()?;
        children
            .split_whitespace()
            .find(|pid| {
                let title = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
                title.is_ok_and(|title| title.contains("walreceiver"))
            })
            .map(str::to_owned)
    });
    children.parse().unwrap()
}

fn signal(pid: i32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
}

/// With two of three gone nothing can be agreed on, and that is said; once they are back, it serves.
fn two_of_three_gone([first, mut second, mut third]: [Member; 3]) {
    second.stop();
    third.stop();
    // One given before the silence is noticed has an open outcome: it may be carried out later.
    until("no majority", || {
        let said = first.sempre(&["pause"]);
        (said.code == 4).then(|| said.refused(4, "SEMPRE-0011", &["sempre recover"]).code)
    });
    first.until_odd(&["no majority agrees", "m2, m3"]);
    // The daemon holds the record: it is not re-formed beside it.
    first.sempre(&["recover", "--yes"]).refused(3, "SEMPRE-0013", &["the daemon of m1 runs"]);
    // Its lease is over before they come back.
    first.until_logged("its lease ended");
    second.start();
    third.start();
    first.until("it serves again", |status| {
        status["phase"] == "serving" && status["writable"] == true
    });
}

#[test]
fn without_a_majority_nothing_changes() {
    let folder = rig::folder();
    two_of_three_gone(three(folder.path()));
}

/// Nobody else takes over in a pause, so the primary itself has to go on.
#[test]
fn a_lease_that_ends_in_a_pause_is_no_crash() {
    let folder = rig::folder();
    let members = three(folder.path());
    members[0].sempre(&["pause"]).ok();
    two_of_three_gone(members);
}
