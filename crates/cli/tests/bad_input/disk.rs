//! A disk that is full, a record that is damaged, a folder that cannot be used.

use crate::rig::{self, Member};
use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
};

/// A small file system of its own; unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, mib: u32) -> Self {
        fs::create_dir(at).unwrap();
        let size = format!("size={mib}m,mode=700");
        let done =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).status();
        assert!(done.unwrap().success());
        let (uid, gid) = rig::member_ids();
        chown(at, Some(uid), Some(gid)).unwrap();
        Self(at.to_owned())
    }

    /// Takes all the space there is.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = File::create(&path).unwrap();
        for chunk in [1 << 20, 4096, 1] {
            while file.write_all(&vec![b'x'; chunk]).is_ok() {}
        }
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
#[ignore = "needs root: mounts a small file system"]
fn a_full_disk_is_named_and_nothing_is_lost() {
    let folder = rig::folder();
    let small = Small::mount(&folder.path().join("small"), 200);

    // From the beginning.
    let filler = small.fill();
    let member = Member::new(folder.path(), "m0", "");
    let text = fs::read_to_string(member.config()).unwrap();
    let inside = small.0.join("m0");
    let text = text.replace(member.root.to_str().unwrap(), inside.to_str().unwrap());
    fs::write(member.config(), text).unwrap();
    member.sempre(&["init"]).refused(1, "SEMPRE-0055", &["No space left on device"]);
    fs::remove_file(filler).unwrap();
    let _ = fs::remove_dir_all(&inside);

    // Later: the data directory is on it.
    let data = format!("[postgres]\ndata_dir = \"{}\"\n", small.0.join("data").display());
    let member = Member::new(folder.path(), "m1", &data).serving(&[]);
    let hba = small.0.join("data/pg_hba.conf");
    fs::write(hba, "local all all trust\nhost all all 127.0.0.0/8 trust\n").unwrap();
    member.sempre(&["reload"]).ok();
    crate::common::until("the test is let in", || member.try_sql("select 1").ok());
    member.sql("create table kept (i int); insert into kept values (42)");
    let filler = small.fill();
    member.until_odd(&["the disk of m1", "full", "SEMPRE-0055"]);
    fs::remove_file(filler).unwrap();
    member.until("it serves again", |status| {
        status["writable"] == true && !status["oddities"].to_string().contains("the disk of")
    });
    crate::common::until("the row is read", || {
        member.try_sql("select i from kept").ok().filter(|i| i == "42")
    });
    drop(member);
}

/// Flips bytes in the middle of a file.
fn damage(path: &Path) {
    let mut file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    for at in (0..length).step_by(512) {
        let mut byte = [0];
        file.seek(SeekFrom::Start(at)).unwrap();
        file.read_exact(&mut byte).unwrap();
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&[!byte[0]]).unwrap();
    }
}

fn record_file(member: &Member) -> PathBuf {
    member.root.join("record/record.redb")
}

/// Alone, it cannot be repaired: the file is named, and left as it is.
#[test]
fn a_damaged_record_without_others_is_named() {
    let folder = rig::folder();
    let mut member = Member::new(folder.path(), "m1", "").serving(&[]);
    member.stop();
    let file = record_file(&member);
    let good = fs::read(&file).unwrap();
    damage(&file);
    let bad = fs::read(&file).unwrap();
    let said = member.run_to_its_end();
    said.refused(1, "SEMPRE-0056", &[file.to_str().unwrap(), "sempre recover"]);
    assert!(fs::read(&file).unwrap() == bad, "it is left as it is");
    member.sempre(&["recover", "--yes"]).refused(1, "SEMPRE-0056", &[file.to_str().unwrap()]);
    fs::write(&file, good).unwrap();
    member.start();
    member.until("it serves again", |status| status["writable"] == true);
}

/// With others, the member repairs itself from them, and keeps the damaged file.
#[test]
fn a_damaged_record_is_repaired_from_the_others() {
    let folder = rig::folder();
    let first = Member::new(folder.path(), "m1", "").serving(&[]);
    let mut others = ["m2", "m3"].map(|name| {
        let mut member = Member::new(folder.path(), name, "kind = \"witness\"\n");
        let token = first.sempre(&["token"]).ok().out.clone();
        member.sempre(&["join", token.trim()]).ok();
        member.start();
        member
    });
    let all_vote = |status: &serde_json::Value| {
        status["raft"]["voters"] == 3 && status["raft"]["quorum"] == true
    };
    first.until("all vote", all_vote);
    let broken = &mut others[0];
    broken.stop();
    damage(&record_file(broken));
    broken.start();
    broken.until_logged("the record is damaged");
    broken.until_logged("was set aside");
    broken.until("it votes again", all_vote);
    first.until("all vote again", all_vote);
    let kept = broken.root.join("record/record.redb.corrupt-1");
    assert!(kept.exists(), "the damaged record is kept beside the new one");
}

/// Other files of a member's folder.
#[test]
fn damaged_files_of_a_member_are_named() {
    let folder = rig::folder();
    let mut member = Member::new(folder.path(), "m1", "").serving(&[]);
    member.stop();
    for name in ["member.json", "tls/member.pem", "tls/ca.pem"] {
        let file = member.root.join(name);
        let good = fs::read(&file).unwrap();
        for bad in [&b""[..], b"\0\0\0", &good[..good.len() / 2]] {
            fs::write(&file, bad).unwrap();
            let said = member.run_to_its_end();
            let named = file.parent().filter(|dir| dir.ends_with("tls")).unwrap_or(&file);
            said.refused(1, "", &[named.to_str().unwrap(), "sempre remove"]);
        }
        fs::write(&file, good).unwrap();
    }
    // These two are made anew.
    for name in ["applied.json", "members.json"] {
        fs::write(member.root.join(name), "{").unwrap();
    }
    member.start();
    member.until("it serves again", |status| status["writable"] == true);
}

/// No member yet, somebody else's, and a folder that cannot be made.
#[test]
fn folders_that_hold_no_member() {
    let folder = rig::folder();
    let member = Member::new(folder.path(), "m1", "");
    member.run_to_its_end().refused(4, "SEMPRE-0010", &["sempre init", "sempre join"]);
    member.sempre(&["init"]).ok();
    let text = fs::read_to_string(member.config()).unwrap();
    fs::write(member.config(), text.replace("name = \"m1\"", "name = \"m2\"")).unwrap();
    member.run_to_its_end().refused(2, "SEMPRE-0057", &["m1", "m2"]);
    fs::write(member.config(), &text).unwrap();

    fs::write(folder.path().join("file"), "").unwrap();
    let below = folder.path().join("file/dir");
    let inside = text.replace(member.root.to_str().unwrap(), below.to_str().unwrap());
    fs::write(member.config(), inside).unwrap();
    member.sempre(&["init"]).refused(1, "", &["file/dir"]);
}

#[test]
#[ignore = "needs root: makes a folder of another user"]
fn a_folder_of_another_user() {
    let folder = rig::folder();
    let member = Member::new(folder.path(), "m1", "");
    fs::create_dir(&member.root).unwrap();
    fs::write(member.root.join("mine"), "x").unwrap();
    fs::set_permissions(&member.root, fs::Permissions::from_mode(0o700)).unwrap();
    member.sempre(&["init"]).refused(1, "SEMPRE-0053", &["belongs to user id 0", "`postgres`"]);
    assert_eq!(fs::read_dir(&member.root).unwrap().count(), 1);
}
