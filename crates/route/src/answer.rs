//! What members' REST endpoints say to a stand-alone router. The agent serves these types.

use crate::Table;
use sempre_model::{Generation, MemberId};
use serde::{Deserialize, Serialize};

/// `GET` it with [`TableQuery`]: answers [`TableAnswer`], 200.
pub const TABLE_PATH: &str = "/v1/route";
/// `GET` it with [`VerifyQuery`]: answers [`VerifyAnswer`], 200 when `holds`, 503 when not.
pub const VERIFY_PATH: &str = "/v1/route/verify";
/// The longest `wait_ms` a server should grant, ms.
pub const WAIT_MAX_MS: u64 = 30_000;

/// Query of [`TABLE_PATH`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TableQuery {
    /// Answer when the table's version is another one than this; 0: at once.
    pub after: u64,
    /// Answer after this many ms with what there is.
    pub wait_ms: u64,
    /// The router still logs sessions in to the target of a switchover ([`Table::warm`]).
    pub warming: bool,
}

/// A table, and who says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableAnswer {
    /// Who says so.
    pub member: MemberId,
    /// It is the primary of `table.generation` and holds its lease at the moment.
    pub confirmed: bool,
    /// The table.
    pub table: Table,
}

/// Query of [`VERIFY_PATH`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyQuery {
    /// The generation the router believes in.
    pub generation: Generation,
}

/// Does this member hold the lease of that generation, and does its database admit clients?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyAnswer {
    /// Who says so.
    pub member: MemberId,
    /// The generation asked about.
    pub generation: Generation,
    /// Yes or no.
    pub holds: bool,
}
