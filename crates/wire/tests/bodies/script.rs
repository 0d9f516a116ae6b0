//! Conversations as text: steps separated by ` | `.
//!
//! `>` the client says, `}` the proxy says, `<` the server says. What is said is a message's tag,
//! then, behind a colon, what matters of it; a `!` behind the tag makes it a long message that
//! comes in parts.

#![allow(dead_code)] // each test file uses its part

use sempre_wire::pg::track::{Tracker, Whose};
use sempre_wire::pg::{
    BUFFER_MIN, ErrorResponse, Piece, Scanner, Side, TransactionStatus, WHOLE_MAX, write,
};

/// The message that a step is.
pub fn message(step: &str) -> Vec<u8> {
    let (tag, rest) = step[1..].split_once(':').unwrap_or((&step[1..], ""));
    let (tag, long) = tag.strip_suffix('!').map_or((tag, false), |tag| (tag, true));
    let fill = if long { " ".repeat(2 * WHOLE_MAX) } else { String::new() };
    let (first, second) = rest.split_once(':').unwrap_or((rest, ""));
    let mut out = Vec::new();
    let o = &mut out;
    match (&step[..1], tag) {
        (">" | "}", "Q") => write::query(o, (fill + rest).as_bytes()),
        (_, "P") => write::parse(o, first.as_bytes(), (fill + second).as_bytes(), &[]),
        (_, "B") if long => {
            write::bind(o, first.as_bytes(), second.as_bytes(), &[Some(fill.as_bytes())]);
        }
        (_, "B") => write::bind(o, first.as_bytes(), second.as_bytes(), &[]),
        (">" | "}", "E") => write::execute(o, rest.as_bytes(), 0),
        (_, "DS") => write::describe_statement(o, rest.as_bytes()),
        (_, "DP") => write::describe_portal(o, rest.as_bytes()),
        (_, "CS") => write::close_statement(o, rest.as_bytes()),
        (_, "CP") => write::close_portal(o, rest.as_bytes()),
        (">" | "}", "S") => write::sync(o),
        (">", "H") => write::flush(o),
        (">", "X") => write::terminate(o),
        (">", "F") => write::message(o, b'F', |o| o.extend([0; 10])),
        (_, "d") => write::copy_data(o, (fill + rest).as_bytes()),
        (_, "c") => write::copy_done(o),
        (_, "f") => write::copy_fail(o, b"no"),
        ("<", "C") => write::command_complete(o, rest),
        ("<", "Z") => {
            write::ready_for_query(o, TransactionStatus::from_byte(rest.as_bytes()[0]).unwrap());
        }
        ("<", "E") => o.extend(error(rest).encode()),
        ("<", "FATAL") => {
            let code = if rest == "57P01" { "57P01" } else { "57P02" };
            o.extend(ErrorResponse::fatal(code, "m", "", "").encode());
        }
        ("<", "N") => write::message(o, b'N', |o| {
            let routine = if rest == "sync" { "SyncRepWaitForLSN" } else { rest };
            for (tag, text) in [('S', "WARNUNG"), ('V', "WARNING"), ('C', "01000"), ('R', routine)]
            {
                o.push(tag as u8);
                o.extend(text.as_bytes());
                o.push(0);
            }
            o.push(0);
        }),
        ("<", "S") => write::parameter_status(o, first.as_bytes(), second.as_bytes()),
        ("<", "A") => write::notification_response(o, 7, b"channel", b""),
        ("<", "D") => write::data_row(o, [Some((fill + rest).as_bytes())].into_iter()),
        ("<", "t") => write::parameter_description(o, &[]),
        ("<", "T") => write::row_description(o, &["a"]),
        ("<", "1" | "2" | "3" | "n" | "s" | "I" | "V" | "G" | "H" | "W") => {
            write::message(o, tag.as_bytes()[0], |_| {});
        }
        _ => panic!("no such step: {step}"),
    }
    out
}

/// An error with this code.
pub fn error(code: &str) -> ErrorResponse {
    let code = match code {
        "40001" => "40001",
        "08007" => "08007",
        "25P02" => "25P02",
        _ => "22012",
    };
    ErrorResponse::error(code, "m", "", "")
}

/// The pieces of these bytes, as a proxy with the smallest buffer sees them.
pub fn pieces(side: Side, bytes: &[u8], mut each: impl FnMut(Piece)) {
    let (mut scanner, mut at) = (Scanner::new(side), 0);
    while at < bytes.len() {
        let end = (at + BUFFER_MIN).min(bytes.len());
        let piece = scanner.next(&bytes[at..end]).unwrap().expect("a piece");
        at += piece.size();
        each(piece);
    }
}

/// Runs a script.
pub fn run(tracker: &mut Tracker, script: &str) {
    for step in script.split(" | ").map(str::trim).filter(|step| !step.is_empty()) {
        let bytes = message(step);
        let whose = if step.starts_with('}') { Whose::Proxy } else { Whose::Client };
        if step.starts_with('<') {
            pieces(Side::Backend, &bytes, |piece| {
                tracker.heard(&piece);
            });
        } else {
            pieces(Side::Frontend, &bytes, |piece| tracker.sent(whose, &piece).unwrap());
        }
    }
}

/// Messages of a server as their tags; with status, code and command.
pub fn tags(bytes: &[u8]) -> String {
    let mut out = Vec::new();
    pieces(Side::Backend, bytes, |piece| {
        let Piece::Whole(message) = piece else { panic!("a long message") };
        use sempre_wire::pg::Backend;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        out.push(match Backend::decode(message.tag, message.body).unwrap() {
            Backend::ReadyForQuery(status) => format!("Z:{}", char::from(status.as_byte())),
            Backend::ErrorResponse(fields) => format!("E:{}", text(fields.code())),
            Backend::CommandComplete { tag } => format!("C:{}", text(tag)),
            _ => char::from(message.tag).to_string(),
        });
    });
    out.join(" ")
}
