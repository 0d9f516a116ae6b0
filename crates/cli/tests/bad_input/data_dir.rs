//! Data directories that are not what they should be, and databases that do not start: each is
//! named, left as it is, and taken up again once it is put right.

use crate::{
    common::until,
    rig::{self, Member, as_member},
};
use std::{
    fs,
    os::unix::fs::{MetadataExt, chown},
    path::Path,
};

/// Bytes and time of change of the control file, which anything that starts a server changes.
fn control(data: &Path) -> (Vec<u8>, i64) {
    let file = data.join("global/pg_control");
    (fs::read(&file).unwrap(), fs::metadata(&file).unwrap().mtime_nsec())
}

/// A cluster of one, with a row that must not be lost.
fn with_a_row(folder: &Path, name: &str) -> Member {
    let member = Member::new(folder, name, "").serving(&[]);
    member.open();
    member.sql("create table kept (i int); insert into kept values (42)");
    member
}

/// It serves again, and the row is there.
fn is_whole(member: &Member) {
    member.until("it serves again", |status| status["writable"] == true);
    until("the row is read", || member.try_sql("select i from kept").ok().filter(|i| i == "42"));
}

#[test]
fn of_another_major_version() {
    let folder = rig::folder();
    let mut member = with_a_row(folder.path(), "m1");
    member.stop();
    let file = member.data().join("PG_VERSION");
    let version = fs::read_to_string(&file).unwrap();
    let before = control(&member.data());
    fs::write(&file, "9.6\n").unwrap();
    member.start();
    member.until_odd(&["SEMPRE-0052", "PostgreSQL 9.6", version.trim(), "bin_dir"]);
    assert_eq!(control(&member.data()), before);
    fs::write(&file, version).unwrap();
    is_whole(&member);
}

#[test]
fn of_another_cluster() {
    let folder = rig::folder();
    let mut here = with_a_row(folder.path(), "m1");
    let mut there = with_a_row(folder.path(), "x1");
    here.stop();
    there.stop();
    let before = control(&there.data());
    // The data directories are mixed up.
    let aside = folder.path().join("aside");
    fs::rename(here.data(), &aside).unwrap();
    fs::rename(there.data(), here.data()).unwrap();
    here.start();
    here.until_odd(&["SEMPRE-0051", "another cluster", "system identifier", "data_dir"]);
    assert_eq!(control(&here.data()), before);
    here.stop();
    assert_eq!(control(&here.data()), before);
    fs::rename(here.data(), there.data()).unwrap();
    fs::rename(&aside, here.data()).unwrap();
    here.start();
    there.start();
    is_whole(&here);
    is_whole(&there);
}

/// A new member never copies over what is there.
#[test]
fn a_newcomer_with_data_of_another_cluster() {
    let folder = rig::folder();
    let first = Member::new(folder.path(), "m1", "").serving(&[]);
    let mut other = with_a_row(folder.path(), "x1");
    other.stop();
    let data = format!("[postgres]\ndata_dir = \"{}\"\n", other.data().display());
    let before = control(&other.data());
    let mut second = Member::new(folder.path(), "m2", &data);
    let token = first.sempre(&["token"]).ok().out.clone();
    second.sempre(&["join", token.trim()]).ok();
    second.start();
    first.until_odd(&["SEMPRE-0051", "m2", "another cluster"]);
    assert_eq!(control(&other.data()), before);
    // Not even a fresh copy on request replaces what is not this cluster's.
    second.sempre(&["reinit", "m2", "--yes"]).ok();
    second.until_logged("a step failed");
    assert_eq!(control(&other.data()), before);
    second.stop();
    other.start();
    is_whole(&other);
}

/// Not empty, and no data directory: somebody's files.
#[test]
fn somebodys_files_are_left_alone() {
    let folder = rig::folder();
    let mut member = Member::new(folder.path(), "m1", "");
    member.sempre(&["init"]).ok();
    fs::create_dir(member.data()).unwrap();
    let (uid, gid) = rig::member_ids();
    chown(member.data(), Some(uid), Some(gid)).unwrap();
    fs::write(member.data().join("thesis.txt"), "mine").unwrap();
    member.start();
    member.until_odd(&["not empty, and no PostgreSQL data directory"]);
    member.stop();
    assert_eq!(fs::read_to_string(member.data().join("thesis.txt")).unwrap(), "mine");
    assert_eq!(fs::read_dir(member.data()).unwrap().count(), 1);
}

#[test]
#[ignore = "needs root: gives a directory to another user"]
fn of_another_user() {
    let folder = rig::folder();
    let mut member = with_a_row(folder.path(), "m1");
    member.stop();
    let (uid, gid) = rig::member_ids();
    chown(member.data(), Some(0), Some(0)).unwrap();
    member.start();
    member.until_odd(&["SEMPRE-0053", "user id 0", &format!("user id {uid}"), "change the owner"]);
    chown(member.data(), Some(uid), Some(gid)).unwrap();
    is_whole(&member);
}

/// PostgreSQL's own words are shown, whatever keeps it from starting.
#[test]
fn postgresql_does_not_start() {
    let folder = rig::folder();
    let mut member = with_a_row(folder.path(), "m1");
    member.stop();
    let own = member.data().join("postgresql.conf");
    let good = fs::read_to_string(&own).unwrap();
    fs::write(&own, format!("{good}\nshared_bufers = lots\n")).unwrap();
    member.start();
    member.until_odd(&["SEMPRE-0054", "m1 does not start", "shared_bufers", "sempre restart m1"]);
    // The rest of the member works: it says what is wrong, and takes orders.
    member.sempre(&["history"]).ok();
    fs::write(&own, good).unwrap();
    is_whole(&member);
}

#[test]
fn a_pg_hba_that_postgresql_cannot_read() {
    let folder = rig::folder();
    let mut member = with_a_row(folder.path(), "m1");
    member.stop();
    let own = member.data().join("pg_hba.conf");
    let good = fs::read_to_string(&own).unwrap();
    fs::write(&own, "host all all 10.0.0.0/99 trust\n").unwrap();
    member.start();
    member.until_odd(&["SEMPRE-0034", "pg_hba.conf", "10.0.0.0/99"]);
    fs::write(&own, good).unwrap();
    member.sempre(&["reload"]).ok();
    is_whole(&member);
}

#[test]
fn a_damaged_control_file_is_named() {
    let folder = rig::folder();
    let mut member = with_a_row(folder.path(), "m1");
    member.stop();
    let file = member.data().join("global/pg_control");
    let good = fs::read(&file).unwrap();
    let mut bad = good.clone();
    bad[100] ^= 0xff;
    fs::write(&file, &bad).unwrap();
    member.start();
    member.until_odd(&["SEMPRE-0054", "damaged", "control file", "checksum"]);
    assert_eq!(fs::read(&file).unwrap(), bad, "it is left as it is");
    fs::write(&file, good).unwrap();
    is_whole(&member);
}

/// The database's own port is taken: PostgreSQL says so.
#[test]
fn the_database_port_is_in_use() {
    let folder = rig::folder();
    let mut member = with_a_row(folder.path(), "m1");
    member.stop();
    let taken = std::net::TcpListener::bind((member.address.as_str(), member.port)).unwrap();
    member.start();
    member.until_odd(&["SEMPRE-0050", "Address already in use", &member.address]);
    drop(taken);
    is_whole(&member);
}

/// A server that runs there without sempre is taken over by `init`, not fought over.
#[test]
fn a_running_server_is_adopted() {
    let folder = rig::folder();
    let mut member = Member::new(folder.path(), "m1", "");
    member.sempre(&["init"]).ok();
    let made = as_member("initdb")
        .arg("-D")
        .arg(member.data())
        .args(["-U", "postgres", "--auth=trust", "--no-sync"])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let port = member.port.to_string();
    let run = folder.path().join("sockets");
    fs::create_dir(&run).unwrap();
    let (uid, gid) = rig::member_ids();
    chown(&run, Some(uid), Some(gid)).unwrap();
    let options = format!("-p {port} -k {}", run.display());
    let log = run.join("log");
    let started = as_member("pg_ctl")
        .arg("-D")
        .arg(member.data())
        .args(["-w", "-o", &options, "-l"])
        .arg(&log)
        .arg("start")
        .status()
        .unwrap();
    assert!(started.success());
    let mut psql = crate::common::psql();
    psql.arg("-h").arg(&run).args(["-p", &port, "-U", "postgres", "-c"]);
    let made = psql.arg("create table kept (i int); insert into kept values (42)").status();
    assert!(made.unwrap().success());
    member.start();
    is_whole(&member);
}
