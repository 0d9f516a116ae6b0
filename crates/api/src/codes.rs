//! Error codes: one table. Each code has a page below `docs/errors/`, and keeps its number for
//! ever; a code that is no longer used stays in the table.

use sempre_model::{Rejected, command::Refusal, policy::PolicyError};
use serde::{Deserialize, Serialize};
use std::fmt;

/// An error code, shown as `SEMPRE-0042`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(u16);

/// What the table says of a code.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// The code.
    pub code: Code,
    /// Its name, in the code of sempre.
    pub name: &'static str,
    /// HTTP status that goes with it.
    pub http: u16,
    /// In a few words.
    pub title: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// What to do next.
    pub next: &'static str,
}

macro_rules! codes {
    ($($number:literal $name:ident $http:literal $title:literal $meaning:literal $next:literal)*) => {
        $(#[doc = $title] pub const $name: Code = Code($number);)*
        /// Every code, in the order of the numbers.
        pub const TABLE: &[Entry] = &[$(Entry {
            code: $name,
            name: stringify!($name),
            http: $http,
            title: $title,
            meaning: $meaning,
            next: $next,
        }),*];
    };
}

codes! {
    1 UNAUTHORISED 401 "The request is not authorised"
        "Requests that change something need the cluster's REST token; it was absent or wrong."
        "Send `Authorization: Bearer TOKEN`. `sempre` on a member reads the token by itself: give it `--config FILE`."
    2 BAD_REQUEST 400 "The request cannot be read"
        "The body is not the JSON object that this request needs, or a value does not fit."
        "Compare the body with the OpenAPI document at /v1/openapi.json."
    3 NO_SUCH_PAGE 404 "There is no such page"
        "The path is not one that this version knows."
        "See /v1/openapi.json for the paths there are."
    4 WRONG_METHOD 405 "The page does not take this method"
        "The path exists, the HTTP method does not fit it."
        "See /v1/openapi.json for the methods there are."
    5 BODY_TOO_LARGE 413 "The body is too large"
        "Request bodies are limited, so that nobody can fill the member's memory."
        "Send a smaller body; a configuration change can be split."
    6 TIMED_OUT 504 "It took too long"
        "The request did not end within its time limit. What was asked for may still happen."
        "Look at `sempre status` and `sempre events` before asking again."
    7 INTERNAL 500 "A fault inside sempre"
        "Something happened that the program does not expect. It is a bug."
        "Keep the member's log, and report it. The database is not affected by a fault of the API."
    8 CLEAR_TEXT 403 "The request must be encrypted"
        "Requests that change something carry the cluster's token, so from another machine they are taken by HTTPS only; with `[rest] tls = \"required\"` all requests are."
        "Use https:// on the same port, and trust the cluster's CA (`tls/ca.pem` in a member's folder). If the token was sent in clear over a network that others share, treat it as known."
    10 NOT_INITIALISED 503 "The cluster is not initialised"
        "This member has no record yet: neither `init` nor `join` was completed."
        "Run `sempre init` on the first member, `sempre join` on the others."
    11 NO_QUORUM 503 "No majority of members agrees"
        "Changes need a majority of the members, and this member reaches none."
        "Bring members or networks back; `sempre status` says who is silent. If the majority is gone for good: `sempre recover`."
    12 OUT_OF_DATE 409 "The record went on meanwhile"
        "Someone or something else changed the record between looking and changing."
        "Look again, and repeat the request if it still makes sense."
    13 REFUSED 412 "It makes no sense now"
        "The record refuses the change in the present state; the message says why."
        "Look at `sempre status`, and repeat the request once the reason is gone."
    20 UNKNOWN_MEMBER 404 "There is no such member"
        "The name is not one of the cluster's members."
        "Take a name from `sempre status`."
    21 NOT_ELIGIBLE 412 "This member may not be primary"
        "It is a witness, or its tag `never_primary` is set."
        "Choose another member, or change its tags."
    22 ALREADY_PRIMARY 412 "It is the primary already"
        "The target of the change is the primary."
        "Nothing is to be done, or another target is to be chosen."
    23 TARGET_LAGS 412 "The target is too far behind"
        "The target would have to catch up for too long (`switchover_max_lag_bytes`), or does not replicate."
        "Wait until `sempre status` shows it near 0, choose another target, or raise the limit."
    24 BUSY 409 "Another change of primary is under way"
        "Only one switchover or failover runs at a time."
        "Wait for it to end; `sempre status` shows it."
    25 NOTHING_TO_CANCEL 404 "There is nothing to cancel"
        "No switchover is scheduled or waiting, or no restart of this member is scheduled."
        "Nothing is to be done."
    26 WOULD_LOSE_DATA 412 "Acknowledged commits would be lost"
        "Not enough of the sync set can be reached to prove that the target has every acknowledged commit."
        "Bring one more member of the sync set back; or accept the loss that the message names with `--allow-data-loss`."
    27 NO_CANDIDATE 412 "No member can take over"
        "No standby is reachable, eligible and near enough."
        "`sempre status` says what is wrong with each standby."
    28 IS_PRIMARY 412 "Not while it is the primary"
        "Removing, or copying afresh, would destroy the primary's data."
        "Switch over first: `sempre switchover`."
    29 BREAKS_MAJORITY 412 "The majority would be lost"
        "Without this member, those that are left and reachable are no majority."
        "Bring the silent members back first, or use `--force` if they are gone for good."
    30 UNKNOWN_POLICY_KEY 400 "There is no such policy key"
        "The key is not one of the policy's."
        "Take the key that the message names, or see docs/policy.md for all."
    31 BAD_POLICY_VALUE 400 "The value does not fit the policy key"
        "It is of the wrong kind, has an unknown unit, or is out of range."
        "See docs/policy.md for the key's unit."
    32 POLICY_CONTRADICTION 400 "The policy values do not fit together"
        "Every value is fine alone, but the whole would be unsafe, such as a lease shorter than a few heartbeats."
        "Change both values in one request."
    33 BAD_PARAMETER 400 "The PostgreSQL parameter cannot be set"
        "The name or value is not one that can be written to the configuration, or sempre sets this parameter itself."
        "Check the name and value with `SELECT * FROM pg_settings`."
    34 BAD_HBA 400 "The pg_hba line cannot be used"
        "A line is empty, too long, or has characters that would begin another line."
        "Give one rule a line, as in PostgreSQL's documentation."
    35 PAUSED 412 "Not while the cluster is paused"
        "Nothing automatic happens while the cluster is paused, and this needs it."
        "`sempre resume` first."
    36 ALREADY_SCHEDULED 409 "A restart is scheduled already"
        "Each member has one scheduled restart at the most."
        "Take it back first: `sempre restart MEMBER --cancel`."
    40 TOKEN_UNKNOWN 403 "The join token is unknown or has expired"
        "Tokens are valid for a limited time, and for one cluster."
        "Make a new one on a member: `sempre token`."
    41 TOKEN_USED 403 "The join token was used already"
        "A token lets exactly one member in."
        "Make a new one on a member: `sempre token`."
    42 MEMBER_EXISTS 409 "There is a member of this name already"
        "Names are unique in a cluster."
        "Choose another name, or `sempre remove NAME` first if that member is gone."
    43 TOO_MANY_TOKENS 409 "Too many join tokens are open"
        "The number of open tokens is limited."
        "Use those there are, or wait until they expire."
    44 PEER_REFUSED 403 "The other side's certificate is not accepted"
        "It is expired, from another cluster, or absent."
        "Check the clocks of both members, and that both belong to the same cluster; a removed member has to join again."
    50 PORT_IN_USE 500 "The address is in use"
        "Another program listens on this address and port."
        "Stop it (`ss -ltnp` names it), or choose another port in the config file."
    51 FOREIGN_DATA 500 "The data directory belongs to another cluster"
        "Its system identifier is not the cluster's. It is left untouched."
        "Point `data_dir` to the right directory, or move this one away."
    52 WRONG_VERSION 500 "The data directory is of another major version"
        "PostgreSQL's programs and the data directory do not fit together."
        "Set `bin_dir` to the programs of that version."
    53 WRONG_OWNER 500 "The data directory has another owner"
        "PostgreSQL runs only as the owner of its data directory."
        "Run sempre as that user, or change the owner."
    54 DATABASE_DOES_NOT_START 500 "PostgreSQL does not start"
        "Its own last log lines are in the message."
        "Put right what PostgreSQL names, then `sempre restart MEMBER`."
    55 DISK_FULL 500 "The disk is full"
        "No space is left under the data directory or the state directory."
        "Make space; WAL kept for a silent member is the usual cause: see `sempre status`."
    56 RECORD_CORRUPT 500 "The record's file is damaged"
        "Its checksum does not match. The damaged file is kept beside the new one."
        "With a majority of other members the member repairs itself; otherwise `sempre recover`."
    57 CONFIG_FILE 400 "The config file cannot be used"
        "A key is unknown, absent, or contradicts another; the message names it."
        "Correct the file; the message names the nearest known key."
    60 UNREACHABLE 503 "No member answers"
        "None of the members' REST addresses could be connected to, or none answered in time."
        "Check that `sempre run` is running there (`systemctl status sempre`), and the addresses in the config file."
    61 BAD_ANSWER 502 "A member's answer cannot be read"
        "What answered is not sempre, or is a version that is too different."
        "Check the address, and that all members run versions near to each other."
    70 UNKNOWN_REPOSITORY 404 "There is no such repository"
        "Backups go into repositories that the cluster knows by name; it knows none of this name, or several and none was named."
        "`sempre backup list` shows them; `sempre backup init NAME --folder PATH` makes one; `--repository NAME` names one."
    71 REPOSITORY 500 "The repository cannot be used"
        "Something is wrong with the place, the key or the objects of a backup repository; the message says what."
        "Check that the folder or store is there and writable for this member's system user. `sempre backup verify` reads every object."
    72 NOT_RESTORED 500 "It was not restored"
        "The restore did not come to its end; the message says why. The repository is as it was, and the database that runs is not touched."
        "`sempre backup list` shows what can be restored. What is in the target folder is of no use; restore over it with --delta, or remove it."
    73 NOT_BACKED_UP 500 "No backup was made"
        "The base backup did not come to its end; the message says why. Earlier backups are as they were."
        "Correct the cause, and run it again: what was copied already is not copied twice."
}

impl Code {
    /// What the table says of it.
    pub fn entry(self) -> &'static Entry {
        // The constants are the only codes that can be made, and each is in the table.
        TABLE.iter().find(|entry| entry.code == self).unwrap_or(&TABLE[0])
    }

    /// The code of this text, such as `SEMPRE-0042`.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text
            .strip_prefix("SEMPRE-")
            .filter(|digits| digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_digit()))?;
        let number: u16 = digits.parse().ok()?;
        TABLE.iter().map(|entry| entry.code).find(|code| code.0 == number)
    }

    /// The first code that a text names, such as `... (SEMPRE-0042)`: notes of members and errors
    /// of peers travel as text.
    pub fn named_in(text: &str) -> Option<Self> {
        text.match_indices("SEMPRE-")
            .find_map(|(at, _)| text.get(at..at + 11).and_then(Self::parse))
    }

    /// An error with this code; what to do next is what the table says.
    pub fn error(self, what: impl Into<String>, why: impl Into<String>) -> ActionError {
        ActionError {
            code: self,
            what: what.into(),
            why: why.into(),
            next: self.entry().next.to_owned(),
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SEMPRE-{:04}", self.0)
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Code::parse(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("`{text}` is not a known error code")))
    }
}

/// Why something asked for was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{what}: {why} ({code}). {next}")]
pub struct ActionError {
    /// Which of the known errors.
    pub code: Code,
    /// What happened.
    pub what: String,
    /// Why.
    pub why: String,
    /// What to do next.
    pub next: String,
}

impl ActionError {
    /// With a better hint than the table's.
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = next.into();
        self
    }
}

impl From<PolicyError> for ActionError {
    fn from(error: PolicyError) -> Self {
        let code = match error {
            PolicyError::UnknownKey { .. } => UNKNOWN_POLICY_KEY,
            PolicyError::BadValue { .. } => BAD_POLICY_VALUE,
            PolicyError::Contradiction(_) => POLICY_CONTRADICTION,
        };
        code.error("the policy was not changed", error.to_string())
    }
}

impl From<Rejected> for ActionError {
    fn from(error: Rejected) -> Self {
        match error {
            Rejected::Stale(why) => OUT_OF_DATE.error("nothing was changed", why),
            Rejected::Refused { kind, why } => refusal(kind).error("nothing was changed", why),
            Rejected::Policy(error) => error.into(),
        }
    }
}

/// The code of a refusal by the record.
fn refusal(kind: Refusal) -> Code {
    match kind {
        Refusal::NotNow => REFUSED,
        Refusal::UnknownMember => UNKNOWN_MEMBER,
        Refusal::NotEligible => NOT_ELIGIBLE,
        Refusal::AlreadyPrimary => ALREADY_PRIMARY,
        Refusal::IsPrimary => IS_PRIMARY,
        Refusal::NothingToCancel => NOTHING_TO_CANCEL,
        Refusal::AlreadyScheduled => ALREADY_SCHEDULED,
        Refusal::TooManyTokens => TOO_MANY_TOKENS,
        Refusal::TokenUnknown => TOKEN_UNKNOWN,
        Refusal::TokenUsed => TOKEN_USED,
        Refusal::MemberExists => MEMBER_EXISTS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sempre_model::command::Change;
    use std::{collections::BTreeSet, fs, path::PathBuf};

    fn pages() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors")
    }

    fn page(entry: &Entry) -> String {
        format!(
            "# {}: {}\n\n{}\n\n## What to do\n\n{}\n\nName: `{}`, HTTP status: {}.\n",
            entry.code,
            entry.title,
            entry.meaning,
            entry.next,
            entry.name.to_lowercase(),
            entry.http
        )
    }

    fn index() -> String {
        let line = |entry: &Entry| format!("- [{0}]({0}.md): {1}\n", entry.code, entry.title);
        let lines: String = TABLE.iter().map(line).collect();
        format!(
            "# Error codes\n\nEvery error says what happened, why, and what to do next.\n\n{lines}"
        )
    }

    #[test]
    fn numbers_rise_and_names_are_unique() {
        assert!(TABLE.windows(2).all(|pair| pair[0].code < pair[1].code));
        let names: BTreeSet<_> = TABLE.iter().map(|entry| entry.name).collect();
        assert_eq!(names.len(), TABLE.len());
    }

    /// A member may be called anything, so the words of a refusal say nothing of its code.
    #[test]
    fn the_code_of_a_refusal_does_not_hang_on_its_words() {
        let cancel = sempre_model::MemberId::new("cancel").unwrap();
        let code = |change| {
            let command = sempre_model::Command { at_unix_ms: 1, change };
            let refused = sempre_model::Record::default().apply(&command).unwrap_err();
            ActionError::from(refused).code
        };
        assert_eq!(code(Change::CancelSwitchover), NOTHING_TO_CANCEL);
        assert_eq!(code(Change::RequestRestart(cancel)), UNKNOWN_MEMBER);
    }

    #[test]
    fn a_code_reads_back_what_it_shows() {
        for entry in TABLE {
            assert_eq!(Code::parse(&entry.code.to_string()), Some(entry.code));
            assert_eq!(entry.code.entry(), entry);
        }
        let named = |text| Code::named_in(text).map(|code| code.to_string());
        assert_eq!(named("no SEMPRE-9999 but (SEMPRE-0051)").as_deref(), Some("SEMPRE-0051"));
        assert_eq!(named("SEMPRE-é0051 SEMPRE-"), None);
        for bad in ["", "SEMPRE-", "SEMPRE-1", "SEMPRE-9999", "SEMPRE-00001", "SEMPRE-+001"] {
            assert_eq!(Code::parse(bad), None, "{bad}");
        }
    }

    /// `SEMPRE_BLESS=1 cargo test -p sempre-api` writes the pages that are missing or old.
    #[test]
    fn each_code_has_its_page_and_each_page_its_code() {
        if std::env::var_os("SEMPRE_BLESS").is_some() {
            fs::create_dir_all(pages()).unwrap();
            for entry in TABLE {
                fs::write(pages().join(format!("{}.md", entry.code)), page(entry)).unwrap();
            }
            fs::write(pages().join("README.md"), index()).unwrap();
        }
        for entry in TABLE {
            let path = pages().join(format!("{}.md", entry.code));
            let text = fs::read_to_string(&path).unwrap_or_default();
            assert_eq!(text, page(entry), "{} is not as the table says", path.display());
        }
        assert_eq!(fs::read_to_string(pages().join("README.md")).unwrap_or_default(), index());
        let known: BTreeSet<_> = TABLE.iter().map(|entry| format!("{}.md", entry.code)).collect();
        for file in fs::read_dir(pages()).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            assert!(name == "README.md" || known.contains(&name), "{name} has no code");
        }
    }
}
