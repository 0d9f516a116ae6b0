//! Finds PostgreSQL's programs.

use crate::{Error, Result};
use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

/// The major versions sempre works with.
pub const VERSIONS: RangeInclusive<u32> = 14..=18;

/// Names a bin folder, before everything else.
const BIN_VARIABLE: &str = "SEMPRE_PG_BIN";

/// What must be in the bin folder.
const PROGRAMS: [&str; 6] =
    ["postgres", "initdb", "pg_controldata", "pg_basebackup", "pg_rewind", "pg_ctl"];

/// PostgreSQL's programs of one version.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Installation {
    /// Where they are.
    pub bin_dir: PathBuf,
    /// Their major version, e.g. 15.
    pub major: u32,
}

impl Installation {
    /// Finds one: `SEMPRE_PG_BIN`, then `configured`, then the newest of Debian's
    /// `/usr/lib/postgresql/*/bin`, `/usr/pgsql-*/bin` and the folders of `PATH`.
    ///
    /// With `major` (that of a data directory), only one of this version will do. A folder that
    /// is named must be right: nothing else is tried after it.
    pub fn find(configured: Option<&Path>, major: Option<u32>) -> Result<Self> {
        let named = std::env::var_os(BIN_VARIABLE).filter(|v| !v.is_empty()).map(PathBuf::from);
        if let Some(bin_dir) = named.or_else(|| configured.map(Path::to_owned)) {
            let found = Self::at(&bin_dir)?;
            return match major {
                Some(major) if major != found.major => Err(Error::BadInstallation {
                    why: format!(
                        "it is PostgreSQL {}, but the data directory is of version {major}",
                        found.major
                    ),
                    bin_dir,
                }),
                _ => Ok(found),
            };
        }
        let looked = candidates();
        let mut unusable = None;
        let mut best: Option<Self> = None;
        for bin_dir in looked.iter().filter(|d| d.join("postgres").is_file()) {
            match Self::at(bin_dir) {
                Ok(found) if major.is_some_and(|m| m != found.major) => {}
                Ok(found) if best.as_ref().is_none_or(|b| found.major > b.major) => {
                    best = Some(found);
                }
                Ok(_) => {}
                Err(error) => unusable = Some(error),
            }
        }
        match (best, unusable) {
            (Some(best), _) => Ok(best),
            (None, Some(error)) => Err(error),
            (None, None) => Err(Error::NoInstallation { looked }),
        }
    }

    /// The one in this folder.
    pub fn at(bin_dir: &Path) -> Result<Self> {
        let bad = |why: String| Error::BadInstallation { bin_dir: bin_dir.to_owned(), why };
        if let Some(missing) = PROGRAMS.iter().find(|p| !bin_dir.join(p).is_file()) {
            return Err(bad(format!("it has no `{missing}`")));
        }
        let program = bin_dir.join("postgres");
        let output = std::process::Command::new(&program)
            .arg("--version")
            .env("LC_ALL", "C")
            .output()
            .map_err(Error::io("run", &program))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = parse_version(&text)
            .ok_or_else(|| bad(format!("`postgres --version` says `{}`", text.trim())))?;
        if !VERSIONS.contains(&version.0) {
            return Err(Error::UnsupportedVersion {
                found: version.1,
                bin_dir: bin_dir.to_owned(),
            });
        }
        Ok(Self { bin_dir: bin_dir.to_owned(), major: version.0 })
    }

    /// The path of one of its programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }
}

/// Folders that may be bin folders, in no order that matters.
fn candidates() -> Vec<PathBuf> {
    let below = |folder: &str, prefix: &str| -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
        entries
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().starts_with(prefix))
            .map(|e| e.path().join("bin"))
            .collect()
    };
    let mut found = below("/usr/lib/postgresql", "");
    found.extend(below("/usr", "pgsql-"));
    found.push(PathBuf::from("/usr/local/pgsql/bin"));
    if let Some(path) = std::env::var_os("PATH") {
        found.extend(std::env::split_paths(&path).filter(|p| p.is_absolute()));
    }
    found
}

/// `postgres (PostgreSQL) 15.18 (Debian ...)` is (15, "15.18"); `17beta1` is (17, "17beta1").
fn parse_version(text: &str) -> Option<(u32, String)> {
    let version = text.split("(PostgreSQL)").nth(1)?.split_whitespace().next()?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    Some((digits.parse().ok()?, version.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        for (text, wanted) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", Some((15, "15.18"))),
            ("postgres (PostgreSQL) 18beta1\n", Some((18, "18beta1"))),
            ("postgres (EnterpriseDB) 1", None),
            ("", None),
        ] {
            assert_eq!(parse_version(text), wanted.map(|(m, v)| (m, v.to_owned())), "{text}");
        }
    }

    #[test]
    fn a_folder_without_postgresql_is_named() {
        let error = Installation::at(Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent") && error.contains("postgres"), "{error}");
    }
}
