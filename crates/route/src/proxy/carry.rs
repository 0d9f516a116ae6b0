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

/// Why a session cannot be restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestoreError {
    #[error("{0}")]
    Talk(#[from] TalkError),
    #[error("the new server refuses to restore {0}")]
    Refused(String),
}

impl Snapshot {
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
        for (name, text) in &self.prepared {
            write::query(out, text);
            what.push(format!("the prepared statement {}", String::from_utf8_lossy(name)));
        }
    }
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
