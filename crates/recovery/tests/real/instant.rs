//! A server that runs on its backup at once, and goes on on its own files.

use crate::{
    rig::{Rig, run},
    servers::{Server, folder},
};
use anyhow::Result;
use sempre_backup::RestoreOptions;
use sempre_recovery::{Goal, Listen, Restore};

async fn client(port: u16) -> Result<tokio_postgres::Client> {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(port).user("app").dbname("postgres");
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: mounts a file system"]
async fn a_server_runs_on_its_backup_with_all_wal_and_goes_on_on_its_own_files() -> Result<()> {
    let root = folder();
    let mut server = Server::new(root.path(), "a").await;
    let session = server.start(&server.primary_settings()).await?;
    let rig = Rig::of(&server).await?;
    let mut keeping = rig.keep_local(&server);
    std::fs::write(
        server.instance.layout.data_dir.join("pg_hba.conf"),
        "host all app all trust\n",
    )?;
    run(&session, "create role app login; grant all on schema public to app").await?;
    run(
        &session,
        "create table t as select i, repeat('x', 500) f from generate_series(1, 50000) i",
    )
    .await?;
    run(&session, "alter table t owner to app").await?;
    rig.back_up(&server).await?;
    let end = run(&session, "insert into t select i, 'later' from generate_series(1, 7) i").await?;
    keeping.until(end).await?;
    server.crash();

    let target = rig.dir.path().join("again");
    let restore = Restore {
        repository: &rig.repository,
        installation: &server.instance.installation,
        target: &target,
        goal: Goal::Latest,
        backup: None,
        options: RestoreOptions::default(),
        fetch_command: vec![env!("CARGO_BIN_EXE_sempre-fetch-wal").into()],
    };
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let listen = Listen { addresses: "127.0.0.1".into(), port };
    // Stopped half way, it goes on where it was.
    let first = restore.run_instantly(&listen).await?;
    client(port).await?.batch_execute("insert into t values (0, 'first')").await?;
    first.stop().await?;
    assert!(client(port).await.is_err());
    let instance = sempre_postgres::Instance {
        layout: sempre_postgres::Layout {
            data_dir: target.clone(),
            ..server.instance.layout.clone()
        },
        ..server.instance.clone()
    };
    let running = restore.run_instantly(&listen).await?;
    let app = client(port).await?;
    app.batch_execute("insert into t values (-1, 'second')").await?;
    running.finish().await?;
    let later = "select count(*) from t where f in ('later', 'first', 'second')";
    assert_eq!(app.query_one(later, &[]).await?.get::<_, i64>(0), 9);
    assert_eq!(app.query_one("select count(*) from t", &[]).await?.get::<_, i64>(0), 50_009);
    drop(app);
    let pid = instance.running_pid().expect("it runs on");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid)?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGQUIT)?;
    Ok(())
}
