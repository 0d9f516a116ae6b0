//! Commands that only look.

use crate::{connect::Scene, fail::Fail, terminal};
use sempre_api::render;
use serde::Serialize;
use serde_json::json;
use std::{
    io::{IsTerminal, Write},
    os::fd::AsFd,
    time::Duration,
};

/// How often `status --watch` looks.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// How long a member may keep the question for new events.
const EVENTS_WAIT: Duration = Duration::from_secs(20);
/// Pause after a failed question while following.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Prints to standard output. A reader that went away is no error: the program ends.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Prints as JSON, on one line.
pub fn print_json(value: &impl Serialize) {
    match serde_json::to_string(value) {
        Ok(text) => print(&(text + "\n")),
        Err(error) => print(&format!("{}\n", json!({"error": error.to_string()}))),
    }
}

/// `sempre status`.
pub async fn status(scene: &Scene, watch: bool) -> Result<(), Fail> {
    let screen = std::io::stdout().is_terminal() && !scene.json;
    loop {
        let status = scene.client()?.status().await;
        let text = match status {
            Ok(status) if scene.json => {
                print_json(&status);
                String::new()
            }
            Ok(status) => render::render_status(&status, terminal::colours(), terminal::width()),
            Err(error) if !watch => return Err(error.into()),
            Err(error) => format!("{error}\n"),
        };
        if watch && screen {
            // Home, the text with each line's rest erased, and what is below erased.
            print(&format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n")));
        } else {
            print(&text);
        }
        if !watch {
            return Ok(());
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

/// `sempre history`.
pub async fn history(scene: &Scene) -> Result<(), Fail> {
    let history = scene.client()?.history().await?;
    if scene.json {
        print_json(&json!({"history": history}));
    } else {
        print(&render::render_history(&history, terminal::colours(), terminal::width()));
    }
    Ok(())
}

/// Returns once nobody can read standard output any more, as in `sempre events --follow | head`.
async fn reader_gone() {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    loop {
        let out = std::io::stdout();
        // Errors are reported without being asked for.
        let mut fds = [PollFd::new(out.as_fd(), PollFlags::empty())];
        let ended =
            |fd: &PollFd| fd.revents().is_some_and(|seen| seen.contains(PollFlags::POLLERR));
        if poll(&mut fds, PollTimeout::ZERO).is_ok() && fds.iter().any(ended) {
            return;
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

/// `sempre events`.
pub async fn events(scene: &Scene, follow: bool) -> Result<(), Fail> {
    let mut after = 0;
    let mut wait = Duration::ZERO;
    loop {
        let client = scene.client()?;
        let found = tokio::select! {
            found = client.events(after, wait) => found,
            // Nothing may happen for long, and without writing nobody learns that it is not read.
            () = reader_gone(), if follow => return Ok(()),
        };
        match found {
            Ok(found) => {
                if scene.json {
                    found.events.iter().for_each(print_json);
                } else {
                    print(&render::render_events(
                        &found.events,
                        terminal::colours(),
                        terminal::width(),
                    ));
                }
                after = found.last.max(after);
            }
            Err(error) if !follow || wait.is_zero() => return Err(error.into()),
            Err(_) => tokio::time::sleep(RETRY_PAUSE).await,
        }
        if !follow {
            return Ok(());
        }
        wait = EVENTS_WAIT;
    }
}
