//! What a client has prepared through the protocol, so that it can be prepared again elsewhere.

use std::collections::{HashMap, VecDeque};

use super::text::Text;

/// Prepared statements of a session that are remembered; a client that prepares more than this
/// never closes any.
pub const STATEMENTS_MAX: usize = 10_000;
/// The longest Parse message remembered, bytes.
pub const STATEMENT_BYTES_MAX: usize = 1 << 20;
/// All Parse messages of a session together, bytes. Ten thousand of usual length fit.
pub const STATEMENTS_BYTES_MAX: usize = 8 << 20;

/// A buffer up to this many bytes is kept for the next unnamed statement.
const SPARE_MAX: usize = 4_096;

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
    /// What was sent and not answered, each with its number, the oldest first.
    coming: VecDeque<(u32, Prepared)>,
}

impl Entry {
    fn is_empty(&self) -> bool {
        self.now.is_none() && self.coming.is_empty()
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
    /// Bytes of all.
    bytes: usize,
    sent: u32,
    forgotten: bool,
}

impl Statements {
    fn entry_mut(&mut self, name: &[u8]) -> Option<&mut Entry> {
        if name.is_empty() { Some(&mut self.unnamed) } else { self.named.get_mut(name) }
    }

    fn entry(&self, name: &[u8]) -> Option<&Entry> {
        if name.is_empty() { Some(&self.unnamed) } else { self.named.get(name) }
    }

    /// One that is no longer wanted.
    fn discard(&mut self, prepared: Option<Prepared>) {
        let Some(prepared) = prepared else { return };
        self.bytes -= prepared.raw.len();
        // A large one would hold its memory as long as the session lasts.
        if prepared.raw.capacity() <= SPARE_MAX {
            self.spare = prepared;
        }
    }

    fn tidy(&mut self, name: &[u8]) {
        if self.named.get(name).is_some_and(Entry::is_empty) {
            self.named.remove(name);
        }
    }

    /// A Parse was sent. Gives its number.
    pub(super) fn sent(&mut self, name: &[u8], raw: Option<&[u8]>, text: Text) -> u32 {
        self.sent = self.sent.wrapping_add(1);
        let number = self.sent;
        if !name.is_empty() && !self.named.contains_key(name) {
            if self.named.len() >= STATEMENTS_MAX {
                self.forgotten = true;
                return number;
            }
            self.named.insert(name.into(), Entry::default());
        }
        let raw = raw.filter(|raw| {
            raw.len() <= STATEMENT_BYTES_MAX && self.bytes + raw.len() <= STATEMENTS_BYTES_MAX
        });
        let mut prepared = match name {
            [] => std::mem::take(&mut self.spare),
            _ => Prepared::default(),
        };
        prepared.set(raw, text);
        self.bytes += prepared.raw.len();
        if let Some(entry) = self.entry_mut(name) {
            entry.coming.push_back((number, prepared));
        }
        number
    }

    fn take(&mut self, name: &[u8], number: u32) -> Option<Prepared> {
        let entry = self.entry_mut(name)?;
        let at = entry.coming.iter().position(|(known, _)| *known == number)?;
        entry.coming.remove(at).map(|(_, prepared)| prepared)
    }

    /// It is there.
    pub(super) fn completed(&mut self, name: &[u8], number: u32) {
        let Some(prepared) = self.take(name, number) else { return };
        let old = self.entry_mut(name).and_then(|entry| entry.now.replace(prepared));
        self.discard(old);
    }

    /// It will not be there: it failed itself, or it was overlooked after something else did.
    pub(super) fn failed(&mut self, name: &[u8], number: u32, overlooked: bool) {
        let taken = self.take(name, number);
        self.discard(taken);
        if name.is_empty() && !overlooked {
            // A failed Parse takes the unnamed statement with it.
            self.closed(name);
        }
        self.tidy(name);
    }

    /// A Close was answered.
    pub(super) fn closed(&mut self, name: &[u8]) {
        let old = self.entry_mut(name).and_then(|entry| entry.now.take());
        self.discard(old);
        self.tidy(name);
    }

    /// A simple query takes the unnamed statement with it.
    pub fn drop_unnamed(&mut self) {
        while let Some((_, coming)) = self.unnamed.coming.pop_front() {
            self.discard(Some(coming));
        }
        self.closed(b"");
    }

    /// DEALLOCATE ALL, DISCARD ALL.
    pub(super) fn clear(&mut self) {
        self.retain(|_| false);
        self.forgotten = false;
    }

    /// The server is gone: what it has not answered will not be there.
    pub(super) fn drop_coming(&mut self) {
        self.unnamed.coming.clear();
        self.named.retain(|_, entry| {
            entry.coming.clear();
            entry.now.is_some()
        });
        self.count();
    }

    fn count(&mut self) {
        let entries = self.named.values().chain([&self.unnamed]);
        let all = entries.flat_map(|entry| {
            entry.now.iter().chain(entry.coming.iter().map(|(_, prepared)| prepared))
        });
        self.bytes = all.map(|prepared| prepared.raw.len()).sum();
    }

    /// What the newest one of this name says, answered or not.
    pub fn text_of(&self, name: &[u8]) -> Text {
        self.entry(name)
            .and_then(|entry| match entry.coming.back() {
                Some((_, coming)) => Some(coming.text),
                None => entry.now.as_ref().map(|now| now.text),
            })
            .unwrap_or(Text::UNKNOWN)
    }

    /// One that was sent under this number and is not answered.
    pub(super) fn coming(&self, name: &[u8], number: u32) -> Option<&Prepared> {
        let coming = &self.entry(name)?.coming;
        coming.iter().find(|(known, _)| *known == number).map(|(_, prepared)| prepared)
    }

    /// One that the server has.
    pub fn get(&self, name: &[u8]) -> Option<&Prepared> {
        self.entry(name)?.now.as_ref()
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
            !entry.is_empty()
        });
        self.count();
    }

    /// Is there one that cannot be made again, being beyond a limit?
    pub fn incomplete(&self) -> bool {
        self.forgotten || self.iter().any(|(_, prepared)| prepared.raw().is_none())
    }
}
