//! How values and shares are written: `512.50kB`, `1.21MB`, `12.34%`.
//!
//! Follows pprof's conventions so that both tools show the same digits. Pure arithmetic and text.

use std::borrow::Cow;

/// A family of units that convert into each other.
struct Family {
    /// Canonical name, accepted names (lower case, singular), factor to the smallest.
    units: &'static [(&'static str, &'static [&'static str], f64)],
    /// Used for values too small for any unit.
    default: (&'static str, f64),
}

const FAMILIES: &[Family] = &[
    Family {
        units: &[
            ("B", &["b", "byte"], 1.0),
            ("kB", &["kb", "kbyte", "kilobyte"], 1024.0),
            ("MB", &["mb", "mbyte", "megabyte"], 1_048_576.0),
            ("GB", &["gb", "gbyte", "gigabyte"], 1_073_741_824.0),
            ("TB", &["tb", "tbyte", "terabyte"], 1_099_511_627_776.0),
            ("PB", &["pb", "pbyte", "petabyte"], 1_125_899_906_842_624.0),
        ],
        default: ("B", 1.0),
    },
    Family {
        units: &[
            ("ns", &["ns", "nanosecond"], 1.0),
            ("us", &["μs", "us", "microsecond"], 1e3),
            ("ms", &["ms", "millisecond"], 1e6),
            ("s", &["s", "sec", "second"], 1e9),
            ("hrs", &["hour", "hr"], 3.6e12),
        ],
        default: ("s", 1e9),
    },
];

impl Family {
    fn factor(&self, unit: &str) -> Option<(&'static str, f64)> {
        let lower = unit.to_lowercase();
        let singular = if lower.len() > 2 {
            lower.strip_suffix('s').unwrap_or(&lower)
        } else {
            &lower
        };
        self.units
            .iter()
            .find(|(_, names, _)| names.contains(&singular))
            .map(|(name, _, factor)| (*name, *factor))
    }

    fn largest_below(&self, value: f64) -> (&'static str, f64) {
        self.units
            .iter()
            .rev()
            .find(|(_, _, factor)| value / factor >= 1.0)
            .map_or(self.default, |(name, _, factor)| (*name, *factor))
    }
}

/// Unit of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scale {
    /// The largest unit in which the value is at least 1.
    Auto,
    /// Always this one.
    To(String),
}

/// The value in another unit, with that unit's name (empty for plain counts).
pub fn scale(value: i64, from: &str, to: &Scale) -> (f64, Cow<'static, str>) {
    let sign = if value < 0 { -1.0 } else { 1.0 };
    let magnitude = value.unsigned_abs() as f64;
    for family in FAMILIES {
        let Some((_, factor)) = family.factor(from) else {
            continue;
        };
        let base = magnitude * factor;
        let (name, factor) = match to {
            Scale::Auto => family.largest_below(base),
            Scale::To(unit) => family.factor(unit).unwrap_or(family.default),
        };
        return (sign * base / factor, Cow::Borrowed(name));
    }
    let name = match to {
        Scale::Auto => String::new(),
        Scale::To(unit) if matches!(unit.as_str(), "count" | "sample" | "unit") => String::new(),
        Scale::To(unit) => unit.clone(),
    };
    (sign * magnitude, Cow::Owned(name))
}

/// A value with its unit: at most two decimals, none if they are `.00`.
pub fn label(value: i64, from: &str, to: &Scale) -> String {
    let (scaled, unit) = scale(value, from, to);
    let text = format!("{scaled:.2}");
    let text = text.strip_suffix(".00").unwrap_or(&text);
    if text == "0" || text == "-0" {
        "0".to_owned()
    } else {
        format!("{text}{unit}")
    }
}

/// Share of a total, six characters wide or more: ` 12.3%`, `0.046%`, `  100%`. The sign is left out.
pub fn percentage(value: i64, total: i64) -> String {
    let ratio = if total == 0 {
        0.0
    } else {
        (value as f64 / total as f64).abs() * 100.0
    };
    if (99.95..=100.05).contains(&ratio) {
        "  100%".to_owned()
    } else if ratio >= 1.0 {
        format!("{ratio:5.2}%")
    } else {
        format!("{:>5}%", two_digits(ratio))
    }
}

/// A number below 1 with two significant digits, in the way of C's `%.2g`.
fn two_digits(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    // The exponent *after* rounding to two digits decides between both notations.
    let scientific = format!("{value:.1e}");
    let Some((digits, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let trim = |text: &str| -> String {
        if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            text.to_owned()
        }
    };
    if exponent < -4 {
        format!("{}e-{:02}", trim(digits), -exponent)
    } else {
        trim(&format!("{value:.*}", usize::try_from(1 - exponent).unwrap_or(0)))
    }
}

/// The unit for a whole table, from its smallest and its largest value: the smallest's own unit, or, where both differ
/// much, one in which the smallest still shows as 0.01.
pub fn common(smallest: i64, largest: i64, from: &str) -> Scale {
    let auto = |value| scale(value, from, &Scale::Auto).1;
    let (small, large) = (auto(smallest), auto(largest));
    let unit = if small != large && smallest.saturating_mul(100) < largest {
        auto(smallest.saturating_mul(100))
    } else {
        small
    };
    Scale::To(if unit.is_empty() {
        from.to_owned()
    } else {
        unit.into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes() {
        let auto = |value| label(value, "bytes", &Scale::Auto);
        assert_eq!(auto(0), "0");
        assert_eq!(auto(1023), "1023B");
        assert_eq!(auto(524_800), "512.50kB");
        assert_eq!(auto(1_268_777), "1.21MB");
        assert_eq!(auto(-1_268_777), "-1.21MB");
        assert_eq!(auto(1 << 20), "1MB");
        assert_eq!(auto(i64::MIN), "-8192PB");
        assert_eq!(label(524_800, "bytes", &Scale::To("MB".to_owned())), "0.50MB");
        assert_eq!(label(12, "bytes", &Scale::To("MB".to_owned())), "0");
    }

    #[test]
    fn counts_and_times() {
        assert_eq!(label(1234, "count", &Scale::To("count".to_owned())), "1234");
        assert_eq!(
            label(1234, "goroutines", &Scale::To("goroutines".to_owned())),
            "1234goroutines"
        );
        assert_eq!(label(1_500_000_000, "nanoseconds", &Scale::Auto), "1.50s");
    }

    #[test]
    fn shares() {
        assert_eq!(percentage(1, 0), "    0%");
        assert_eq!(percentage(1, 1), "  100%");
        assert_eq!(percentage(99_960, 100_000), "  100%");
        assert_eq!(percentage(1234, 10_000), "12.34%");
        assert_eq!(percentage(500, 10_000), " 5.00%");
        assert_eq!(percentage(-46, 100_000), "0.046%");
        assert_eq!(percentage(5, 1000), "  0.5%");
        assert_eq!(percentage(999, 100_000), "    1%");
        assert_eq!(percentage(9949, 1_000_000), " 0.99%");
        assert_eq!(percentage(1, 1_000_000), "0.0001%");
        assert_eq!(percentage(1, 100_000_000), "1e-06%");
    }

    #[test]
    fn one_unit_for_a_table() {
        assert_eq!(common(512, 1 << 30, "bytes"), Scale::To("kB".to_owned()));
        assert_eq!(common(1 << 20, 1 << 22, "bytes"), Scale::To("MB".to_owned()));
        assert_eq!(common(1, 9, "count"), Scale::To("count".to_owned()));
    }
}
