//! What must hold for any input. Each body is run by `cargo test` with generated input, and by a
//! fuzz target of the same name in `fuzz/`.

#![allow(dead_code)] // each test file uses its part

pub mod decode;
pub mod scan;
pub mod scram;
pub mod script;
pub mod text;
pub mod track;

/// Cuts `bytes` into pieces as long as `cuts` says, over and over. No cuts: all at once.
pub fn pieces<'a>(bytes: &'a [u8], cuts: &[u8]) -> Vec<&'a [u8]> {
    if cuts.is_empty() {
        return vec![bytes];
    }
    let mut cuts = cuts.iter().cycle();
    let (mut rest, mut pieces) = (bytes, Vec::new());
    while !rest.is_empty() {
        // Now and then a long one, or long messages would take for ever.
        let length = match cuts.next().copied().unwrap_or(u8::MAX) {
            0 => 1,
            length @ 1..=200 => usize::from(length),
            length => usize::from(length - 200) * 1_000,
        };
        let (piece, behind) = rest.split_at(length.min(rest.len()));
        pieces.push(piece);
        rest = behind;
    }
    pieces
}
