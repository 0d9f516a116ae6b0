//! What is known, drawn for a terminal. Pure: text out, nothing printed.
//!
//! Colours are used only when asked for; whether to ask (`NO_COLOR`, a pipe) is the caller's
//! decision, and so is the width.

mod backups;
mod lists;
mod paint;
mod topology;

pub use backups::render_backups;
pub(crate) use lists::cause_words;
pub use lists::{render_config, render_events, render_history};

use crate::{
    status::Status,
    units::{show_ms, show_time_short},
};
use paint::{Paint, Tone, clean, wrap};

/// The narrowest width that is drawn for, columns.
pub const WIDTH_MIN: u16 = 40;

/// The status: a headline, the topology, and the reason for anything odd.
pub fn render_status(status: &Status, colours: bool, width: u16) -> String {
    let width = width.max(WIDTH_MIN);
    let paint = Paint { colours };
    let mut lines = headline(status, paint, width);
    lines.extend(topology::table(status, colours, width));
    lines.extend(oddities(status, paint, width));
    let mut text = lines.join("\n");
    text.push('\n');
    text
}

fn headline(status: &Status, paint: Paint, width: u16) -> Vec<String> {
    let (mark, tone, state) = match (status.writable, status.paused) {
        (true, false) => ("●", Tone::Good, "writable"),
        (true, true) => ("●", Tone::Warn, "writable, paused"),
        (false, false) => ("○", Tone::Bad, "no writes now"),
        (false, true) => ("○", Tone::Bad, "no writes now, paused"),
    };
    let name =
        if status.cluster.is_empty() { "(no cluster)".into() } else { clean(&status.cluster) };
    let first = format!(
        "{} {}  {}  {}",
        paint.tone(mark, tone),
        paint.bold(&name),
        paint.tone(state, tone),
        paint.dim(&format!(
            "as {} sees it, {} UTC",
            status.answered_by,
            show_time_short(status.at_unix_ms)
        ))
    );
    let mut facts = vec![format!("generation {}", status.generation)];
    if status.phase != "serving" {
        facts.push(status.phase.clone());
    }
    facts.push(match (&status.primary, &status.lease) {
        (Some(primary), Some(lease)) => format!(
            "primary {primary}, lease {} of {}",
            show_ms(lease.remaining_ms),
            show_ms(lease.ttl_ms)
        ),
        (Some(primary), None) => format!("primary {primary}, no lease seen"),
        (None, _) => "no primary".into(),
    });
    facts.push(waits_for(status));
    facts.push(match &status.raft.leader {
        Some(leader) => format!(
            "Raft leader {leader}, term {}, {} voters{}",
            status.raft.term,
            status.raft.voters,
            if status.raft.quorum { "" } else { ", NO QUORUM" }
        ),
        None => "no Raft leader".into(),
    });
    if let Some(stall) = status.last_stall_ms.filter(|_| status.changes_of_primary > 1) {
        facts.push(format!("last stall {}", show_ms(stall)));
    }
    let mut lines = vec![first];
    let mut line = String::from(" ");
    for fact in facts {
        if line.chars().count() + fact.chars().count() + 3 > usize::from(width) && line.len() > 1 {
            lines.push(std::mem::replace(&mut line, String::from(" ")));
        }
        line.push_str(if line.len() > 1 { " · " } else { " " });
        line.push_str(&fact);
    }
    lines.push(line);
    lines
}

fn waits_for(status: &Status) -> String {
    use sempre_model::policy::Durability;
    let names: Vec<_> = status.sync.record.members.iter().map(|name| name.as_str()).collect();
    match (status.sync.durability, names.is_empty()) {
        (Durability::Async, _) => "commits wait for nobody (async)".into(),
        (_, true) if status.sync.record.k == 0 => "commits wait for nobody: no standby yet".into(),
        (Durability::Quorum, _) => {
            format!("commits wait for any {} of {}", status.sync.record.k, names.join(", "))
        }
        (Durability::Sync, _) => {
            format!("commits wait for the first {} of {}", status.sync.record.k, names.join(", "))
        }
    }
}

fn oddities(status: &Status, paint: Paint, width: u16) -> Vec<String> {
    if status.oddities.is_empty() {
        return vec![paint.tone("✓ nothing odd", Tone::Good)];
    }
    let mut lines = Vec::new();
    for oddity in &status.oddities {
        for (index, line) in wrap(&oddity.what, usize::from(width) - 2).into_iter().enumerate() {
            let mark = if index == 0 { paint.tone("!", Tone::Warn) } else { " ".into() };
            lines.push(format!("{mark} {}", paint.bold(&line)));
        }
        for (label, text) in [("why: ", &oddity.why), ("do:  ", &oddity.what_to_do)] {
            for (index, line) in wrap(text, usize::from(width) - 7).into_iter().enumerate() {
                let label = if index == 0 { label } else { "     " };
                lines.push(format!("  {}{line}", paint.dim(label)));
            }
        }
    }
    lines
}
