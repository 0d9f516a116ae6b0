//! What a user sees when something cannot work.

mod common;

use common::run;
use std::{fs, net::TcpListener};

const CONFIG: &str = "name = \"m1\"\ndir = \"/nonexistent/m1\"\naddresses = [\"127.0.0.1\"]\n";

fn with_config(text: &str, arguments: &[&str]) -> (i32, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sempre.toml");
    fs::write(&file, text).unwrap();
    let mut all = vec!["--config", file.to_str().unwrap()];
    all.extend(arguments);
    run(&all)
}

#[test]
fn help_names_every_command() {
    let (code, out, _) = run(&["--help"]);
    assert_eq!(code, 0);
    for command in [
        "demo",
        "init",
        "token",
        "join",
        "run",
        "status",
        "switchover",
        "failover",
        "pause",
        "resume",
        "restart",
        "reload",
        "reinit",
        "remove",
        "config",
        "history",
        "events",
        "route",
    ] {
        assert!(out.lines().any(|line| line.trim().starts_with(&format!("{command} "))), "{out}");
    }
    assert!(!out.contains("  guard "), "hidden: {out}");
    assert_eq!(run(&["stauts"]).0, 2);
}

#[test]
fn a_config_file_that_is_not_there() {
    let (code, out, err) = run(&["--config", "/nonexistent.toml", "status"]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("/nonexistent.toml (SEMPRE-0057)"), "{err}");
    assert!(err.contains("why: No such file"), "{err}");
    assert!(err.contains("do:  Name it with --config FILE"), "{err}");
}

#[test]
fn the_nearest_key_is_named() {
    let (code, _, err) = with_config(&format!("{CONFIG}adresses = []\n"), &["status"]);
    assert_eq!(code, 2);
    assert!(err.contains("did you mean `addresses`?"), "{err}");
    let (code, _, err) = with_config(CONFIG, &["init", "--set", "lease_tll_ms=3s"]);
    assert_eq!(code, 2);
    assert!(err.contains("SEMPRE-0030") && err.contains("did you mean `lease_ttl_ms`?"), "{err}");
}

#[test]
fn policy_that_does_not_fit_together() {
    let (code, _, err) = with_config(CONFIG, &["init", "--set", "lease_ttl_ms=300ms"]);
    assert_eq!(code, 2);
    assert!(err.contains("SEMPRE-0032"), "{err}");
}

#[test]
fn nobody_answers() {
    let text = format!("{CONFIG}[ports]\nrest = 1\n");
    let (code, out, err) = with_config(&text, &["status"]);
    assert_eq!((code, out.as_str()), (4, ""));
    assert!(err.contains("127.0.0.1:1: Connection refused"), "{err}");
    let (code, _, err) = with_config(&text, &["--json", "pause"]);
    assert_eq!(code, 4);
    let error: serde_json::Value = serde_json::from_str(&err).unwrap();
    assert_eq!(error["error"]["code"], "SEMPRE-0060");
    assert_eq!(error["error"]["exit"], 4);
}

#[test]
fn input_that_makes_no_sense() {
    for (arguments, word) in [
        (&["join", "nonsense"][..], "not a join token"),
        (&["token", "--ttl", "soon"], "30min"),
        (&["config", "set", "strict"], "KEY=VALUE"),
        (&["remove", "m2"], "--yes"),
    ] {
        let (code, _, err) = with_config(CONFIG, arguments);
        assert_eq!(code, 2, "{arguments:?}: {err}");
        assert!(err.contains(word), "{arguments:?}: {err}");
    }
    assert_eq!(run(&["route", "run", "--members", "10.0.0.1"]).0, 2);
}

#[test]
fn a_port_in_use_is_named_before_anything_is_made() {
    let (taken, base) = (22_000..60_000)
        .step_by(100)
        .find_map(|base| Some((TcpListener::bind(("127.0.0.1", base)).ok()?, base)))
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_str().unwrap();
    let (code, out, err) = run(&["demo", "--dir", dir, "--base-port", &base.to_string()]);
    assert_eq!((code, out.as_str()), (1, ""), "{err}");
    assert!(err.contains("SEMPRE-0050") && err.contains(&format!("127.0.0.1:{base}")), "{err}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    drop(taken);
}

#[test]
fn a_folder_with_something_in_it_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("mine"), "x").unwrap();
    let (code, _, err) = run(&["demo", "--dir", folder.path().to_str().unwrap()]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("is not empty"), "{err}");
}

#[test]
fn what_routing_beside_an_application_cannot_use_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| {
        let file = folder.path().join(name);
        fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let authority = sempre_net::Authority::new("demo", "0123456789abcdef").unwrap();
    let (ca, key) = (put("ca.pem", authority.cert_pem()), put("ca.key", authority.key_pem()));
    let junk = put("junk.pem", "no certificate");
    let with = |more: &[&str]| run(&[&["route", "run", "--members", "127.0.0.1:1"], more].concat());
    for (more, said) in [
        (&["--cert", &ca][..], "--key"),
        (&["--require-tls"], "--cert"),
        (&["--pool-mode", "statement"], "transaction"),
        (&["--pool-size", "few"], "--pool-size"),
        (&["--style", "pass", "--pool-size", "5"], "--pool-size has no use with --style pass"),
        (&["--style", "pass", "--admin-user", "a"], "--admin-user has no use with --style pass"),
        (&["--style", "pass", "--cert", &ca, "--key", &key], "--cert has no use"),
        (&["--cert", "/nonexistent", "--key", &key], "--cert /nonexistent cannot be used"),
        (&["--cert", &ca, "--key", "/nonexistent"], "--key /nonexistent cannot be used"),
        (&["--cert", &junk, "--key", &key], "there is no certificate in it"),
        (&["--cert", &ca, "--key", &junk], "key: "),
        (&["--cert", &ca, "--key", &key], "--cert needs --ca or --database-ca"),
        (&["--cert", &ca, "--key", &key, "--database-ca", &junk], "--database-ca"),
    ] {
        let (exit, out, err) = with(more);
        assert!(exit == 2 && out.is_empty() && err.contains(said), "{more:?}: {exit}, {err}");
    }
}
