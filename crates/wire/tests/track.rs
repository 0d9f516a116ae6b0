//! The session tracker, conversation by conversation.

mod bodies;

use bodies::script::{error, message, pieces, run, tags};
use sempre_wire::pg::track::{
    CannotSettle, Copy, Full, Hints, Outlook, PENDING_MAX, Settled, StandIn, Tracker, What, Whose,
    Xid,
};
use sempre_wire::pg::{Piece, Scanner, Side, TransactionStatus};

fn after(script: &str) -> Tracker {
    let mut tracker = Tracker::new();
    run(&mut tracker, script);
    tracker
}

fn status(tracker: &Tracker) -> String {
    let status = char::from(tracker.status().as_byte());
    let flags = [
        (tracker.is_idle(), " idle"),
        (tracker.in_block(), " block"),
        (tracker.is_skipping(), " skipping"),
        (tracker.is_out_of_step(), " out-of-step"),
    ];
    let flags: String = flags.iter().filter(|(is, _)| *is).map(|(_, name)| *name).collect();
    format!(
        "{status} {}{flags} {:?} {:?}",
        tracker.pending().len(),
        tracker.copy(),
        tracker.outlook()
    )
}

#[test]
fn each_conversation_leads_where_it_should() {
    let mut wrong = Vec::new();
    for (script, want) in [
        ("", "I 0 idle None Quiet"),
        // Simple queries.
        (">Q:select 1", "I 1 None Autocommit"),
        (">Q:select 1 | <T | <D", "I 1 None Autocommit"),
        (">Q:select 1 | <T | <D | <C:SELECT 1", "I 1 None Answered"),
        (">Q:select 1 | <T | <D | <C:SELECT 1 | <Z:I", "I 0 idle None Quiet"),
        (">Q: | <I", "I 1 None Answered"),
        (">Q: | <I | <Z:I", "I 0 idle None Quiet"),
        (">Q:bad | <E | <Z:I", "I 0 idle None Quiet"),
        (">Q:bad | <E", "I 1 None Answered"),
        (">Q:set x = 1", "I 1 None RolledBack"),
        // A block.
        (">Q:begin", "I 1 None RolledBack"),
        (">Q:begin | <C:BEGIN | <Z:T", "T 0 block None RolledBack"),
        (">Q:begin | <C:BEGIN | <Z:T | >Q:insert", "T 1 block None RolledBack"),
        (">Q:begin | <C:BEGIN | <Z:T | >Q:commit", "T 1 block None Commit"),
        (">Q:begin | <C:BEGIN | <Z:T | >Q:commit | <C:COMMIT", "T 1 None Answered"),
        (">Q:begin | <C:BEGIN | <Z:T | >Q:commit | <C:COMMIT | <Z:I", "I 0 idle None Quiet"),
        (">Q:begin | <C:BEGIN | <Z:T | >Q:insert; commit", "T 1 block None Unknown"),
        (">Q:begin | <C:BEGIN | <Z:T | >Q:rollback", "T 1 block None RolledBack"),
        (">Q:begin | <C:BEGIN | <Z:T | >Q:bad | <E | <Z:E", "E 0 block None RolledBack"),
        (
            ">Q:begin | <C:BEGIN | <Z:T | >Q:bad | <E | <Z:E | >Q:commit",
            "E 1 block None RolledBack",
        ),
        (
            ">Q:begin | <C:BEGIN | <Z:T | >Q:rollback to a | <C:ROLLBACK | <Z:T",
            "T 0 block None RolledBack",
        ),
        // Savepoints, in one text: the block goes on.
        (
            ">Q:begin | <C:BEGIN | <Z:T | >Q:rollback to a; insert | <C:ROLLBACK",
            "T 1 block None RolledBack",
        ),
        // AND CHAIN.
        (">Q:begin | <C:BEGIN | <Z:T | >Q:commit and chain", "T 1 block None Commit"),
        (
            ">Q:begin | <C:BEGIN | <Z:T | >Q:commit and chain | <C:COMMIT | <Z:T",
            "T 0 block None RolledBack",
        ),
        (
            ">Q:begin | <C:BEGIN | <Z:T | >Q:rollback and chain | <C:ROLLBACK | <Z:T",
            "T 0 block None RolledBack",
        ),
        // Several statements in one text.
        (">Q:insert; insert", "I 1 None Autocommit"),
        (">Q:insert; insert | <C:INSERT 0 1", "I 1 None Autocommit"),
        (">Q:insert; insert | <C:INSERT 0 1 | <C:INSERT 0 1 | <Z:I", "I 0 idle None Quiet"),
        (">Q:begin; insert | <C:BEGIN", "I 1 block None RolledBack"),
        (">Q:begin; insert | <C:BEGIN | <C:INSERT 0 1 | <Z:T", "T 0 block None RolledBack"),
        (">Q:begin; insert; commit", "I 1 None Autocommit"),
        // Two-phase commit.
        (">Q:begin | <C:BEGIN | <Z:T | >Q:prepare transaction 'x'", "T 1 block None Unknown"),
        (
            ">Q:begin | <C:BEGIN | <Z:T | >Q:prepare transaction 'x' | <C:PREPARE TRANSACTION | <Z:I",
            "I 0 idle None Quiet",
        ),
        (">Q:commit prepared 'x'", "I 1 None Unknown"),
        (">Q:commit prepared 'x' | <C:COMMIT PREPARED | <Z:I", "I 0 idle None Quiet"),
        // Two blocks in flight.
        (
            ">Q:begin | <C:BEGIN | <Z:T | >Q:commit | >Q:begin | >Q:insert | >Q:commit",
            "T 4 block None Unknown",
        ),
        // What is not answered may have failed.
        (">Q:begin | >Q:insert", "I 2 None Autocommit"),
        (">Q:begin; bad | >Q:insert", "I 2 None Autocommit"),
        (">Q:rollback and chain | >Q:insert", "I 2 None Autocommit"),
        (">Q:begin | >Q:insert | >Q:commit", "I 3 None Unknown"),
        (">P::begin | >B:: | >E: | >P::insert | >B:: | >E: | >H", "I 6 None RolledBack"),
        (">P::begin | >B:: | >E: | >P::insert | >B:: | >E: | >S", "I 7 None RolledBack"),
        (">P::begin | >B:: | >E: | >S | >P::insert | >B:: | >E: | >S", "I 8 None Autocommit"),
        // Extended.
        (">P:: insert | >B:: | >DP: | >E: | >S", "I 5 None Autocommit"),
        (">P::insert | >B:: | >DP: | >E: | >S | <1 | <2 | <n", "I 2 None Autocommit"),
        (
            ">P::insert | >B:: | >DP: | >E: | >S | <1 | <2 | <n | <C:INSERT 0 1",
            "I 1 None Autocommit",
        ),
        (
            ">P::insert | >B:: | >DP: | >E: | >S | <1 | <2 | <n | <C:INSERT 0 1 | <Z:I",
            "I 0 idle None Quiet",
        ),
        (">P::insert | >B:: | >E: | >H", "I 3 None RolledBack"),
        (">P::insert | >B:: | >E: | >H | <1 | <2 | <C:INSERT 0 1", "I 0 None RolledBack"),
        (">P::vacuum | >B:: | >E: | >H", "I 3 None Autocommit"),
        (">P::select | >DS: | >S", "I 3 None RolledBack"),
        (">P::select | >DS: | >S | <1 | <t | <T | <Z:I", "I 0 idle None Quiet"),
        (">P::begin | >B:: | >E: | >S | <1 | <2 | <C:BEGIN", "I 1 block None RolledBack"),
        (">Q:begin | <C:BEGIN | <Z:T | >P::commit | >B:: | >E: | >S", "T 4 block None Commit"),
        (
            ">Q:begin | <C:BEGIN | <Z:T | >P::commit | >B:: | >E: | >S | <1 | <2 | <C:COMMIT",
            "T 1 None Answered",
        ),
        (
            ">Q:begin | <C:BEGIN | <Z:T | >P::insert | >B:: | >E: | >S | <1 | <2 | <C:INSERT 0 1",
            "T 1 block None RolledBack",
        ),
        (">P::x | >B:: | >E: | >S | <1 | <2 | <I | <Z:I", "I 0 idle None Quiet"),
        (">P::x | >B:: | >E: | >S | <1 | <2 | <T | <D | <s", "I 1 None Autocommit"),
        (">CS:a | >CP:b | >S | <3 | <3 | <Z:I", "I 0 idle None Quiet"),
        // An error skips to Sync, whatever is in between.
        (">P::bad | >B:: | >E: | >Q:select | >S | <E", "I 1 None Answered"),
        (">P::bad | >B:: | >E: | >Q:select | >S | <E | <Z:I", "I 0 idle None Quiet"),
        (">P::bad | >B:: | <E", "I 0 skipping None Answered"),
        (">P::bad | >B:: | <E | >E: | >P::x | >Q:insert", "I 0 skipping None Answered"),
        (">P::bad | >B:: | <E | >E: | >S", "I 1 None Answered"),
        (">P::bad | >B:: | <E | >E: | >S | <Z:I", "I 0 idle None Quiet"),
        (">P::a | >S | >P::b | >S | <E | <Z:I", "I 2 None RolledBack"),
        (">P::a | >S | >P::b | >S | <E | <Z:I | <1 | <Z:I", "I 0 idle None Quiet"),
        (">Q:begin | <C:BEGIN | <Z:T | >P::bad | >S | <E | <Z:E", "E 0 block None RolledBack"),
        // An error at Sync (a deferred constraint).
        (
            ">P::insert | >B:: | >E: | >S | <1 | <2 | <C:INSERT 0 1 | <E | <Z:I",
            "I 0 idle None Quiet",
        ),
        // Pipelined.
        (
            ">P::insert | >B:: | >E: | >S | >P::insert | >B:: | >E: | >S | <1 | <2 | <C:INSERT 0 1 | <Z:I | <1",
            "I 3 None Autocommit",
        ),
        (">Q:begin | >Q:insert | <C:BEGIN | <Z:T", "T 1 block None RolledBack"),
        // COPY.
        (">Q:copy t from stdin | <G", "I 1 In RolledBack"),
        (">Q:copy t from stdin | <G | >d:1 | >d!:2 | >c", "I 1 InEnded Autocommit"),
        (">Q:copy t from stdin | <G | >d:1 | >c | <C:COPY 1 | <Z:I", "I 0 idle None Quiet"),
        (">Q:copy t from stdin | <G | >d:1 | >f | <E | <Z:I", "I 0 idle None Quiet"),
        (">Q:copy t from stdin | <G | >d:1 | <E | <Z:I | >d:2 | >c", "I 0 idle None Quiet"),
        (">Q:copy t from stdin | <G | >d:1 | <E | >c | <Z:I | >Q:select", "I 1 None Autocommit"),
        (">Q:copy t from stdin | >d:1 | >c | <G | <C:COPY 1 | <Z:I", "I 0 idle None Quiet"),
        (">Q:copy bad from stdin | >d:1 | >c | <E | <Z:I", "I 0 idle None Quiet"),
        (
            ">Q:copy a from stdin; copy b from stdin | <G | >d:1 | >c | <C:COPY 1 | <G",
            "I 1 In Autocommit",
        ),
        (">P::copy t from stdin | >B:: | >E: | >S | <1 | <2 | <G", "I 1 In RolledBack"),
        (
            ">P::copy t from stdin | >B:: | >E: | >S | <1 | <2 | <G | >S | >d:1 | >c | >S",
            "I 2 InEnded Autocommit",
        ),
        (
            ">P::copy t from stdin | >B:: | >E: | >S | <1 | <2 | <G | >d:1 | >c | >S | <C:COPY 1 | <Z:I",
            "I 0 idle None Quiet",
        ),
        (
            ">P::copy t from stdin | >B:: | >E: | >S | >d:1 | >c | >S | <1 | <2 | <G",
            "I 2 InEnded Autocommit",
        ),
        (
            ">P::copy t from stdin | >B:: | >E: | >S | <1 | <2 | <G | >d:1 | <E | >d:2 | >c | >S",
            "I 1 None Answered",
        ),
        (
            ">P::copy t from stdin | >B:: | >E: | >S | <1 | <2 | <G | >d:1 | <E | >d:2 | >c | >S | <Z:I",
            "I 0 idle None Quiet",
        ),
        (">P::copy t from stdin | >B:: | >E: | >S | <1 | <2 | <E | <Z:I", "I 0 idle None Quiet"),
        (
            ">P::copy t from stdin | >B:: | >E: | >S | <1 | <2 | <G | <E | <Z:I",
            "I 0 idle None Quiet",
        ),
        (">Q:copy t to stdout | <H | <d:1 | <d!:2", "I 1 Out Autocommit"),
        (">Q:copy t to stdout | <H | <d:1 | <c | <C:COPY 1 | <Z:I", "I 0 idle None Quiet"),
        (">Q:START_REPLICATION | <W | <d:w | >d:r", "I 1 Both Autocommit"),
        (
            ">Q:START_REPLICATION | <W | <d:w | >c | <d:w | <c | <C:START_STREAMING | <Z:I",
            "I 0 idle None Quiet",
        ),
        // FunctionCall.
        (">F | <V", "I 1 None Autocommit"),
        (">F | <V | <Z:I", "I 0 idle None Quiet"),
        (">F | <E | <Z:I", "I 0 idle None Quiet"),
        // What comes unasked changes nothing.
        ("<A | <N:x | <S:a:b", "I 0 idle None Quiet"),
        (">P::x | >S | <A | <N:x | <S:a:b | <1 | <A | <Z:I", "I 0 idle None Quiet"),
        // The session ends.
        ("<FATAL:57P01", "I 0 idle None Quiet"),
        (">Q:insert | <FATAL:57P01", "I 1 None Autocommit"),
        (">P::insert | >B:: | >E: | >S | <FATAL:57P01", "I 4 None Autocommit"),
        // Long messages.
        (">Q!:begin", "I 1 None RolledBack"),
        (
            ">P!:a:insert | >B!::a | >E: | >S | <1 | <2 | <D!:x | <C:INSERT 0 1 | <Z:I",
            "I 0 idle None Quiet",
        ),
        // Nonsense.
        ("<Z:I", "I 0 idle out-of-step None Quiet"),
        ("<1", "I 0 idle out-of-step None Quiet"),
        (">P::x | >S | <2", "I 2 out-of-step None RolledBack"),
        // Our own in between.
        ("}Q:select | <T | <D", "I 1 None Quiet"),
        (
            ">Q:begin | <C:BEGIN | <Z:T | }Q:select | >Q:commit | <T | <D | <C:SELECT 1 | <Z:T",
            "T 1 block None Commit",
        ),
    ] {
        let got = status(&after(script));
        if got != want {
            wrong.push(format!("{script}\n  gives {got}\n  not   {want}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn answers_to_our_own_are_told_apart() {
    let mut tracker = Tracker::new();
    run(&mut tracker, ">Q:begin | <C:BEGIN | <Z:T | }B::xid | }E: | >Q:commit");
    let mut seen = Vec::new();
    for step in ["<2", "<D!:7", "<N:x", "<A", "<C:SELECT 1", "<C:COMMIT", "<N:sync", "<Z:I"] {
        pieces(Side::Backend, &message(step), |piece| seen.push(tracker.heard(&piece).whose));
    }
    use Whose::{Client, Proxy};
    let parts = vec![Proxy; seen.len() - 7];
    let want = [vec![Proxy], parts, vec![Proxy, Client, Proxy, Client, Client, Client]].concat();
    assert_eq!(seen, want);
    assert!(tracker.take_cancelled_sync_wait() && !tracker.take_cancelled_sync_wait());
    // A question of ours, half answered, is nothing that the client could lose.
    let mut tracker = after("}P:ours:x | }B::ours | }E: | }S | <1 | <2 | <C:SELECT 1");
    assert_eq!(tracker.outlook(), Outlook::Quiet);
    let mut out = Vec::new();
    let lost = sempre_wire::pg::ErrorResponse::error("40001", "lost", "", "");
    tracker.settle(Settled::Failed(&lost), &mut out).unwrap();
    assert!(out.is_empty() && !tracker.stands_in());
}

#[test]
fn what_is_heard_is_said() {
    let mut tracker = Tracker::new();
    run(&mut tracker, ">Q:update");
    let mut seen = Vec::new();
    for step in ["<N:sync", "<C:UPDATE 2", "<E", "<Z:I", "<S:a:b", "<FATAL:57P01"] {
        pieces(Side::Backend, &message(step), |piece| {
            seen.push(match tracker.heard(&piece).what {
                What::Error { fields, fatal } => {
                    format!("{} {fatal}", String::from_utf8_lossy(fields.code()))
                }
                What::Complete { tag, .. } => String::from_utf8_lossy(tag).into_owned(),
                What::Setting(body) => format!("{body:?}"),
                what => format!("{what:?}"),
            });
        });
    }
    assert_eq!(
        seen,
        [
            "CancelledSyncWait",
            "UPDATE 2",
            "22012 false",
            "Ready(Idle)",
            "[97, 0, 98, 0]",
            "57P01 true"
        ]
    );
}

#[test]
fn hints_say_when_to_ask() {
    for (script, want) in [
        (">Q:select 1 | <C:SELECT 1 | <Z:I", Hints::NONE),
        (">Q:update t set a = 1 | <C:UPDATE 1 | <Z:I", Hints::NONE),
        (">Q:set a = 1 | <C:SET | <Z:I", Hints::SETTINGS),
        (">Q:set a = 1 | <Z:I", Hints::SETTINGS),
        (">P:s:set a = 1 | >S | <1 | <Z:I", Hints::NONE),
        (">P:s:set a = 1 | >B:p:s | >E:p | >S | <1 | <2 | <C:SET | <Z:I", Hints::SETTINGS),
        (
            ">P:s:select set_config() | >B:p:s | >E:p | >S | <1 | <2 | <C:SELECT 1 | <Z:I",
            Hints::SETTINGS,
        ),
        (">P!:s:listen a | >B!:p:s | >E:p | >S | <1 | <2 | <C:x | <Z:I", Hints::LISTENING),
        (">B::nobody-knows | >E: | >S | <2 | <C:SELECT 1 | <Z:I", Hints::STATE),
        (">Q!:reset all | <C:x | <Z:I", Hints::SETTINGS),
        (">Q:select 1 | <S:TimeZone:UTC | <C:SELECT 1 | <Z:I", Hints::SETTINGS),
        (">Q:prepare p as select pg_advisory_lock(1) | <C:PREPARE | <Z:I", Hints::PREPARED),
        ("}Q:set a = 1 | <S:a:1 | <C:SET | <Z:I", Hints::NONE),
        (">F | <V | <Z:I", Hints::ANYTHING),
        (">Q:discard all | <C:DISCARD ALL | <Z:I", Hints::STATE),
    ] {
        let got = after(script).take_hints();
        assert!(got.any(want) || want.is_empty(), "{script}: {got:?}");
        assert_eq!(got.any(Hints::STATE), !want.is_empty(), "{script}: {got:?}");
    }
    // EXECUTE does what was prepared.
    let mut tracker = after(">Q:prepare p as select pg_advisory_lock(1) | <C:PREPARE | <Z:I");
    tracker.take_hints();
    run(&mut tracker, ">Q:execute p | <C:SELECT 1 | <Z:I");
    assert!(tracker.take_hints().any(Hints::ADVISORY));
}

#[test]
fn the_id_is_known_as_long_as_it_holds() {
    let mut tracker = after(">Q:begin | <C:BEGIN | <Z:T | >Q:insert | <C:INSERT 0 1 | <Z:T");
    assert!(tracker.wrote());
    tracker.set_xid(Some(7));
    run(&mut tracker, ">Q:rollback to a | <C:ROLLBACK | <Z:T | >Q:commit | <C:COMMIT");
    assert_eq!(tracker.xid(), Xid::Known(7));
    run(&mut tracker, "<Z:I");
    assert_eq!((tracker.xid(), tracker.wrote()), (Xid::Unknown, false));

    // AND CHAIN: the next transaction has another.
    let mut tracker = after(">Q:begin | <C:BEGIN | <Z:T | >Q:insert | <C:INSERT 0 1 | <Z:T");
    tracker.set_xid(Some(7));
    run(&mut tracker, ">Q:commit and chain | <C:COMMIT | <Z:T");
    assert_eq!((tracker.xid(), tracker.wrote()), (Xid::Unknown, false));

    // None assigned: only until something runs that may get one.
    let mut tracker = after(">Q:begin | <C:BEGIN | <Z:T");
    tracker.set_xid(None);
    assert_eq!(tracker.xid(), Xid::NotAssigned);
    run(&mut tracker, "}Q:select");
    assert_eq!(tracker.xid(), Xid::NotAssigned);
    run(&mut tracker, ">Q:select f()");
    assert_eq!(tracker.xid(), Xid::Unknown);
    tracker.set_xid(None);
    assert_eq!(tracker.xid(), Xid::Unknown);
    // In front of a COMMIT that is in flight already, it holds.
    let mut tracker = after(">Q:begin | <C:BEGIN | <Z:T | }Q:select | >Q:commit");
    tracker.set_xid(None);
    assert_eq!(tracker.xid(), Xid::NotAssigned);
    assert!(tracker.commit_in_flight());
}

#[test]
fn prepared_statements_are_remembered_when_they_are_there() {
    let names = |tracker: &Tracker| {
        let mut names: Vec<_> = tracker
            .statements()
            .iter()
            .map(|(name, _)| String::from_utf8(name.to_vec()).unwrap())
            .collect();
        names.sort();
        names.join(",")
    };
    for (script, want) in [
        (">P:a:x | >S", ""),
        (">P:a:x | >S | <1", "a"),
        (">P:a:x | >P:b:bad | >P:c:y | >S | <1 | <E | <Z:I", "a"),
        (">P:a:x | >S | <1 | <Z:I | >CS:a | >S", "a"),
        (">P:a:x | >S | <1 | <Z:I | >CS:a | >S | <3", ""),
        (">P:a:x | >S | <1 | <Z:I | >CS:a | >P:a:y | >S | <3 | <1 | <Z:I", "a"),
        (">P:a:x | >S | <1 | <Z:I | >P:a:y | >S | <E | <Z:I", "a"),
        (">P::x | >S | <1 | <Z:I", ""),
        (">P::x | >S | <1 | <Z:I | >Q:select | <Z:I", ""),
        (">P:a:x | >S | <1 | <Z:I | >Q:deallocate all | <C:DEALLOCATE ALL | <Z:I", ""),
        ("}P:ours:x | }S | <1 | <Z:I", ""),
        (">P!:long:x | >S | <1 | <Z:I", "long"),
    ] {
        let tracker = after(script);
        assert_eq!(names(&tracker), want, "{script}");
        assert!(!tracker.is_out_of_step(), "{script}");
        for (name, prepared) in tracker.statements().iter() {
            assert_eq!(prepared.raw().unwrap()[0], b'P', "{name:?}");
        }
    }
    // The unnamed one counts as well, by its message.
    let tracker = after(">P::x | >S | <1 | <Z:I | >P::y | >S | <1 | <Z:I");
    assert_eq!(tracker.statements().get(b"").unwrap().raw(), Some(&message(">P::y")[..]));
    let tracker = after(">P:a:x | >S | <1 | <Z:I | >CS:a | >P:a:y | >S | <3 | <1 | <Z:I");
    assert_eq!(tracker.statements().get(b"a").unwrap().raw(), Some(&message(">P:a:y")[..]));
    assert!(!tracker.statements().incomplete());
}

#[test]
fn a_name_leads_to_the_statement_that_answers_allow() {
    // The Parse that is found; whether answers to an earlier cycle decide about it.
    for (script, want, open) in [
        ("", None, false),
        (">P:a:x", Some(">P:a:x"), false),
        (">P:a:x | >S", Some(">P:a:x"), true),
        (">P:a:x | >S | <1 | <Z:I", Some(">P:a:x"), false),
        (">P:a:x | >S | <1 | <Z:I | >CS:a", None, false),
        (">P:a:x | >S | <1 | <Z:I | >CS:a | >P:a:y", Some(">P:a:y"), false),
        (">P:a:x | >S | <1 | <Z:I | >CS:a | >P:a:y | >S", Some(">P:a:y"), true),
        (">P:a:x | >S | <1 | <Z:I | >E: | >CS:a | >P:a:y | >S | <E | <Z:I", Some(">P:a:x"), false),
        (">P:a:x | >S | <1 | <Z:I | >Q:discard all", Some(">P:a:x"), true),
    ] {
        let tracker = after(script);
        let found = tracker.statement(b"a").map(|found| found.raw().unwrap().to_vec());
        assert_eq!(found, want.map(message), "{script}");
        assert_eq!(tracker.statement_is_open(b"a"), open, "{script}");
    }
    // What was overlooked takes nothing with it; what failed does.
    let tracker = after(">P::x | >S | <1 | <Z:I | >E: | >P::y | >S | <E | <Z:I");
    assert_eq!(tracker.statements().get(b"").unwrap().raw(), Some(&message(">P::x")[..]));
    let tracker = after(">P::x | >S | <1 | <Z:I | >P::y | >S | <E | <Z:I");
    assert!(tracker.statements().get(b"").is_none());
}

#[test]
fn statements_beyond_the_limits_make_a_session_that_stays() {
    let mut tracker = Tracker::new();
    let text = "x".repeat(600_000);
    for number in 0..20 {
        run(&mut tracker, &format!(">P:s{number}:{text} | >S | <1 | <Z:I"));
    }
    assert!(tracker.statements().incomplete());
    let kept: usize = tracker.statements().iter().filter_map(|(_, s)| Some(s.raw()?.len())).sum();
    assert!((7_000_000..=8 << 20).contains(&kept), "{kept}");
    run(&mut tracker, ">Q:discard all | <C:DISCARD ALL | <Z:I");
    assert!(!tracker.statements().incomplete());
    run(&mut tracker, &format!(">P:s:{} | >S | <1 | <Z:I", "x".repeat(2_000_000)));
    assert!(tracker.statements().incomplete());
    tracker.statements_mut().retain(|_| false);
    assert_eq!(tracker.statements().iter().count(), 0);
}

#[test]
fn too_much_in_flight_waits() {
    let mut tracker = Tracker::new();
    let sync = message(">S");
    let piece = Scanner::new(Side::Frontend).next(&sync).unwrap().unwrap();
    for _ in 0..PENDING_MAX {
        tracker.sent(Whose::Client, &piece).unwrap();
    }
    assert!(!tracker.has_room(1));
    assert_eq!(tracker.sent(Whose::Client, &piece), Err(Full));
    run(&mut tracker, "<Z:I");
    assert!(tracker.has_room(1));
    tracker.sent(Whose::Client, &piece).unwrap();
}

/// Loses the server after `script`.
fn lose(script: &str, committed: bool) -> (Tracker, Result<String, CannotSettle>) {
    let mut tracker = after(script);
    let (mut out, error) = (Vec::new(), error("40001"));
    let settled = match committed {
        true => Settled::Committed { rest: &error },
        false => Settled::Failed(&error),
    };
    let result = tracker.settle(settled, &mut out).map(|()| tags(&out));
    (tracker, result)
}

const BLOCK: &str = ">Q:begin | <C:BEGIN | <Z:T | ";

#[test]
fn a_lost_server_is_answered_for() {
    // (in a block), what was in flight, the answers, then what the client says, and the answers.
    for (block, script, want, then, answers) in [
        (false, "", "", "", ""),
        (false, ">Q:insert", "E:40001 Z:I", "", ""),
        (false, ">Q:select | <T | <D", "E:40001 Z:I", "", ""),
        (false, ">Q:insert | <C:INSERT 0 1", "Z:I", "", ""),
        (false, ">Q:bad | <E", "Z:I", "", ""),
        (false, ">Q:a | >Q:b", "E:40001 Z:I E:40001 Z:I", "", ""),
        (false, ">P::x | >B:: | >E: | >S | <1", "E:40001 Z:I", "", ""),
        (false, ">P::x | >B:: | >E: | >S | <1 | <2 | <C:INSERT 0 1", "E:40001 Z:I", "", ""),
        (false, ">P::x | >B:: | >E: | >S | >P::y | >S", "E:40001 Z:I E:40001 Z:I", "", ""),
        (false, ">P::x | >B:: | >E: | >H", "E:40001", ">P::y | >S", "Z:I"),
        (
            false,
            ">P::x | >B:: | >E: | >H | <1 | <2 | <C:INSERT 0 1",
            "",
            ">P::y | >E: | >S",
            "E:40001 Z:I",
        ),
        (false, ">P::x | >B:: | >E: | >H | <1 | <2 | <C:INSERT 0 1", "", ">S", "E:40001 Z:I"),
        (false, ">P::bad | <E", "", ">B:: | >S", "Z:I"),
        (false, ">P::bad | >S | <E", "Z:I", "", ""),
        (false, ">P::bad | >S | <E | >Q:insert", "Z:I E:40001 Z:I", "", ""),
        (false, ">Q:copy t from stdin | <G | >d:1", "E:40001 Z:I", "", ""),
        (
            false,
            ">P::copy t from stdin | >B:: | >E: | >S | <1 | <2 | <G | >d:1",
            "E:40001",
            ">d:2 | >c | >S",
            "Z:I",
        ),
        (false, ">Q:begin", "E:40001 Z:I", "", ""),
        (false, ">Q:begin | <C:BEGIN", "E:40001 Z:E", ">Q:rollback", "C:ROLLBACK Z:I"),
        // Idle in a block: told at the next word.
        (
            true,
            "",
            "",
            ">Q:select | >Q:select | >Q:rollback",
            "E:40001 Z:E E:25P02 Z:E C:ROLLBACK Z:I",
        ),
        (true, "", "", ">Q:rollback", "C:ROLLBACK Z:I"),
        (true, "", "", ">Q:commit", "E:40001 Z:I"),
        (true, "", "", ">Q:select | >Q:commit", "E:40001 Z:E C:ROLLBACK Z:I"),
        (
            true,
            "",
            "",
            ">Q:select | >Q:rollback to a | >Q:abort",
            "E:40001 Z:E E:25P02 Z:E C:ROLLBACK Z:I",
        ),
        (
            true,
            "",
            "",
            ">P::x | >B:: | >E: | >S | >S | >Q:rollback",
            "E:40001 Z:E Z:E C:ROLLBACK Z:I",
        ),
        (true, "", "", ">S | >Q:rollback", "E:40001 Z:E C:ROLLBACK Z:I"),
        (true, "", "", ">P::commit | >B:: | >E: | >S", "E:40001 Z:I"),
        (
            true,
            "",
            "",
            ">P:r:rollback | >DS:r | >B::r | >DP: | >CP:q | >E:",
            "1 t n 2 n 3 C:ROLLBACK",
        ),
        (true, "", "", ">F | >Q!:select | >Q:rollback", "E:40001 Z:E E:25P02 Z:E C:ROLLBACK Z:I"),
        (true, "", "", ">B!::x | >S | >d:x | >H | >Q:rollback", "E:40001 Z:E C:ROLLBACK Z:I"),
        (true, ">Q:bad | <E | <Z:E", "", ">Q:commit", "C:ROLLBACK Z:I"),
        (true, ">Q:bad | <E | <Z:E", "", ">Q:select | >Q:end", "E:25P02 Z:E C:ROLLBACK Z:I"),
        // Something in flight in a block.
        (true, ">Q:insert", "E:40001 Z:E", ">Q:rollback", "C:ROLLBACK Z:I"),
        (true, ">Q:insert | <C:INSERT 0 1", "E:40001 Z:E", ">Q:rollback", "C:ROLLBACK Z:I"),
        (true, ">Q:bad | <E", "Z:E", ">Q:rollback", "C:ROLLBACK Z:I"),
        (true, ">Q:rollback", "C:ROLLBACK Z:I", "", ""),
        (true, ">Q:commit", "E:40001 Z:I", "", ""),
        (true, ">Q:commit | <C:COMMIT", "Z:I", "", ""),
        (true, ">P::commit | >B:: | >E: | >S", "E:40001 Z:I", "", ""),
        (true, ">P::commit | >B:: | >E: | >S | <1 | <2 | <C:COMMIT", "Z:I", "", ""),
        (true, ">P::x | >B:: | >E: | >S", "E:40001 Z:E", ">Q:rollback", "C:ROLLBACK Z:I"),
        (true, ">P::x | >B:: | >E:", "E:40001", ">S | >Q:rollback", "Z:E C:ROLLBACK Z:I"),
        (
            true,
            ">Q:insert | >Q:select | >Q:commit | >Q:insert",
            "E:40001 Z:E E:25P02 Z:E C:ROLLBACK Z:I E:40001 Z:I",
            "",
            "",
        ),
        (true, ">Q:bad | <E | <Z:E | >Q:commit", "C:ROLLBACK Z:I", "", ""),
        // Ours are nobody's to hear of.
        (true, "}B::xid | }E: | >Q:commit | <2 | <D", "E:40001 Z:I", "", ""),
        (
            true,
            ">Q:insert | <C:INSERT 0 1 | <Z:T | }Q:select | <T",
            "",
            ">Q:rollback",
            "C:ROLLBACK Z:I",
        ),
    ] {
        let script = format!("{}{script}", if block { BLOCK } else { "" });
        let (mut tracker, got) = lose(&script, false);
        assert_eq!(got.as_deref(), Ok(want), "{script}");
        let mut out = Vec::new();
        for step in then.split(" | ").filter(|step| !step.is_empty()) {
            assert!(tracker.stands_in(), "{script}, then {step} of {then}");
            pieces(Side::Frontend, &message(step), |piece| {
                assert_eq!(tracker.stand_in(&piece, &mut out), StandIn::Answered);
            });
        }
        assert_eq!(tags(&out), answers, "{script}, then {then}");
        assert!(!tracker.stands_in() && tracker.is_idle(), "{script}, then {then}");
        assert_eq!(tracker.status(), TransactionStatus::Idle);
        // And the next server is followed from there.
        run(&mut tracker, ">P::x | >B:: | >E: | >S | <1 | <2 | <C:INSERT 0 1 | <Z:I");
        assert!(tracker.is_idle() && !tracker.is_out_of_step(), "{script}, then {then}");
    }
}

#[test]
fn a_commit_that_was_done_is_answered_for() {
    for (script, want) in [
        (">Q:commit", Ok("C:COMMIT Z:I")),
        ("}B::xid | }E: | >Q:commit | <2 | <D", Ok("C:COMMIT Z:I")),
        (">P:c:commit | >DS:c | >B::c | >DP: | >E: | >S", Ok("1 t n 2 n C:COMMIT Z:I")),
        (">P:c:commit | >DS:c | >B::c | >DP: | >E: | >S | <1 | <t", Ok("n 2 n C:COMMIT Z:I")),
        (">P:c:commit | >B::c | >E: | >CS:c | >S", Ok("1 2 C:COMMIT 3 Z:I")),
        (">P:c:commit | >B::c | >E: | >H", Ok("1 2 C:COMMIT")),
        (">Q:commit | >Q:insert", Ok("C:COMMIT Z:I E:40001 Z:I")),
        (">Q:insert; commit", Err(CannotSettle)),
        (">Q:insert | >Q:commit", Err(CannotSettle)),
        (">P::insert | >B:: | >E: | >P::commit | >B:: | >E: | >S", Err(CannotSettle)),
        (
            ">P::insert | >B:: | >E: | >P::commit | >B:: | >E: | >S | <1 | <2 | <C:INSERT 0 1",
            Ok("1 2 C:COMMIT Z:I"),
        ),
        ("", Err(CannotSettle)),
    ] {
        let (tracker, got) = lose(&format!("{BLOCK}{script}"), true);
        assert_eq!(got.as_deref(), want.as_ref().copied(), "{script}");
        assert_eq!(tracker.is_idle(), want.is_ok(), "{script}");
        if script.contains(">P:c") && !script.contains("CS") {
            assert!(tracker.statements().get(b"c").is_some(), "{script}");
        }
    }
    // AND CHAIN: the next block is lost with the server.
    let (mut tracker, got) = lose(&format!("{BLOCK}>Q:commit and chain"), true);
    assert_eq!(got.as_deref(), Ok("C:COMMIT Z:E"));
    let mut out = Vec::new();
    for step in [">Q:select", ">Q:rollback"] {
        pieces(Side::Frontend, &message(step), |piece| {
            tracker.stand_in(&piece, &mut out);
        });
    }
    assert_eq!(tags(&out), "E:40001 Z:E C:ROLLBACK Z:I");
}

#[test]
fn the_rest_of_a_long_message_is_not_for_the_next_server() {
    let mut tracker = Tracker::new();
    let query = message(">Q!:insert");
    let mut scanner = Scanner::new(Side::Frontend);
    let begin = scanner.next(&query).unwrap().unwrap();
    tracker.sent(Whose::Client, &begin).unwrap();
    assert!(!tracker.is_idle());
    let mut out = Vec::new();
    tracker.settle(Settled::Failed(&error("40001")), &mut out).unwrap();
    assert_eq!(tags(&out), "E:40001 Z:I");
    assert!(tracker.stands_in());
    let rest = scanner.next(&query[begin.size()..]).unwrap().unwrap();
    assert!(matches!(rest, Piece::Part { last: true, .. }));
    assert_eq!(tracker.stand_in(&rest, &mut out), StandIn::Answered);
    assert!(tracker.is_idle() && !tracker.stands_in());
    assert_eq!((tracker.copy(), tracker.outlook()), (Copy::None, Outlook::Quiet));
}
