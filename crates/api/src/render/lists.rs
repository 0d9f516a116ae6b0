//! History, events and configuration.

use super::{
    WIDTH_MIN,
    paint::{Paint, clean, wrap},
    topology::new_table,
};
use crate::{
    policy_edit::policy_pairs,
    units::{show_bytes, show_ms, show_time_short},
};
use comfy_table::{Attribute, Cell};
use sempre_model::{
    Policy, Record,
    record::{Cause, Event, HistoryEntry},
};

fn header(titles: &[&str]) -> Vec<Cell> {
    titles.iter().map(|title| Cell::new(title).add_attribute(Attribute::Dim)).collect()
}

/// A cause, for people.
pub(crate) fn cause_words(cause: &Cause) -> &'static str {
    match cause {
        Cause::Bootstrap => "first primary",
        Cause::DatabaseCrashed => "database crashed",
        Cause::DatabaseHung => "database hung",
        Cause::DiskFailed => "disk failed",
        Cause::MemberLost => "member lost",
        Cause::LeaseExpired => "lease expired",
        Cause::DataLost => "data lost",
        Cause::Switchover => "switchover",
        Cause::Manual => "by hand",
        Cause::Recover => "re-formed by hand",
    }
}

/// Changes of primary, oldest first, each with its evidence.
pub fn render_history(history: &[HistoryEntry], colours: bool, width: u16) -> String {
    if history.is_empty() {
        return "There has been no primary yet.\n".into();
    }
    let mut table = new_table(colours, width.max(WIDTH_MIN));
    table.set_header(header(&[
        "gen",
        "when (UTC)",
        "primary",
        "cause",
        "stall",
        "TL",
        "from",
        "evidence",
    ]));
    for entry in history {
        table.add_row([
            entry.generation.to_string(),
            show_time_short(entry.at_unix_ms),
            match &entry.from {
                Some(from) if *from != entry.primary => format!("{from} → {}", entry.primary),
                _ => entry.primary.to_string(),
            },
            cause_words(&entry.cause).to_owned(),
            show_ms(entry.stall_ms),
            entry.timeline.to_string(),
            entry.lsn.to_string(),
            clean(&entry.evidence.join("; ")),
        ]);
    }
    let mut text: String = table.lines().collect::<Vec<_>>().join("\n");
    text.push('\n');
    text
}

/// Events, oldest first, one a line; long ones are wrapped and indented.
pub fn render_events(events: &[Event], colours: bool, width: u16) -> String {
    let paint = Paint { colours };
    let width = usize::from(width.max(WIDTH_MIN));
    let mut text = String::new();
    for event in events {
        let time = show_time_short(event.at_unix_ms);
        let rule = clean(&event.rule);
        let head = format!("{time} {rule:<17} ");
        let indent = head.chars().count();
        // On a narrow terminal the text goes below.
        let (first, room) =
            if width > indent + 30 { (true, width - indent) } else { (false, width - 2) };
        let lines = wrap(&event.text, room);
        text.push_str(&format!("{} {} ", paint.dim(&time), paint.bold(&format!("{rule:<17}"))));
        for (index, line) in lines.iter().enumerate() {
            if !first {
                text.push_str("\n  ");
            } else if index > 0 {
                text.push('\n');
                text.push_str(&" ".repeat(indent));
            }
            text.push_str(line);
        }
        text.push('\n');
    }
    text
}

/// The policy, with what differs from the defaults marked; the parameters; the client lines.
pub fn render_config(record: &Record, colours: bool, width: u16) -> String {
    let paint = Paint { colours };
    let mut text = format!("{}\n", paint.bold("policy"));
    let defaults = policy_pairs(&Policy::default());
    for ((key, value), (_, default)) in policy_pairs(&record.policy).iter().zip(&defaults) {
        let number = value.parse::<u64>().ok();
        let shown = match number {
            Some(ms) if key.ends_with("_ms") && ms >= 1_000 => format!("{value} ({})", show_ms(ms)),
            Some(bytes) if key.ends_with("_bytes") && bytes >= 1024 => {
                format!("{value} ({})", show_bytes(bytes))
            }
            _ => value.clone(),
        };
        if value == default {
            text.push_str(&format!("  {key} = {shown}\n"));
        } else {
            let note = paint.dim(&format!("default {default}"));
            text.push_str(&format!("  {} = {shown}  {note}\n", paint.bold(key)));
        }
    }
    text.push_str(&format!("{}\n", paint.bold("PostgreSQL parameters")));
    if record.parameters.is_empty() {
        text.push_str("  none beside sempre's own\n");
    }
    for (name, value) in &record.parameters {
        text.push_str(&format!("  {} = '{}'\n", clean(name), clean(value)));
    }
    text.push_str(&format!("{}\n", paint.bold("pg_hba lines for clients")));
    if record.hba.is_empty() {
        text.push_str("  not managed here\n");
    }
    for line in &record.hba {
        for part in wrap(line, usize::from(width.max(WIDTH_MIN)) - 2) {
            text.push_str(&format!("  {part}\n"));
        }
    }
    text
}
