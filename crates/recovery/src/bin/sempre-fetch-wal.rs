//! `restore_command` for a restore without the whole program: `SPOOL FILE TARGET`.

use std::{env, path::Path, process::ExitCode};

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let [spool, file, target] = words.as_slice() else {
        eprintln!("usage: sempre-fetch-wal SPOOL FILE TARGET");
        return ExitCode::from(2);
    };
    match sempre_recovery::serve_segment(Path::new(spool), file, Path::new(target)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            // More than 125 ends the recovery: it is no answer that there is none.
            ExitCode::from(126)
        }
    }
}
