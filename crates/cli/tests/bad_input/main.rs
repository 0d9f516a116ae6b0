//! Bad input, on the real program: each gets a clear error (a code, what happened, why, and what
//! to do), and nothing is lost by it.

#[path = "../common/mod.rs"]
mod common;
mod rig;

mod arguments;
mod certificates;
mod clock;
mod config_file;
mod data_dir;
mod disk;
mod orders;
mod ports;
mod tokens;
