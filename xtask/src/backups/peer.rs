//! pgBackRest: two repositories on one server, the second encrypted.

use super::{
    server::{self, Server},
    tool::{self, Made},
    watch::{self, Cost},
};
use anyhow::{Context, Result};
use sempre_lab::rig::postgres_bin;
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

const PROGRAM: &str = "/usr/bin/pgbackrest";
const STANZA: &str = "bench";
/// Ours makes backups at this niceness.
const NICE: &str = "renice -n 10 -p $$ >/dev/null; exec \"$@\"";

pub fn installed() -> bool {
    Path::new(PROGRAM).exists()
}

pub fn repository(root: &Path, number: u8) -> PathBuf {
    root.join("pgbackrest").join(format!("repo{number}"))
}

fn config(root: &Path) -> PathBuf {
    root.join("pgbackrest.conf")
}

/// Writes its configuration; the server's settings that hand it WAL.
pub fn archiving(root: &Path) -> Result<[String; 2]> {
    let mut text = String::from("[global]\n");
    for (key, value) in [
        ("process-max", "2"),
        ("compress-type", "zst"),
        ("compress-level", "1"),
        ("start-fast", "y"),
        ("log-level-file", "off"),
        ("log-level-console", "error"),
        ("repo1-retention-full", "99"),
        ("repo2-retention-full", "99"),
        ("repo2-cipher-type", "aes-256-cbc"),
        ("repo2-cipher-pass", "a pass phrase of this benchmark alone"),
    ] {
        text += &format!("{key}={value}\n");
    }
    let below = |name: &str| root.join("pgbackrest").join(name).display().to_string();
    for (key, name) in [
        ("repo1-path", "repo1"),
        ("repo2-path", "repo2"),
        ("lock-path", "lock"),
        ("log-path", "log"),
        ("spool-path", "spool"),
    ] {
        text += &format!("{key}={}\n", below(name));
    }
    let (data, run) = (root.join("m1/data"), root.join("m1/run"));
    text += &format!(
        "[{STANZA}]\npg1-path={}\npg1-socket-path={}\npg1-port={}\npg1-user=postgres\n",
        data.display(),
        run.display(),
        server::port()
    );
    fs::write(config(root), text)?;
    let config = config(root);
    let push = format!("{PROGRAM} --config={} --stanza={STANZA} archive-push %p", config.display());
    Ok(["archive_mode=on".to_owned(), format!("archive_command={push}")])
}

fn command(server: &Server, nice: bool, words: &[&str]) -> Command {
    let mut command = match nice {
        true => {
            let mut shell = tool::as_user(Path::new("/bin/sh"));
            shell.args(["-c", NICE, "sh", PROGRAM]);
            shell
        }
        false => tool::as_user(Path::new(PROGRAM)),
    };
    let config = config(server.root());
    command.arg(format!("--config={}", config.display())).arg(format!("--stanza={STANZA}"));
    command.args(words);
    command
}

pub fn create_stanza(server: &Server) -> Result<()> {
    tool::done(&mut command(server, false, &["stanza-create"])).map(drop)
}

pub fn back_up(server: &Server, repository: u8, full: bool) -> Result<Made> {
    let (repo, kind) = (format!("--repo={repository}"), if full { "full" } else { "incr" });
    let words = [repo.as_str(), &format!("--type={kind}"), "backup"];
    let (_, cost) = watch::run(&mut command(server, true, &words), None, "pgbackrest")?;
    let said = tool::done(&mut command(server, false, &[&repo, "--output=json", "info"]))?;
    let said: Value = serde_json::from_str(&said)?;
    let newest = said[0]["backup"].as_array().and_then(|backups| backups.last());
    let newest = newest.context("pgBackRest has no backup")?;
    eprintln!("pgbackrest {repository}: {cost:.2?} {}", newest["info"]);
    let id = newest["label"].as_str().context("a backup without a name")?.to_owned();
    Ok(Made { id, cost })
}

pub fn restore(
    server: &Server,
    repository: u8,
    backup: &str,
    target: &Path,
    delta: bool,
) -> Result<Cost> {
    if !delta {
        tool::done(tool::as_user(Path::new("/bin/mkdir")).args(["-m", "700"]).arg(target))?;
    }
    let (repo, set) = (format!("--repo={repository}"), format!("--set={backup}"));
    let pg = format!("--pg1-path={}", target.display());
    let mut words = vec![&*repo, &*set, &*pg, "--type=immediate", "--target-action=promote"];
    words.extend(delta.then_some("--delta"));
    words.push("restore");
    Ok(watch::run(&mut command(server, false, &words), None, "pgbackrest")?.1)
}

/// Recovers what was restored, as ours does in the end; seconds.
pub fn replay(target: &Path) -> Result<f64> {
    let began = Instant::now();
    let sockets = server::socket_dir(target)?;
    // It says that it is ready when it takes writes, since nobody reads before.
    let options = format!(
        "-c listen_addresses= -c hot_standby=off -c archive_mode=off -c unix_socket_directories={}",
        sockets.display()
    );
    let log = sockets.join("replay.log");
    for words in [&["start", "-w", "-s", "-o", &options][..], &["stop", "-w", "-s", "-m", "fast"]] {
        let mut control = tool::as_user(&postgres_bin()?.join("pg_ctl"));
        control.arg("-D").arg(target).arg("-l").arg(&log).args(words);
        // The server keeps what it inherits open: nobody waits for the end of its output.
        control.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let status = control.status()?;
        anyhow::ensure!(
            status.success(),
            "the restored server failed: {}",
            fs::read_to_string(&log).unwrap_or_default()
        );
    }
    Ok(began.elapsed().as_secs_f64())
}
