//! Folders backed up beside the databases: by order and by themselves, read by `restic`, back after
//! everything is lost.

use crate::common::cluster::{Cluster, data, witness};
use serde_json::Value;
use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// A folder that every member can use.
fn open_folder(cluster: &Cluster, name: &str) -> PathBuf {
    let folder = cluster.folder.path().join(name);
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, Permissions::from_mode(0o777)).unwrap();
    folder
}

fn write(path: &Path, contents: &[u8], mode: u32) {
    fs::write(path, contents).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn snapshots(cluster: &Cluster) -> Vec<String> {
    let listed = json(&cluster.ok(&["--json", "backup", "list"]));
    let all = listed["repositories"][0]["files"].as_array().unwrap().clone();
    all.iter().map(|snapshot| snapshot["id"].as_str().unwrap().to_owned()).collect()
}

fn restic(repository: &Path, key: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("restic");
    command.args(["--no-cache", "-r"]).arg(repository.join("files"));
    let done = command.arg("--password-file").arg(key).args(arguments).output();
    let done = done.expect("restic is installed (scripts/setup.sh --test)");
    let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    assert!(done.status.success(), "restic {arguments:?}: {said}");
    said
}

#[test]
fn folders_are_backed_up_in_the_same_schedule_and_come_back_after_everything_is_lost() {
    let mut cluster = Cluster::places(vec![data("m1"), witness("w1")]);
    cluster.form(&[]);
    cluster.join("w1");
    let repository = open_folder(&cluster, "repository");
    let uploads = open_folder(&cluster, "uploads");
    write(&uploads.join("picture"), &[7; 200_000], 0o644);
    write(&uploads.join("page.html"), b"<p>", 0o664);
    write(&uploads.join("left.tmp"), b"x", 0o644);
    let path = uploads.to_str().unwrap();
    let add =
        ["backup", "files", "add", "uploads", "--member", "w1", "--exclude", "*.tmp", "--path"];
    cluster.refused(&[&add[..], &[path]].concat(), "SEMPRE-0070");
    cluster.ok(&["backup", "init", "main", "--folder", repository.to_str().unwrap()]);
    let overlapping = repository.join("packs");
    cluster.refused(&[&add[..], &[overlapping.to_str().unwrap()]].concat(), "SEMPRE-0013");
    cluster.refused(&["backup", "run", "--files", "uploads"], "SEMPRE-0013");
    cluster.ok(&[&add[..], &[path]].concat());
    let listed = cluster.ok(&["backup", "files", "list"]);
    assert!(
        listed.contains("w1 → main  not backed up yet") && listed.contains("*.tmp"),
        "{listed}"
    );

    let first = json(&cluster.ok(&["--json", "backup", "run", "--files", "uploads"]));
    assert_eq!(first["bytes"], 200_003);
    let id = first["id"].as_str().unwrap();
    let listed = cluster.ok(&["backup", "list"]);
    assert!(listed.contains(&id[..8]) && listed.contains("uploads"), "{listed}");
    let key = cluster.folder.path().join("key");
    fs::write(&key, cluster.ok(&["backup", "key"])).unwrap();
    assert!(restic(&repository, &key, &["snapshots"]).contains(&id[..8]));
    restic(&repository, &key, &["check", "--read-data"]);

    // What its member may not read fails it, loudly, and leaves no snapshot of the rest.
    write(&uploads.join("secret"), b"s", 0o000);
    let (code, _, err) = cluster.at("m1", &["backup", "run", "--files", "uploads"]);
    assert!(code == 1 && err.contains("SEMPRE-0073") && err.contains("secret"), "{err}");
    let status = cluster.ok(&["status"]);
    assert!(status.contains("the last backup of files uploads failed"), "{status}");
    assert_eq!(snapshots(&cluster), [id]);
    fs::set_permissions(uploads.join("secret"), Permissions::from_mode(0o604)).unwrap();

    // By themselves, as many as the policy keeps.
    cluster.ok(&["config", "set", "backup_keep_last=2", "backup_interval_ms=3s"]);
    cluster.until("files are backed up by themselves, and old snapshots go", |cluster| {
        let known = snapshots(cluster);
        (known.len() == 2 && !known.iter().any(|known| known == id)).then_some(())
    });
    cluster.ok(&["config", "set", "backup_interval_ms=0"]);
    let status = cluster.until("nothing is being backed up", |cluster| {
        let status = cluster.status()?;
        let repository = &status["repositories"][0];
        (repository["order"].is_null() && repository["files"][0]["order"].is_null())
            .then_some(status)
    });
    assert!(!status["oddities"].to_string().contains("uploads"), "{status}");
    let target = cluster.folder.path().join("back");
    let words = ["--json", "restore", "--files", "uploads", "--target", target.to_str().unwrap()];
    let restored = json(&cluster.ok(&words));
    assert_eq!(restored["bytes"], 200_004);

    // Damage is found, and said to be of the files.
    let verified = json(&cluster.ok(&["--json", "backup", "verify"]));
    assert_eq!(verified["snapshots_of_files"], 2, "{verified}");
    // The largest one: others may be marked for deletion, and are not looked at.
    let folders = fs::read_dir(repository.join("files/data")).unwrap();
    let packs = folders.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
    let packs = packs.map(|pack| pack.unwrap());
    let pack = packs.max_by_key(|pack| pack.metadata().unwrap().len()).unwrap().path();
    let whole = fs::read(&pack).unwrap();
    let mut damaged = whole.clone();
    damaged[20] ^= 4;
    fs::write(&pack, damaged).unwrap();
    let (code, _, err) = cluster.at("m1", &["backup", "verify"]);
    assert!(code == 1 && err.contains("files in main are damaged"), "{err}");
    fs::write(&pack, whole).unwrap();

    // Another key of the repository is that of the files, too.
    let old = key;
    let key = cluster.folder.path().join("new-key");
    fs::write(&key, cluster.ok(&["backup", "key", "--rotate"])).unwrap();
    assert!(restic(&repository, &key, &["snapshots"]).contains("sempre:uploads"));
    assert!(fs::read(&old).unwrap() != fs::read(&key).unwrap());
    assert_eq!(snapshots(&cluster).len(), 2);

    // The machines are lost; the repository and the key are left.
    cluster.kill_members(&["m1", "w1"]);
    let target = cluster.folder.path().join("after");
    let words = ["restore", "--files", "uploads", "--target", target.to_str().unwrap()];
    let from = ["--folder", repository.to_str().unwrap(), "--key-file", key.to_str().unwrap()];
    let (code, _, err) = cluster.at("m1", &[&words[..], &from].concat());
    assert_eq!(code, 0, "{err}");
    let back = target.join(uploads.strip_prefix("/").unwrap());
    assert_eq!(fs::read(back.join("picture")).unwrap(), [7; 200_000]);
    assert_eq!(fs::metadata(back.join("page.html")).unwrap().permissions().mode(), 0o100_664);
    assert!(back.join("secret").exists() && !back.join("left.tmp").exists());
}
