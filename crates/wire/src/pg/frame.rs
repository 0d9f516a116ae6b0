//! Where messages end, without looking into them.

/// Type byte and length.
const HEADER: usize = 5;
/// The longest message PostgreSQL itself sends or takes, bytes (its allocation limit).
const MESSAGE_MAX: u32 = 0x3FFF_FFFF;

/// Follows a stream of typed messages and knows whether it stands between two of them.
///
/// It counts lengths only: no buffering, no allocation, any split of the stream into pieces.
/// A stream that is not PostgreSQL's is never "at a boundary" again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Framer {
    header: [u8; HEADER],
    /// Bytes of `header` that are there; 0 between messages, `HEADER` inside a body.
    have: usize,
    body_left: usize,
    last: u8,
    messages: u64,
    broken: bool,
}

impl Framer {
    /// At the beginning of a stream, before its first message.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the stream.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.broken {
            if self.body_left > 0 {
                let take = self.body_left.min(bytes.len());
                self.body_left -= take;
                bytes = &bytes[take..];
                if self.body_left == 0 {
                    self.complete(self.header[0]);
                }
                continue;
            }
            // The common case: the whole header is here.
            if self.have == 0 && bytes.len() >= HEADER {
                self.header.copy_from_slice(&bytes[..HEADER]);
                bytes = &bytes[HEADER..];
            } else {
                let take = (HEADER - self.have).min(bytes.len());
                self.header[self.have..self.have + take].copy_from_slice(&bytes[..take]);
                self.have += take;
                bytes = &bytes[take..];
                if self.have < HEADER {
                    return;
                }
            }
            self.have = HEADER;
            let [kind, length @ ..] = self.header;
            match u32::from_be_bytes(length) {
                4 => self.complete(kind),
                length @ 5..=MESSAGE_MAX => self.body_left = length as usize - 4,
                _ => self.broken = true,
            }
        }
    }

    fn complete(&mut self, kind: u8) {
        self.have = 0;
        self.last = kind;
        self.messages += 1;
    }

    /// Is the stream between two messages (or before the first)?
    pub fn at_boundary(&self) -> bool {
        self.have == 0 && !self.broken
    }

    /// The type of the newest complete message.
    pub fn last_type(&self) -> Option<u8> {
        (self.messages > 0).then_some(self.last)
    }

    /// Complete messages so far.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Did a length come that no message has?
    pub fn is_broken(&self) -> bool {
        self.broken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stream(messages: &[(u8, Vec<u8>)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (kind, body) in messages {
            out.push(*kind);
            out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
            out.extend_from_slice(body);
        }
        out
    }

    /// The whole prefix at once, as slowly and plainly as it can be said.
    fn reference(prefix: &[u8]) -> (bool, u64, Option<u8>) {
        let (mut at, mut messages, mut last) = (0, 0, None);
        loop {
            let rest = &prefix[at..];
            if rest.is_empty() {
                return (true, messages, last);
            }
            if rest.len() < 5 {
                return (false, messages, last);
            }
            let whole = 1 + u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
            if rest.len() < whole {
                return (false, messages, last);
            }
            (at, messages, last) = (at + whole, messages + 1, Some(rest[0]));
        }
    }

    #[test]
    fn a_length_that_no_message_has_breaks_the_stream() {
        for bad in [b"Z\0\0\0\x03", b"Z\xff\xff\xff\xff", b"HTTP/"] {
            let mut framer = Framer::new();
            framer.feed(bad);
            assert!(framer.is_broken() && !framer.at_boundary());
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_reference_at_every_cut(
            messages in proptest::collection::vec(
                (any::<u8>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..12),
            pieces in proptest::collection::vec(1usize..23, 1..40),
        ) {
            let bytes = stream(&messages);
            let mut framer = Framer::new();
            let mut at = 0;
            for piece in pieces.iter().cycle() {
                prop_assert_eq!(
                    (framer.at_boundary(), framer.messages(), framer.last_type()),
                    reference(&bytes[..at])
                );
                if at == bytes.len() {
                    break;
                }
                let end = (at + piece).min(bytes.len());
                framer.feed(&bytes[at..end]);
                at = end;
            }
        }

        #[test]
        fn no_stream_panics(pieces: Vec<Vec<u8>>) {
            let mut framer = Framer::new();
            for piece in &pieces {
                framer.feed(piece);
            }
        }
    }
}
