//! A disk of the lab can really be full, and give its space back. Needs root.

use sempre_lab::disk::Disk;
use std::{fs, io::ErrorKind};

#[test]
#[ignore = "needs root: mounts a file system"]
fn a_full_disk_takes_nothing_until_it_is_emptied() {
    let root = std::env::temp_dir().join(format!("sl{}x-disk", std::process::id()));
    let disk = Disk::new(&root.join("disk"), 64 << 20).unwrap();
    let file = disk.path().join("file");
    fs::write(&file, [1; 8192]).unwrap();
    disk.fill().unwrap();
    let error = fs::write(disk.path().join("more"), [1; 65536]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    disk.empty().unwrap();
    disk.empty().unwrap();
    fs::write(disk.path().join("more"), [1; 65536]).unwrap();
    drop(disk);
    assert!(!file.exists(), "unmounted");
    fs::remove_dir_all(root).unwrap();
}
