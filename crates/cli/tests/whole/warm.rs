//! Sessions have their next connection before a switchover takes the old one away.

use crate::{
    beside::Beside,
    common::{
        base_port,
        cluster::{Cluster, data, dsn, query},
        until,
    },
};
use tokio_postgres::{Client, NoTls};

/// What a standby that is promoted starts at that moment, and not before.
const SINCE_PROMOTION: &str = "select backend_start > (select backend_start from pg_stat_activity \
     where backend_type = 'walwriter') from pg_stat_activity where pid = pg_backend_pid()";
/// Sessions of each router.
const SESSIONS: usize = 10;

async fn sessions(address: &str) -> Vec<Client> {
    let mut clients = Vec::new();
    for number in 0..SESSIONS {
        let (client, connection) = tokio_postgres::connect(address, NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute(&format!("set work_mem = '{}MB'", 5 + number)).await.unwrap();
        clients.push(client);
    }
    clients
}

async fn asked(client: &Client, sql: &'static str) -> String {
    let rows = client.simple_query(sql).await.unwrap();
    let row = rows.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    row.unwrap().to_owned()
}

/// Through a member's routing, and through routing beside an application that learns of it by HTTP.
#[test]
fn sessions_go_on_with_connections_that_are_older_than_the_promotion() {
    let cluster = Cluster::start(vec![data("m1"), data("m2"), data("m3")], &[]);
    let port = base_port();
    let first = cluster.member("m1");
    let _beside = Beside::start(&cluster, port, &[]);
    let beside = dsn(&first.address, port);
    until("it leads to the primary", || query(&beside, "select 1").ok());
    query(&beside, "create table t (a int)").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut all = runtime.block_on(sessions(&beside));
    // A member that is neither the old primary nor the new one.
    all.extend(runtime.block_on(sessions(&cluster.member("m3").read_write())));

    cluster.switchover(&["--to", "m2"]);
    let fresh = runtime.block_on(async {
        let mut fresh = 0;
        for (number, client) in all.iter().enumerate() {
            client.batch_execute("insert into t values (1)").await.unwrap();
            let memory = format!("{}MB", 5 + number % SESSIONS);
            assert_eq!(asked(client, "show work_mem").await, memory);
            fresh += usize::from(asked(client, SINCE_PROMOTION).await == "t");
        }
        assert_eq!(asked(&all[0], "select count(*) from t").await, "20");
        fresh
    });
    assert_eq!(fresh, 0, "of {} sessions, so many logged in after the promotion", all.len());
    cluster.whole();

    // Not where the policy says so.
    cluster.ok(&["config", "set", "switchover_warm_up_ms=0"]);
    cluster.switchover(&["--to", "m1"]);
    let fresh = runtime.block_on(async {
        all[0].batch_execute("insert into t values (1)").await.unwrap();
        asked(&all[0], SINCE_PROMOTION).await
    });
    assert_eq!(fresh, "t");
}
