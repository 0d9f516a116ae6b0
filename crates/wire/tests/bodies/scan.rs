//! The scanner sees the same, however the stream is cut.

use sempre_wire::pg::{BUFFER_MIN, Piece, ScanError, Scanner, Side, WHOLE_MAX};

/// What a scanner saw: its pieces with the parts of a message put together.
#[derive(Debug, Default, PartialEq)]
pub struct Seen {
    pub messages: Vec<(u8, Vec<u8>)>,
    /// A long message that is not complete.
    pub open: Option<(u8, usize, Vec<u8>)>,
    pub error: Option<ScanError>,
    /// Bytes taken.
    pub taken: usize,
}

/// Drives a scanner as a proxy does: one buffer, a tail carried over.
pub fn drive(side: Side, pieces: &[&[u8]]) -> Seen {
    let mut scanner = Scanner::new(side);
    let (mut seen, mut buffer) = (Seen::default(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        let mut at = 0;
        loop {
            match scanner.next(&buffer[at..]) {
                Ok(Some(piece)) => {
                    assert!(piece.size() > 0);
                    assert_eq!(piece.raw(), &buffer[at..at + piece.size()]);
                    at += piece.size();
                    take(&mut seen, piece);
                }
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(scanner.next(&buffer[at..]), Err(error));
                    seen.error = Some(error);
                    seen.taken += at;
                    return seen;
                }
            }
        }
        buffer.drain(..at);
        seen.taken += at;
        assert!(buffer.len() < BUFFER_MIN, "{} bytes are held back", buffer.len());
        assert_eq!(scanner.at_boundary(), seen.open.is_none());
    }
    seen
}

fn take(seen: &mut Seen, piece: Piece) {
    match piece {
        Piece::Whole(message) => {
            assert!(seen.open.is_none() && message.body.len() <= WHOLE_MAX);
            assert_eq!(message.raw.len(), message.body.len() + 5);
            seen.messages.push((message.tag, message.body.to_vec()));
        }
        Piece::Begin { tag, length, head, .. } => {
            assert!(seen.open.is_none() && head.len() == WHOLE_MAX && length > WHOLE_MAX);
            seen.open = Some((tag, length, head.to_vec()));
        }
        Piece::Part { tag, bytes, last } => {
            let (open_tag, length, body) = seen.open.as_mut().expect("a message is open");
            body.extend_from_slice(bytes);
            assert_eq!(*open_tag, tag);
            assert!(body.len() <= *length);
            assert_eq!(last, body.len() == *length);
            if last {
                let (tag, _, body) = seen.open.take().expect("a message is open");
                seen.messages.push((tag, body));
            }
        }
    }
}

/// Any bytes, cut anyhow, on either side.
pub fn any(bytes: &[u8], cuts: &[u8]) {
    for side in [Side::Frontend, Side::Backend] {
        let whole = drive(side, &[bytes]);
        assert_eq!(whole, drive(side, &super::pieces(bytes, cuts)));
        assert!(whole.taken <= bytes.len());
    }
}
