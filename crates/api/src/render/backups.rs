//! What is in a repository: a table of backups, and a picture of what can be restored.

use super::{
    WIDTH_MIN,
    paint::{Paint, Tone},
};
use crate::{
    backup::{ListedBackup, Listing, Window},
    units::{show_bytes, show_ms, show_time_short},
};
use comfy_table::{CellAlignment, Table, presets};

/// Columns of the picture at the most.
const PICTURE_MAX: u16 = 100;

/// The listings, one after the other.
pub fn render_backups(listings: &[Listing], now_unix_ms: u64, colours: bool, width: u16) -> String {
    let width = width.max(WIDTH_MIN);
    let paint = Paint { colours };
    let mut text = String::new();
    for listing in listings {
        text += &format!(
            "{}  {}  {} backups, {}\n",
            paint.bold(&listing.repository),
            paint.dim(&listing.place),
            listing.backups.len(),
            show_bytes(listing.stored_bytes)
        );
        if listing.backups.is_empty() {
            text += "  nothing can be restored yet: `sempre backup run` makes the first backup\n";
        } else {
            text += &table(listing, width);
            text.push('\n');
            text += &picture(listing, now_unix_ms, paint, width);
        }
        if !listing.files.is_empty() {
            text += &files(listing, width);
            text.push('\n');
        }
    }
    text
}

fn table(listing: &Listing, width: u16) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_width(width);
    table.set_header(["  backup", "of", "size", "new", "stored", "took", "WAL up to", ""]);
    for backup in &listing.backups {
        let whole = backup.reach >= backup.stop;
        table.add_row([
            format!("  {}", backup.id),
            backup.member.to_string(),
            show_bytes(backup.bytes),
            show_bytes(backup.new_bytes),
            show_bytes(backup.stored_bytes),
            show_ms(backup.took_ms),
            backup.reach.to_string(),
            note(backup, whole).to_owned(),
        ]);
    }
    for column in 2..=5 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// What is to be known of a backup first.
fn note(backup: &ListedBackup, whole: bool) -> &'static str {
    match (whole, backup.alarms.is_empty() || backup.accepted, backup.held) {
        (false, ..) => "WAL is missing",
        (true, false, _) => "ALARM",
        (true, true, true) => "held",
        (true, true, false) => "",
    }
}

/// Snapshots of files, with their names as `restic` shows them.
fn files(listing: &Listing, width: u16) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_width(width);
    table.set_header(["  snapshot", "of files", "on", "size", "stored", "took", "made at"]);
    for snapshot in &listing.files {
        table.add_row([
            format!("  {}", snapshot.id.get(..8).unwrap_or(&snapshot.id)),
            snapshot.files.clone().unwrap_or_else(|| "(others)".to_owned()),
            snapshot.member.clone(),
            show_bytes(snapshot.bytes),
            show_bytes(snapshot.stored_bytes),
            show_ms(snapshot.took_ms),
            show_time_short(snapshot.at_unix_ms),
        ]);
    }
    for column in 3..=5 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// A line of time: `█` can be restored to, `·` cannot, `▲` is a backup.
fn picture(listing: &Listing, now_unix_ms: u64, paint: Paint, width: u16) -> String {
    let Some(from) = listing.windows.iter().map(|window| window.from_unix_ms).min() else {
        return format!("  {}\n", paint.tone("nothing can be restored", Tone::Bad));
    };
    let to = listing.windows.iter().map(|w| w.to_unix_ms).max().unwrap_or(from).max(now_unix_ms);
    let columns = usize::from((width - 4).min(PICTURE_MAX));
    let span = (to - from).max(1);
    let begin_of = |column: usize| from + span * column as u64 / columns as u64;
    let covered = |column: usize| {
        let (begin, end) = (begin_of(column), begin_of(column + 1));
        listing.windows.iter().any(|w| w.from_unix_ms <= end && w.to_unix_ms >= begin)
    };
    let bar: String = (0..columns).map(|c| if covered(c) { '█' } else { '·' }).collect();
    let mut marks = vec![' '; columns];
    for backup in &listing.backups {
        let at = backup.ended_unix_ms.saturating_sub(from) * columns as u64 / span;
        marks[usize::try_from(at).unwrap_or(columns).min(columns - 1)] = '▲';
    }
    let marks: String = marks.into_iter().collect();
    let (left, right) = (show_time_short(from), show_time_short(to));
    let between = columns.saturating_sub(left.len() + right.len());
    let mut text = format!("  {}\n  {}\n", paint.tone(&bar, Tone::Good), marks.trim_end());
    text += &paint.dim(&format!("  {left}{}{right}", " ".repeat(between)));
    text.push('\n');
    for window in &listing.windows {
        text += &format!("  can be restored: {}\n", words(window));
    }
    text
}

fn words(window: &Window) -> String {
    let from = show_time_short(window.from_unix_ms);
    match window.open {
        true => format!("{from} to now"),
        false => format!("{from} to about {}", show_time_short(window.to_unix_ms)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::ListedSnapshot;
    use sempre_model::{Lsn, MemberId, Timeline};

    fn backup(at: u64, reach: u64) -> ListedBackup {
        ListedBackup {
            id: format!("backup-{at}"),
            parent: None,
            member: MemberId::new("m2").unwrap(),
            began_unix_ms: at - 1_000,
            ended_unix_ms: at,
            timeline: Timeline(1),
            start: Lsn(1),
            stop: Lsn(2),
            reach: Lsn(reach),
            bytes: 5 << 30,
            new_bytes: 1 << 20,
            stored_bytes: 300_000,
            took_ms: 4_321,
            held: at > 5_000_000,
            rewritten_bytes: 0,
            noise_bytes: 0,
            checked_pages: 0,
            alarms: Vec::new(),
            accepted: false,
        }
    }

    #[test]
    fn the_picture_shows_gaps_and_backups() {
        let window = |from_unix_ms, to_unix_ms, open| Window { from_unix_ms, to_unix_ms, open };
        let listing = Listing {
            repository: "main".into(),
            place: "/backup".into(),
            backups: vec![
                backup(1_000_000, 3),
                backup(3_000_000, 1),
                ListedBackup { alarms: vec!["odd".into()], ..backup(4_000_000, 4) },
                backup(7_000_000, 9),
            ],
            windows: vec![window(1_000_000, 4_000_000, false), window(7_000_000, 11_000_000, true)],
            stored_bytes: 3 << 30,
            files: vec![ListedSnapshot {
                id: "0123456789abcdef".into(),
                files: Some("uploads".into()),
                member: "m1".into(),
                at_unix_ms: 2_000_000,
                paths: vec!["/srv/uploads".into()],
                entries: 7,
                bytes: 9 << 20,
                stored_bytes: 5 << 20,
                took_ms: 432,
            }],
        };
        let empty = Listing {
            backups: Vec::new(),
            windows: Vec::new(),
            files: Vec::new(),
            ..listing.clone()
        };
        insta::assert_snapshot!(render_backups(&[listing, empty], 11_000_000, false, 80));
    }
}
