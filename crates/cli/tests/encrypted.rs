//! What is encrypted in a real cluster, and that it stays so when certificates change.

mod common;

use common::{base_port, processes_below, psql, sempre, told, until};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Stdio},
};

/// Two members on this machine; gone when dropped.
struct Pair {
    demo: Child,
    ready: Value,
    // Dropped last.
    folder: tempfile::TempDir,
}

impl Pair {
    fn start() -> Self {
        // A short path: Unix sockets are below it.
        let folder = tempfile::Builder::new().prefix("se").tempdir_in("/tmp").unwrap();
        let mut demo = sempre()
            .args([
                "demo",
                "--json",
                "--members",
                "2",
                "--base-port",
                &base_port().to_string(),
                "--dir",
            ])
            .arg(folder.path().join("d"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(demo.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap_or_default();
        let pair = Self { demo, ready, folder };
        assert!(pair.ready.is_object(), "it did not start; it says why above");
        pair
    }

    fn home(&self) -> PathBuf {
        PathBuf::from(self.ready["config"].as_str().unwrap()).parent().unwrap().to_owned()
    }

    fn sempre(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut command = sempre();
        command.args(["--config", self.ready["config"].as_str().unwrap()]).args(arguments);
        told(command.stdin(Stdio::null()).output().unwrap())
    }

    /// By the routed address, or as `words` of a connection string say otherwise.
    fn ask(&self, words: &str, sql: &str) -> (i32, String, String) {
        let dsn = self.ready["read_write"].as_str().unwrap();
        let (account, place) = dsn.strip_prefix("postgresql://").unwrap().split_once('@').unwrap();
        let (user, password) = account.split_once(':').unwrap();
        let (address, _) = place.split_once('/').unwrap();
        let (host, port) = address.split_once(':').unwrap();
        let dsn = format!(
            "host={host} port={port} user={user} dbname=demo gssencmode=disable connect_timeout=10 {words}"
        );
        told(psql().env("PGPASSWORD", password).args([&dsn, "-c", sql]).output().unwrap())
    }

    fn sql(&self, words: &str, sql: &str) -> String {
        let (code, out, err) = self.ask(words, sql);
        assert_eq!(code, 0, "{words}: {err}");
        out.trim().to_owned()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let _ = self.demo.kill();
        let _ = self.demo.wait();
        let home = self.home();
        until("all is gone", || processes_below(&home).is_empty().then_some(()));
        if !home.starts_with(self.folder.path()) {
            let _ = fs::remove_dir_all(home);
        }
    }
}

const SSL: &str = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";

#[test]
fn members_replicate_encrypted_and_clients_get_what_is_asked_for() {
    let pair = Pair::start();
    let port = pair.ready["members"][0]["database_port"].as_u64().unwrap();
    let home = pair.home();
    let ca = home.join("m1/tls/ca.pem");

    // Every walsender, and by the member's certificate.
    let senders = "select string_agg(application_name || ssl || client_dn, ',') \
         from pg_stat_replication left join pg_stat_ssl using (pid)";
    assert_eq!(pair.sql("", senders), "m2true/CN=m2");
    let direct = format!("host=127.0.1.1 port={port}");
    for role in ["sempre_replication replication=true", "sempre dbname=postgres"] {
        let (code, _, err) =
            pair.ask(&format!("{direct} user={role} sslmode=disable"), "IDENTIFY_SYSTEM");
        assert!(code != 0 && err.contains("pg_hba.conf rejects"), "{role}: {err}");
        let (code, _, err) =
            pair.ask(&format!("{direct} user={role} sslmode=require"), "IDENTIFY_SYSTEM");
        assert!(code != 0 && err.contains("requires a valid client certificate"), "{role}: {err}");
    }

    // Clients: as ever through the router, until it is asked for; on the database's own port at once.
    assert_eq!(pair.sql("sslmode=prefer", SSL), "f");
    let (code, _, err) = pair.ask("sslmode=require", SSL);
    assert!(code != 0 && err.contains("does not support SSL"), "{err}");
    let verified = format!("sslmode=verify-full sslrootcert={}", ca.display());
    assert_eq!(pair.sql(&format!("{direct} {verified}"), SSL), "t");
    let (code, _, err) = pair.sempre(&["config", "set", "client_tls=on"]);
    assert_eq!(code, 0, "{err}");
    until("TLS is offered", || (pair.ask(&verified, SSL).1.trim() == "t").then_some(()));

    // A member gets another address: its certificate does too, and the database goes on.
    let start = "select pg_postmaster_start_time()";
    let before = pair.sql(&direct, start);
    let file = home.join("m1.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("\"127.0.2.1\"", "\"127.0.2.1\", \"127.0.3.1\"")).unwrap();
    let agent = pair.ready["members"][0]["agent_pid"].as_i64().unwrap();
    let agent = nix::unistd::Pid::from_raw(i32::try_from(agent).unwrap());
    nix::sys::signal::kill(agent, nix::sys::signal::Signal::SIGKILL).unwrap();
    // The name that is checked is the new one; the database listens where it did.
    let renewed = format!("host=127.0.3.1 hostaddr=127.0.1.1 port={port} {verified}");
    until("the certificate names the new address", || {
        (pair.ask(&renewed, SSL).1.trim() == "t").then_some(())
    });
    assert_eq!(pair.sql(&renewed, start), before, "the database was restarted");
    assert_eq!(pair.sql("", senders), "m2true/CN=m2");

    // Commands are encrypted, and check whom they talk to.
    let own = fs::read(&ca).unwrap();
    let foreign = sempre_net::Authority::new("demo", "0123456789abcdef").unwrap();
    fs::write(&ca, foreign.cert_pem()).unwrap();
    let (code, _, err) = pair.sempre(&["pause"]);
    assert!(code == 4 && err.contains("certificate"), "{code}: {err}");
    fs::remove_file(&ca).unwrap();
    let (code, _, err) = pair.sempre(&["pause"]);
    assert!(code != 0 && err.contains("cannot be checked"), "{code}: {err}");
    fs::write(&ca, own).unwrap();
    let (code, _, err) = pair.sempre(&["pause"]);
    assert_eq!(code, 0, "{err}");
}
