//! What a client's messages mean for the split: looked at on their way up.

use super::begin::Begin;
use crate::{
    Role,
    proxy::{
        pump::{Event, Loss},
        session::Session,
        up::Stop,
    },
};
use sempre_wire::pg::{
    BindNames, Parse, Piece,
    track::{Hints, Text, Whose},
};

impl Session<'_> {
    /// Has a client's message to wait for a change of the connection?
    pub(in crate::proxy) fn around_split(
        &mut self,
        tag: u8,
        body: &[u8],
        whole: bool,
    ) -> Option<Stop> {
        if !self.splits() {
            return None;
        }
        if !self.apart.on {
            let may = whole && !self.open && !self.apart.declined && !self.apart.stays;
            if !may || self.begins(tag, body).is_none() {
                return None;
            }
            // Drivers close their statements just before, without waiting for the answer.
            if self.tracker.pending().len() > 0 {
                return Some(Stop::Wait);
            }
            let goes = self.is_idle() && self.may_leave();
            return goes.then_some(Stop::Event(Event::Split));
        }
        if !std::mem::replace(&mut self.apart.begun, true) {
            return None;
        }
        if self.is_idle() {
            return Some(Stop::Event(Event::SplitEnds));
        }
        // Behind the end of the transaction, or before it is sure to have begun.
        let any = |hints| self.tracker.pending().any(|p| p.text.hints.any(hints));
        let ends = Hints::COMMITS | Hints::ROLLS_BACK | Hints::TWO_PHASE;
        let inside = (self.tracker.in_block() || any(Hints::BEGINS)) && !any(ends);
        if !self.open && self.tracker.pending().len() > 0 && !inside {
            return Some(Stop::Wait);
        }
        if whole && self.is_unsuited(tag, body) {
            let between = self.link.as_ref().is_none_or(|link| link.down.at_boundary());
            return Some(match between {
                true => Stop::Event(Event::Lost(Loss::Unsuited)),
                false => Stop::Wait,
            });
        }
        None
    }

    /// The read-only transaction that this message begins.
    fn begins(&self, tag: u8, body: &[u8]) -> Option<Begin> {
        let begin = match tag {
            b'Q' => Begin::read(string(body)),
            b'P' => Begin::read(Parse::decode(body).ok()?.text),
            b'B' => {
                let name = BindNames::decode(body).ok()?.statement;
                let raw = self.tracker.statements().get(name)?.raw()?;
                Begin::read(Parse::decode(raw.get(5..)?).ok()?.text)
            }
            _ => None,
        }?;
        let default = || self.parameter(b"default_transaction_read_only") == Some(b"on");
        begin.read_only.unwrap_or_else(default).then_some(begin)
    }

    /// Can the session leave its connection and come back?
    fn may_leave(&self) -> bool {
        let quiet = self.link.as_ref().is_none_or(|link| {
            link.role == Role::Primary && link.out.is_empty() && link.kept.is_empty()
        });
        quiet
            && !self.tracker.is_out_of_step()
            && !self.touched.any(Hints::STATE)
            && !self.carried.listens()
            && self.carried.stuck(self.tracker.statements()).is_none()
    }

    /// Would this mean something else on a standby, or leave something there?
    fn is_unsuited(&self, tag: u8, body: &[u8]) -> bool {
        let (text, sql) = match tag {
            b'Q' => (Text::of(string(body), true), string(body)),
            b'P' => match Parse::decode(body) {
                Ok(parse) => (Text::of(parse.text, true), parse.text),
                Err(_) => return false,
            },
            b'B' => match BindNames::decode(body) {
                Ok(names) => (self.tracker.statements().text_of(names.statement), &b""[..]),
                Err(_) => return false,
            },
            _ => return false,
        };
        let declares =
            sql.trim_ascii().get(..7).is_some_and(|w| w.eq_ignore_ascii_case(b"declare"));
        let ends = Hints::COMMITS | Hints::ROLLS_BACK | Hints::TWO_PHASE;
        text.hints.any(Hints::ADVISORY)
            || (declares && text.hints.any(Hints::HELD))
            || (tag == b'Q' && text.statements > 1 && text.hints.any(ends))
    }

    /// The read-only transaction that the client's next message begins.
    pub(super) fn next_begin(&self) -> Option<Begin> {
        let piece = self.up.clone().next(&self.from_client).ok()??;
        match piece {
            Piece::Whole(message) => self.begins(message.tag, message.body),
            _ => None,
        }
    }

    /// A message of the client goes to its server.
    pub(in crate::proxy) fn split_sent(&mut self, tag: u8) {
        self.apart.declined = false;
        if !self.apart.on && matches!(tag, b'Q' | b'E' | b'F') {
            let newest = self.tracker.pending().last().filter(|p| p.whose == Whose::Client);
            self.apart.position.runs(newest.map_or(Text::UNKNOWN, |p| p.text));
        }
    }
}

/// The string at the front of a message's body.
fn string(body: &[u8]) -> &[u8] {
    body.split(|byte| *byte == 0).next().unwrap_or_default()
}
