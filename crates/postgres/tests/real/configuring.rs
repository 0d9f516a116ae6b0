//! What is written is what the server does.

use crate::servers::{Server, client, folder, member, until};
use anyhow::Result;
use sempre_model::record::SyncSet;
use sempre_postgres::{Error, check_parameter};
use std::{collections::BTreeMap, fs};

#[tokio::test]
async fn clients_come_in_only_when_admitted() -> Result<()> {
    let root = folder();
    let mut server = Server::new(root.path(), "a").await;
    let mut settings = server.primary_settings();
    settings.admitted = false;
    let session = server.start(&settings).await?;
    session.execute("CREATE ROLE app LOGIN PASSWORD 'app'").await?;

    let refused = client(&server, "app").await.unwrap_err();
    let refused = format!("{:?}", refused.root_cause());
    assert!(refused.contains("pg_hba.conf rejects"), "{refused}");
    assert_eq!(session.client_count().await?, 0);

    settings.admitted = true;
    server.reconfigure(&session, &settings).await?;
    until("the client is let in", async || client(&server, "app").await.map(|_| true)).await?;
    let inside = client(&server, "app").await?;
    until("it is counted", async || Ok(session.client_count().await? == 1)).await?;
    assert_eq!(session.busy_clients().await?, 0);
    // a role of ours, not by the client's lines
    let error = format!("{:?}", client(&server, "sempre").await.unwrap_err().root_cause());
    assert!(error.contains("pg_hba.conf rejects"), "{error}");

    assert_eq!(session.terminate_clients().await?, 1);
    until("it is gone", async || Ok(inside.is_closed())).await?;

    // Once the server says that it admits them, nobody is turned away any more.
    for _ in 0..20 {
        settings.admitted = false;
        server.reconfigure(&session, &settings).await?;
        until("nobody is let in", async || Ok(!server.instance.admits_clients().await)).await?;
        assert!(client(&server, "app").await.is_err());
        settings.admitted = true;
        server.reconfigure(&session, &settings).await?;
        until("clients are let in", async || Ok(server.instance.admits_clients().await)).await?;
        client(&server, "app").await?;
    }

    settings.hba = vec!["host all nobody all reject".into()];
    server.reconfigure(&session, &settings).await?;
    until("the record's lines count", async || Ok(client(&server, "app").await.is_err())).await
}

#[tokio::test]
async fn settings_are_in_force_and_nobody_else_s_win() -> Result<()> {
    let root = folder();
    let mut server = Server::new(root.path(), "a").await;
    let data = server.instance.layout.data_dir.clone();
    let own = fs::read_to_string(data.join("postgresql.conf"))?;
    fs::write(data.join("postgresql.conf"), format!("{own}\nport = 1\nwork_mem = '7MB'\n"))?;
    fs::write(data.join("postgresql.auto.conf"), "synchronous_standby_names = '*'\nport = 2\n")?;
    let mut settings = server.primary_settings();
    settings.parameters.insert("log_statement".into(), r"ddl".into());
    settings.parameters.insert("application_name".into(), r"it's a \n".into());
    let session = server.start(&settings).await?;
    for (name, wanted) in [
        ("port", server.instance.port.to_string().as_str()),
        ("work_mem", "7MB"),
        ("wal_log_hints", "on"),
        ("cluster_name", "a"),
        ("restart_after_crash", "off"),
        ("synchronous_standby_names", ""),
        ("wal_retrieve_retry_interval", "100ms"),
    ] {
        let sql = format!(
            "DO $$BEGIN IF current_setting('{name}') <> '{wanted}' \
             THEN RAISE '{name} is %', current_setting('{name}'); END IF; END$$"
        );
        session.execute(&sql).await?;
    }
    assert!(!fs::read_to_string(data.join("postgresql.auto.conf"))?.contains("port"));
    assert!(!server.instance.write_config(&settings).await?.any(), "nothing changed");

    // ALTER SYSTEM behind our back does not last
    session.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await?;
    let changed = server.instance.write_config(&settings).await?;
    assert_eq!(changed.removed, ["synchronous_standby_names"]);

    // the sync set, as it is in force
    settings.sync = SyncSet { members: [member("b"), member("c-1")].into(), k: 1 };
    server.reconfigure(&session, &settings).await?;
    until("the sync set is in force", async || {
        Ok(session.observe().await?.sync == Some(settings.sync.clone()))
    })
    .await?;

    settings.parameters.insert("max_connections".into(), "30".into());
    server.reconfigure(&session, &settings).await?;
    until("it waits for a restart", async || {
        Ok(session.pending_restart().await? == ["max_connections"])
    })
    .await?;

    // values that PostgreSQL itself would refuse
    for (name, value, words) in [
        ("work_mem", "much", "invalid value"),
        ("no_such_thing", "1", "unrecognized"),
        ("port", "1", "managed by sempre"),
    ] {
        let parameters = BTreeMap::from([(name.to_owned(), value.to_owned())]);
        let error = server.instance.check_parameters(&parameters).await.unwrap_err().to_string();
        assert!(error.contains(words) && error.contains(name), "{error}");
    }
    check_parameter("work_mem", "8MB")?;
    let right = BTreeMap::from([("work_mem".to_owned(), "8MB".to_owned())]);
    server.instance.check_parameters(&right).await?;
    settings.parameters.insert("fsync".into(), "off".into());
    assert!(matches!(server.instance.write_config(&settings).await, Err(Error::Parameter(_))));
    Ok(())
}

#[tokio::test]
async fn a_server_that_does_not_start_says_why() -> Result<()> {
    let root = folder();
    let mut server = Server::new(root.path(), "a").await;
    let mut settings = server.primary_settings();
    settings.parameters.insert("shared_preload_libraries".into(), "no_such_library".into());
    let error = server.start(&settings).await.err().expect("it cannot start").to_string();
    assert!(error.contains("no_such_library"), "{error}");
    assert!(server.instance.tail_log(3).len() <= 3);
    Ok(())
}
