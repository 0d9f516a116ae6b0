//! What the tests share.
#![allow(dead_code)]

pub mod cluster;
pub mod writer;

use std::{
    fs,
    net::TcpListener,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

/// The binary under test.
pub fn sempre() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sempre"));
    command.env_remove("SEMPRE_CONFIG").env_remove("SEMPRE_LOG").env("NO_COLOR", "1");
    command
}

/// Runs it to its end: exit code, standard output, standard error.
pub fn run(arguments: &[&str]) -> (i32, String, String) {
    told(sempre().args(arguments).output().unwrap())
}

pub fn told(output: Output) -> (i32, String, String) {
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// Waits until it holds.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The first of a hundred ports that are free on every address.
pub fn base_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let own = u16::try_from(std::process::id() % 300).unwrap() * 100;
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let base = 2_000 + (own + number * 100) % 30_000;
        let free = |port| TcpListener::bind(("0.0.0.0", port)).is_ok();
        if (base..base + 100).all(free) {
            return base;
        }
    }
}

/// PostgreSQL's `psql`.
pub fn psql() -> Command {
    let named = std::env::var_os("SEMPRE_PG_BIN").map(|bin| PathBuf::from(bin).join("psql"));
    let mut command = Command::new(named.filter(|p| p.exists()).unwrap_or_else(|| "psql".into()));
    command.args(["-XAtq", "-v", "ON_ERROR_STOP=1"]);
    command
}

/// Processes that name this folder, or live in it.
pub fn processes_below(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
        .filter(|entry| entry.file_name().to_string_lossy() != std::process::id().to_string())
        .filter_map(|entry| {
            let words = fs::read(entry.path().join("cmdline")).ok()?;
            let named = words
                .split(|byte| *byte == 0)
                .any(|word| Path::new(std::ffi::OsStr::from_bytes(word)).starts_with(dir));
            let lives =
                fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
            (named || lives).then(|| {
                let words = String::from_utf8_lossy(&words).replace('\0', " ");
                format!("{} {words}", entry.file_name().to_string_lossy())
            })
        })
        .collect()
}
