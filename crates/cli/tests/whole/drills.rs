//! Restores that are tried by themselves, on a member that has time for it.

use crate::common::cluster::{Cluster, data};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

fn proved(cluster: &Cluster) -> Option<Value> {
    let proved = cluster.status()?["repositories"][0]["proved"].clone();
    (!proved.is_null()).then_some(proved)
}

fn spare(cluster: &Cluster, name: &str) -> PathBuf {
    cluster.member(name).dir.join("data.sempre-drill")
}

/// Processes whose working directory is below this folder.
fn processes_in(folder: &Path) -> Vec<i32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let within = |pid: &i32| {
        fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(folder))
    };
    pids.filter(within).collect()
}

/// Workers of this member's agent that keep a server in its spare folder.
fn worker(postmaster: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{postmaster}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

#[test]
fn drills_are_made_by_themselves_and_leave_nothing() {
    let flag = tempfile::Builder::new().prefix("sw").tempdir_in("/tmp").unwrap();
    fs::set_permissions(flag.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let (go, fail) = (flag.path().join("go"), flag.path().join("fail"));
    fs::write(&go, "").unwrap();
    // A check that waits as long as the file is away, and fails as long as the other is there.
    let check = format!(
        "while ! test -e {}; do sleep 0.1; done; ! test -e {} && psql -Atc 'select count(*) from w'",
        go.display(),
        fail.display()
    );
    let spec = |name: &str| data(name).route(&format!("[drill]\nchecks = [\"{check}\"]"));
    let mut cluster = Cluster::start(vec![spec("m1"), spec("m2"), spec("m3")], &[]);
    let folder = cluster.folder.path().join("repository");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    cluster.ok(&["backup", "init", "main", "--folder", folder.to_str().unwrap()]);
    cluster.ok(&["backup", "run"]);
    assert!(proved(&cluster).is_none());

    // By itself, by somebody who is neither the primary nor keeps the WAL.
    let archiver = cluster.until("somebody archives", |cluster| {
        Some(cluster.status()?["repositories"][0]["archiver"].as_str()?.to_owned())
    });
    let driller = ["m2", "m3"].into_iter().find(|name| *name != archiver).unwrap();
    cluster.ok(&["config", "set", "drill_interval_ms=3s"]);
    let proof = cluster.until("a restore is proved", |c| Some(proved(c)?["Ok"].clone()));
    assert!(proof["rto_ms"].as_u64() > Some(0), "{proof}");
    assert!(proof["lost_bytes"].is_u64() && proof["rpo_ms"].is_u64(), "{proof}");
    assert_eq!(proof["checks"].as_array().unwrap().len(), 2, "{proof}");
    let events = cluster.events();
    let by = events.iter().find(|e| e["text"].as_str().unwrap().contains("tries a restore"));
    assert!(by.unwrap()["text"].as_str().unwrap().starts_with(driller), "{by:?}, {archiver}");

    // One that fails is odd, and the next that works is not.
    fs::write(&fail, "").unwrap();
    cluster.until("a drill that fails is known", |cluster| {
        cluster.ok(&["status"]).contains("the last drill could not restore").then_some(())
    });
    fs::remove_file(&fail).unwrap();
    cluster.until("a drill works again", |c| proved(c)?["Ok"].is_object().then_some(()));

    // Its process is killed in the middle: said, removed, and tried again.
    let server = |cluster: &Cluster| -> Option<(String, i32)> {
        ["m1", "m2", "m3"].into_iter().find_map(|name| {
            let pid = fs::read_to_string(spare(cluster, name).join("data/postmaster.pid")).ok()?;
            let pid = pid.lines().next()?.trim().parse().ok()?;
            Path::new(&format!("/proc/{pid}")).exists().then(|| (name.to_owned(), pid))
        })
    };
    fs::remove_file(&go).unwrap();
    let waits = |cluster: &Cluster| {
        let (name, pid) = server(cluster)?;
        let checking = processes_in(&spare(cluster, &name).join("data")).len() > 1;
        checking.then_some((name, pid))
    };
    let (name, pid) = cluster.until("a drill is under way", waits);
    kill(Pid::from_raw(worker(pid).unwrap()), Signal::SIGKILL).unwrap();
    cluster.until("the kill is known", |c| proved(c)?["Err"].is_string().then_some(()));
    cluster.until("the server of the killed drill is gone", |_| {
        (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    });

    // The agent is killed in the middle: the next one removes what is left, and does it again.
    let (again, pid) = cluster
        .until("a drill is under way", |cluster| waits(cluster).filter(|(_, found)| *found != pid));
    assert_eq!(again, name);
    cluster.kill_agent(&again);
    cluster
        .ok_at(if again == "m2" { "m3" } else { "m2" }, &["config", "set", "drill_interval_ms=0"]);
    cluster.run(&again);
    fs::write(&go, "").unwrap();
    cluster.until("a drill works again", |c| proved(c)?["Ok"].is_object().then_some(()));
    cluster.until("nothing is left", |cluster| {
        let gone = !Path::new(&format!("/proc/{pid}")).exists();
        let clear = ["m1", "m2", "m3"].iter().all(|name| !spare(cluster, name).exists());
        (gone && clear).then_some(())
    });
    cluster.whole();
}
