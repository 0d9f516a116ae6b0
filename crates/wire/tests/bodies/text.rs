//! Any text, however it is cut, reads the same.

use sempre_wire::pg::track::{Text, TextScan};

/// Any bytes.
pub fn any(text: &[u8], cuts: &[u8]) {
    for standard in [true, false] {
        let mut scan = TextScan::new(standard);
        super::pieces(text, cuts).into_iter().for_each(|piece| scan.feed(piece));
        assert_eq!(scan.finish(), Text::of(text, standard));
    }
}
