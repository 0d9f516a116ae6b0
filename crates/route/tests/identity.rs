//! A client sees the same bytes with and without routing.
//!
//! Scripts of messages, made from seeds, are played against a server itself and through the proxy;
//! all that was answered is compared. `SEMPRE_ROUTE_SCRIPTS` says how many, `SEMPRE_ROUTE_SEED`
//! where to begin; a failure names the seed.

mod common;
#[path = "common/script.rs"]
mod script;

use common::*;
use script::{Allows, PREPARE, Script, Step, TABLES};
use sempre_route::{Mode, PoolMode, PoolSettings, ProxySettings, Style};
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

/// Scripts of a usual run, for each way of sharing connections.
const SCRIPTS: u64 = 40;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

/// One connection, and all that came from it, cut into messages.
struct Play {
    read: OwnedReadHalf,
    write: OwnedWriteHalf,
    rest: Vec<u8>,
    messages: Vec<Vec<u8>>,
    ready: usize,
    over: bool,
}

impl Play {
    async fn begin(address: SocketAddr, startup: &[u8]) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (read, mut write) = stream.into_split();
        write.write_all(startup).await.unwrap();
        let (rest, messages) = (Vec::new(), Vec::new());
        let mut play = Self { read, write, rest, messages, ready: 0, over: false };
        play.hear(1).await;
        play
    }

    /// Reads until so many ReadyForQuery have come in all, or the end.
    async fn hear(&mut self, ready: usize) {
        let mut buffer = vec![0; 65_536];
        while self.ready < ready && !self.over {
            // A server that ends a connection with something unread resets it.
            let read = self.read.read(&mut buffer).await.unwrap_or(0);
            self.over = read == 0;
            self.rest.extend_from_slice(&buffer[..read]);
            self.cut();
        }
    }

    fn cut(&mut self) {
        let mut at = 0;
        while let Some(header) = self.rest.get(at..at + 5) {
            let size = 1 + u32::from_be_bytes(header[1..].try_into().unwrap()) as usize;
            let Some(message) = self.rest.get(at..at + size) else { break };
            self.ready += usize::from(message[0] == b'Z');
            self.messages.push(message.to_vec());
            at += size;
        }
        self.rest.drain(..at);
    }

    async fn play(&mut self, step: &Step, chunk: usize, last: bool) -> Result<(), String> {
        let want = if last { usize::MAX } else { self.ready + step.ready };
        let (read, write) = (&mut self.read, &mut self.write);
        let (mut heard, mut buffer) = (Vec::new(), vec![0; 65_536]);
        let mut say = Box::pin(async {
            for bytes in step.bytes.chunks(chunk) {
                // The other side may have had enough.
                if write.write_all(bytes).await.is_err() {
                    break;
                }
            }
        });
        // What is answered meanwhile has to be taken, or both sides wait for each other.
        let said = timeout(PATIENCE, async {
            loop {
                tokio::select! {
                    () = &mut say => break,
                    count = read.read(&mut buffer) => match count {
                        Ok(count) if count > 0 => heard.extend_from_slice(&buffer[..count]),
                        _ => break,
                    },
                }
            }
        });
        said.await.map_err(|_| "what was said was not taken".to_owned())?;
        drop(say);
        self.rest.append(&mut heard);
        self.cut();
        let heard = timeout(PATIENCE, self.hear(want)).await;
        heard.map_err(|_| format!("{} of {want} answers came", self.ready))
    }

    /// What must be the same: all whole messages (of answers that nobody asked to be sent, a server
    /// sends what its buffer did not hold). The number of the client's own process, which BackendKeyData and its
    /// own notifications name, is another one on every connection. Where connections are shared, a
    /// Parse that was put in front of a message may fail in its place: which line of the server
    /// complains is another one then.
    fn comparable(mut self, shared: bool) -> Vec<Vec<u8>> {
        let mut own = Vec::new();
        for message in &mut self.messages {
            match message[0] {
                b'K' => own = message.drain(5..).take(4).collect(),
                b'E' if shared => {
                    let fields = message[5..].split_inclusive(|byte| *byte == 0);
                    *message =
                        fields.filter(|f| !b"FLR".contains(&f[0])).flatten().copied().collect();
                    message.insert(0, b'E');
                    // Of several names for one text, any may be said.
                    for at in 1..message.len().saturating_sub(3) {
                        if message[at..].starts_with(b"\"s") && message[at + 3] == b'"' {
                            message[at + 2] = b'?';
                        }
                    }
                }
                b'A' if message[5..9] == own => message[5..9].fill(0),
                _ => {}
            }
        }
        self.messages
    }
}

async fn play(address: SocketAddr, startup: &[u8], script: &Script, shared: bool) -> Vec<Vec<u8>> {
    let mut play = Play::begin(address, startup).await;
    for (at, step) in script.steps.iter().enumerate() {
        if let Err(why) = play.play(step, script.chunk, at + 1 == script.steps.len()).await {
            play.messages.push(format!("[step {at}: {why}]").into_bytes());
            break;
        }
    }
    play.comparable(shared)
}

fn show(message: &[u8]) -> String {
    String::from_utf8_lossy(&message[..message.len().min(300)]).replace('\0', "|")
}

fn compare(seed: u64, script: &Script, direct: &[Vec<u8>], routed: &[Vec<u8>]) {
    if direct == routed {
        return;
    }
    for (number, step) in script.steps.iter().enumerate() {
        eprintln!("step {number}, {} answers: {:#?}", step.ready, step.says);
    }
    let at = direct.iter().zip(routed).take_while(|(a, b)| a == b).count();
    for (whose, all) in [("the server", direct), ("the proxy", routed)] {
        eprintln!("--- {whose}, {} messages:", all.len());
        for (number, message) in all.iter().enumerate().skip(at.saturating_sub(8)).take(20) {
            eprintln!("{number}: {}", show(message));
        }
    }
    panic!("SEMPRE_ROUTE_SEED={seed} SEMPRE_ROUTE_SCRIPTS=1: message {at} differs");
}

/// `kept`: seeds that found something once.
async fn compare_all(mode: PoolMode, resolve_autocommit: bool, from: u64, kept: &[u64]) {
    let server = tokio::task::spawn_blocking(|| Server::new("same")).await.unwrap();
    let admin = direct(&server).await;
    admin.batch_execute(TABLES).await.unwrap();
    let pool = PoolSettings { mode, ..PoolSettings::default() };
    let settings = ProxySettings { pool, resolve_autocommit, ..ProxySettings::default() };
    let style = Style::Proxy(settings);
    let routed = Routed::start_in(style, Mode::ReadWrite, table(1, Some(server.target())));
    let address = SocketAddr::from(([127, 0, 0, 1], server.port));
    let shared = mode == PoolMode::Transaction;
    let from = number("SEMPRE_ROUTE_SEED", from);
    let usual = from..from + number("SEMPRE_ROUTE_SCRIPTS", SCRIPTS);
    for seed in kept.iter().copied().chain(usual) {
        let allows = Allows {
            same_name: !shared,
            reuse: !shared || seed % 2 == 0,
            blocks: !shared || seed % 2 == 1,
        };
        let script = Script::new(seed, allows);
        let mut answers = Vec::new();
        for to in [address, routed.address] {
            // A session of the script before may still hold what this one wants.
            let sessions = "select count(*) from pg_stat_activity where backend_type = 'client backend' \
                            and pid <> pg_backend_pid() and state <> 'idle'";
            until_answers(&admin, sessions, "0").await;
            admin.batch_execute(PREPARE).await.unwrap();
            answers.push(play(to, &startup(), &script, shared).await);
        }
        compare(seed, &script, &answers[0], &answers[1]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_carried_session_answers_what_the_server_answers() {
    compare_all(PoolMode::Session, false, 1, &[3_000_014]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_connection_answers_what_the_server_answers() {
    compare_all(PoolMode::Transaction, false, 1_000_001, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_that_are_found_out_about_answer_what_the_server_answers() {
    let kept = [2_000_011, 2_000_015, 2_000_088, 2_000_098, 2_000_109, 3_000_011, 3_000_014];
    compare_all(PoolMode::Session, true, 2_000_001, &kept).await;
    compare_all(PoolMode::Transaction, true, 3_000_001, &kept).await;
}
