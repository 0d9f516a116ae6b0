//! Carried clients that misbehave, and servers that are lost in the middle of bulk data.

mod common;

use common::*;
use sempre_wire::pg::write;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// A client that speaks by hand.
struct Raw(TcpStream);

impl Raw {
    async fn begin(routed: &Routed) -> Self {
        let mut stream = TcpStream::connect(routed.address).await.unwrap();
        stream.write_all(&startup()).await.unwrap();
        let mut raw = Self(stream);
        raw.until(b'Z').await;
        raw
    }

    async fn say(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    async fn message(&mut self) -> Vec<u8> {
        let read = async {
            let mut message = vec![0; 5];
            self.0.read_exact(&mut message).await.unwrap();
            let length = u32::from_be_bytes(message[1..].try_into().unwrap()) as usize;
            message.resize(1 + length, 0);
            self.0.read_exact(&mut message[5..]).await.unwrap();
            message
        };
        timeout(PATIENCE, read).await.expect("an answer")
    }

    /// All up to a message of this type.
    async fn until(&mut self, tag: u8) -> String {
        let mut said = String::new();
        loop {
            let message = self.message().await;
            said.push_str(&String::from_utf8_lossy(&message));
            if message[0] == tag {
                return said;
            }
        }
    }

    async fn server(&mut self) -> String {
        self.say(&query("show cluster_name")).await;
        self.until(b'Z').await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_lost_inside_copy_in_rolls_it_back() {
    let pair = pair();
    let routed = Routed::proxy(table(1, Some(pair.old.target())));
    for server in [&pair.old, &pair.new] {
        let made = direct(server).await;
        made.batch_execute("create table if not exists copied (a text)").await.unwrap();
    }
    let mut to = [&pair.new, &pair.old].into_iter();
    for extended in [false, true] {
        let mut client = Raw::begin(&routed).await;
        let mut begin = Vec::new();
        if extended {
            write::parse(&mut begin, b"", b"copy copied from stdin", &[]);
            write::bind(&mut begin, b"", b"", &[]);
            write::execute(&mut begin, b"", 0);
            write::flush(&mut begin);
        } else {
            begin = query("copy copied from stdin");
        }
        client.say(&begin).await;
        client.until(b'G').await;
        let mut data = Vec::new();
        write::copy_data(&mut data, b"a line\n");
        client.say(&data).await;
        moves_to(&routed, to.next().unwrap());
        let mut end = data.clone();
        write::copy_done(&mut end);
        if extended {
            write::sync(&mut end);
        }
        client.say(&end).await;
        let said = client.until(b'Z').await;
        assert!(said.contains("40001") && said.ends_with('I'), "extended: {extended}: {said}");
        assert!(client.server().await.contains(if extended { "old" } else { "new" }));
    }
    for server in [&pair.old, &pair.new] {
        let admin = direct(server).await;
        assert_eq!(simple(&admin, "select count(*) from copied").await, "0");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_lost_inside_copy_out_is_told_between_two_rows() {
    let pair = pair();
    let routed = Routed::proxy(table(1, Some(pair.old.target())));
    // What was sent ends between two rows: a notice is sent at once.
    let pauses = "create or replace function pauses(int) returns int language plpgsql as $$ begin \
                  if $1 = 3 then raise notice 'now'; perform pg_sleep(600); end if; return $1; end $$";
    direct(&pair.old).await.batch_execute(pauses).await.unwrap();
    let mut client = Raw::begin(&routed).await;
    client.say(&query("copy (select pauses(g) from generate_series(1, 5) g) to stdout")).await;
    client.until(b'N').await;
    moves_to(&routed, &pair.new);
    let said = timeout(PATIENCE, client.until(b'Z')).await.unwrap();
    assert!(said.starts_with('E') && said.ends_with('I'), "{said}");
    assert!(client.server().await.contains("new"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_inside_something_leaves_nothing_behind() {
    let pair = pair();
    let routed = Routed::proxy(table(1, Some(pair.old.target())));
    let made = direct(&pair.old).await;
    made.batch_execute("create table if not exists left_by (a text)").await.unwrap();
    let mut copy = query("copy left_by from stdin");
    write::copy_data(&mut copy, b"a line\n");
    let mut no_sync = Vec::new();
    write::parse(&mut no_sync, b"", b"insert into left_by values ('x')", &[]);
    write::bind(&mut no_sync, b"", b"", &[]);
    write::execute(&mut no_sync, b"", 0);
    for left in [&copy, &no_sync] {
        for politely in [true, false] {
            let mut client = Raw::begin(&routed).await;
            let mut said = left.clone();
            if politely {
                write::terminate(&mut said);
            }
            client.say(&said).await;
            if politely {
                let _ = all(&mut client.0).await;
            }
            drop(client);
            until("gone", || routed.stats().open == 0).await;
            let locks = "select count(*) from pg_locks where relation = 'left_by'::regclass and pid <> pg_backend_pid()";
            until_answers(&made, locks, "0").await;
        }
    }
    assert_eq!(simple(&made, "select count(*) from left_by").await, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_and_broken_lengths_do_no_harm() {
    let pair = pair();
    let routed = Routed::proxy(table(1, Some(pair.old.target())));
    // Lengths: as large as a field can say, larger than the server takes, smaller than itself.
    for wrong in [b"Q\x7f\xff\xff\xff", b"d\xff\xff\xff\xff", b"P\0\0\0\0", b"E\0\x01\0\0"] {
        let mut client = Raw::begin(&routed).await;
        client.say(wrong).await;
        client.0.shutdown().await.unwrap();
        let _ = all(&mut client.0).await;
    }
    // Many who begin and say no more, or vanish; others still get in.
    let mut silent = Vec::new();
    for number in 0..200 {
        let mut client = TcpStream::connect(routed.address).await.unwrap();
        let length = startup().len() * (number % 2) / 2;
        client.write_all(&startup()[..length]).await.unwrap();
        silent.push(client);
    }
    let (client, _connection) = connect(&routed.plain()).await.unwrap();
    assert_eq!(server_of(&client).await, "old");
    drop(silent);
    drop(client);
    until("all gone", || routed.stats().open == 0).await;
}
