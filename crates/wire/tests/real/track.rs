//! The tracker beside a real server: any conversation, and it stays in step.

#[path = "../bodies/script.rs"]
mod script;

use std::cell::{Cell, RefCell};
use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sempre_wire::pg::track::{Outlook, Settled, Tracker, What, Whose};
use sempre_wire::pg::{Backend, Frontend, Piece, Scanner, Side, TransactionStatus, write};

use super::postgres::{PATIENCE, Postgres};
use super::shell::Shell;

/// What a client may say; COPY comes with its data, as anything else inside ends the session, and
/// is forgotten behind it, or the next Execute would begin it again.
const STEPS: &[&str] = &[
    ">Q:select 1",
    ">Q:select generate_series(1, 3)",
    ">Q:",
    ">Q:;;",
    ">Q:begin",
    ">Q:begin; insert into t values (1)",
    ">Q:insert into t values (1); insert into t values (2)",
    ">Q:insert into t values (1); select 1/0; select 2",
    ">Q:begin; insert into t values (1); commit",
    ">Q:commit",
    ">Q:commit; begin",
    ">Q:commit and chain",
    ">Q:rollback",
    ">Q:rollback and chain",
    ">Q:savepoint a",
    ">Q:rollback to a",
    ">Q:select 1/0",
    ">Q:bad",
    ">Q:deferred",
    ">Q:insert into once values (1)",
    ">Q:delete from once",
    ">Q:set application_name = 'x'",
    ">Q:listen x",
    ">Q:notify x",
    ">Q:do $$ begin raise notice 'n'; end $$",
    ">Q:prepare p as select 1",
    ">Q:execute p",
    ">Q:deallocate all",
    ">Q:discard all",
    ">Q:copy t to stdout",
    ">Q:copy t from stdin | >d:1 | >d:\n2\n | >c",
    ">Q:copy t from stdin | >d:1 | >f",
    ">Q:copy t from stdin | >d:bad\n | >d:2 | >c",
    ">Q:copy nothing from stdin | >d:bad\n | >c",
    ">Q:copy t from stdin; copy t from stdin | >d:1 | >c | >d:2 | >c",
    ">P::copy t from stdin | >B:: | >E: | >S | >d:1 | >c | >S | >CS: | >CP:",
    ">P::copy t from stdin | >B:: | >E: | >d:1 | >c | >S | >CS: | >CP:",
    ">P::copy t from stdin | >B:: | >E: | >S | >d:bad\n | >c | >S | >CS: | >CP:",
    ">P::copy t from stdin | >B:: | >E: | >S | >d:1 | >f | >S | >CS: | >CP:",
    ">P::copy fails from stdin | >B:: | >E: | >d:1 | >c | >S | >CS: | >CP:",
    ">P::copy t to stdout | >B:: | >E: | >S",
    ">P::select 1",
    ">P::insert into t values (1)",
    ">P::begin | >B:: | >E: | >S",
    ">P::commit | >B:: | >E: | >S",
    ">P::rollback | >B:: | >E:",
    ">P:a:select generate_series(1, 3)",
    ">P:a:insert into t values (1)",
    ">P:b:select 1/0",
    ">P:b:bad",
    ">P:b:",
    ">B::",
    ">B::a",
    ">B:p:a",
    ">B:p:b",
    ">DS:a",
    ">DS:",
    ">DP:",
    ">DP:p",
    ">E:",
    ">E:p",
    ">CS:a",
    ">CS:b",
    ">CP:p",
    ">H",
    ">S",
    ">S",
    ">S",
    ">F",
    ">d:stray",
    ">c",
    ">f",
    "}Q:select 'proxy'",
];

/// A tracked connection.
struct Tracked {
    shell: Shell,
    scanner: Scanner,
    buffer: Vec<u8>,
    tracker: Tracker,
    /// An error came in this cycle.
    failed: bool,
    rows: Vec<(Whose, Vec<u8>)>,
}

impl Tracked {
    fn new(port: u16) -> Self {
        Self {
            shell: connect(port),
            scanner: Scanner::new(Side::Backend),
            buffer: Vec::new(),
            tracker: Tracker::new(),
            failed: false,
            rows: Vec::new(),
        }
    }

    /// The rows of one question, asked by the client.
    fn ask(&mut self, question: &str) -> Vec<String> {
        self.rows.clear();
        self.say(&format!(">Q:{question}"));
        self.hear(true);
        self.rows.drain(..).map(|(_, row)| String::from_utf8(row).unwrap()).collect()
    }

    fn say(&mut self, step: &str) {
        let bytes = script::message(step);
        let whose = if step.starts_with('}') { Whose::Proxy } else { Whose::Client };
        script::pieces(Side::Frontend, &bytes, |piece| {
            self.tracker.sent(whose, &piece).unwrap();
        });
        self.shell.socket.write_all(&bytes).unwrap();
    }

    /// Hears what there is; with `all`, up to the end of the last cycle.
    fn hear(&mut self, all: bool) {
        loop {
            while let Some(piece) = self.scanner.next(&self.buffer).unwrap() {
                let size = piece.size();
                let in_block = self.tracker.in_block();
                let heard = self.tracker.heard(&piece);
                match heard.what {
                    What::Error { fatal, .. } => {
                        assert!(!fatal, "the session ended");
                        self.failed = true;
                    }
                    What::Ready(status) => {
                        let is = status != TransactionStatus::Idle;
                        assert!(self.failed || in_block == is, "{in_block} before {status:?}");
                        self.failed = false;
                    }
                    What::Row => {
                        let Piece::Whole(message) = piece else { panic!() };
                        let Ok(Backend::DataRow(mut columns)) = Backend::decode(b'D', message.body)
                        else {
                            panic!()
                        };
                        let value = columns.next().flatten().unwrap_or_default().to_vec();
                        self.rows.push((heard.whose, value));
                    }
                    _ => {}
                }
                assert!(!self.tracker.is_out_of_step());
                self.buffer.drain(..size);
            }
            if all && self.tracker.pending().len() == 0 {
                return;
            }
            self.shell.socket.set_nonblocking(!all).unwrap();
            let mut chunk = [0; 8192];
            let read = self.shell.socket.read(&mut chunk);
            self.shell.socket.set_nonblocking(false).unwrap();
            match read {
                Ok(0) => panic!("the session ended"),
                Ok(size) => self.buffer.extend_from_slice(&chunk[..size]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("{error}; {:?}", self.tracker),
            }
        }
    }
}

fn connect(port: u16) -> Shell {
    let mut shell = Shell::connect(port, &[("user", "postgres"), ("database", "postgres")]);
    shell.until_ready();
    shell
}

/// `PROPTEST_CASES` in the environment: as many.
fn runner(cases: u32) -> TestRunner {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let cases = asked.unwrap_or(cases);
    // Failures are found again by what they print; nothing is written into the tree.
    TestRunner::new(Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 200,
        ..Config::default()
    })
}

fn start() -> Postgres {
    let postgres = Postgres::start("host all all 127.0.0.1/32 trust\n");
    postgres.psql(
        "create table t (a int); create table once (a int unique deferrable initially deferred);
         create table fails (a int);
         create function no() returns trigger language plpgsql as $$ begin raise 'no'; end $$;
         create trigger no before insert on fails execute function no()",
    );
    postgres
}

/// What was never sure to be committed is not: the connection is cut at any moment.
#[test]
fn what_the_tracker_calls_lost_is_lost() {
    let postgres = start();
    let mut observer = Tracked::new(postgres.port);
    let seen = "select (select string_agg(a::text, ',' order by a) from t) || ';' || \
                (select count(*) from once) || ';' || (select count(*) from pg_prepared_xacts)";
    let step = (proptest::sample::select(STEPS), prop::bool::weighted(0.4));
    let conversation = prop::collection::vec(step, 1..10);
    let (observer, changed) = (RefCell::new(&mut observer), Cell::new(0));
    runner(150)
        .run(&conversation, |steps| {
            let observer = &mut *observer.borrow_mut();
            observer.ask("truncate t, once; insert into t values (0)");
            let mut tracked = Tracked::new(postgres.port);
            let backend = tracked.ask("select pg_backend_pid()").remove(0);
            for (steps, listen) in &steps {
                for step in steps.split(" | ") {
                    tracked.say(step);
                }
                if *listen {
                    tracked.hear(false);
                }
            }
            let outlook = tracked.tracker.outlook();
            let before = observer.ask(seen);
            drop(tracked);
            let gone = format!("select 1 from pg_stat_activity where pid = {backend}");
            let start = Instant::now();
            while !observer.ask(&gone).is_empty() {
                assert!(start.elapsed() < PATIENCE, "{backend} does not end");
                std::thread::sleep(Duration::from_millis(1));
            }
            let after = observer.ask(seen);
            if outlook <= Outlook::RolledBack {
                prop_assert_eq!(before, after, "{:?}", outlook);
            } else if before != after {
                changed.set(changed.get() + 1);
            }
            Ok(())
        })
        .unwrap();
    // Otherwise it would have proved nothing.
    assert!(changed.get() > 0);
}

#[test]
fn the_tracker_stays_in_step_with_postgresql() {
    let postgres = start();
    let step = (proptest::sample::select(STEPS), prop::bool::weighted(0.3));
    let conversation = prop::collection::vec(step, 1..25);
    runner(150)
        .run(&conversation, |steps| {
            let mut tracked = Tracked::new(postgres.port);
            for (steps, listen) in steps {
                for step in steps.split(" | ") {
                    tracked.say(step);
                }
                if listen {
                    tracked.hear(false);
                }
            }
            tracked.say(">S");
            tracked.say(">Q:rollback");
            tracked.hear(true);
            for (whose, value) in tracked.rows.drain(..) {
                assert_eq!(whose == Whose::Proxy, value == b"proxy");
            }
            // What it believes is prepared is.
            let mut there = tracked.ask(
                "select name || ':' || statement from pg_prepared_statements where not from_sql",
            );
            assert_eq!(tracked.tracker.status(), TransactionStatus::Idle);
            assert!(tracked.tracker.is_idle());
            let mut believed: Vec<_> = tracked
                .tracker
                .statements()
                .iter()
                .filter(|(name, _)| !name.is_empty())
                .map(|(_, prepared)| {
                    let raw = prepared.raw().unwrap();
                    let Ok(Frontend::Parse(parse)) = Frontend::decode(b'P', &raw[5..]) else {
                        panic!()
                    };
                    [parse.name, parse.text]
                        .map(|text| std::str::from_utf8(text).unwrap())
                        .join(":")
                })
                .collect();
            there.sort();
            believed.sort();
            assert_eq!(there, believed);
            tracked.shell.say(write::terminate);
            Ok(())
        })
        .unwrap();
}

/// In a failed block, up to its end.
const FAILED: &[&str] = &[
    ">Q:select 1",
    ">Q:",
    ">Q:bad",
    ">Q:begin",
    ">Q:insert into t values (1)",
    ">Q:rollback to a",
    ">Q:savepoint a",
    ">F",
    ">P::select 1",
    ">P:a:bad",
    ">P:e: | >DS:e | >B::e | >DP: | >E:",
    ">P:r:rollback",
    ">P:c:commit work",
    ">B::r",
    ">B:p:c",
    ">B::missing",
    ">DS:r",
    ">DS:missing",
    // Not `>DP:`: a simple query that failed leaves a portal behind, of which PostgreSQL tells.
    ">DP:p",
    ">CS:r",
    ">CP:p",
    ">H",
    ">S",
    ">S",
    ">d:stray",
    ">c",
];

/// The ends of a failed block.
const ENDS: &[&str] = &[
    ">Q:rollback",
    ">Q:commit;",
    ">Q:end work",
    ">Q:/* x */ abort -- y",
    ">P::rollback | >B:: | >DP: | >E: | >S",
    ">P::commit | >DS: | >B:: | >E: | >S",
];

#[test]
fn standing_in_answers_as_postgresql_does() {
    let postgres = Postgres::start("host all all 127.0.0.1/32 trust\n");
    let conversation = (
        prop::collection::vec(proptest::sample::select(FAILED), 0..20),
        proptest::sample::select(ENDS),
    );
    runner(150)
        .run(&conversation, |(steps, end)| {
            let mut shell = connect(postgres.port);
            let begin = ">Q:begin | <C:BEGIN | <Z:T | >Q:select 1/0 | <E | <Z:E";
            let mut tracker = Tracker::new();
            script::run(&mut tracker, begin);
            shell.say(|out| out.extend(script::message(">Q:begin")));
            shell.until_ready();
            shell.say(|out| out.extend(script::message(">Q:select 1/0")));
            while shell.hear().unwrap().0 != b'Z' {}

            // The one that has lost its server.
            let error = script::error("40001");
            let mut ours = Vec::new();
            tracker.settle(Settled::Failed(&error), &mut ours).unwrap();
            assert!(ours.is_empty() && tracker.stands_in());
            // A cycle of its own for the end.
            let steps = steps.iter().chain([&">S", &end]).flat_map(|steps| steps.split(" | "));
            let mut theirs = Vec::new();
            for step in steps {
                let bytes = script::message(step);
                shell.say(|out| out.extend(&bytes));
                if tracker.stands_in() {
                    script::pieces(Side::Frontend, &bytes, |piece| {
                        tracker.stand_in(&piece, &mut ours);
                    });
                } else {
                    // The block ended inside an extended cycle: its Sync is for the next server.
                    assert_eq!(step, ">S");
                    write::ready_for_query(&mut ours, TransactionStatus::Idle);
                }
            }
            assert!(tracker.is_idle());
            while !script::tags(&theirs).ends_with("Z:I") {
                let (tag, body) = shell.hear().unwrap();
                write::message(&mut theirs, tag, |out| out.extend(body));
            }
            // The codes differ where PostgreSQL looks closer before it refuses; and it warns.
            let plain = |bytes: &[u8]| {
                let tags = script::tags(bytes);
                let tags = tags.split(' ').filter(|tag| *tag != "N");
                let tags = tags.map(|tag| if tag.starts_with('E') { "E" } else { tag });
                tags.collect::<Vec<_>>().join(" ")
            };
            prop_assert_eq!(plain(&ours), plain(&theirs));
            shell.say(write::terminate);
            Ok(())
        })
        .unwrap();
}
