//! Logs of what runs for long, to standard error.

use crate::arguments::LogFormat;
use std::io;
use tracing_subscriber::EnvFilter;

/// Filters logs, as `RUST_LOG` does elsewhere.
const VARIABLE: &str = "SEMPRE_LOG";
/// What is logged unless wished otherwise. Raft's own words matter only when it goes wrong.
const DEFAULT: &str = "info,openraft=warn,rustic_core=warn";

/// For what runs in front of a person.
pub const QUIET: &str = "warn";

/// Begins to log, as a daemon.
pub fn start(format: LogFormat) {
    start_with(format, DEFAULT);
}

/// Begins to log. A filter that cannot be read is named, and the default used.
pub fn start_with(format: LogFormat, default: &str) {
    let wished = std::env::var(VARIABLE).unwrap_or_else(|_| default.to_owned());
    let (filter, bad) = match EnvFilter::try_new(&wished) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new(default), Some(error)),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(crate::terminal::colours_on_stderr());
    // Tests may have set one already; then theirs stays.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if let Some(error) = bad {
        tracing::warn!(%error, "{VARIABLE} cannot be read; using `{default}`");
    }
}
