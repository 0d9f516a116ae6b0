//! The server's own log.

use crate::Instance;
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
};

/// The most of the log's end that is read, bytes.
const TAIL_BYTES: u64 = 64 << 10;

impl Instance {
    /// The last lines the server logged, oldest first; empty when there is no log. For errors:
    /// why it did not start is in there.
    pub fn tail_log(&self, lines: usize) -> Vec<String> {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = File::open(&self.layout.log_file)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
            let mut bytes = Vec::new();
            file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let Ok(bytes) = read() else { return Vec::new() };
        let text = String::from_utf8_lossy(&bytes);
        let all: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
        all[all.len().saturating_sub(lines)..].iter().map(|l| (*l).to_owned()).collect()
    }
}
