//! `sempre backup files ...`.

use clap::Subcommand;
use sempre_model::MemberId;
use std::path::PathBuf;

/// `sempre backup files ...`.
#[derive(Debug, Subcommand)]
pub enum FilesTask {
    /// Back folders up from now on, in the schedule and retention of base backups
    Add {
        /// A name for them
        name: String,
        /// A folder or file on the member, readable for its system user; may be repeated
        #[arg(long = "path", value_name = "PATH", required = true)]
        paths: Vec<PathBuf>,
        /// The member that has them
        #[arg(long, value_name = "MEMBER")]
        member: MemberId,
        /// Leave out what fits this pattern, as in a `.gitignore` file (`*.tmp`, `/cache/`); may be repeated
        #[arg(long = "exclude", value_name = "GLOB")]
        excludes: Vec<String>,
        /// Into this repository
        #[arg(long, value_name = "NAME")]
        repository: Option<String>,
    },
    /// Back them up no longer; their snapshots stay
    Remove {
        /// Their name
        name: String,
    },
    /// List what is backed up, and what became of it
    List,
}
