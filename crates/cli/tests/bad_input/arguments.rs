//! What is typed, and where the output goes.

use crate::{
    common::sempre,
    rig::{self, Member, said},
};
use serde_json::Value;
use std::{
    io::Read,
    process::{Command, Stdio},
};

#[test]
fn nothing_or_nonsense_is_answered_with_the_usage() {
    let nothing = said(&[]);
    assert_eq!((nothing.code, nothing.out.as_str()), (2, ""));
    assert!(nothing.err.contains("Usage: sempre"), "{}", nothing.err);
    for (arguments, word) in [
        (&["stauts"][..], "status"),
        (&["status", "--wach"], "--watch"),
        (&["switchover", "--to", "NOT A NAME"], "not a member name"),
        (&["switchover", "--cancel", "--to", "m1"], "cannot be used with"),
        (&["failover"], "--to"),
        (&["remove"], "MEMBER"),
        (&["config", "set"], "KEY=VALUE"),
        (&["demo", "--members", "0"], "1..=7"),
        (&["demo", "--base-port", "70000"], "65535"),
        (&["route", "run", "--members", "x:1", "--read-write", "nowhere"], "--read-write"),
        (&["guard"], "--dir"),
        (&["run", "--log-format", "xml"], "json"),
    ] {
        let said = said(arguments);
        assert_eq!((said.code, said.out.as_str()), (2, ""), "{arguments:?}: {}", said.err);
        assert!(said.err.contains(word), "{arguments:?}: {}", said.err);
    }
}

/// A script that asked for JSON gets it, whatever is wrong.
#[test]
fn errors_are_json_where_json_is_wished() {
    for arguments in [
        &["--json", "--config", "/nonexistent", "status"][..],
        &["--json", "stauts"],
        &["status", "--json", "--nonsense"],
        &["--json", "switchover", "--at", "noon", "--yes"],
        &["--json", "demo", "--base-port", "80"],
    ] {
        let said = said(arguments);
        assert_eq!((said.code, said.out.as_str()), (2, ""), "{arguments:?}: {}", said.err);
        let error: Value = serde_json::from_str(&said.err)
            .unwrap_or_else(|_| panic!("{arguments:?}: no JSON: {}", said.err));
        let error = &error["error"];
        assert_eq!(error["exit"], 2, "{arguments:?}");
        for key in ["what", "why", "next"] {
            let text = error[key].as_str().unwrap();
            assert!(!text.is_empty(), "{arguments:?}: no {key}: {error}");
        }
    }
    assert_eq!(said(&["--json", "--help"]).code, 0);
    assert!(said(&["--json", "--version"]).out.starts_with("sempre "));
}

/// `script` gives the program a terminal.
fn at_a_terminal(environment: &[(&str, &str)]) -> String {
    let program = env!("CARGO_BIN_EXE_sempre");
    let line = format!("{program} --config /nonexistent status");
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env_remove("NO_COLOR").env("TERM", "xterm");
    let output = command.envs(environment.iter().copied()).stdin(Stdio::null()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let plain = at_a_terminal(&[("NO_COLOR", "1")]);
    assert!(plain.contains("error: cannot read") && !plain.contains('\x1b'), "{plain:?}");
    assert!(at_a_terminal(&[]).contains("\x1b[31m"));
    assert!(!at_a_terminal(&[("TERM", "dumb")]).contains('\x1b'));
    // Into a pipe, never.
    let mut command = sempre();
    command.env_remove("NO_COLOR").args(["--config", "/nonexistent", "status"]);
    assert!(!command.output().unwrap().stderr.contains(&0x1b));
}

/// `sempre ... | head -1`: the reader goes away, and that is no error.
#[test]
fn a_reader_that_goes_away_is_no_error() {
    let folder = rig::folder();
    let member = Member::new(folder.path(), "m1", "").serving(&[]);
    let config = member.config();
    let config = config.to_str().unwrap();
    for arguments in [
        &["events"][..],
        &["events", "--follow"],
        &["history"],
        &["status"],
        &["status", "--json", "--watch"],
        &["config", "show"],
        &["--help"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = sempre();
        command.args(["--config", config]).args(arguments).stdout(writer);
        let mut child = command.stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        drop(command);
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        let code = child.wait().unwrap();
        assert_eq!(err, "", "{arguments:?}");
        assert!(code.success(), "{arguments:?}: {code}");
    }
    // One that goes away later.
    let shell = format!(
        "set -o pipefail; {} --config {config} events --follow | head -1",
        env!("CARGO_BIN_EXE_sempre")
    );
    let output = Command::new("bash").args(["-c", &shell]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 1);
}

/// Progress where nobody watches: lines, each once, without escapes.
#[test]
fn progress_without_a_terminal_is_plain_lines() {
    let folder = tempfile::Builder::new().prefix("sb").tempdir_in("/tmp").unwrap();
    let mut command = sempre();
    command.args(["demo", "--json", "--members", "1", "--base-port", "31300", "--dir"]);
    command.arg(folder.path().join("d")).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.env_remove("NO_COLOR").spawn().unwrap();
    let mut line = [0];
    // The first byte of the ready line.
    child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(!err.contains('\x1b') && !err.contains('\r'), "{err:?}");
    let steps =
        ["making the first member (m1)", "making a role and a database", "routing", "stopping"];
    // What is logged is not progress.
    let lines = err.lines().filter(|line| !line.contains(" WARN "));
    assert_eq!(lines.collect::<Vec<_>>(), steps);
}
