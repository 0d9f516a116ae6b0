//! What a member tells of the clients that it leads.

use crate::common::{
    cluster::{Cluster, data, query},
    until,
};
use std::{
    io::{Read, Write},
    net::TcpStream,
};

/// The page of metrics.
fn metrics(rest: &str) -> Option<String> {
    let mut stream = TcpStream::connect(rest).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).ok()?;
    Some(page)
}

/// One number of one pool.
fn of_pool(page: &str, name: &str, port: &str) -> Option<f64> {
    let labels = format!("database=\"postgres\",user=\"postgres\",port=\"{port}\"}} ");
    let samples = page.lines().filter(|line| line.starts_with(&format!("{name}{{")));
    samples.filter_map(|line| line.split_once(&labels)).find_map(|(_, value)| value.parse().ok())
}

#[test]
fn pools_of_each_port_show_in_the_metrics() {
    let cluster = Cluster::start(vec![data("m1"), data("m2")], &[]);
    let m1 = cluster.member("m1");
    for _ in 0..3 {
        query(&m1.read_write(), "select 1").unwrap();
    }
    until("a standby takes readers", || query(&m1.read_only(), "select 1").ok());

    let page = until("clients have left", || {
        let page = metrics(&m1.rest())?;
        let left =
            of_pool(&page, "pgbouncer_pools_client_active_connections", "read_write")? == 0.0;
        left.then_some(page)
    });
    let of = |name: &str, port: &str| of_pool(&page, name, port).expect(&page);
    assert!(of("pgbouncer_stats_queries_pooled_total", "read_write") >= 3.0);
    assert!(of("pgbouncer_stats_sql_transactions_pooled_total", "read_write") >= 3.0);
    assert!(of("pgbouncer_stats_queries_pooled_total", "read_only") >= 1.0);
    assert!(of("pgbouncer_stats_sent_bytes_total", "read_write") > 0.0);
    assert!(of("pgbouncer_pools_client_waiting_connections", "read_write") == 0.0);
    assert!(page.contains("# TYPE pgbouncer_stats_queries_pooled_total counter"));
}
