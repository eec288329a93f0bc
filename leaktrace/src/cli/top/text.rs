//! Names and figures as short text, safe for a terminal.
//!
//! Invariant: nothing that comes from a process leaves this module with a character that a terminal obeys.

use std::time::Duration;

use ratatui::text::Span;

pub use crate::model::quantity::short_bytes as bytes;
use crate::report::name::printable;

/// Most characters of a name that are looked at.
const MAX_NAME: usize = 2_000;

/// A name from a process, made harmless: control characters, marks that change the writing direction and characters
/// that take no room are shown as escapes.
pub fn clean(name: &str) -> String {
    let invisible = |c: char| {
        matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200d}' | '\u{2028}' | '\u{2029}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
    };
    let short: String = name.chars().take(MAX_NAME).collect();
    let text = printable(&short);
    if !text.contains(invisible) {
        return text.into_owned();
    }
    text.chars()
        .map(|c| {
            if invisible(c) {
                c.escape_unicode().to_string()
            } else {
                c.to_string()
            }
        })
        .collect()
}

/// Columns that text takes.
pub fn width(text: &str) -> usize {
    Span::raw(text).width()
}

/// Cuts text to `columns`, with an ellipsis where something is missing.
pub fn cut(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut result = String::new();
    let mut used = 0;
    for c in text.chars() {
        let more = width(c.encode_utf8(&mut [0; 4]));
        if used + more + 1 > columns {
            break;
        }
        result.push(c);
        used += more;
    }
    if columns > 0 {
        result.push('…');
    }
    result
}

/// Text in exactly `columns`.
pub fn pad(text: &str, columns: usize, right: bool) -> String {
    let text = cut(text, columns);
    let blank = " ".repeat(columns.saturating_sub(width(&text)));
    if right { blank + &text } else { text + &blank }
}

/// Bytes, or `-` for what is not known.
pub fn size(value: Option<u64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| bytes(value as f64))
}

/// Bytes with a sign.
pub fn signed(value: f64) -> String {
    let text = bytes(value.abs());
    match text.as_str() {
        "0" => text,
        _ if value < 0.0 => format!("-{text}"),
        _ => format!("+{text}"),
    }
}

/// Bytes of a profile, negative ones in a difference.
pub fn signed_total(value: i64) -> String {
    if value < 0 {
        signed(value as f64)
    } else {
        bytes(value as f64)
    }
}

/// A share in at most five columns: `0.3%`, `57%`, `100%`.
pub fn share(part: i64, whole: i64) -> String {
    if whole == 0 {
        return "0%".to_owned();
    }
    percent(part as f64 / whole as f64)
}

/// A share, 1 being all.
pub fn percent(share: f64) -> String {
    let value = share * 100.0;
    if value == 0.0 {
        "0%".to_owned()
    } else if value.abs() < 9.95 {
        format!("{value:.1}%")
    } else {
        format!("{value:.0}%")
    }
}

/// A count in at most five columns: `950`, `12.3k`, `4.0M`.
pub fn count(value: f64) -> String {
    match value {
        value if value < 999.5 => format!("{value:.0}"),
        value if value < 999_500.0 => format!("{:.1}k", value / 1e3),
        value if value < 999_500_000.0 => format!("{:.1}M", value / 1e6),
        value => format!("{:.1}G", value / 1e9),
    }
}

/// A duration in its two largest units: `3s`, `5m12s`, `2h05m`, `12d03h`.
pub fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

/// Small bars, one for each value: the lowest for the smallest of them. No more than `columns`, the latest.
pub fn bars(values: &[u64], columns: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let values = resample(values, columns);
    let low = values.iter().copied().min().unwrap_or(0);
    let high = values.iter().copied().max().unwrap_or(0);
    // A process that changes by a page or two would look like one that doubles.
    let range = (high - low).max(high / 50).max(1);
    values
        .iter()
        .map(|value| BARS[(u128::from(value - low) * 7 / u128::from(range)) as usize])
        .collect()
}

/// At most `columns` values out of many, the last one included.
fn resample(values: &[u64], columns: usize) -> Vec<u64> {
    if values.len() <= columns {
        return values.to_vec();
    }
    (1..=columns)
        .filter_map(|column| values.get(column * values.len() / columns - 1).copied())
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn figures_are_short() {
        let shown: Vec<String> = [0.0, 1.0, 999.0, 1000.0, 1024.0, 10_230.0, 1_047_552.0, 5e9, 3e15, 1e19]
            .into_iter()
            .map(bytes)
            .collect();
        insta::assert_snapshot!(shown.join(" "), @r###"0 1B 999B 0.98K 1.00K 9.99K 1.00M 4.66G 2.66P 8882P"###);
        assert_eq!(signed(-2048.0), "-2.00K");
        assert_eq!(share(1, 3), "33%");
        assert_eq!(share(1, 0), "0%");
        assert_eq!(span(Duration::from_secs(7_500)), "2h05m");
        assert_eq!(count(12_345.0), "12.3k");
    }

    #[test]
    fn bars_show_the_course_and_not_the_noise() {
        assert_eq!(bars(&[0, 50, 100], 10), "▁▄█");
        assert_eq!(bars(&[1_000_000, 1_000_001], 10), "▁▁");
        assert_eq!(bars(&[5; 100], 4), "▁▁▁▁");
        assert_eq!(bars(&[], 4), "");
        assert_eq!(bars(&[1, 2], 0), "");
        assert_eq!(bars(&[u64::MAX, 0], 2), "█▁");
    }

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        assert_eq!(
            clean("a\u{1b}[2J\u{202e}b\u{200b}\u{feff}\u{9b}"),
            "a\\u{1b}[2J\\u{202e}b\\u{200b}\\u{feff}\\u{9b}"
        );
    }

    proptest! {
        #[test]
        fn no_name_is_obeyed(name in any::<String>()) {
            prop_assert!(!clean(&name).contains(|c: char| c.is_control()));
        }

        #[test]
        fn padding_is_exact(name in any::<String>(), columns in 0usize..40, right in any::<bool>()) {
            let name = clean(&name);
            prop_assert_eq!(width(&pad(&name, columns, right)), columns);
        }

        #[test]
        fn bytes_fit_five_columns(value in 0.0..1e17f64) {
            prop_assert!(bytes(value).len() <= 5);
        }
    }
}
