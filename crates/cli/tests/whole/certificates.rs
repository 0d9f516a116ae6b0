//! Clients that are known by their certificates, through routing.

use crate::common::{
    cluster::{Cluster, data, query},
    psql, told, until,
};
use sempre_model::MemberId;
use sempre_net::{Authority, create_request};
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Stdio,
    time::Duration,
};

const DAY: Duration = Duration::from_secs(86_400);

/// A certificate with this common name; words of a connection string that show it.
fn certificate(folder: &Path, authority: &Authority, file: &str, name: &str) -> String {
    let name = MemberId::new(name).unwrap();
    let (key, request) = create_request(&name).unwrap();
    let paths = [format!("{file}.crt"), format!("{file}.key")].map(|file| folder.join(file));
    fs::write(&paths[0], authority.sign(&request, &name, DAY).unwrap()).unwrap();
    fs::write(&paths[1], key).unwrap();
    fs::set_permissions(&paths[1], fs::Permissions::from_mode(0o600)).unwrap();
    format!("sslcert={} sslkey={}", paths[0].display(), paths[1].display())
}

#[test]
fn a_client_is_known_by_its_certificate_and_carried_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let apps = Authority::new("apps", "0123456789abcdef").unwrap();
    let ca = folder.path().join("clients.pem");
    fs::write(&ca, apps.cert_pem()).unwrap();
    let lines = format!("client_ca_file = \"{}\"", ca.display());
    let cluster = Cluster::start(
        vec![data("m1").route(&lines), data("m2").route(&lines)],
        &["client_tls=on"],
    );
    let first = cluster.member("m1");
    query(&first.direct(), "create role app login").unwrap();
    cluster.add_hba(r#""hostssl all app all cert", "host all app all reject""#);

    let member_ca = first.dir.join("tls/ca.pem");
    let ask_at = |port: u16, words: &str, sql: &str| {
        let dsn = format!(
            "host={} port={port} user=app dbname=postgres gssencmode=disable sslmode=verify-full \
             connect_timeout=10 sslrootcert={} {words}",
            first.address,
            member_ca.display()
        );
        let mut psql = psql();
        psql.args([&dsn, "-c", sql]).env_remove("PGPASSWORD").env("HOME", folder.path());
        psql
    };
    let ask = |words: &str, sql: &str| ask_at(first.port + 1, words, sql);
    let output = |words: &str, sql: &str| told(ask(words, sql).output().unwrap());
    let show = "select client_dn from pg_stat_ssl where pid = pg_backend_pid()";
    let shown = certificate(folder.path(), &apps, "app", "app");
    until("the certificate is enough", || {
        let (code, out, _) = output(&shown, show);
        (code == 0 && out == "/CN=app\n").then_some(())
    });

    // None, another's, and one that nobody here signed.
    let (code, _, err) = output("", show);
    assert!(code != 0 && err.contains("requires a valid client certificate"), "{err}");
    let other = certificate(folder.path(), &apps, "other", "other");
    let (code, _, err) = output(&other, show);
    assert!(code != 0 && err.contains("certificate authentication failed"), "{err}");
    let foreign = Authority::new("apps", "0123456789abcdef").unwrap();
    let foreign = certificate(folder.path(), &foreign, "foreign", "app");
    let (code, _, err) = output(&foreign, show);
    assert!(code != 0 && err.contains("SSL"), "{err}");
    // On the database's own port the clients' authority counts for nothing.
    let (code, _, err) = told(ask_at(first.port, &shown, show).output().unwrap());
    assert!(code != 0 && err.contains("SSL"), "{err}");

    // The same session, at the next primary.
    let mut session = ask(&shown, "select 1");
    session.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut session = session.spawn().unwrap();
    let mut stdin = session.stdin.take().unwrap();
    let mut lines = BufReader::new(session.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "1");
    cluster.switchover(&["--to", "m2"]);
    writeln!(stdin, "select current_setting('cluster_name');\n{show};").unwrap();
    drop(stdin);
    assert_eq!(lines.next().unwrap().unwrap(), "m2");
    assert_eq!(lines.next().unwrap().unwrap(), "/CN=app");
    assert!(session.wait().unwrap().success());
}
