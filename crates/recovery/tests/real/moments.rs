//! To every kind of moment, and not to those that cannot be.

use crate::{
    rig::{Rig, ask, run},
    servers::{Server, folder},
};
use anyhow::Result;
use sempre_recovery::Goal;
use std::time::Duration;

const ROWS: &str = "select coalesce(string_agg(i::text, ',' order by i), '') from t";

#[tokio::test(flavor = "multi_thread")]
async fn a_server_comes_back_to_any_moment() -> Result<()> {
    let root = folder();
    let mut server = Server::new(root.path(), "a").await;
    let session = server.start(&server.primary_settings()).await?;
    let rig = Rig::of(&server).await?;
    let mut keeping = rig.keep_local(&server);
    let row = async |i: i32| run(&session, &format!("insert into t values ({i})")).await;
    run(&session, "create table t (i int)").await?;
    row(1).await?;
    let first = rig.back_up(&server).await?;
    let after_two = row(2).await?;
    let id =
        ask(&server, "begin; insert into t values (3); select pg_current_xact_id()::text; commit")
            .await?;
    let id: u64 = id.parse()?;
    run(&session, "select pg_create_restore_point('before four')").await?;
    row(4).await?;
    let second = rig.back_up(&server).await?;
    assert_eq!(second.parent.as_deref(), Some(first.id.as_str()));
    assert!(second.stats.new_bytes < first.stats.new_bytes / 2, "{:?}", second.stats);
    // Times are told apart, whatever the clock's step.
    let pause = || tokio::time::sleep(Duration::from_millis(50));
    pause().await;
    row(5).await?;
    pause().await;
    let now = ask(&server, "select (extract(epoch from clock_timestamp()) * 1000)::bigint").await?;
    pause().await;
    run(&session, "select pg_switch_wal()").await?;
    run(&session, "select pg_create_restore_point('before six')").await?;
    let end = row(6).await?;
    keeping.until(end).await?;
    // The server is lost with all it has.
    server.crash();
    drop(session);

    for (name, goal, want) in [
        ("latest", Goal::Latest, "1,2,3,4,5,6"),
        ("time", Goal::Time(now.parse()?), "1,2,3,4,5"),
        ("backup", Goal::Backup, "1,2,3,4"),
        ("lsn", Goal::Lsn(after_two), "1,2"),
    ] {
        let (rows, _server) = rig.restored(name, goal, ROWS).await?;
        assert_eq!(rows, want, "{name}");
    }
    // These do not say which backup is before them: it is found in the WAL, or named.
    for (name, goal, want, backup) in [
        ("name", Goal::Name("before four".into()), "1,2,3", &first),
        ("with", Goal::Transaction(id), "1,2,3", &first),
        ("without", Goal::BeforeTransaction(id), "1,2", &first),
        ("later", Goal::Name("before six".into()), "1,2,3,4,5", &second),
    ] {
        let mut server = Server::empty(rig.dir.path(), name);
        assert_eq!(rig.restore(&mut server, goal).await?.backup.id, backup.id, "{name}");
        server.start(&server.primary_settings()).await?;
        assert_eq!(ask(&server, ROWS).await?, want, "{name}");
    }
    let goal = Goal::Name("before six".into());
    let (rows, _server) = rig.restored_from(&first.id, "named", goal, ROWS).await?;
    assert_eq!(rows, "1,2,3,4,5");
    let mut other = Server::empty(rig.dir.path(), "other");
    let early = rig.restore(&mut other, Goal::Time(1_000)).await.unwrap_err().to_string();
    assert!(early.contains("begins at"), "{early}");
    let later = sempre_model::Lsn(end.0 + (1 << 30));
    let late = rig.restore(&mut other, Goal::Lsn(later)).await.unwrap_err().to_string();
    assert!(late.contains("goes up to"), "{late}");
    let none = rig.restore(&mut other, Goal::Name("never".into())).await.unwrap_err().to_string();
    assert!(none.contains("`never` is nowhere in the WAL that is kept, from 0/"), "{none}");
    let none = rig.restore(&mut other, Goal::Transaction(9_999)).await.unwrap_err().to_string();
    assert!(none.contains("transaction 9999 is nowhere"), "{none}");
    let mut third = Server::empty(rig.dir.path(), "third");
    let future = rig.restore(&mut third, Goal::Time(4_000_000_000_000)).await.unwrap_err();
    assert!(future.to_string().contains("nothing was committed since"), "{future}");
    Ok(())
}
