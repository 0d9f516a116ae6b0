//! What a client has prepared through the protocol, so that it can be prepared again elsewhere.

use std::collections::HashMap;

use super::text::Text;

/// Prepared statements of a session that are remembered; a client that prepares more than this
/// never closes any.
pub const STATEMENTS_MAX: usize = 10_000;
/// The longest Parse message remembered, bytes.
pub const STATEMENT_BYTES_MAX: usize = 1 << 20;
/// All Parse messages of a session together, bytes. Ten thousand of usual length fit.
pub const STATEMENTS_BYTES_MAX: usize = 8 << 20;

/// A prepared statement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prepared {
    /// The Parse message that made it; empty when it was too long to be remembered.
    raw: Vec<u8>,
    text: Text,
}

impl Prepared {
    /// The whole Parse message that made it; `None`: it was too long, or there were too many, so
    /// that it cannot be made again.
    pub fn raw(&self) -> Option<&[u8]> {
        (!self.raw.is_empty()).then_some(&self.raw)
    }

    /// Its text in short.
    pub fn text(&self) -> Text {
        self.text
    }

    fn set(&mut self, raw: Option<&[u8]>, text: Text) {
        self.raw.clear();
        self.raw.extend_from_slice(raw.unwrap_or_default());
        self.text = text;
    }
}

/// One name.
#[derive(Clone, Debug, Default)]
struct Entry {
    /// What the server has, as far as it has said.
    now: Option<Prepared>,
    /// What was sent and not answered, with its number.
    coming: Option<(u32, Prepared)>,
}

impl Entry {
    fn bytes(&self) -> usize {
        let coming = self.coming.as_ref().map(|(_, prepared)| prepared);
        self.now.iter().chain(coming).map(|prepared| prepared.raw.len()).sum()
    }
}

/// The prepared statements of a session, by name; the empty name is the unnamed one.
#[derive(Clone, Debug, Default)]
pub struct Statements {
    named: HashMap<Box<[u8]>, Entry>,
    /// The unnamed one apart: it changes all the time, in place.
    unnamed: Entry,
    /// Its buffer while there is none.
    spare: Prepared,
    /// Bytes of the named ones.
    bytes: usize,
    sent: u32,
    forgotten: bool,
}

impl Statements {
    /// A Parse was sent. Gives its number.
    pub(super) fn sent(&mut self, name: &[u8], raw: Option<&[u8]>, text: Text) -> u32 {
        self.sent = self.sent.wrapping_add(1);
        let number = self.sent;
        let raw = raw.filter(|raw| raw.len() <= STATEMENT_BYTES_MAX);
        if name.is_empty() {
            let mut prepared = match self.unnamed.coming.take() {
                Some((_, old)) => old,
                None => std::mem::take(&mut self.spare),
            };
            prepared.set(raw, text);
            self.unnamed.coming = Some((number, prepared));
            return number;
        }
        if !self.named.contains_key(name) && self.named.len() >= STATEMENTS_MAX {
            self.forgotten = true;
            return number;
        }
        let entry = self.named.entry(name.into()).or_default();
        self.bytes -= entry.bytes();
        entry.coming = None;
        let raw = raw.filter(|raw| self.bytes + entry.bytes() + raw.len() <= STATEMENTS_BYTES_MAX);
        let mut prepared = Prepared::default();
        prepared.set(raw, text);
        entry.coming = Some((number, prepared));
        self.bytes += entry.bytes();
        number
    }

    /// It is there.
    pub(super) fn completed(&mut self, name: &[u8], number: u32) {
        let Self { named, unnamed, spare, bytes, .. } = self;
        let entry = match name {
            [] => unnamed,
            name => match named.get_mut(name) {
                Some(entry) => entry,
                None => return,
            },
        };
        let before = entry.bytes();
        let old = match entry.coming.take() {
            Some((coming, prepared)) if coming == number => entry.now.replace(prepared),
            // Another one of the same name follows: which this was is no longer known.
            later => {
                entry.coming = later;
                entry.now.replace(Prepared { raw: Vec::new(), text: Text::UNKNOWN })
            }
        };
        if name.is_empty() {
            *spare = old.unwrap_or_default();
        } else {
            *bytes = *bytes + entry.bytes() - before;
        }
    }

    /// It will not be there.
    pub(super) fn failed(&mut self, name: &[u8], number: u32) {
        if name.is_empty() {
            // A failed Parse takes the unnamed statement with it.
            self.drop_unnamed();
        } else if let Some(entry) = self.named.get_mut(name)
            && entry.coming.as_ref().is_some_and(|(coming, _)| *coming == number)
        {
            self.bytes -= entry.bytes();
            entry.coming = None;
            self.bytes += entry.bytes();
            if entry.now.is_none() {
                self.named.remove(name);
            }
        }
    }

    /// A Close was answered.
    pub(super) fn closed(&mut self, name: &[u8]) {
        if name.is_empty() {
            self.unnamed.now = None;
        } else if let Some(entry) = self.named.get_mut(name) {
            self.bytes -= entry.bytes();
            entry.now = None;
            self.bytes += entry.bytes();
            if entry.coming.is_none() {
                self.named.remove(name);
            }
        }
    }

    /// A simple query takes the unnamed statement with it.
    pub(super) fn drop_unnamed(&mut self) {
        let coming = self.unnamed.coming.take().map(|(_, prepared)| prepared);
        if let Some(prepared) = coming.or(self.unnamed.now.take()) {
            self.spare = prepared;
        }
        self.unnamed.now = None;
    }

    /// DEALLOCATE ALL, DISCARD ALL.
    pub(super) fn clear(&mut self) {
        self.named.retain(|_, entry| {
            entry.now = None;
            entry.coming.is_some()
        });
        self.bytes = self.named.values().map(Entry::bytes).sum();
        self.forgotten = false;
    }

    /// The server is gone: what it has not answered will not be there.
    pub(super) fn drop_coming(&mut self) {
        self.unnamed.coming = None;
        self.named.retain(|_, entry| {
            entry.coming = None;
            entry.now.is_some()
        });
        self.bytes = self.named.values().map(Entry::bytes).sum();
    }

    /// What the newest one of this name says, answered or not.
    pub(super) fn text_of(&self, name: &[u8]) -> Text {
        let entry = if name.is_empty() { Some(&self.unnamed) } else { self.named.get(name) };
        entry
            .and_then(|entry| match &entry.coming {
                Some((_, coming)) => Some(coming.text),
                None => entry.now.as_ref().map(|now| now.text),
            })
            .unwrap_or(Text::UNKNOWN)
    }

    /// One that the server has.
    pub fn get(&self, name: &[u8]) -> Option<&Prepared> {
        let entry = if name.is_empty() { Some(&self.unnamed) } else { self.named.get(name) };
        entry?.now.as_ref()
    }

    /// All that the server has, in no order, the unnamed one under the empty name.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Prepared)> {
        let unnamed = self.unnamed.now.iter().map(|now| (&b""[..], now));
        let named =
            self.named.iter().filter_map(|(name, entry)| Some((&name[..], entry.now.as_ref()?)));
        unnamed.chain(named)
    }

    /// Keeps those (named ones) that the server still has: DEALLOCATE by SQL is not followed.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8]) -> bool) {
        self.named.retain(|name, entry| {
            if entry.now.is_some() && !keep(name) {
                entry.now = None;
            }
            entry.now.is_some() || entry.coming.is_some()
        });
        self.bytes = self.named.values().map(Entry::bytes).sum();
    }

    /// Is there one that cannot be made again, being beyond a limit?
    pub fn incomplete(&self) -> bool {
        self.forgotten || self.iter().any(|(_, prepared)| prepared.raw().is_none())
    }
}
