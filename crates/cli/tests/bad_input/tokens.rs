//! Joining: tokens that are no good, and members that are there already.

use crate::{
    common::until,
    rig::{self, Member},
};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn token(member: &Member, ttl: &str) -> String {
    member.sempre(&["token", "--ttl", ttl]).ok().out.trim().to_owned()
}

#[test]
fn a_token_lets_one_member_in_once() {
    let folder = rig::folder();
    let first = Member::new(folder.path(), "m1", "").serving(&[]);
    let second = Member::new(folder.path(), "m2", "kind = \"witness\"\n");
    let third = Member::new(folder.path(), "m3", "kind = \"witness\"\n");

    // Garbled, in many ways; the network is not even asked.
    let good = token(&first, "10min");
    let cut = &good[..good.len() - 5];
    let flipped = good.replace(&good[40..44], "AAAA");
    for bad in
        ["", " ", "x", "sempre-join-1.", "sempre-join-9.abc", cut, &flipped, &good.repeat(99)]
    {
        second.sempre(&["join", bad]).refused(2, "SEMPRE-0040", &["token"]);
    }
    assert!(!second.root.join("member.json").exists());

    // Used twice.
    second.sempre(&["join", &good]).ok();
    third.sempre(&["join", &good]).refused(
        3,
        "SEMPRE-0041",
        &["used already, by m2", "sempre token"],
    );

    // This folder has a member.
    let next = token(&first, "10min");
    second.sempre(&["join", &next]).refused(3, "SEMPRE-0042", &["m2", "already"]);
    second.sempre(&["init"]).refused(3, "SEMPRE-0042", &["m2", "already"]);

    // The cluster has a member of this name.
    let twin_folder = folder.path().join("twin");
    std::fs::create_dir(&twin_folder).unwrap();
    let twin = Member::new(&twin_folder, "m2", "kind = \"witness\"\n");
    twin.sempre(&["join", &next]).refused(3, "SEMPRE-0042", &["m2", "sempre remove"]);

    // Too late.
    let short = first.sempre(&["token", "--ttl", "1s", "--json"]).ok().out.clone();
    let short: serde_json::Value = serde_json::from_str(&short).unwrap();
    let ends = UNIX_EPOCH + Duration::from_millis(short["expires_unix_ms"].as_u64().unwrap());
    until("it expires", || (SystemTime::now() > ends).then_some(()));
    let short = short["token"].as_str().unwrap();
    third.sempre(&["join", short]).refused(3, "SEMPRE-0040", &["expired", "sempre token"]);

    // A refusal uses nothing up: the same token lets the right one in.
    third.sempre(&["join", &next]).ok();
    let names: Vec<String> = first.status().unwrap()["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| member["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["m1", "m2", "m3"]);
}

#[test]
fn a_token_of_another_cluster_is_refused() {
    let folder = rig::folder();
    let here = Member::new(folder.path(), "a1", "").serving(&[]);
    let there = Member::new(folder.path(), "b1", "").serving(&[]);
    let newcomer = Member::new(folder.path(), "x1", "kind = \"witness\"\n");
    // A token of `here`, led to the addresses of `there`.
    let mut token: sempre_net::JoinToken = token(&here, "10min").parse().unwrap();
    let mut other: sempre_net::JoinToken = self::token(&there, "10min").parse().unwrap();
    token.addresses.clone_from(&other.addresses);
    newcomer.sempre(&["join", &token.to_string()]).refused(
        3,
        "SEMPRE-0044",
        &["another cluster", &other.addresses[0]],
    );
    // And one of `there` with the secret of `here`.
    other.secret = token.secret.clone();
    newcomer.sempre(&["join", &other.to_string()]).refused(3, "SEMPRE-0040", &["unknown"]);
    // Nobody at the address.
    other.addresses = vec![format!("{}:1", there.address)];
    newcomer.sempre(&["join", &other.to_string()]).refused(4, "SEMPRE-0060", &["refused"]);
    for member in [&here, &there] {
        assert_eq!(member.status().unwrap()["members"].as_array().unwrap().len(), 1);
    }
}
