//! Read/write split: which transactions of the read-write port standbys serve.

use serde::{Deserialize, Serialize};

/// What is served by standbys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Nothing.
    #[default]
    Off,
    /// Transaction blocks that are read-only by the client's own word.
    ReadOnly,
}

impl Split {
    /// Its name, as in settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Split::Off => "off",
            Split::ReadOnly => "read_only",
        }
    }
}

/// How the work of a read-write port is split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitSettings {
    /// What standbys serve.
    pub split: Split,
    /// They serve it only once they have replayed what the session has committed.
    pub read_your_writes: bool,
    /// How long they are waited for, ms; then the primary serves it.
    pub read_your_writes_timeout_ms: u64,
}

impl Default for SplitSettings {
    fn default() -> Self {
        Self { split: Split::Off, read_your_writes: true, read_your_writes_timeout_ms: 100 }
    }
}
