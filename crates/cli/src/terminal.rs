//! What depends on whether a person is looking.

use console::Term;
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

/// How wide text is drawn where there is no terminal.
const WIDTH: u16 = 120;
/// How often a spinner turns.
const TURN: Duration = Duration::from_millis(100);

/// Colours on standard output? Not when `NO_COLOR` is set, nor into a pipe.
pub fn colours() -> bool {
    io::stdout().is_terminal() && wished()
}

/// The same of standard error.
pub fn colours_on_stderr() -> bool {
    io::stderr().is_terminal() && wished()
}

fn wished() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Columns of the terminal.
pub fn width() -> u16 {
    Term::stdout().size_checked().map_or(WIDTH, |(_, columns)| columns)
}

/// Asks for a yes, unless it was given. Without a terminal nobody can be asked.
pub fn confirm(yes: bool, question: &str) -> Result<(), crate::fail::Fail> {
    use crate::fail::Fail;
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Fail::usage(
            "nothing was done",
            format!("this needs a yes, and there is no terminal to ask at: {question}"),
            "Add --yes.",
        ));
    }
    eprint!("{question} [y/N] ");
    let _ = io::stderr().flush();
    let mut answer = String::new();
    let _ = io::stdin().read_line(&mut answer);
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Fail::new("nothing was done", "it was not confirmed", "")),
    }
}

/// Progress on standard error: a spinner on a terminal, lines otherwise.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Begins.
    pub fn start(message: impl Into<String>) -> Self {
        let message = message.into();
        if io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
        {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}") {
                bar.set_style(style);
            }
            bar.set_message(message);
            bar.enable_steady_tick(TURN);
            return Self { bar: Some(bar) };
        }
        eprintln!("{message}");
        Self { bar: None }
    }

    /// The next step.
    pub fn step(&self, message: impl Into<String>) {
        let message = message.into();
        match &self.bar {
            Some(bar) if bar.message() != message => {
                bar.println(format!("✓ {}", bar.message()));
                bar.set_message(message);
            }
            Some(_) => {}
            None => eprintln!("{message}"),
        }
    }

    /// The same step, told anew; not repeated where there is no terminal.
    pub fn note(&self, message: impl Into<String>) {
        if let Some(bar) = &self.bar {
            bar.set_message(message.into());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A bar for bytes on standard error, with rate and time left; a line now and then where there is no
/// terminal.
#[derive(Debug)]
pub struct Bar {
    bar: Option<ProgressBar>,
    what: String,
    told: std::cell::Cell<u64>,
}

impl Bar {
    /// Begins.
    pub fn start(what: impl Into<String>) -> Self {
        let what = what.into();
        let terminal = io::stderr().is_terminal()
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let bar = terminal.then(|| {
            let bar = ProgressBar::new(0);
            let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_message(what.clone());
            bar
        });
        if bar.is_none() {
            eprintln!("{what}");
        }
        Self { bar, what, told: std::cell::Cell::new(0) }
    }

    /// So far.
    pub fn at(&self, done_bytes: u64, total_bytes: u64) {
        match &self.bar {
            Some(bar) => {
                bar.set_length(total_bytes);
                bar.set_position(done_bytes);
            }
            None => {
                let tenth = done_bytes.saturating_mul(10).checked_div(total_bytes).unwrap_or(0);
                if tenth > self.told.get() {
                    self.told.set(tenth);
                    eprintln!("{} {} %", self.what, tenth * 10);
                }
            }
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
