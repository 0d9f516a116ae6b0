//! Keys of the config file and of the policy.

use crate::rig::{self, Member, Said, said};
use std::fs;

fn with_config(text: &str, arguments: &[&str]) -> Said {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sempre.toml");
    fs::write(&file, text).unwrap();
    said(&[&["--config", file.to_str().unwrap()][..], arguments].concat())
}

const COMMON: &str = "name = \"m1\"\ndir = \"/nonexistent/m1\"\naddresses = [\"127.0.0.1\"]\n";

#[test]
fn an_unknown_key_is_answered_with_the_nearest() {
    for (more, near) in [
        ("adress = \"x\"", "did you mean `addresses`?"),
        ("usr = \"x\"", "did you mean `user`?"),
        ("[ports]\nreadwrite = 1", "did you mean `read_write`?"),
        ("[tags]\nnever_primry = true", "did you mean `never_primary`?"),
        ("[postgres]\nbindir = \"/x\"", "did you mean `bin_dir`?"),
        ("[route]\nenable = true", "did you mean `enabled`?"),
        ("[rout]\nenabled = true", "did you mean `route`?"),
    ] {
        with_config(&format!("{COMMON}{more}\n"), &["status"]).refused(
            2,
            "SEMPRE-0057",
            &[near, "line"],
        );
    }
}

#[test]
fn keys_that_contradict_each_other_are_named() {
    for (text, words) in [
        (format!("{COMMON}[ports]\nrest = 5432\n"), &["five ports"][..]),
        (format!("{COMMON}[ports]\npeer = 0\n"), &["not 0"]),
        (format!("{COMMON}[ports]\npeer = 70000\n"), &["65535"]),
        (format!("{COMMON}[tags]\nreplicate_from = \"m1\"\n"), &["this member itself"]),
        (format!("{COMMON}kind = \"witness\"\n[tags]\npriority = 3\n"), &["witness", "`priority`"]),
        (
            format!("{COMMON}kind = \"witness\"\n[tags]\nno_sync = true\n"),
            &["witness", "`no_sync`"],
        ),
        (
            format!("{COMMON}kind = \"witness\"\n[postgres]\ndata_dir = \"/x\"\n"),
            &["witness", "`[postgres]`"],
        ),
        (format!("{COMMON}kind = \"observer\"\n"), &["`data` or `witness`", "observer"]),
        (format!("{COMMON}[postgres]\ndata_dir = \"x\"\n"), &["`data_dir`", "absolute"]),
        (
            format!("{COMMON}[postgres]\ndata_dir = \"/nonexistent/m1\"\n"),
            &["`data_dir`", "keep them apart"],
        ),
        (
            format!("{COMMON}[postgres]\ndata_dir = \"/nonexistent/m1/record\"\n"),
            &["`data_dir`", "sempre's own"],
        ),
        (
            COMMON.replace("[\"127.0.0.1\"]", "[\"10.0.0.1\", \"10.0.0.1\"]"),
            &["`addresses`", "10.0.0.1", "twice"],
        ),
        (COMMON.replace("[\"127.0.0.1\"]", "[]"), &["`addresses`"]),
        (COMMON.replace("127.0.0.1", "127.0.0.1:5432"), &["without a port"]),
        (COMMON.replace("name = \"m1\"\n", ""), &["`name`"]),
        (COMMON.replace("name = \"m1\"", "name = \"M 1\""), &["not a member name"]),
        ("\u{0}\u{1}garbage".into(), &[]),
        (format!("{COMMON}name = \"m2\"\n"), &["duplicate key"]),
    ] {
        let said = with_config(&text, &["status"]);
        said.refused(2, "SEMPRE-0057", words);
    }
}

#[test]
fn a_config_file_that_is_no_text_or_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sempre.toml");
    fs::write(&file, [0xff, 0xfe, 0x80]).unwrap();
    said(&["--config", file.to_str().unwrap(), "status"]).refused(2, "SEMPRE-0057", &["UTF-8"]);
    let folder = folder.path().to_str().unwrap();
    said(&["--config", folder, "run"]).refused(2, "SEMPRE-0057", &["Is a directory"]);
}

/// Each relation between the times, before a cluster is made with them.
#[test]
fn times_that_do_not_fit_together() {
    for (set, words) in [
        (&["lease_ttl_ms=300ms"][..], &["lease_ttl_ms"][..]),
        (&["heartbeat_ms=3s"], &["heartbeat_ms"]),
        (&["election_min_ms=2s", "election_max_ms=1s"], &["election_min_ms"]),
        (&["election_min_ms=100ms"], &["election_min_ms"]),
        (&["lease_margin_ms=5s"], &["lease_margin_ms"]),
        (&["detect_ms=10ms"], &["detect_ms"]),
    ] {
        let mut arguments = vec!["init"];
        arguments.extend(set.iter().flat_map(|pair| ["--set", pair]));
        with_config(COMMON, &arguments).refused(2, "SEMPRE-0032", words);
    }
    for (pair, code) in [
        ("lease_tll_ms=3s", "SEMPRE-0030"),
        ("lease_ttl_ms=soon", "SEMPRE-0031"),
        ("lease_ttl_ms=-1", "SEMPRE-0031"),
        ("lease_ttl_ms=99999999999999999999", "SEMPRE-0031"),
        ("durability=maybe", "SEMPRE-0031"),
    ] {
        with_config(COMMON, &["init", "--set", pair]).refused(2, code, &[]);
    }
}

/// The same on a running cluster: refused as a whole, and nothing of it is in force.
#[test]
fn a_running_cluster_keeps_its_configuration() {
    let folder = rig::folder();
    let member = Member::new(folder.path(), "m1", "").serving(&[]);
    let before = member.sempre(&["config", "show", "--json"]).ok().out.clone();
    for (pairs, code) in [
        (&["lease_ttl_ms=300ms"][..], "SEMPRE-0032"),
        (&["lease_ttl_ms=4s", "election_min_ms=9s"], "SEMPRE-0032"),
        (&["lease_ttl_ms=4s", "no_such_key=1"], "SEMPRE-0030"),
        (&["lease_ttl_ms=4s", "detect_ms=x"], "SEMPRE-0031"),
        (&["postgresql.listen_addresses=*"], "SEMPRE-0033"),
        (&["postgresql.work mem=1"], "SEMPRE-0033"),
        (&["postgresql.work_mem=1\n2"], "SEMPRE-0033"),
    ] {
        member.sempre(&[&["config", "set"][..], pairs].concat()).refused(2, code, &[]);
    }
    assert_eq!(member.sempre(&["config", "show", "--json"]).ok().out, before);
    assert_eq!(member.status().unwrap()["writable"], true);
}
