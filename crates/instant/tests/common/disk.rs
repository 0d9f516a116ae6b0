//! A disk that can lose its power: what was not on it by then is lost.

use anyhow::{Result, ensure};
use std::{
    fs::{self, File},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

const BYTES: u64 = 3 << 30;
/// Not even the journal is written.
const WITHOUT_FLUSH: u32 = 2;

nix::ioctl_read!(shut_down, b'X', 125, u32);

/// An ext4 file system in a file.
pub struct Disk {
    image: PathBuf,
    pub at: PathBuf,
}

fn run(program: &str, args: &[&Path]) -> Result<()> {
    let output = Command::new(program).args(args).output()?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl Disk {
    pub fn new(image: PathBuf, at: PathBuf) -> Result<Self> {
        File::create(&image)?.set_len(BYTES)?;
        run("mkfs.ext4", &[Path::new("-q"), &image])?;
        fs::create_dir(&at)?;
        let disk = Self { image, at };
        disk.mount()?;
        Ok(disk)
    }

    pub fn mount(&self) -> Result<()> {
        run("mount", &[Path::new("-o"), Path::new("loop"), &self.image, &self.at])
    }

    /// From now on nothing is written any more.
    pub fn cut_power(&self) -> Result<()> {
        let root = File::open(&self.at)?;
        let mut how = WITHOUT_FLUSH;
        // SAFETY: the kernel reads a `u32` there (`EXT4_IOC_SHUTDOWN`).
        unsafe { shut_down(root.as_raw_fd(), &raw mut how) }?;
        Ok(())
    }

    /// What is mounted on it goes, too.
    pub fn unmount(&self) -> Result<()> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        for point in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
            if point != self.at.as_os_str() && Path::new(point).starts_with(&self.at) {
                run("umount", &[Path::new("--lazy"), Path::new(point)])?;
            }
        }
        let patience = Instant::now() + Duration::from_secs(20);
        loop {
            match run("umount", &[&self.at]) {
                Err(_) if Instant::now() < patience => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                unmounted => return unmounted,
            }
        }
    }
}
