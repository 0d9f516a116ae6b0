//! Write-ahead log in a repository: whole segments, pieces of those that are not whole yet, and the
//! histories of timelines.
//!
//! A segment that is being filled is an object that grows, frame by frame; each frame is durable before the
//! server hears of it. Once the segment is whole it is stored as one object, and what the pieces held goes.
//! A piece whose segment never became whole (its primary was lost) stays: what it holds was acknowledged.

mod fence;
mod fetch;
mod names;
mod trim;
mod verify;
mod writer;

pub use fetch::{Fetched, Piece, WalList};
pub use names::{SegmentName, segment_name};
pub use writer::WalWriter;
