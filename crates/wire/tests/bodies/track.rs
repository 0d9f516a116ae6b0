//! Any conversation, sensible or not: the tracker neither panics nor grows beyond its limits, and
//! whatever state it is in, a lost server can be settled and the next one be followed.

use sempre_wire::pg::track::{
    Outlook, PENDING_MAX, STATEMENTS_BYTES_MAX, STATEMENTS_MAX, Settled, StandIn, Tracker, Whose,
};
use sempre_wire::pg::{Piece, Scanner, Side, TransactionStatus, WHOLE_MAX};

use super::script::{error, tags};

/// Each byte pair of `moves` picks who speaks and how; `bytes` are the bodies.
pub fn any(moves: &[(u8, u8)], bytes: &[u8]) {
    let mut tracker = Tracker::new();
    for (at, (who, what)) in moves.iter().enumerate() {
        let body = &bytes[at.min(bytes.len())..bytes.len().min(at + usize::from(*what))];
        let long = *who & 0x40 != 0 && *what > 240;
        match who % 16 {
            0 => {
                let mut out = Vec::new();
                let error = error("40001");
                let settled = match who & 0x80 {
                    0 => Settled::Failed(&error),
                    _ => Settled::Committed { rest: &error },
                };
                let before = tracker.outlook();
                if tracker.settle(settled, &mut out).is_ok() {
                    assert_eq!(tracker.pending().len(), 0);
                    assert_ne!(tracker.status(), TransactionStatus::InBlock, "{before:?}");
                    assert!(!before.eq(&Outlook::Quiet) || out.is_empty());
                } else {
                    assert!(out.is_empty());
                }
                let _ = tags(&out);
            }
            1..=7 => {
                let tags = b"QPBDECHSFdcfX";
                let tag = tags[usize::from(*what) % tags.len()];
                if tracker.stands_in() {
                    let mut out = Vec::new();
                    each(Side::Frontend, tag, body, long, |piece| {
                        if tracker.stands_in() {
                            let said = tracker.stand_in(piece, &mut out);
                            assert_eq!(said == StandIn::Forward, tag == b'X');
                        }
                    });
                    let _ = self::tags(&out);
                } else {
                    let whose = if *who & 0x20 == 0 { Whose::Client } else { Whose::Proxy };
                    each(Side::Frontend, tag, body, long, |piece| {
                        let full = !tracker.has_room(1);
                        assert!(tracker.sent(whose, piece).is_ok() || full);
                    });
                }
            }
            _ => {
                let tags = b"ZC123nTtDEENSAGHWcdsIVRK";
                let tag = tags[usize::from(*what) % tags.len()];
                each(Side::Backend, tag, body, long, |piece| {
                    let _ = tracker.heard(piece);
                });
            }
        }
        assert!(tracker.pending().len() <= PENDING_MAX);
        let _ = (tracker.outlook(), tracker.is_idle(), tracker.commit_in_flight());
    }
    let kept: usize =
        tracker.statements().iter().filter_map(|(_, prepared)| Some(prepared.raw()?.len())).sum();
    assert!(
        kept <= STATEMENTS_BYTES_MAX && tracker.statements().iter().count() <= STATEMENTS_MAX + 1
    );
}

/// A message of this type, short or long, in its pieces.
fn each(side: Side, tag: u8, body: &[u8], long: bool, mut each: impl FnMut(&Piece)) {
    let mut message = Vec::new();
    let long = long && !(side == Side::Frontend && b"DECHSXcf".contains(&tag));
    sempre_wire::pg::write::message(&mut message, tag, |out| {
        out.extend_from_slice(body);
        if long {
            out.resize(out.len() + 3 * WHOLE_MAX, b' ');
        }
    });
    let (mut scanner, mut at) = (Scanner::new(side), 0);
    while at < message.len() {
        let end = message.len().min(at + 2 * WHOLE_MAX);
        let piece = scanner.next(&message[at..end]).unwrap().unwrap();
        at += piece.size();
        each(&piece);
    }
}
