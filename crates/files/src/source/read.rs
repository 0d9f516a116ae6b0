//! A file that is read, watched.

use super::Watch;
use std::{
    fs::{File, Metadata},
    io::{self, ErrorKind, Read},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::Arc,
};

/// A file from its beginning to the end it had when it was opened: what is appended meanwhile belongs to the
/// next backup, so that size and contents are of one moment as far as they can be.
pub(crate) struct Reading {
    file: File,
    path: PathBuf,
    opened: Metadata,
    left: u64,
    watch: Arc<Watch>,
}

impl Reading {
    pub(crate) fn new(file: File, path: PathBuf, opened: Metadata, watch: Arc<Watch>) -> Self {
        let left = opened.len();
        Self { file, path, opened, left, watch }
    }

    fn failed(&self, error: io::Error) -> io::Error {
        self.watch.trouble(&self.path, &error);
        error
    }

    fn note_change(&self) {
        let stamp = |m: &Metadata| (m.mtime(), m.mtime_nsec(), m.len());
        if !self.file.metadata().is_ok_and(|now| stamp(&now) == stamp(&self.opened)) {
            Watch::count(&self.watch.changed);
        }
    }
}

impl Read for Reading {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let got = loop {
            match self.file.read(&mut buffer[..wanted]) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
                Ok(0) => {
                    let why = format!("it became {} bytes shorter while it was read", self.left);
                    return Err(self.failed(io::Error::new(ErrorKind::UnexpectedEof, why)));
                }
                Ok(got) => break got,
            }
        };
        self.left -= got as u64;
        self.watch.throttle.passed(got as u64);
        if self.left == 0 {
            self.note_change();
        }
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, io::Write};

    fn opened(path: &std::path::Path, watch: &Arc<Watch>) -> Reading {
        let file = File::open(path).unwrap();
        let metadata = file.metadata().unwrap();
        Reading::new(file, path.to_owned(), metadata, watch.clone())
    }

    #[test]
    fn what_is_appended_is_left_out_and_what_is_cut_off_is_trouble() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, [7; 1000]).unwrap();
        let watch = Arc::new(Watch::default());

        let mut reading = opened(&path, &watch);
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"more").unwrap();
        let mut read = Vec::new();
        reading.read_to_end(&mut read).unwrap();
        assert_eq!(read, [7; 1000]);
        assert!(watch.verdict().is_ok());
        assert_eq!(watch.changed.load(std::sync::atomic::Ordering::Relaxed), 1);

        let mut reading = opened(&path, &watch);
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(10).unwrap();
        assert!(reading.read_to_end(&mut read).is_err());
        let said = watch.verdict().unwrap_err().to_string();
        assert!(said.contains("994 bytes shorter") && said.contains("no snapshot"), "{said}");
    }
}
