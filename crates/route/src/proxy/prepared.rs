//! Transaction pooling: prepared statements of the protocol, whichever connection they run on.
//!
//! Each text has one name on all server connections of a router ([`Registry`]). A client's names
//! are replaced by those on the way to the server. A connection that does not know a statement
//! yet gets its Parse in front of the message that uses it. Answers carry no names.
//!
//! A statement that was sent is surely there only when a cycle ended without an error; until then
//! it is sent again in each further cycle, as an error makes the server overlook the rest of one.

use super::{link::Link, session::Session};
use sempre_wire::pg::{
    BindNames, Parse, Piece, Scanner, Side,
    track::{Tracker, Whose},
    write,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// Texts of which a router keeps the names, before it forgets those that no client uses.
const TEXTS_MAX: usize = 20_000;
/// Names of one client; with more it keeps its server connection.
const NAMES_MAX: usize = 1_000;
/// A name that no statement has: closing it is answered, and does nothing.
const NOBODY: &[u8] = b"sempre_none";
/// What all names on servers begin with; a number follows.
const PREFIX: &[u8] = b"sempre_p";

/// A text, with its parameters' types, and its name on servers.
pub(crate) struct Shared {
    number: u64,
    name: Vec<u8>,
    /// What stands behind the name in its Parse.
    behind: Arc<[u8]>,
}

/// All texts.
#[derive(Default)]
pub(crate) struct Registry {
    inner: Mutex<(u64, Texts)>,
}

/// By what stands behind the name in a Parse.
type Texts = HashMap<Arc<[u8]>, Arc<Shared>>;

impl Registry {
    fn get(&self, behind: &[u8]) -> Arc<Shared> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let (next, texts) = &mut *inner;
        if let Some(shared) = texts.get(behind) {
            return shared.clone();
        }
        if texts.len() >= TEXTS_MAX {
            texts.retain(|_, shared| Arc::strong_count(shared) > 1);
        }
        *next += 1;
        let behind: Arc<[u8]> = behind.into();
        let name = [PREFIX, next.to_string().as_bytes()].concat();
        let shared = Arc::new(Shared { number: *next, name, behind: behind.clone() });
        texts.insert(behind, shared.clone());
        shared
    }
}

/// What a server connection knows.
#[derive(Default)]
pub(crate) struct Known {
    statements: HashMap<u64, State>,
    /// Those that are not sure yet.
    fresh: Vec<u64>,
    /// An error came since.
    failed: bool,
    cycle: u64,
    clock: u64,
}

struct State {
    used: u64,
    /// It was sent in this cycle; none: it is surely there.
    since: Option<u64>,
    name: Vec<u8>,
}

impl Known {
    pub fn clear(&mut self) {
        self.statements.clear();
        self.fresh.clear();
    }

    /// A message that ends a cycle is sent.
    pub fn cycle_ends(&mut self) {
        self.cycle += 1;
    }

    /// The server said that something failed.
    pub fn failed(&mut self) {
        self.failed = true;
    }

    /// Is it possible that a Parse of ours failed?
    pub fn is_fresh(&self) -> bool {
        !self.fresh.is_empty()
    }

    /// Everything that was sent is answered.
    pub fn all_answered(&mut self) {
        let failed = std::mem::take(&mut self.failed);
        for number in self.fresh.drain(..) {
            if failed {
                self.statements.remove(&number);
            } else if let Some(state) = self.statements.get_mut(&number) {
                state.since = None;
            }
        }
    }

    /// It is used now. True: it is there.
    fn uses(&mut self, shared: &Shared) -> bool {
        self.clock += 1;
        let Some(state) = self.statements.get_mut(&shared.number) else { return false };
        state.used = self.clock;
        state.since.is_none_or(|since| since == self.cycle)
    }

    /// It is sent now. What has to go for it is named.
    fn sends(&mut self, shared: &Shared, limit: usize) -> Option<Vec<u8>> {
        self.clock += 1;
        let state = State { used: self.clock, since: Some(self.cycle), name: shared.name.clone() };
        self.statements.insert(shared.number, state);
        self.fresh.push(shared.number);
        if self.statements.len() <= limit.max(1) {
            return None;
        }
        let oldest = self.statements.iter().min_by_key(|(_, state)| state.used);
        let number = *oldest?.0;
        self.statements.remove(&number).map(|state| state.name)
    }
}

/// A client's names.
#[derive(Default)]
pub(crate) struct Names {
    names: HashMap<Box<[u8]>, Arc<Shared>>,
    /// The attachment in which the unnamed statement was last sent.
    unnamed: u64,
}

impl Names {
    pub fn clear(&mut self) {
        self.names.clear();
    }
}

impl Session<'_> {
    /// Does the message use a statement of which answers will decide which one it is?
    pub(super) fn is_open_name(&self, tag: u8, body: &[u8]) -> bool {
        let name = match (tag, body) {
            (b'B', _) => BindNames::decode(body).map_or(&b""[..], |names| names.statement),
            (b'D', [b'S', rest @ ..]) => rest.split(|byte| *byte == 0).next().unwrap_or_default(),
            _ => b"",
        };
        !name.is_empty() && self.tracker.statement_is_open(name)
    }

    /// The client's message under names that all connections share. None: as it came.
    pub(super) fn renamed(&mut self, tag: u8, body: &[u8], piece: &Piece<'_>) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        match (tag, piece) {
            (b'P', Piece::Whole(_)) => {
                let name = Parse::name_of(body).ok()?;
                let behind = &body[name.len() + 1..];
                if name.is_empty() {
                    self.names.unnamed = self.attached;
                    return None;
                }
                if self.names.names.len() >= NAMES_MAX {
                    self.pinned_for_good = true;
                    return None;
                }
                let shared = self.proxy.pools.statements.get(behind);
                self.names.names.insert(name.into(), shared.clone());
                self.make_known(&mut out, &shared, true);
                write::message(&mut out, b'P', |out| {
                    out.extend_from_slice(&shared.name);
                    out.push(0);
                    out.extend_from_slice(behind);
                });
            }
            // Too long to be kept.
            (b'P', _) => {
                let name = Parse::name_of(body).unwrap_or(b"?");
                match name {
                    [] => self.names.unnamed = self.attached,
                    _ => self.pinned_for_good = true,
                }
                return None;
            }
            (b'B', _) => {
                let names = BindNames::decode(body).ok()?;
                let Some(shared) = self.shared(names.statement, &mut out) else {
                    return self.with_raw(out, piece);
                };
                self.make_known(&mut out, &shared, false);
                match piece {
                    Piece::Begin { length, .. } => {
                        write::bind_begin(
                            &mut out,
                            names.portal,
                            &shared.name,
                            *length,
                            names.size,
                        );
                        out.extend_from_slice(&body[names.size..]);
                    }
                    _ => write::bind_renamed(
                        &mut out,
                        names.portal,
                        &shared.name,
                        &body[names.size..],
                    ),
                }
            }
            (b'D' | b'C', Piece::Whole(_)) if body.first() == Some(&b'S') => {
                let name = body[1..].split(|byte| *byte == 0).next().unwrap_or_default();
                if tag == b'D' {
                    let Some(shared) = self.shared(name, &mut out) else {
                        return self.with_raw(out, piece);
                    };
                    self.make_known(&mut out, &shared, false);
                    write::describe_statement(&mut out, &shared.name);
                } else {
                    self.names.names.remove(name)?;
                    write::close_statement(&mut out, NOBODY);
                }
            }
            _ => return None,
        }
        Some(out)
    }

    /// An error of the client's that names a statement, with the client's name for it. None: it
    /// names none.
    pub(super) fn renamed_back(&self, piece: &Piece<'_>) -> Option<Vec<u8>> {
        let Piece::Whole(message) = piece else { return None };
        if !self.renames() {
            return None;
        }
        let at = message.body.windows(PREFIX.len()).position(|part| part == PREFIX)?;
        let (before, found) = message.body.split_at(at);
        let digits = found[PREFIX.len()..].iter().take_while(|byte| byte.is_ascii_digit());
        let (found, behind) = found.split_at(PREFIX.len() + digits.count());
        // By the text: under a name of the client's there may be another one on its way already.
        let texts = &self.proxy.pools.statements;
        let (name, _) = self.tracker.statements().iter().find(|(name, prepared)| {
            let behind = prepared.raw().and_then(|raw| raw.get(5 + name.len() + 1..));
            behind.is_some_and(|behind| texts.get(behind).name == found)
        })?;
        let mut out = Vec::new();
        write::message(&mut out, message.tag, |out| {
            out.extend_from_slice(&[before, name, behind].concat());
        });
        Some(out)
    }

    /// The message as it came, behind `out`.
    fn with_raw(&mut self, mut out: Vec<u8>, piece: &Piece<'_>) -> Option<Vec<u8>> {
        if out.is_empty() {
            return None;
        }
        match piece {
            Piece::Whole(message) => out.extend_from_slice(message.raw),
            Piece::Begin { raw, .. } => out.extend_from_slice(raw),
            Piece::Part { bytes, .. } => out.extend_from_slice(bytes),
        }
        Some(out)
    }

    /// The statement of a client's name. The unnamed one is sent again, where that was elsewhere.
    fn shared(&mut self, name: &[u8], out: &mut Vec<u8>) -> Option<Arc<Shared>> {
        if name.is_empty() {
            if self.names.unnamed != self.attached {
                self.names.unnamed = self.attached;
                let raw = self.tracker.statements().get(b"").and_then(|s| s.raw());
                let raw = raw.map(<[u8]>::to_vec);
                inject(&mut self.tracker, out, |out| match &raw {
                    Some(raw) => out.extend_from_slice(raw),
                    // What another client left there is none of this one.
                    None => write::close_statement(out, b""),
                });
            }
            return None;
        }
        // What was sent under a name may have failed, or been overlooked: then it is another one.
        let behind = self.tracker.statement(name)?.raw()?.get(5 + name.len() + 1..)?;
        let known = self.names.names.get(name).filter(|shared| *shared.behind == *behind);
        if let Some(shared) = known {
            return Some(shared.clone());
        }
        let shared = self.proxy.pools.statements.get(behind);
        self.names.names.insert(name.into(), shared.clone());
        Some(shared)
    }

    /// Makes the connection know a statement; `parsed`: its Parse follows anyway.
    fn make_known(&mut self, out: &mut Vec<u8>, shared: &Shared, parsed: bool) {
        let limit = self.proxy.settings.pool.max_prepared_statements;
        let Some(Link { known, .. }) = &mut self.link else { return };
        if known.uses(shared) && !parsed {
            return;
        }
        if let Some(gone) = known.sends(shared, limit) {
            inject(&mut self.tracker, out, |out| write::close_statement(out, &gone));
        }
        // It may be there already. Closing what is not there is no error.
        inject(&mut self.tracker, out, |out| write::close_statement(out, &shared.name));
        if !parsed {
            inject(&mut self.tracker, out, |out| {
                write::message(out, b'P', |out| {
                    out.extend_from_slice(&shared.name);
                    out.push(0);
                    out.extend_from_slice(&shared.behind);
                });
            });
        }
    }
}

/// A message of ours.
fn inject(tracker: &mut Tracker, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    write(out);
    let mut scanner = Scanner::new(Side::Frontend);
    let mut at = start;
    while let Ok(Some(piece)) = scanner.next(&out[at..]) {
        // There is always room for them: the client stops well before the limit.
        let _ = tracker.sent(Whose::Proxy, &piece);
        at += piece.size();
    }
}
