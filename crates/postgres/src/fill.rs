//! A data directory that somebody else fills: from a backup, say. Until that is done it is nobody's.

use crate::{Instance, Result, files, init::refuse_root};
use sempre_model::ids::{Lsn, Timeline};

impl Instance {
    /// What is in the data directory counts no more, but may be used to fill it anew. Interrupted, it
    /// leaves a directory that [`Instance::inspect`] calls unfinished. The server must be stopped.
    pub fn begin_filling(&self) -> Result<()> {
        refuse_root()?;
        self.refuse_running("replace")?;
        self.prepare_dirs()?;
        files::write_atomically(&self.rewind_marker(), "filling began here and did not end\n")?;
        let data_dir = &self.layout.data_dir;
        if let Some(parent) = data_dir.parent() {
            files::private_dir(parent)?;
        }
        files::remove_file(&data_dir.join("postmaster.pid")).map(|_| ())
    }

    /// What is free on the file system of the data directory, bytes.
    pub fn free_bytes(&self) -> Result<u64> {
        files::free_bytes(&self.layout.data_dir)
    }

    /// Where the WAL of a standby that is being filled ends, and on which timeline.
    pub async fn end_of_filled_wal(&self) -> Result<(Timeline, Lsn)> {
        let end = self.scan(self.control_data()?, true, None).await?;
        Ok((end.timeline, end.lsn))
    }

    /// It is whole, and a standby's.
    pub fn end_filling(&self) -> Result<()> {
        self.prepare_role(true)?;
        files::remove_file(&self.rewind_marker()).map(|_| ())
    }
}
