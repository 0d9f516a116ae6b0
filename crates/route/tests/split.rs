//! Read/write split: read-only transactions of the read-write port run on a standby.

mod common;

use common::*;
use sempre_route::{
    Limits, Mode, PoolMode, PoolSettings, ProxySettings, Split, SplitSettings, Style,
};
use sempre_wire::pg::write;
use std::sync::{Arc, Mutex, Weak};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tokio_postgres::{Client, error::SqlState};

const MODES: [PoolMode; 2] = [PoolMode::Session, PoolMode::Transaction];

struct Cluster {
    primary: Server,
    standby: Server,
}

impl Cluster {
    fn new() -> Self {
        let primary = Server::new("primary");
        let standby = Server::standby("standby", &primary);
        Self { primary, standby }
    }
}

static CLUSTER: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());

/// Shared by the tests that leave it as it is.
fn cluster() -> Arc<Cluster> {
    let mut shared = CLUSTER.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    shared.upgrade().unwrap_or_else(|| {
        let cluster = Arc::new(Cluster::new());
        *shared = Arc::downgrade(&cluster);
        cluster
    })
}

fn split_in(cluster: &Cluster, mode: PoolMode, timeout_ms: u64) -> Routed {
    let settings = ProxySettings {
        pool: PoolSettings { mode, ..PoolSettings::default() },
        split: SplitSettings {
            split: Split::ReadOnly,
            read_your_writes_timeout_ms: timeout_ms,
            ..SplitSettings::default()
        },
        ..ProxySettings::default()
    };
    let mut table = table(1, Some(cluster.primary.target()));
    table.standbys = vec![standby(&cluster.standby, 0)];
    Routed::start_in(Style::Proxy(settings), Mode::ReadWrite, table)
}

/// A standby has all the time it needs.
fn split(cluster: &Cluster, mode: PoolMode) -> Routed {
    split_in(cluster, mode, PATIENCE.as_millis() as u64)
}

async fn client(routed: &Routed) -> Client {
    connect(&routed.plain()).await.unwrap().0
}

/// Where a transaction that begins so runs.
async fn place(client: &Client, begin: &str) -> String {
    client.batch_execute(begin).await.unwrap();
    let place = server_of(client).await;
    client.batch_execute("commit").await.unwrap();
    place
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_transactions_run_on_the_standby_and_nothing_else_does() {
    let cluster = cluster();
    for mode in MODES {
        let routed = split(&cluster, mode);
        let mut client = client(&routed).await;
        assert_eq!(server_of(&client).await, "primary");
        for begin in
            ["begin read only", "START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;"]
        {
            assert_eq!(place(&client, begin).await, "standby", "{begin}");
            assert_eq!(simple(&client, "select pg_is_in_recovery()").await, "f");
        }
        for begin in [
            "begin",
            "begin read only, read write",
            "begin isolation level serializable, read only",
            "begin /* read only */",
        ] {
            assert_eq!(place(&client, begin).await, "primary", "{begin}");
        }
        // By the extended protocol, and by psql.
        let transaction = client.build_transaction().read_only(true).start().await.unwrap();
        let row = transaction.query_one("select pg_is_in_recovery()", &[]).await.unwrap();
        assert!(row.get::<_, bool>(0));
        transaction.commit().await.unwrap();
        let row = client.query_one("select pg_is_in_recovery()", &[]).await.unwrap();
        assert!(!row.get::<_, bool>(0));
        let begin = client.prepare("begin read only").await.unwrap();
        client.execute(&begin, &[]).await.unwrap();
        assert_eq!(server_of(&client).await, "standby");
        client.batch_execute("rollback").await.unwrap();
        assert_eq!(server_of(&client).await, "primary");
        let output = psql(&routed.plain(), "begin read only; show cluster_name; commit").await;
        assert_eq!(stdout(&output), "primary", "several statements at once are not split");
        // By the session's default, which goes with it.
        let read_only = "set session characteristics as transaction read only";
        client.batch_execute(read_only).await.unwrap();
        assert_eq!(place(&client, "begin").await, "standby");
        assert_eq!(place(&client, "begin read write").await, "primary");
        client.batch_execute("reset default_transaction_read_only").await.unwrap();
        assert_eq!(place(&client, "begin").await, "primary");
        client.batch_execute("set default_transaction_isolation = serializable").await.unwrap();
        assert_eq!(place(&client, "begin read only").await, "primary");
        // Who listens stays where notifications come.
        client.batch_execute("discard all").await.unwrap();
        client.batch_execute("listen a").await.unwrap();
        assert_eq!(place(&client, "begin read only").await, "primary");
        client.batch_execute("unlisten *").await.unwrap();
        assert_eq!(place(&client, "begin read only").await, "standby");
        let stats = routed.stats();
        assert!(stats.split_to_standby >= 6 && stats.split_to_primary >= 2, "{stats:?}");
        let pool = routed.router.pools().remove(0);
        assert_eq!(pool.split_transactions, stats.split_to_standby);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_and_settings_are_the_sessions_wherever_it_is() {
    let cluster = cluster();
    for mode in MODES {
        let routed = split(&cluster, mode);
        let client = client(&routed).await;
        let here = client.prepare("select pg_is_in_recovery(), $1::int + 1").await.unwrap();
        let ask = async |number: i32, on_standby: bool| {
            let row = client.query_one(&here, &[&number]).await.unwrap();
            assert_eq!((row.get(0), row.get(1)), (on_standby, number + 1));
        };
        ask(1, false).await;
        client.batch_execute("begin read only").await.unwrap();
        ask(2, true).await;
        let there = client.prepare("select $1::text || '!'").await.unwrap();
        client.batch_execute("commit").await.unwrap();
        ask(3, false).await;
        let row = client.query_one(&there, &[&"x"]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), "x!");
        client.batch_execute("set application_name = 'mine'").await.unwrap();
        client.batch_execute("begin read only").await.unwrap();
        assert_eq!(simple(&client, "show application_name").await, "mine");
        client.batch_execute("commit").await.unwrap();

        let memory = "show work_mem";
        client.batch_execute("set work_mem = '7MB'; set app.who = 'ann'").await.unwrap();
        client.batch_execute("begin read only").await.unwrap();
        assert_eq!(simple(&client, "show cluster_name").await, "standby");
        assert_eq!(simple(&client, memory).await, "7MB");
        assert_eq!(simple(&client, "show app.who").await, "ann");
        client.batch_execute("set local work_mem = '9MB'").await.unwrap();
        client.batch_execute("commit").await.unwrap();
        assert_eq!(simple(&client, memory).await, "7MB");
        client.batch_execute("begin read only").await.unwrap();
        client.batch_execute("set work_mem = '8MB'").await.unwrap();
        client.batch_execute("prepare p as select 5").await.unwrap();
        client.batch_execute("commit").await.unwrap();
        assert_eq!(server_of(&client).await, "primary");
        assert_eq!(simple(&client, memory).await, "8MB");
        assert_eq!(simple(&client, "execute p").await, "5");
        client.batch_execute("begin read only").await.unwrap();
        client.batch_execute("reset work_mem").await.unwrap();
        client.batch_execute("rollback").await.unwrap();
        assert_eq!(simple(&client, memory).await, "8MB");
        // Nobody else finds any of it.
        let other = self::client(&routed).await;
        other.batch_execute("begin read only").await.unwrap();
        assert_eq!(server_of(&other).await, "standby");
        assert_ne!(simple(&other, memory).await, "8MB");
        other.batch_execute("commit").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_keeps_its_connection_meanwhile_and_does_not_outrun_itself() {
    let cluster = cluster();
    for mode in MODES {
        let routed = split(&cluster, mode);
        let (one, pid) = (client(&routed).await, "select pg_backend_pid()");
        let before = simple(&one, pid).await;
        assert_eq!(place(&one, "begin read only").await, "standby");
        assert_eq!(simple(&one, pid).await, before);
        // All at once: what stands behind COMMIT is the primary's again.
        one.batch_execute("drop table if exists outrun; create table outrun (a int)")
            .await
            .unwrap();
        let mut raw = TcpStream::connect(routed.address).await.unwrap();
        let mut bytes = startup();
        for sql in [
            "begin read only",
            "show cluster_name",
            "commit",
            "insert into outrun values (1)",
            "begin read only",
            "show cluster_name",
            "select 'rows ' || count(*) from outrun",
            "commit",
            "show cluster_name",
        ] {
            bytes.extend(query(sql));
        }
        bytes.extend(b"X\0\0\0\x04");
        raw.write_all(&bytes).await.unwrap();
        let answer = all(&mut raw).await;
        assert_eq!(answer.matches("standbyC").count(), 2, "{answer}");
        assert!(answer.contains("INSERT 0 1") && answer.contains("rows 1"), "{answer}");
        assert_eq!(answer.matches("primaryC").count(), 1, "{answer}");
        assert!(!answer.contains("ERROR"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_hands_over_gets_rid_of_connections_that_wait_for_a_reader() {
    let cluster = cluster();
    let routed = split(&cluster, PoolMode::Session);
    let client = connect(&format!("{} application_name=parked", routed.plain())).await.unwrap().0;
    client.batch_execute("set work_mem = '7MB'").await.unwrap();
    client.batch_execute("begin read only").await.unwrap();
    assert_eq!(server_of(&client).await, "standby");
    let primary = direct(&cluster.primary).await;
    let count = "select count(*) from pg_stat_activity where application_name = 'parked'";
    assert_eq!(simple(&primary, count).await, "1");
    routed.change(|table| table.draining = true);
    until_answers(&primary, count, "0").await;
    assert_eq!(server_of(&client).await, "standby");
    client.batch_execute("commit").await.unwrap();
    routed.change(|table| table.draining = false);
    assert_eq!(server_of(&client).await, "primary");
    assert_eq!(simple(&client, "show work_mem").await, "7MB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_standby_cannot_do_is_run_again_on_the_primary() {
    let cluster = cluster();
    for mode in MODES {
        let routed = split(&cluster, mode);
        for lock in ["select pg_advisory_xact_lock(1)", "declare c cursor with hold for select 1"] {
            let client = client(&routed).await;
            client.batch_execute("begin read only").await.unwrap();
            let error = client.batch_execute(lock).await.unwrap_err();
            assert_eq!(error.code(), Some(&SqlState::T_R_SERIALIZATION_FAILURE), "{error:?}");
            client.batch_execute("rollback").await.unwrap();
            client.batch_execute("begin read only").await.unwrap();
            client.batch_execute(lock).await.unwrap();
            assert_eq!(server_of(&client).await, "primary");
            client.batch_execute("commit").await.unwrap();
        }
        // All in one cycle, as drivers begin a transaction with its first statement; twice.
        let mut bytes = startup();
        for _ in 0..2 {
            for sql in ["begin read only", "select 'locked' || pg_advisory_xact_lock(2)"] {
                write::parse(&mut bytes, b"", sql.as_bytes(), &[]);
                write::bind(&mut bytes, b"", b"", &[]);
                write::execute(&mut bytes, b"", 0);
            }
            write::sync(&mut bytes);
            write::query(&mut bytes, b"rollback");
        }
        write::terminate(&mut bytes);
        let mut raw = TcpStream::connect(routed.address).await.unwrap();
        raw.write_all(&bytes).await.unwrap();
        let answer = all(&mut raw).await;
        assert_eq!(answer.matches("C40001").count(), 1, "{answer}");
        assert_eq!(answer.matches("locked").count(), 1, "{answer}");
        let client = client(&routed).await;
        client.batch_execute("begin read only").await.unwrap();
        let error = client.batch_execute("create table never (a int)").await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::READ_ONLY_SQL_TRANSACTION), "{error:?}");
        client.batch_execute("rollback").await.unwrap();
        assert_eq!(place(&client, "begin read only").await, "primary");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_standby_that_fits_the_primary_serves_it() {
    let cluster = cluster();
    let routed = split(&cluster, PoolMode::Session);
    let client = client(&routed).await;
    assert_eq!(place(&client, "begin read only").await, "standby");
    let limit = Limits::default().max_lag_bytes;
    routed.change(|table| table.standbys[0].lag_bytes = limit + 1);
    assert_eq!(place(&client, "begin read only").await, "primary");
    routed.change(|table| table.standbys[0].lag_bytes = 0);
    assert_eq!(place(&client, "begin read only").await, "standby");
    routed.change(|table| table.standbys[0].follows = false);
    assert_eq!(place(&client, "begin read only").await, "primary");
    routed.change(|table| table.standbys.clear());
    assert_eq!(place(&client, "begin read only").await, "primary");
    let stats = routed.stats();
    assert_eq!((stats.split_to_standby, stats.split_to_primary), (2, 3));
    // One that cannot be reached.
    let routed = split(&cluster, PoolMode::Session);
    routed.change(|table| table.standbys[0].target.port = 1);
    let client = self::client(&routed).await;
    assert_eq!(place(&client, "begin read only").await, "primary");
    assert_eq!(routed.stats().split_to_primary, 1);
    // Off, nothing is split.
    let mut off = table(1, Some(cluster.primary.target()));
    off.standbys = vec![standby(&cluster.standby, 0)];
    let off = Routed::proxy(off);
    let client = self::client(&off).await;
    assert_eq!(place(&client, "begin read only").await, "primary");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_reads_what_it_has_written_or_asks_the_primary() {
    let cluster = Cluster::new();
    let standby = direct(&cluster.standby).await;
    let count = "select count(*) from w";
    for mode in MODES {
        let routed = split(&cluster, mode);
        let client = client(&routed).await;
        client.batch_execute("drop table if exists w; create table w (a int)").await.unwrap();
        for number in 1..=20 {
            client.execute("insert into w values (1)", &[]).await.unwrap();
            client.batch_execute("begin read only").await.unwrap();
            assert_eq!(server_of(&client).await, "standby");
            assert_eq!(simple(&client, count).await, number.to_string());
            client.batch_execute("commit").await.unwrap();
        }
        // A standby that replays nothing any more.
        let impatient = split_in(&cluster, mode, 1);
        let client = self::client(&impatient).await;
        standby.batch_execute("select pg_wal_replay_pause()").await.unwrap();
        until_answers(&standby, "select pg_get_wal_replay_pause_state()", "paused").await;
        client.batch_execute("insert into w values (1)").await.unwrap();
        client.batch_execute("begin read only").await.unwrap();
        assert_eq!(server_of(&client).await, "primary");
        assert_eq!(simple(&client, count).await, "21");
        client.batch_execute("commit").await.unwrap();
        assert!(impatient.stats().split_waited > 0);
        // Who has written nothing takes what is there.
        let reader = self::client(&impatient).await;
        reader.batch_execute("begin read only").await.unwrap();
        assert_eq!(server_of(&reader).await, "standby");
        assert_eq!(simple(&reader, count).await, "20");
        reader.batch_execute("commit").await.unwrap();
        // A write inside a function counts too; the standby comes back meanwhile.
        let function = "create or replace function hidden() returns void language sql as \
                        'insert into w values (1)'";
        let patient = self::client(&routed).await;
        patient.batch_execute(function).await.unwrap();
        patient.batch_execute("select hidden()").await.unwrap();
        let reads = async {
            patient.batch_execute("begin read only").await.unwrap();
            assert_eq!(server_of(&patient).await, "standby");
            assert_eq!(simple(&patient, count).await, "22");
            patient.batch_execute("commit").await.unwrap();
        };
        let resumes = async {
            standby.batch_execute("select pg_wal_replay_resume()").await.unwrap();
        };
        tokio::join!(reads, resumes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_is_lost_costs_its_transaction_only() {
    let cluster = Cluster::new();
    for mode in MODES {
        let routed = split(&cluster, mode);
        let client = client(&routed).await;
        client.batch_execute("set work_mem = '7MB'").await.unwrap();
        let pid = simple(&client, "select pg_backend_pid()").await;
        let lost = async |lose: &dyn Fn()| {
            client.batch_execute("begin read only").await.unwrap();
            assert_eq!(server_of(&client).await, "standby");
            lose();
            let error = client.batch_execute("select 1").await.unwrap_err();
            assert_eq!(error.code(), Some(&SqlState::T_R_SERIALIZATION_FAILURE), "{error:?}");
            let error = client.batch_execute("select 1").await.unwrap_err();
            assert_eq!(error.code(), Some(&SqlState::IN_FAILED_SQL_TRANSACTION), "{error:?}");
            client.batch_execute("rollback").await.unwrap();
            assert_eq!(simple(&client, "select pg_backend_pid()").await, pid);
            assert_eq!(simple(&client, "show work_mem").await, "7MB");
        };
        let name = cluster.standby.target().member;
        lost(&|| {
            let cut = routed.stats().cut;
            routed.change(|table| table.lost.push(name.clone()));
            while routed.stats().cut == cut {
                std::thread::yield_now();
            }
        })
        .await;
        assert_eq!(place(&client, "begin read only").await, "primary");
        routed.change(|table| table.lost.clear());
        lost(&|| {
            cluster.standby.signal("-QUIT");
            cluster.standby.start();
        })
        .await;
        // It is not tried again at once after it let nobody in.
        let start = std::time::Instant::now();
        while place(&client, "begin read only").await != "standby" {
            assert!(start.elapsed() < PATIENCE);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_primary_is_seen_by_nobody_who_reads_elsewhere() {
    let cluster = Cluster::new();
    let other = Server::standby("other", &cluster.primary);
    let routed = split(&cluster, PoolMode::Session);
    let (reader, victim) = (client(&routed).await, client(&routed).await);
    reader.batch_execute("create table w (a int)").await.unwrap();
    reader.batch_execute("insert into w values (1)").await.unwrap();
    for client in [&reader, &victim] {
        client.batch_execute("begin read only").await.unwrap();
        assert_eq!(server_of(client).await, "standby");
        assert_eq!(simple(client, "select count(*) from w").await, "1");
    }
    until_answers(&direct(&other).await, "select count(*) from w", "1").await;
    // `other` becomes the primary; nobody follows it yet.
    cluster.primary.signal("-QUIT");
    direct(&other).await.batch_execute("select pg_promote()").await.unwrap();
    routed.change(|table| {
        let generation = table.generation.next();
        (table.generation, table.cut_below) = (generation, generation);
        table.primary = Some(other.target());
        table.standbys[0].follows = false;
    });
    assert_eq!(server_of(&reader).await, "standby");
    reader.batch_execute("commit").await.unwrap();
    assert_eq!(server_of(&reader).await, "other");
    reader.batch_execute("insert into w values (2)").await.unwrap();
    reader.batch_execute("begin read only").await.unwrap();
    assert_eq!(simple(&reader, "select count(*) from w").await, "2");
    reader.batch_execute("commit").await.unwrap();
    // The standby that serves one becomes the primary itself.
    let cut = routed.stats().cut;
    routed.change(|table| table.primary = Some(cluster.standby.target()));
    until("its session is cut", || routed.stats().cut > cut).await;
    let error = victim.batch_execute("select 1").await.unwrap_err();
    assert_eq!(error.code(), Some(&SqlState::T_R_SERIALIZATION_FAILURE), "{error:?}");
    victim.batch_execute("rollback").await.unwrap();
}
