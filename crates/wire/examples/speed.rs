//! How fast the hot path is: `cargo run --release -p sempre-wire --example speed`.
//!
//! Prints, for streams as `pgbench -S` makes them and for COPY, what cutting into messages costs,
//! and what following the session costs on top.

use std::hint::black_box;
use std::time::{Duration, Instant};

use sempre_wire::pg::track::{Tracker, Whose};
use sempre_wire::pg::{BUFFER_MIN, Piece, Scanner, Side, TransactionStatus, write};

/// How long each figure is measured.
const MEASURE: Duration = Duration::from_millis(500);
/// What a proxy reads at once.
const BUFFER: usize = 64 << 10;

fn main() {
    let query = b"SELECT abalance FROM pgbench_accounts WHERE aid = 123456;";
    let mut simple = Vec::new();
    write::query(&mut simple, query);
    let mut prepared = Vec::new();
    write::bind(&mut prepared, b"", b"P0_1", &[Some(b"123456")]);
    write::describe_portal(&mut prepared, b"");
    write::execute(&mut prepared, b"", 0);
    write::sync(&mut prepared);
    let mut extended = Vec::new();
    write::parse(&mut extended, b"", &query[..query.len() - 1], &[]);
    write::bind(&mut extended, b"", b"", &[Some(b"123456")]);
    extended.extend_from_slice(&prepared[prepared.len() - 22..]);
    let row = |out: &mut Vec<u8>| {
        write::row_description(out, &["abalance"]);
        write::data_row(out, [Some(&b"-4711"[..])].into_iter());
        write::command_complete(out, "SELECT 1");
        write::ready_for_query(out, TransactionStatus::Idle);
    };
    let mut simple_answer = Vec::new();
    row(&mut simple_answer);
    let mut prepared_answer = Vec::new();
    write::bind_complete(&mut prepared_answer);
    row(&mut prepared_answer);
    let mut extended_answer = Vec::new();
    write::parse_complete(&mut extended_answer);
    extended_answer.extend_from_slice(&prepared_answer);

    println!("one transaction of pgbench -S, both directions:");
    both("simple", &simple, &simple_answer);
    both("prepared", &prepared, &prepared_answer);
    both("extended", &extended, &extended_answer);

    println!("\nstreams, one direction:");
    let mut rows = Vec::new();
    while rows.len() < BUFFER * 16 {
        write::data_row(&mut rows, [Some(&b"12345678"[..]); 4].into_iter());
    }
    stream("rows of 53 bytes", &rows);
    let mut copy = Vec::new();
    while copy.len() < BUFFER * 16 {
        write::copy_data(&mut copy, &[b'x'; 8192]);
    }
    stream("COPY of 8 KiB pieces", &copy);
    let mut large = Vec::new();
    write::data_row(&mut large, [Some(&vec![b'x'; 100 << 20][..])].into_iter());
    stream("a row of 100 MB", &large);
    let mut insert = Vec::new();
    let text =
        format!("insert into t values {}(1)", "(12345, 'some text, quoted'), ".repeat(100_000));
    write::query(&mut insert, text.as_bytes());
    let time = measure(|| {
        let mut tracker = Tracker::new();
        pieces(Side::Frontend, &insert, |piece| tracker.sent(Whose::Client, &piece).is_ok());
        black_box(&tracker);
    });
    println!(
        "  {:<22} {:>8.2} GB/s with its text read",
        "an INSERT of 3 MB",
        rate(insert.len(), time)
    );
}

fn measure(mut run: impl FnMut()) -> f64 {
    let (start, mut runs) = (Instant::now(), 0_u32);
    while start.elapsed() < MEASURE {
        run();
        runs += 1;
    }
    start.elapsed().as_secs_f64() / f64::from(runs)
}

fn rate(bytes: usize, seconds: f64) -> f64 {
    bytes as f64 / seconds / 1e9
}

fn pieces(side: Side, bytes: &[u8], mut each: impl FnMut(Piece) -> bool) {
    let (mut scanner, mut at) = (Scanner::new(side), 0);
    while at < bytes.len() {
        let end = (at + BUFFER.max(BUFFER_MIN)).min(bytes.len());
        match scanner.next(&bytes[at..end]) {
            Ok(Some(piece)) => {
                at += piece.size();
                if !each(piece) {
                    return;
                }
            }
            _ => return,
        }
    }
}

fn both(name: &str, asked: &[u8], answered: &[u8]) {
    const ROUNDS: usize = 1_000;
    let scan = measure(|| {
        for _ in 0..ROUNDS {
            for (side, bytes) in [(Side::Frontend, asked), (Side::Backend, answered)] {
                pieces(side, bytes, |piece| black_box(piece).size() > 0);
            }
        }
    });
    let mut tracker = Tracker::new();
    let track = measure(|| {
        for _ in 0..ROUNDS {
            pieces(Side::Frontend, asked, |piece| tracker.sent(Whose::Client, &piece).is_ok());
            pieces(Side::Backend, answered, |piece| {
                black_box(tracker.heard(&piece));
                true
            });
            black_box(tracker.take_hints());
        }
    });
    assert!(tracker.is_idle() && !tracker.is_out_of_step());
    let nanos = |seconds: f64| seconds * 1e9 / ROUNDS as f64;
    println!("  {name:<22} {:>8.0} ns scanned {:>8.0} ns tracked", nanos(scan), nanos(track));
}

fn stream(name: &str, bytes: &[u8]) {
    let scan = measure(|| pieces(Side::Backend, bytes, |piece| black_box(piece).size() > 0));
    let mut tracker = Tracker::new();
    let track = measure(|| {
        pieces(Side::Backend, bytes, |piece| {
            black_box(tracker.heard(&piece));
            true
        });
    });
    println!(
        "  {name:<22} {:>8.2} GB/s scanned {:>6.2} GB/s tracked",
        rate(bytes.len(), scan),
        rate(bytes.len(), track)
    );
}
