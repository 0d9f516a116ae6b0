//! Sizes, times and positions as people write and read them.

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Bytes from text: `1048576`, `16kB`, `64MB`, `1 GB`, `1TB`, `2MiB`. Units are powers of 1024,
/// as PostgreSQL has them; their case does not matter.
pub fn parse_bytes(text: &str) -> Option<u64> {
    parse_scaled(
        text,
        &[
            ("", 1),
            ("b", 1),
            ("k", 1 << 10),
            ("kb", 1 << 10),
            ("kib", 1 << 10),
            ("m", 1 << 20),
            ("mb", 1 << 20),
            ("mib", 1 << 20),
            ("g", 1 << 30),
            ("gb", 1 << 30),
            ("gib", 1 << 30),
            ("t", 1 << 40),
            ("tb", 1 << 40),
            ("tib", 1 << 40),
        ],
    )
}

/// Milliseconds from text: `500`, `500ms`, `2s`, `1.5s`, `3min`, `1h`, `1d`.
pub fn parse_ms(text: &str) -> Option<u64> {
    parse_scaled(
        text,
        &[
            ("", 1),
            ("ms", 1),
            ("s", 1_000),
            ("sec", 1_000),
            ("m", 60_000),
            ("min", 60_000),
            ("h", 3_600_000),
            ("d", 86_400_000),
        ],
    )
}

/// A decimal number and a unit. A fraction is exact: `1.5s` is 1500, `0.0001ms` is refused.
fn parse_scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.trim_start().to_ascii_lowercase();
    let scale = units.iter().find(|(name, _)| *name == unit)?.1;
    match number.split_once('.') {
        None => number.parse::<u64>().ok()?.checked_mul(scale),
        Some((whole, fraction)) if fraction.len() <= 9 && !fraction.is_empty() => {
            let parts = 10u128.pow(u32::try_from(fraction.len()).ok()?);
            let fraction = u128::from(fraction.parse::<u64>().ok()?) * u128::from(scale);
            let whole = u128::from(whole.parse::<u64>().ok()?) * u128::from(scale);
            (fraction % parts == 0).then_some(())?;
            u64::try_from(whole + fraction / parts).ok()
        }
        Some(_) => None,
    }
}

/// Bytes for people: `0`, `8 kB`, `1.5 MB`.
pub fn show_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 10.0 && value.fract() >= 0.05 {
        format!("{value:.1} {}", UNITS[unit])
    } else {
        format!("{value:.0} {}", UNITS[unit])
    }
}

/// Milliseconds for people: `90 ms`, `1.5 s`, `3 min`, `2 h`, `5 d`.
pub fn show_ms(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{:.1} s", ms as f64 / 1_000.0),
        60_000..7_200_000 => format!("{} min", ms / 60_000),
        7_200_000..172_800_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} d", ms / 86_400_000),
    }
}

/// A moment, RFC 3339 in UTC with milliseconds cut to what is there.
pub fn show_time(unix_ms: u64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000)
        .ok()
        .and_then(|moment| moment.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{unix_ms} ms"))
}

/// A moment for people: `2026-01-31 12:00:05` (UTC).
pub fn show_time_short(unix_ms: u64) -> String {
    let text = show_time(unix_ms / 1_000 * 1_000);
    text.trim_end_matches('Z').replace('T', " ")
}

/// Why a time could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadTime {
    /// It has no time zone.
    NoZone,
    /// It is not a time.
    Unreadable,
}

/// ms since 1970 from ISO 8601 text with a time zone, such as `2026-01-31T12:00:00+01:00`,
/// `2026-01-31T12:00+00` or `2026-01-31 12:00:00Z`.
pub fn parse_time(text: &str) -> Result<u64, BadTime> {
    let text = text.trim();
    if !text.is_ascii() || text.len() < 16 || text.len() > 40 {
        return Err(BadTime::Unreadable);
    }
    let (date, rest) = (&text[..10], &text[11..]);
    if !matches!(text.as_bytes()[10], b'T' | b't' | b' ') {
        return Err(BadTime::Unreadable);
    }
    let zone_at = rest.find(['Z', 'z', '+', '-']).ok_or(BadTime::NoZone)?;
    let (clock, zone) = rest.split_at(zone_at);
    let clock = if clock.len() == 5 { format!("{clock}:00") } else { clock.to_owned() };
    let zone = match zone.len() {
        1 => "Z".to_owned(),
        3 => format!("{zone}:00"),
        5 if !zone.contains(':') => format!("{}:{}", &zone[..3], &zone[3..]),
        _ => zone.to_owned(),
    };
    let moment = OffsetDateTime::parse(&format!("{date}T{}{zone}", clock.trim()), &Rfc3339)
        .map_err(|_| BadTime::Unreadable)?;
    u64::try_from(moment.unix_timestamp_nanos() / 1_000_000).map_err(|_| BadTime::Unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("16kB", 16 << 10),
            ("64MB", 64 << 20),
            ("1 GB", 1 << 30),
            ("1.5MiB", 3 << 19),
            ("2tb", 2 << 40),
        ] {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for bad in
            ["", "MB", "-1", "1XB", "1..5MB", "1.MB", "99999999999999999999", "99999999TB", "ä"]
        {
            assert_eq!(parse_bytes(bad), None, "{bad}");
        }
        let shown: Vec<_> = [0, 1023, 1024, 1536, 20 << 20, u64::MAX].map(show_bytes).into();
        assert_eq!(shown, ["0 B", "1023 B", "1 kB", "1.5 kB", "20 MB", "16384 PB"]);
    }

    #[test]
    fn durations() {
        for (text, ms) in
            [("5", 5), ("500ms", 500), ("2s", 2_000), ("1.5s", 1_500), ("3min", 180_000)]
        {
            assert_eq!(parse_ms(text), Some(ms), "{text}");
        }
        for bad in ["", "s", "0.0001ms", "1w", "-2s"] {
            assert_eq!(parse_ms(bad), None, "{bad}");
        }
    }

    #[test]
    fn moments() {
        let noon = 1_769_860_800_000;
        for text in [
            "2026-01-31T12:00:00Z",
            "2026-01-31T13:00:00+01:00",
            "2026-01-31T12:00+00",
            "2026-01-31 14:00:00.000+0200",
        ] {
            assert_eq!(parse_time(text), Ok(noon), "{text}");
        }
        assert_eq!(parse_time("2026-01-31T12:00:00"), Err(BadTime::NoZone));
        for bad in
            ["", "soon", "2026-13-31T12:00:00Z", "ääääääääääääääääääää", "1026-01-31T12:00:00Z"]
        {
            assert_eq!(parse_time(bad), Err(BadTime::Unreadable), "{bad}");
        }
        assert_eq!(show_time(noon), "2026-01-31T12:00:00Z");
        assert_eq!(show_time_short(noon + 5), "2026-01-31 12:00:00");
        assert_eq!(show_time(u64::MAX), format!("{} ms", u64::MAX));
    }
}
