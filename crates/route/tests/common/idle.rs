//! What an idle session costs.

use super::common::*;
use sempre_route::{Mode, Style, Target};
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Answers every StartupMessage with "come in", and then is silent.
async fn silent_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut client, _)) = listener.accept().await {
            let mut packet = vec![0; startup().len()];
            client.read_exact(&mut packet).await.unwrap();
            client.write_all(b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I").await.unwrap();
            open.push(client);
        }
    });
    address
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

const SESSIONS: usize = 1_000;
/// 5,000 sessions in 60 MB, the test's own two sockets a session included.
const BYTES_A_SESSION: usize = 12_000;

/// Measures sessions of a style, in a process that does nothing else.
pub async fn measure(style: Style) {
    let server = silent_server().await;
    let target = Target {
        member: sempre_model::MemberId::new("silent").unwrap(),
        hosts: vec!["127.0.0.1".into()],
        port: server.port(),
        rest_port: None,
    };
    idle_sessions(style, target).await;
}

async fn idle_sessions(style: Style, target: Target) {
    let carried = matches!(style, Style::Proxy(_));
    let routed = Routed::start_in(style, Mode::ReadWrite, table(1, Some(target)));
    // A carried session gets its key too.
    let answer_size = if carried { 15 + 13 } else { 15 };
    let mut clients = Vec::with_capacity(SESSIONS);
    let mut before = 0;
    for count in 0..SESSIONS {
        if count == 50 {
            // Threads and their scratch buffers are there by now.
            before = resident_bytes();
        }
        let mut client = TcpStream::connect(routed.address).await.unwrap();
        client.write_all(&startup()).await.unwrap();
        let mut answer = vec![0; answer_size];
        client.read_exact(&mut answer).await.unwrap();
        clients.push(client);
    }
    let each = resident_bytes().saturating_sub(before) / (SESSIONS - 50);
    eprintln!("{each} bytes a session");
    assert!(each < BYTES_A_SESSION, "{each} bytes a session");
    assert_eq!(routed.stats().open, SESSIONS as u64);
    routed.change(|now| *now = table(2, None));
    for mut client in clients {
        // A carried one goes on, silently.
        if !carried {
            assert!(all(&mut client).await.contains("the primary has changed"));
        }
    }
    until("all gone", || routed.stats().open == 0).await;
}
