//! The guard alone, for tests: `sempre-guard DIR`. In production it is `sempre guard --dir DIR`.

use std::{path::Path, process::ExitCode};

fn main() -> ExitCode {
    match std::env::args_os().nth(1) {
        Some(dir) => sempre_guard::main(Path::new(&dir)),
        None => {
            eprintln!("usage: sempre-guard DIR");
            ExitCode::from(2)
        }
    }
}
