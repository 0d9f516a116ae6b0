//! What a data directory is taken for.

use crate::servers::{Server, folder, secrets};
use sempre_postgres::{DataDir, Error, Foreign};
use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

#[tokio::test]
async fn a_new_cluster_is_present_and_everything_else_is_named() {
    let root = folder();
    let mut server = Server::new(root.path(), "a").await;
    let DataDir::Present(control) = server.instance.inspect() else {
        panic!("{:?}", server.instance.inspect());
    };
    assert!(control.data_checksums && control.state.is_clean());

    // nothing is made over something
    let error = server.instance.init_db(&secrets()).await.unwrap_err().to_string();
    assert!(error.contains("a cluster in it already"), "{error}");

    let data = server.instance.layout.data_dir.clone();
    let wanted = server.instance.installation.major;
    let foreign = |server: &Server| match server.instance.inspect() {
        DataDir::Foreign(why) => why,
        other => panic!("{other:?}"),
    };

    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(foreign(&server), Foreign::Permissions { mode: 0o755 });
    fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();

    fs::write(data.join("PG_VERSION"), "9.6\n").unwrap();
    assert_eq!(foreign(&server), Foreign::Version { found: "9.6".into(), wanted });
    fs::write(data.join("PG_VERSION"), format!("{wanted}\n")).unwrap();

    let control_file = data.join("global/pg_control");
    let mut bytes = fs::read(&control_file).unwrap();
    bytes[40] ^= 1;
    fs::write(&control_file, bytes).unwrap();
    assert!(matches!(foreign(&server), Foreign::Damaged(_)));

    fs::remove_file(data.join("PG_VERSION")).unwrap();
    assert_eq!(foreign(&server), Foreign::NotData);

    server.instance.layout.data_dir = PathBuf::from("/usr");
    assert!(matches!(foreign(&server), Foreign::Owner { uid: 0, .. }));
    server.instance.layout.data_dir = root.path().join("none");
    assert_eq!(server.instance.inspect(), DataDir::Missing);
    fs::create_dir(root.path().join("none")).unwrap();
    assert_eq!(server.instance.inspect(), DataDir::Empty);
    assert!(matches!(server.instance.end_of_wal().await, Err(Error::DataDir { .. })));
}
