//! Between members nothing goes in clear, and nobody else gets in.

use crate::servers::{Server, authority, caught_up, folder, identity, member, secrets, until};
use anyhow::Result;
use sempre_net::{Authority, MEMBER_LIFETIME};
use sempre_postgres::{CloneOptions, Encryption};
use std::{
    fs,
    path::Path,
    process::{Command, Output},
    time::{Duration, SystemTime},
};

/// What somebody gets who connects as a standby would, with the right password: all but `words`
/// is right.
fn intrude(server: &Server, intruder: &Server, words: &str) -> Output {
    let instance = &intruder.instance;
    let (member, ca) = (instance.member_pem(), instance.ca_pem());
    let conninfo = format!(
        "host=127.0.0.1 port={} user=sempre_replication replication=true gssencmode=disable \
         sslmode=verify-ca sslrootcert={} sslcert={} sslkey={} {words}",
        server.instance.port,
        ca.display(),
        member.display(),
        member.display(),
    );
    Command::new(instance.installation.program("psql"))
        .args(["-X", "-c", "IDENTIFY_SYSTEM", &conninfo])
        .env("PGPASSWORD", secrets().replication)
        .output()
        .unwrap()
}

fn refused(output: Output, why: &str) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains(why), "{said}");
}

/// Takes the place of a server's identity.
fn put(server: &Server, authority: &Authority, name: &str, lifetime: Duration) {
    let identity = identity(authority, name, lifetime);
    identity.save(&server.instance.layout.tls_dir).unwrap();
    // A certificate is still valid in its last second.
    while lifetime.is_zero() && identity.expires_at() + Duration::from_secs(1) > SystemTime::now() {
        std::thread::sleep(Duration::from_millis(20));
    }
}

async fn copied(root: &Path, name: &str, from: &Server) -> sempre_postgres::Result<Server> {
    let server = Server::empty(root, name);
    let source = from.as_upstream();
    server.instance.clone_from(&source, &CloneOptions::default(), |_| ()).await.map(|()| server)
}

#[tokio::test]
async fn replication_is_encrypted_and_both_sides_prove_who_they_are() -> Result<()> {
    let root = folder();
    let mut a = Server::new(root.path(), "a").await;
    let on_a = a.start(&a.primary_settings()).await?;
    on_a.ensure_slots(&[member("b")].into()).await?;

    // Phase 1: a standby copies and streams, encrypted, and is known by its certificate.
    let mut b = copied(root.path(), "b", &a).await?;
    let on_b = b.start(&b.standby_settings(Some(&a))).await?;
    caught_up(&on_a, &on_b).await?;
    // What it has may have come with the copy.
    until("it streams", async || Ok(!on_a.observe().await?.downstreams.is_empty())).await?;
    on_a.execute(
        "DO $$DECLARE r record; n int := 0; BEGIN \
         FOR r IN SELECT * FROM pg_stat_replication LEFT JOIN pg_stat_ssl USING (pid) LOOP \
         IF r.ssl IS NOT TRUE OR r.client_dn <> '/CN=b' THEN RAISE 'in clear: %', r; END IF; \
         n := n + 1; END LOOP; IF n = 0 THEN RAISE 'nobody streams'; END IF; END$$",
    )
    .await?;

    // Phase 2: nobody gets in without encryption, or without a certificate of the cluster.
    let stranger = Server::empty(root.path(), "stranger");
    let accepted = intrude(&a, &stranger, "");
    assert!(accepted.status.success(), "{}", String::from_utf8_lossy(&accepted.stderr));
    refused(intrude(&a, &stranger, "sslmode=disable"), "pg_hba.conf rejects");
    refused(intrude(&a, &stranger, "sslcert=none sslkey=none"), "valid client certificate");
    let foreign = Authority::new("tests", authority().cluster_id())?;
    put(&stranger, &foreign, "stranger", MEMBER_LIFETIME);
    refused(intrude(&a, &stranger, "sslmode=require sslrootcert=none"), "unknown ca");
    put(&stranger, authority(), "stranger", Duration::ZERO);
    refused(intrude(&a, &stranger, ""), "expired");

    // Phase 3: a standby does not believe a server of another authority, nor an expired one. The
    // server takes a new certificate over without a restart.
    let start = "SELECT pg_postmaster_start_time()::text";
    on_a.execute(&format!("CREATE TABLE started AS {start} AS at")).await?;
    put(&a, authority(), "a", Duration::ZERO);
    on_a.reload().await?;
    let refused_with = async |words: &str| {
        until(&format!("it is refused: {words}"), async || {
            match copied(root.path(), "c", &a).await {
                Err(error) if error.to_string().contains(words) => Ok(true),
                other => Ok(other.map(|_| false)?),
            }
        })
        .await
    };
    refused_with("certificate verify failed").await?;
    let error = a.instance.history_of(&a.as_upstream(), &secrets().admin).await.unwrap_err();
    assert!(error.to_string().contains("xpired"), "{error}");
    put(&a, &foreign, "a", MEMBER_LIFETIME);
    fs::copy(b.instance.ca_pem(), a.instance.ca_pem())?;
    on_a.reload().await?;
    refused_with("certificate verify failed").await?;
    let error = b.instance.history_of(&a.as_upstream(), &secrets().admin).await.unwrap_err();
    assert!(error.to_string().contains("BadSignature"), "{error}");
    put(&a, authority(), "a", MEMBER_LIFETIME);
    on_a.reload().await?;
    let good = async || Ok(copied(root.path(), "c", &a).await.map(|_| true)?);
    until("the renewed certificate is accepted", good).await?;
    b.instance.history_of(&a.as_upstream(), &secrets().admin).await?;
    on_a.execute(&format!(
        "DO $$BEGIN IF ({start}) <> (SELECT at FROM started) THEN RAISE 'restarted'; END IF; END$$"
    ))
    .await?;
    caught_up(&on_a, &on_b).await
}

#[tokio::test]
async fn an_administrator_s_certificate_stays() -> Result<()> {
    let root = folder();
    let mut a = Server::new(root.path(), "a").await;
    let data = a.instance.layout.data_dir.clone();
    assert!(!a.instance.own_certificate().await?);

    // As a server that is adopted may have it.
    let own = root.path().join("own");
    identity(&Authority::new("company", "company")?, "own", MEMBER_LIFETIME).save(&own)?;
    let file = own.join("member.pem");
    let lines =
        format!("\nssl = on\nssl_cert_file = '{0}'\nssl_key_file = '{0}'\n", file.display());
    let text = fs::read_to_string(data.join("postgresql.conf"))?;
    fs::write(data.join("postgresql.conf"), text + &lines)?;
    assert!(a.instance.own_certificate().await?);
    a.encryption = Encryption::Own;
    let on_a = a.start(&a.primary_settings()).await?;
    on_a.execute(&format!(
        "DO $$BEGIN IF current_setting('ssl_cert_file') <> '{}' THEN RAISE 'another'; END IF; END$$",
        file.display()
    ))
    .await?;

    // The standby does not know the authority: the password, bound to the channel, proves it.
    on_a.ensure_slots(&[member("b")].into()).await?;
    let mut b = copied(root.path(), "b", &a).await?;
    assert!(b.instance.own_certificate().await?, "the copy has the same configuration");
    b.encryption = Encryption::Own;
    let on_b = b.start(&b.standby_settings(Some(&a))).await?;
    caught_up(&on_a, &on_b).await?;
    b.instance.history_of(&a.as_upstream(), &secrets().admin).await?;
    refused(intrude(&a, &b, "sslmode=disable"), "pg_hba.conf rejects");
    // Who expects a member's certificate finds another.
    a.encryption = Encryption::Mutual;
    let error = copied(root.path(), "c", &a).await.err().expect("it is not a member's").to_string();
    assert!(error.contains("certificate verify failed"), "{error}");
    Ok(())
}

#[tokio::test]
async fn an_administrator_s_client_certificates_leave_members_alone() -> Result<()> {
    let root = folder();
    let mut a = Server::new(root.path(), "a").await;
    a.encryption = Encryption::ServerOnly;
    let clients = Authority::new("clients", "clients")?;
    let file = root.path().join("clients.pem");
    fs::write(&file, clients.cert_pem())?;
    let mut settings = a.primary_settings();
    settings.parameters.insert("ssl_ca_file".into(), file.display().to_string());
    let on_a = a.start(&settings).await?;
    on_a.ensure_slots(&[member("b")].into()).await?;
    let mut b = copied(root.path(), "b", &a).await?;
    let on_b = b.start(&b.standby_settings(Some(&a))).await?;
    caught_up(&on_a, &on_b).await?;
    b.instance.history_of(&a.as_upstream(), &secrets().admin).await?;
    Ok(())
}
