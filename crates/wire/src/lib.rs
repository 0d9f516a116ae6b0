//! Database wire protocols without IO: bytes in, meaning out.
//!
//! Nothing here reads a socket, a clock or a random number. Every parser is bounded, and no
//! input makes one panic.

pub mod pg;
