//! What belongs to a session and is carried to another server.
//!
//! It is asked from the server whenever a statement may have changed it, not derived from the
//! statements: settings, channels, prepared statements, role. What cannot be carried is named.

use super::{
    names::Names,
    stream::Stream,
    talk::{Answers, Talk, TalkError},
};
use sempre_wire::pg::{Side, track::Statements, write};
use std::collections::HashMap;

/// In the client's encoding.
type Text = Vec<u8>;

/// The session as the server described it last.

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    settings: Vec<(Text, Text)>,
    session_authorization: Option<Text>,
    role: Option<Text>,
    channels: Vec<Text>,
    /// The texts of statements prepared by SQL.
    prepared: Vec<(Text, Text)>,
    /// The names of statements prepared by the protocol.
    protocol: Vec<Text>,
    /// In words, what cannot be carried.
    stuck: Vec<String>,
}

impl Snapshot {
    /// Takes a row of the answer; a row that is none of ours is an error.
    pub fn take(&mut self, row: [&[u8]; 3]) {
        let [kind, name, value] = row;
        let (name, value) = (name.to_vec(), value.to_vec());
        match kind {
            // Everything else is said in this encoding.
            b"s" if name == b"client_encoding" => self.settings.insert(0, (name, value)),
            b"s" => self.settings.push((name, value)),
            b"a" => self.session_authorization = Some(value),
            b"r" if value != b"none" => self.role = Some(value),
            b"l" => self.channels.push(name),
            b"p" => {
                if is_one_statement(&value) {
                    self.prepared.push((name, value));
                } else {
                    self.stuck.push(format!(
                        "the prepared statement \"{}\" (it was prepared together with other statements)",
                        String::from_utf8_lossy(&name)
                    ));
                }
            }
            b"q" => self.protocol.push(name),
            b"x" => self.stuck.push(String::from_utf8_lossy(&name).into_owned()),
            _ => {}
        }
    }

    pub fn listens(&self) -> bool {
        !self.channels.is_empty()
    }
}

/// The text that `pg_prepared_statements` shows is all of what the client sent at that time. Only
/// a text that is surely one statement may be run again.
fn is_one_statement(text: &[u8]) -> bool {
    let text = text.trim_ascii();
    let text = text.strip_suffix(b";").unwrap_or(text);
    !text.contains(&b';') && text.get(..7).is_some_and(|word| word.eq_ignore_ascii_case(b"prepare"))
}

/// All of it, but for what the client prepared by the protocol: the tracker knows that.
#[derive(Default)]
pub(crate) struct Carried {
    snapshot: Option<Box<Snapshot>>,
    /// Counts its changes.
    revision: u64,
    pub names: Names,
}

impl Carried {
    /// The server described the session.
    /// `renamed`: the client's statements have other names on the server.
    pub fn described(
        &mut self,
        snapshot: Box<Snapshot>,
        statements: &mut Statements,
        renamed: bool,
    ) {
        if !renamed {
            statements.retain(|name| snapshot.protocol.iter().any(|known| known[..] == *name));
        }
        if self.snapshot.as_ref() != Some(&snapshot) {
            self.revision += 1;
        }
        self.snapshot = Some(snapshot);
    }

    /// Another number: it is not as it was.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// A setting of the session's own.
    pub fn setting(&self, name: &[u8]) -> Option<&[u8]> {
        let mut settings = self.snapshot.iter().flat_map(|snapshot| &snapshot.settings);
        settings.find(|(known, _)| known == name).map(|(_, value)| value.as_slice())
    }

    /// Has it anything that the next one on its connection must not find?
    pub fn is_of_its_own(&self, user: &[u8]) -> bool {
        self.snapshot.as_ref().is_some_and(|snapshot| {
            snapshot.settings.iter().any(|(name, _)| name != b"application_name")
                || snapshot.session_authorization.as_deref().is_some_and(|known| known != user)
                || snapshot.role.is_some()
                || snapshot.listens()
                || !snapshot.prepared.is_empty()
                || !snapshot.stuck.is_empty()
        })
    }

    /// Does the session wait for notifications?
    pub fn listens(&self) -> bool {
        self.snapshot.as_ref().is_some_and(|snapshot| snapshot.listens())
    }

    /// What cannot be carried, in words.
    pub fn stuck(&self, statements: &Statements) -> Option<String> {
        if statements.incomplete() {
            return Some("more or longer prepared statements than are kept".into());
        }
        if self.names.overflow() {
            return Some("too many settings of its own".into());
        }
        let stuck = &self.snapshot.as_ref()?.stuck;
        (!stuck.is_empty()).then(|| stuck.join(", "))
    }

    /// What can be restored on a standby, ahead of its promotion; `statements`: those to be restored.
    pub fn ahead(&self, statements: Option<&Statements>) -> Ahead {
        let snapshot = self.snapshot.as_deref().map(Snapshot::without_channels);
        let named = statements.into_iter().flat_map(Statements::iter);
        let named = named.filter(|(name, _)| !name.is_empty());
        let raw =
            named.filter_map(|(name, statement)| Some((name.into(), statement.raw()?.into())));
        Ahead { statements: raw.collect(), snapshot, refused: false }
    }

    /// Writes what was not restored ahead, the settings being the same.
    pub fn write_rest(
        &self,
        ahead: &Ahead,
        statements: Option<&Statements>,
        out: &mut Vec<u8>,
    ) -> Written {
        let mut written = Written::default();
        let mut what = Vec::new();
        for channel in self.snapshot.iter().flat_map(|snapshot| &snapshot.channels) {
            write_listen(out, &mut what, channel);
        }
        written.needed = what.len();
        let Some(statements) = statements else { return written };
        let mut exchange = |write: &dyn Fn(&mut Vec<u8>)| {
            write(out);
            write::sync(out);
            written.more += 1;
        };
        for name in ahead.statements.keys() {
            if statements.get(name).is_none() {
                exchange(&|out| write::close_statement(out, name));
            }
        }
        let raw =
            |(name, statement)| Some((name, sempre_wire::pg::track::Prepared::raw(statement)?));
        let (unnamed, named): (Vec<_>, Vec<_>) =
            statements.iter().filter_map(raw).partition(|(name, _)| name.is_empty());
        for (name, raw) in named.into_iter().chain(unnamed) {
            let known = ahead.statements.get(name);
            if known.is_some_and(|known| **known == *raw) {
                continue;
            }
            exchange(&|out| {
                if known.is_some() {
                    write::close_statement(out, name);
                }
                out.extend_from_slice(raw);
            });
        }
        written
    }

    /// Restores the session on a new connection. What the server reported meanwhile is returned:
    /// parameters, and notifications for the client.
    pub async fn restore(
        &self,
        statements: &Statements,
        stream: &mut Stream,
        kept: &mut Vec<u8>,
    ) -> Result<Answers, RestoreError> {
        let mut out = Vec::new();
        let mut what = Vec::new();
        if let Some(snapshot) = &self.snapshot {
            snapshot.write(&mut out, &mut what);
        }
        let needed = what.len();
        let mut cycles = what.len();
        // The unnamed statement comes first of all, and last here: all others pass by its name.
        let (unnamed, named): (Vec<_>, Vec<_>) =
            statements.iter().partition(|(name, _)| name.is_empty());
        for (_, statement) in named.into_iter().chain(unnamed) {
            // One that fails now is missed when it is used, and then its error is the right one.
            if let Some(raw) = statement.raw() {
                out.extend_from_slice(raw);
                write::sync(&mut out);
                cycles += 1;
            }
        }
        if cycles == 0 {
            return Ok(Answers::default());
        }
        let mut talk = Talk::new(stream, Side::Backend, std::mem::take(kept));
        let answers = talk.ask(&out, cycles).await?;
        *kept = talk.rest();
        match answers.errors.iter().find(|(cycle, ..)| *cycle < needed) {
            Some((cycle, _, message)) => Err(RestoreError::Refused(format!(
                "{}: {message}",
                what.get(*cycle).map_or("", String::as_str)
            ))),
            None => Ok(answers),
        }
    }
}

/// Exchanges that were written: those that must succeed, and others behind them.
#[derive(Default)]
pub(crate) struct Written {
    pub needed: usize,
    pub more: usize,
}

/// What is restored ahead: all but channels, which a standby does not have, and the unnamed
/// statement, which is another one all the time.
#[derive(Default)]
pub(crate) struct Ahead {
    snapshot: Option<Snapshot>,
    /// Parse messages, by name.
    statements: HashMap<Box<[u8]>, Box<[u8]>>,
    /// The standby did not want all of `snapshot`.
    refused: bool,
}

impl Ahead {
    /// What the statements take, bytes.
    pub fn bytes(&self) -> usize {
        self.statements.iter().map(|(name, raw)| name.len() + raw.len()).sum()
    }

    /// They come afterwards.
    pub fn forget_statements(&mut self) {
        self.statements.clear();
    }

    /// Was nothing restored, as for a session that shares its connections?
    pub fn is_nothing(&self) -> bool {
        self.snapshot.is_none() && self.statements.is_empty()
    }

    /// Is the session still what it was? (But for its statements, which are made up for one by one.)
    pub fn is_of(&self, carried: &Carried) -> bool {
        let now = carried.snapshot.as_deref().map(Snapshot::without_channels);
        !self.refused && now == self.snapshot
    }

    /// Restores it on a standby. What the standby refuses is left for later.
    pub async fn restore(
        &mut self,
        stream: &mut Stream,
        kept: &mut Vec<u8>,
    ) -> Result<Answers, TalkError> {
        let (mut out, mut what) = (Vec::new(), Vec::new());
        if let Some(snapshot) = &self.snapshot {
            snapshot.write(&mut out, &mut what);
        }
        let needed = what.len();
        let mut names = Vec::new();
        for (name, raw) in &self.statements {
            out.extend_from_slice(raw);
            write::sync(&mut out);
            names.push(name.clone());
        }
        let cycles = needed + names.len();
        if cycles == 0 {
            return Ok(Answers::default());
        }
        let mut talk = Talk::new(stream, Side::Backend, std::mem::take(kept));
        let answers = talk.ask(&out, cycles).await?;
        *kept = talk.rest();
        for (cycle, ..) in &answers.errors {
            match cycle.checked_sub(needed).and_then(|at| names.get(at)) {
                Some(name) => drop(self.statements.remove(name)),
                None => self.refused = true,
            }
        }
        Ok(answers)
    }
}

/// Why a session cannot be restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestoreError {
    #[error("{0}")]
    Talk(#[from] TalkError),
    #[error("the new server refuses to restore {0}")]
    Refused(String),
}

impl Snapshot {
    /// What a standby can have of it, and what is compared.
    fn without_channels(&self) -> Self {
        let (channels, protocol, stuck) = (Vec::new(), Vec::new(), Vec::new());
        Self {
            settings: self.settings.clone(),
            session_authorization: self.session_authorization.clone(),
            role: self.role.clone(),
            prepared: self.prepared.clone(),
            channels,
            protocol,
            stuck,
        }
    }

    /// Writes what restores it, one exchange for each thing named in `what`.
    fn write(&self, out: &mut Vec<u8>, what: &mut Vec<String>) {
        let set = b"select pg_catalog.set_config($1, $2, false)";
        let mut setting = |out: &mut Vec<u8>, name: &[u8], value: &[u8]| {
            write::parse(out, b"", set, &[]);
            write::bind(out, b"", b"", &[Some(name), Some(value)]);
            write::execute(out, b"", 0);
            write::sync(out);
            what.push(format!("the setting {}", String::from_utf8_lossy(name)));
        };
        for (name, value) in &self.settings {
            setting(out, name, value);
        }
        if let Some(user) = &self.session_authorization {
            setting(out, b"session_authorization", user);
        }
        if let Some(role) = &self.role {
            setting(out, b"role", role);
        }
        for channel in &self.channels {
            write_listen(out, what, channel);
        }
        for (name, text) in &self.prepared {
            write::query(out, text);
            what.push(format!("the prepared statement {}", String::from_utf8_lossy(name)));
        }
    }
}

fn write_listen(out: &mut Vec<u8>, what: &mut Vec<String>, channel: &[u8]) {
    let mut text = b"listen \"".to_vec();
    for byte in channel {
        text.push(*byte);
        if *byte == b'"' {
            text.push(b'"');
        }
    }
    text.push(b'"');
    write::query(out, &text);
    what.push(format!("the channel {}", String::from_utf8_lossy(channel)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_text_that_is_surely_one_statement_is_run_again() {
        assert!(is_one_statement(b" PREPARE a AS SELECT 1 ; "));
        assert!(!is_one_statement(b"prepare a as select 1; delete from t"));
        assert!(!is_one_statement(b"delete from t; prepare a as select 1"));
        assert!(!is_one_statement(b"/* ; */ prepare a as select 1"));
        assert!(!is_one_statement("délete".as_bytes()));
    }
}
