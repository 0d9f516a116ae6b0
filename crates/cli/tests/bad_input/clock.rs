//! Clocks that jump: nothing about leases, elections or failover hangs on the time of day.

use crate::rig::{self, Member};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// libfaketime, which moves the time of day of a program while it runs.
fn faketime() -> Option<PathBuf> {
    let below =
        ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib", "/usr/lib64"];
    let found = below.iter().map(|dir| Path::new(dir).join("faketime/libfaketimeMT.so.1"));
    found.into_iter().find(|path| path.exists())
}

#[test]
#[ignore = "needs root: `make test` installs libfaketime for it"]
fn the_time_of_day_jumps() {
    let library = faketime().expect("libfaketime (Debian's package faketime)");
    let folder = rig::folder();
    let jump = folder.path().join("jump");
    fs::write(&jump, "+0").unwrap();
    let set = |jump_to: &str| {
        let next = jump.with_extension("next");
        fs::write(&next, jump_to).unwrap();
        fs::rename(next, &jump).unwrap();
    };
    let mut member = Member::new(folder.path(), "m1", "");
    member.env = [
        ("LD_PRELOAD", library.as_os_str()),
        ("FAKETIME_TIMESTAMP_FILE", jump.as_os_str()),
        ("FAKETIME_NO_CACHE", "1".as_ref()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".as_ref()),
    ]
    .map(|(name, value)| (name.into(), value.to_owned()))
    .into();
    let member = member.serving(&[]);
    member.open();
    member.sql("create table kept (i int); insert into kept values (42)");
    let before = member.status().unwrap();
    let database = |status: &serde_json::Value| status["members"][0]["database"]["pid"].clone();

    for (number, jump_to) in ["+40d", "-50min", "+3h", "+0"].into_iter().enumerate() {
        set(jump_to);
        // The cluster goes on agreeing, writing and leasing with the new time.
        let key = format!("postgresql.work_mem={}MB", number + 5);
        member.sempre(&["config", "set", &key]).ok();
        member.sql("insert into kept values (1)");
        let status = member.until("it serves", |status| status["writable"] == true);
        assert_eq!(status["generation"], before["generation"], "{jump_to}");
        assert_eq!(database(&status), database(&before), "{jump_to}");
    }
    // A switchover for a later time waits; what the clock does in between starts it at most once.
    member.sempre(&["switchover", "--at", "2999-01-01T00:00:00Z", "--yes"]).ok();
    set("-40min");
    member.until_odd(&["switchover", "2999"]);
    member.sempre(&["switchover", "--cancel", "--yes"]).ok();
    assert_eq!(member.status().unwrap()["generation"], before["generation"]);
    assert_eq!(member.sql("select count(*) from kept"), "5");
}
