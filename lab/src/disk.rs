//! A small real file system for a host, that can be filled up.

use crate::{shell, topology};
use anyhow::{Context, Result};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

/// The file that takes up all the space.
const BALLAST: &str = "ballast";

/// An ext4 file system in a file, mounted. Dropping it unmounts and removes it.
#[derive(Debug)]
pub struct Disk {
    mount: PathBuf,
    image: PathBuf,
    /// Leave the image when dropped.
    pub keep: bool,
}

impl Disk {
    /// Makes one of `bytes` (sparse) and mounts it at `mount`, which is made.
    pub fn new(mount: &Path, bytes: u64) -> Result<Self> {
        let image = mount.with_extension("ext4");
        fs::create_dir_all(mount)?;
        File::create(&image)?.set_len(bytes)?;
        // No space kept for root, or filling it up would leave the database some.
        shell::run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image))?;
        shell::run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(mount))
            .context("could not mount a loop device")?;
        Ok(Self { mount: mount.to_owned(), image, keep: false })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// Takes up all the space that is left.
    pub fn fill(&self) -> Result<()> {
        let ballast = File::create(self.mount.join(BALLAST))?;
        let flags = rustix::fs::FallocateFlags::empty();
        // Ever smaller pieces, so that not even one block is left.
        let (mut at, mut piece) = (0, 1 << 28);
        while piece >= 4096 {
            match rustix::fs::fallocate(&ballast, flags, at, piece) {
                Ok(()) => at += piece,
                Err(rustix::io::Errno::NOSPC) => piece /= 2,
                Err(error) => return Err(error).context("could not fill the disk"),
            }
        }
        Ok(())
    }

    /// Gives the space back.
    pub fn empty(&self) -> Result<()> {
        match fs::remove_file(self.mount.join(BALLAST)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("could not remove the ballast")
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.mount);
        if !self.keep {
            let _ = fs::remove_file(&self.image);
        }
    }
}

fn unmount(mount: &Path) {
    // Lazily: a process that is just being killed may still hold a file open.
    if let Err(error) = shell::run(Command::new("umount").arg("--lazy").arg(mount)) {
        eprintln!("lab: {error}");
    }
}

/// Unmounts what labs left behind that were killed themselves.
pub(crate) fn sweep() {
    let Ok(mounts) = fs::read_to_string("/proc/mounts") else { return };
    for mount in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        if Path::new(mount).iter().any(|part| topology::leftover(&part.to_string_lossy())) {
            unmount(Path::new(mount));
        }
    }
}
