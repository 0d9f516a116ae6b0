//! What a member knows of the cluster's logical slots, in `logical-slots.json`: what it may keep
//! when it becomes primary, and why it may not keep the rest.

use sempre_model::Generation;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// All of them, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotNotes {
    /// Version of the file.
    #[serde(default)]
    pub format: u16,
    /// Slots of the primary, here or not.
    pub slots: BTreeMap<String, SlotNote>,
}

/// One slot of the primary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotNote {
    /// The copy here is whole as long as the primary of this generation is the last that served.
    pub usable_after: Option<Generation>,
    /// Why it is not usable, in words.
    #[serde(default)]
    pub why_not: String,
}

impl SlotNote {
    /// One that must not be used, and why.
    pub fn unusable(why_not: impl Into<String>) -> Self {
        Self { usable_after: None, why_not: why_not.into() }
    }
}
