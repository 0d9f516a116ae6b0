//! What a user sees when something does not work: what happened, why, what to do next; and the
//! exit code (docs/cli.md), which stays what it is.

use crate::terminal;
use sempre_api::{ActionError, ClientError, Code, codes};
use serde_json::json;
use std::io;

/// It did not work.
pub const FAILED: u8 = 1;
/// What was typed, or the config file, cannot be used.
pub const USAGE: u8 = 2;
/// The cluster said no.
pub const REFUSED: u8 = 3;
/// Nobody answers, or there is no majority.
pub const UNREACHABLE: u8 = 4;
/// It took too long; it may still happen.
pub const TIMED_OUT: u8 = 5;

/// Something did not work.
#[derive(Debug)]
pub struct Fail {
    /// One of the constants above.
    pub exit: u8,
    code: Option<Code>,
    what: String,
    why: String,
    next: String,
}

impl Fail {
    /// Without a code, exit code 1.
    pub fn new(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Self { exit: FAILED, code: None, what: what.into(), why: why.into(), next: next.into() }
    }

    /// What was typed cannot be used.
    pub fn usage(what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Self { exit: USAGE, ..Self::new(what, why, next) }
    }

    /// With a code; its page says what to do next.
    pub fn coded(code: Code, what: impl Into<String>, why: impl Into<String>) -> Self {
        code.error(what, why).into()
    }

    /// What was typed is at fault, whatever the code says.
    pub fn typed(mut self) -> Self {
        self.exit = USAGE;
        self
    }

    /// With a better hint than the table's.
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = next.into();
        self
    }

    /// An error of the agent: its chain, and the code that fits it.
    pub fn agent(what: impl Into<String>, error: &anyhow::Error) -> Self {
        // One that says already what happened, why and what to do is passed on as it is.
        if let Some(said) = error.downcast_ref::<ActionError>() {
            return said.clone().into();
        }
        let why = format!("{error:#}");
        match code_of(error) {
            Some(code) => Self::coded(code, what, why),
            None => Self::new(what, why, next_of(error)),
        }
    }

    /// To standard error.
    pub fn print(&self, json: bool) {
        if json {
            let code = self.code.map(|code| code.to_string());
            let error = json!({
                "code": code, "what": self.what, "why": self.why, "next": self.next, "exit": self.exit,
            });
            eprintln!("{}", json!({ "error": error }));
            return;
        }
        eprint!("{}", self.text(terminal::colours_on_stderr()));
    }

    fn text(&self, colours: bool) -> String {
        let paint = |text: &str, style: console::Style| {
            style.for_stderr().force_styling(colours).apply_to(text).to_string()
        };
        let mut text =
            format!("{} {}", paint("error:", console::Style::new().red().bold()), self.what);
        if let Some(code) = self.code {
            text += &format!(" ({code})");
        }
        text.push('\n');
        let see = self.code.map(|code| format!("docs/errors/{code}.md")).unwrap_or_default();
        for (label, lines) in [("why:", &self.why), ("do:", &self.next), ("see:", &see)] {
            for (index, line) in lines.trim_end().lines().enumerate() {
                let label = if index == 0 { label } else { "" };
                text += &format!(
                    "  {} {line}\n",
                    paint(&format!("{label:<4}"), console::Style::new().dim())
                );
            }
        }
        text
    }
}

fn exit_of(code: Code) -> u8 {
    if [codes::NO_QUORUM, codes::UNREACHABLE, codes::NOT_INITIALISED].contains(&code) {
        return UNREACHABLE;
    }
    if code == codes::TIMED_OUT {
        return TIMED_OUT;
    }
    match code.entry().http {
        400 | 405 | 413 => USAGE,
        401..=499 => REFUSED,
        503 => UNREACHABLE,
        _ => FAILED,
    }
}

/// What to do about an error without a code.
fn next_of(error: &anyhow::Error) -> &'static str {
    use sempre_agent::member_dir::DirError;
    let damaged = error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(DirError::Damaged { .. }))
            || cause.downcast_ref::<sempre_net::IdentityError>().is_some()
    });
    let denied = error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>();
        io.is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    });
    match (damaged, denied) {
        (true, _) => {
            "Put that file back if there is a copy of it; else take this member out on another one (`sempre remove`), and let it join anew with an empty `dir`."
        }
        (_, true) => {
            "Give it to the system user that the member runs as (`user` in the config file)."
        }
        _ => "Put right what the reason names; `SEMPRE_LOG=debug` says more.",
    }
}

fn code_of(error: &anyhow::Error) -> Option<Code> {
    error.chain().find_map(|cause| {
        let in_use = |e: &io::Error| e.kind() == io::ErrorKind::AddrInUse;
        let full = |e: &io::Error| e.kind() == io::ErrorKind::StorageFull;
        if let Some(e) = cause.downcast_ref::<io::Error>() {
            return match () {
                () if in_use(e) => Some(codes::PORT_IN_USE),
                () if full(e) => Some(codes::DISK_FULL),
                () => None,
            };
        }
        if let Some(sempre_net::ServerError::InUse { .. }) = cause.downcast_ref() {
            return Some(codes::PORT_IN_USE);
        }
        match cause.downcast_ref::<sempre_consensus::OpenError>() {
            Some(sempre_consensus::OpenError::Corrupt { .. }) => Some(codes::RECORD_CORRUPT),
            _ => None,
        }
    })
}

impl From<ActionError> for Fail {
    fn from(error: ActionError) -> Self {
        Self {
            exit: exit_of(error.code),
            code: Some(error.code),
            what: error.what,
            why: error.why,
            next: error.next,
        }
    }
}

impl From<ClientError> for Fail {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(error) => error.into(),
            ClientError::Unreachable { tried } => {
                Self::coded(codes::UNREACHABLE, "no member answers", tried.replace("; ", "\n"))
            }
            ClientError::BadAnswer { url, why } => {
                Self::coded(codes::BAD_ANSWER, format!("the answer of {url} cannot be read"), why)
            }
            ClientError::Untrusted(why) => {
                Self::coded(codes::CONFIG_FILE, "the members cannot be checked", why)
            }
            ClientError::BadAddress(address) => {
                Self::usage(format!("`{address}` is not an address"), "it should be host:port", "")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_follow_the_codes() {
        for (code, exit) in [
            (codes::UNKNOWN_POLICY_KEY, USAGE),
            (codes::CONFIG_FILE, USAGE),
            (codes::WOULD_LOSE_DATA, REFUSED),
            (codes::UNKNOWN_MEMBER, REFUSED),
            (codes::UNAUTHORISED, REFUSED),
            (codes::NO_QUORUM, UNREACHABLE),
            (codes::UNREACHABLE, UNREACHABLE),
            (codes::TIMED_OUT, TIMED_OUT),
            (codes::PORT_IN_USE, FAILED),
        ] {
            assert_eq!(exit_of(code), exit, "{code}");
        }
    }

    #[test]
    fn an_error_says_what_why_and_what_next() {
        let text =
            Fail::coded(codes::PAUSED, "no switchover", "it is paused\nsince noon").text(false);
        assert_eq!(
            text,
            "error: no switchover (SEMPRE-0035)\n  why: it is paused\n       since noon\n  do:  `sempre resume` first.\n  see: docs/errors/SEMPRE-0035.md\n"
        );
    }

    #[test]
    fn a_port_in_use_is_found_in_a_chain() {
        let error = anyhow::Error::from(io::Error::from(io::ErrorKind::AddrInUse)).context("REST");
        assert_eq!(Fail::agent("x", &error).code, Some(codes::PORT_IN_USE));
    }
}
