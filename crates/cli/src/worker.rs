//! `sempre worker`: one job for an agent, in a process of its own.

use crate::{connect, fail::Fail, logs, privileges};
use sempre_recovery::{Job, Said};
use std::{
    io::{BufRead, Read, Write},
    sync::Arc,
    thread,
};

/// How nice a base backup is: whatever else the machine does comes first.
const NICE_OF_BACKUPS: i32 = 10;
/// WAL is waited for, as is a fence: like everybody else.
const NICE_OF_ARCHIVES: i32 = 0;

/// Reads the job, does it, and says what comes of it, in lines of JSON.
pub fn run() -> Result<(), Fail> {
    logs::start_with(crate::arguments::LogFormat::Text, logs::QUIET);
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    let job: Job = match read.map(|_| serde_json::from_str(&line)) {
        Ok(Ok(job)) => job,
        Ok(Err(error)) => return Err(Fail::usage("there is no job", error.to_string(), "")),
        Err(error) => return Err(Fail::usage("there is no job", error.to_string(), "")),
    };
    let nice = match &job {
        Job::Archive { .. } | Job::Fence { .. } => NICE_OF_ARCHIVES,
        Job::BaseBackup { .. } | Job::Fill(_) | Job::Drill(_) | Job::Files { .. } => {
            NICE_OF_BACKUPS
        }
    };
    privileges::be_nice(nice);
    // Who gave the job is gone when this ends, and nobody would hear of what comes of it.
    thread::spawn(|| {
        let _ = std::io::stdin().lock().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    connect::block_on_threads(async {
        let say = Arc::new(|said: Said| {
            let Ok(line) = serde_json::to_string(&said) else { return };
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        });
        let worked = {
            let say = say.clone();
            job.work(move |said| say(said)).await
        };
        say(match worked {
            Ok(worked) => Said::Done(worked),
            Err(error) => Said::Failed(error.to_string()),
        });
        Ok(())
    })
}
