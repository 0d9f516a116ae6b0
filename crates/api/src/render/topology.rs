//! The members as a tree: the primary, what streams from it, what streams from that.

use super::paint::{Tone, clean};
use crate::{
    status::{MemberRole, MemberStatus, PathState, Status},
    units::show_bytes,
};
use comfy_table::{
    Attribute, Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, ContentLineStyle,
    LineStyle, Table, TableStyle,
};
use sempre_model::MemberId;
use std::collections::BTreeSet;

/// Round corners, solid lines between columns, none between rows.
const STYLE: TableStyle = TableStyle::new()
    .top_border(LineStyle::new('╭', '─', '┬', '╮'))
    .header_lines(ContentLineStyle::new('│', '│', '│'))
    .header_separator(LineStyle::new('├', '─', '┼', '┤'))
    .content_lines(ContentLineStyle::new('│', '│', '│'))
    .bottom_border(LineStyle::new('╰', '─', '┴', '╯'));

/// From this width on, positions and the addresses of the paths are shown.
const WIDE: u16 = 110;
/// From this width on, path round trips are shown.
const MIDDLE: u16 = 80;

/// The lines of the table.
pub(super) fn table(status: &Status, colours: bool, width: u16) -> Vec<String> {
    let mut table = new_table(colours, width);
    let mut header = vec!["member", "role", "state", "TL"];
    if width >= WIDE {
        header.push("position");
    }
    header.extend(["lag", "paths", "more"]);
    table
        .set_header(header.into_iter().map(|title| Cell::new(title).add_attribute(Attribute::Dim)));
    for (prefix, member) in tree(status) {
        table.add_row(row(status, &prefix, member, width));
    }
    for index in if width >= WIDE { 3..6 } else { 3..5 } {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    // Names break nowhere.
    if let Some(column) = table.column_mut(0) {
        column.set_constraint(ColumnConstraint::ContentWidth);
    }
    table.lines().collect()
}

/// A table in the style of all of ours.
pub(super) fn new_table(colours: bool, width: u16) -> Table {
    let mut table = Table::new();
    table.load_style(STYLE).set_width(width).set_content_arrangement(ContentArrangement::Dynamic);
    if colours {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    table
}

/// Members in the order of the tree, each with what is drawn before its name. Whoever does not
/// hang on the primary comes after it; witnesses are last.
fn tree(status: &Status) -> Vec<(String, &MemberStatus)> {
    let mut drawn = BTreeSet::new();
    let mut rows = Vec::new();
    if let Some(primary) =
        status.members.iter().find(|member| Some(&member.name) == status.primary.as_ref())
    {
        draw(status, primary, String::new(), String::new(), &mut drawn, &mut rows);
    }
    for witness in [false, true] {
        for member in &status.members {
            if (member.role == MemberRole::Witness) == witness && !drawn.contains(&member.name) {
                drawn.insert(member.name.clone());
                rows.push((String::new(), member));
            }
        }
    }
    rows
}

fn draw<'a>(
    status: &'a Status,
    member: &'a MemberStatus,
    prefix: String,
    below: String,
    drawn: &mut BTreeSet<MemberId>,
    rows: &mut Vec<(String, &'a MemberStatus)>,
) {
    // Each is drawn once, so that a circle of stale observations ends.
    if !drawn.insert(member.name.clone()) {
        return;
    }
    rows.push((prefix, member));
    let children: Vec<_> = status
        .members
        .iter()
        .filter(|child| {
            let from = child.database.as_ref().and_then(|d| d.streaming_from.as_ref());
            from == Some(&member.name) && !drawn.contains(&child.name)
        })
        .collect();
    for (index, child) in children.iter().enumerate() {
        let (branch, bar) =
            if index + 1 == children.len() { ("└ ", "  ") } else { ("├ ", "│ ") };
        draw(status, child, format!("{below}{branch}"), format!("{below}{bar}"), drawn, rows);
    }
}

fn colour(tone: Tone) -> Color {
    match tone {
        Tone::Good => Color::Green,
        Tone::Warn => Color::Yellow,
        Tone::Bad => Color::Red,
    }
}

fn row(status: &Status, prefix: &str, member: &MemberStatus, width: u16) -> Vec<Cell> {
    let is_primary = status.primary.as_ref() == Some(&member.name);
    let mut name = Cell::new(format!("{prefix}{}", member.name));
    if is_primary {
        name = name.add_attribute(Attribute::Bold);
    }
    let role = match (member.role, member.in_sync_set) {
        (MemberRole::Standby, true) => "standby, sync".to_owned(),
        (role, _) => role.to_string(),
    };
    let database = member.database.as_ref();
    let mut cells = vec![
        name,
        Cell::new(role),
        Cell::new(clean(&member.state)).fg(colour(tone(member))),
        Cell::new(database.map(|d| d.timeline.to_string()).unwrap_or_default()),
    ];
    if width >= WIDE {
        cells.push(Cell::new(database.map(|d| d.lsn.as_str()).unwrap_or_default()));
    }
    cells.push(lag(member));
    cells.push(paths(member, width));
    cells.push(Cell::new(more(member, width)));
    cells
}

fn tone(member: &MemberStatus) -> Tone {
    match member.state.as_str() {
        "running" | "streaming" | "voting" => Tone::Good,
        "starting" | "stopping" | "fenced" | "not streaming" | "closed to clients" | "no data" => {
            Tone::Warn
        }
        _ => Tone::Bad,
    }
}

/// Not yet received; and, where it is more, not yet replayed.
fn lag(member: &MemberStatus) -> Cell {
    let lags = member.database.as_ref().map(|d| (d.receive_lag_bytes, d.replay_lag_bytes));
    Cell::new(match lags {
        Some((Some(receive), Some(replay))) if replay > receive => {
            format!("{} / {}", show_bytes(receive), show_bytes(replay))
        }
        Some((Some(receive), _)) => show_bytes(receive),
        _ => String::new(),
    })
}

fn paths(member: &MemberStatus, width: u16) -> Cell {
    let mut worst = Tone::Good;
    let shown: Vec<String> = member
        .paths
        .iter()
        .map(|path| {
            let mark = match path.state {
                PathState::Up => "●",
                PathState::Own => "⌂",
                PathState::Lost => {
                    worst = Tone::Bad;
                    "✗"
                }
                PathState::Unheard => {
                    worst = Tone::Bad;
                    "·"
                }
            };
            let trip = path
                .rtt_us
                .filter(|_| path.state == PathState::Up && width >= MIDDLE)
                .map(|us| format!(" {:.1}ms", us as f64 / 1_000.0))
                .unwrap_or_default();
            if width >= WIDE {
                format!("{mark} {}{trip}", clean(&path.host))
            } else {
                format!("{mark}{trip}")
            }
        })
        .collect();
    let cell = Cell::new(shown.join(if width >= WIDE { "\n" } else { " " }));
    if worst == Tone::Bad { cell.fg(colour(worst)) } else { cell }
}

/// Zone, tags, and what it is busy with.
fn more(member: &MemberStatus, width: u16) -> String {
    let tags = &member.tags;
    let mut words = Vec::new();
    if let Some(busy) = &member.busy {
        words.push(clean(busy));
    }
    if let Some(zone) = &member.zone {
        words.push(format!("zone {}", clean(zone)));
    }
    for (set, word) in [
        (tags.never_primary, "never_primary"),
        (tags.no_sync, "no_sync"),
        (tags.no_route, "no_route"),
        (tags.clone_from, "clone_from"),
        (
            member.database.as_ref().is_some_and(|d| !d.pending_restart.is_empty()),
            "pending restart",
        ),
        (member.reinit_requested, "fresh copy to come"),
    ] {
        if set {
            words.push(word.to_owned());
        }
    }
    if tags.priority != 0 {
        words.push(format!("priority {}", tags.priority));
    }
    if let Some(from) = &tags.replicate_from {
        words.push(format!("from {from}"));
    }
    if let Some(address) = member.address.as_ref().filter(|_| width >= WIDE)
        && let Some((_, port)) = address.rsplit_once(':')
    {
        words.insert(0, format!("port {port}"));
    }
    words.join(", ")
}
