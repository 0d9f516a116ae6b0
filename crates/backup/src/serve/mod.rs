//! Serving repositories in folders of this machine to other members, over the members' TLS.
//!
//! Which folders, and by which rules, is said on this machine alone ([`Rule`]): never by the record nor
//! over the network, so that no credential of the cluster changes it. Without a rule for it no folder is
//! served: a member is no file server for whoever holds a certificate.
//!
//! What is asked is a narrow store: put a new object, read, list, delete, append. An object is created
//! once and never replaced. It is appended to only over the connection that began it. With a *window*, it
//! is not deleted before its time (`window`). No object is understood here: there is no key, only names,
//! sizes and times.
//!
//! An answer is given when the disk has what it says, the folders above included.

mod clock;
mod connection;
mod files;
mod keeps;
mod window;

pub(crate) use keeps::Keeps;

use crate::{Error, Result};
use clock::Clock;
pub use clock::{Now, Reading};
use files::Files;
use sempre_net::Streamed;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::Semaphore;

/// Requests for one folder at once: a disk that hangs takes no more threads than this. Others wait.
const REQUESTS_MAX: usize = 32;
/// A window may be this long, days: what is longer was mistyped.
pub const WINDOW_DAYS_MAX: u32 = 36_500;

/// How one folder is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The folder of one repository. It must be there, and belong to the member's system user.
    pub folder: PathBuf,
    /// Nothing is deleted before it, and what uses it, is this old, days; none: whenever it is asked.
    #[serde(default)]
    pub window_days: Option<u32>,
    /// The most that may be in it, bytes; none: as much as the disk takes.
    #[serde(default)]
    pub quota_bytes: Option<u64>,
    /// After the clock of this machine jumped: what was shown then. It says that the clock is right now.
    #[serde(default)]
    pub confirm_clock: Option<String>,
}

impl Rule {
    /// Says what is wrong with it.
    pub fn check(&self) -> std::result::Result<(), String> {
        let folder = self.folder.display();
        if !self.folder.is_absolute() {
            return Err(format!("`folder` ({folder}) must be an absolute path"));
        }
        if self.window_days.is_some_and(|days| days == 0 || days > WINDOW_DAYS_MAX) {
            return Err(format!("`window_days` of {folder} must be from 1 to {WINDOW_DAYS_MAX}"));
        }
        Ok(())
    }

    fn window(&self) -> Option<Duration> {
        self.window_days.map(|days| Duration::from_secs(u64::from(days) * 86_400))
    }

    /// In words, for whoever makes a repository here.
    fn in_words(&self) -> String {
        let window = match self.window_days {
            Some(days) => format!("nothing goes before it is {days} days old"),
            None => "objects go when it is asked".to_owned(),
        };
        match self.quota_bytes {
            Some(bytes) => format!("{window}; up to {bytes} bytes"),
            None => window,
        }
    }
}

/// One folder, shared by all connections.
struct Served {
    rule: Rule,
    files: Files,
    clock: Clock,
    keeps: keeps::Young,
    places: Semaphore,
}

/// Serves folders.
pub struct Server {
    member: String,
    folders: BTreeMap<PathBuf, Arc<Served>>,
}

impl Server {
    /// Serves what `rules` say. What is noted of the clock is kept in `notes`, a folder of the member's own.
    pub fn new(member: &str, rules: Vec<Rule>, notes: &Path) -> Self {
        Self::by(member, rules, notes, clock::real())
    }

    /// The same, by another clock.
    pub fn by(member: &str, rules: Vec<Rule>, notes: &Path, now: Now) -> Self {
        let folders = rules.into_iter().map(|rule| {
            let noted = blake3::hash(rule.folder.as_os_str().as_encoded_bytes()).to_hex();
            let file = notes.join(format!("{}.json", &noted[..16]));
            let served = Served {
                files: Files::new(rule.folder.clone(), rule.quota_bytes),
                clock: Clock::new(file, rule.confirm_clock.clone(), now.clone()),
                keeps: keeps::Young::default(),
                places: Semaphore::new(REQUESTS_MAX),
                rule,
            };
            (served.rule.folder.clone(), Arc::new(served))
        });
        Self { member: member.to_owned(), folders: folders.collect() }
    }

    /// For one connection.
    pub fn connection(self: &Arc<Self>) -> Arc<dyn Streamed> {
        Arc::new(connection::Connection::new(self.clone()))
    }

    /// Is this folder, or one in it or above it, served here? Then it is used by asking for it, and in no
    /// other way: what works past the rules would shorten a window.
    pub fn governs(&self, folder: &Path) -> bool {
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let folder = real(folder);
        self.folders
            .keys()
            .map(|served| real(served))
            .any(|served| served.starts_with(&folder) || folder.starts_with(&served))
    }

    fn folder(&self, folder: &Path) -> Result<&Arc<Served>> {
        self.folders.get(folder).ok_or_else(|| {
            let (member, folder) = (&self.member, folder.display());
            Error::Refused(format!(
                "{member} does not serve {folder}: its config file must say so, by the lines `[[repository]]` and `folder = \"{folder}\"`, and the agent must be restarted"
            ))
        })
    }
}
