//! A stand-alone server is taken over as it is.

use crate::servers::{Server, folder, secrets};
use anyhow::Result;
use sempre_postgres::Base;
use std::fs;

#[tokio::test]
async fn a_running_server_with_its_configuration_elsewhere_is_adopted() -> Result<()> {
    let root = folder();
    let mut server = Server::new(root.path(), "a").await;
    let mut settings = server.primary_settings();
    settings.parameters.insert("work_mem".into(), "9MB".into());
    let session = server.start(&settings).await?;
    session.execute("CREATE TABLE kept (n int); DROP ROLE IF EXISTS stranger").await?;
    let files = session.server_files().await?;
    assert_eq!(files.data_dir, server.instance.layout.data_dir);
    assert_eq!(files.parameters.get("work_mem").map(String::as_str), Some("9MB"));
    assert!(!files.parameters.contains_key("port"));

    // as Debian has it: all configuration outside the data directory
    let data = &server.instance.layout.data_dir;
    let elsewhere = root.path().join("etc");
    fs::create_dir(&elsewhere)?;
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        fs::rename(data.join(name), elsewhere.join(name))?;
    }
    let file = |name: &str| Some(elsewhere.join(name));
    server.instance.base = Base {
        config_file: file("postgresql.conf"),
        hba_file: file("pg_hba.conf"),
        ident_file: file("pg_ident.conf"),
    };
    let mut changed = secrets();
    changed.admin = "another".into();
    assert!(server.instance.running_pid().is_some());
    server.instance.adopt(&changed).await?;
    server.stop();
    assert!(server.instance.running_pid().is_none());

    server.instance.adopt(&secrets()).await?;
    let session = server.start(&server.primary_settings()).await?;
    session.execute("SELECT * FROM kept").await?;
    Ok(())
}
