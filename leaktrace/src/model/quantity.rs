//! Durations and sizes as people write them, on the command line and in the configuration, and sizes as they read them.
//!
//! Everywhere but in tables of profiles, which have pprof's style (`report::unit`), sizes are written by [`bytes`], or in
//! narrow columns with its digits by [`short_bytes`]; the page does the same (`ui/assets/text.js`).

use std::time::Duration;

/// Powers of 1024.
const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/// `30s`, `5m`, `1h30m`; a bare number means seconds.
///
/// # Errors
/// What is wrong, in words.
pub fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string());
    }
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

/// `512`, `512k`, `512KiB`, `1.5M`, `2GB`, `1TiB`: powers of 1024, as pprof has them.
///
/// # Errors
/// What is wrong, in words.
pub fn size(text: &str) -> Result<u64, String> {
    let unit = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(unit);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1u64,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        other => return Err(format!("unknown unit `{other}`; known are B, KiB, MiB, GiB and TiB")),
    };
    let number: f64 = number
        .parse()
        .map_err(|_| format!("`{text}` is no size; write 512KiB or 4096"))?;
    let bytes = number * factor as f64;
    if bytes.is_finite() && (0.0..=(1u64 << 53) as f64).contains(&bytes) {
        Ok(bytes.round() as u64)
    } else {
        Err(format!("`{text}` is out of range"))
    }
}

/// `10MiB/h`, `512KiB/m`, `1k/s`: bytes per hour.
///
/// # Errors
/// What is wrong, in words.
pub fn rate(text: &str) -> Result<f64, String> {
    let (bytes, time) = text
        .split_once('/')
        .ok_or_else(|| format!("`{text}` is no rate; write 10MiB/h"))?;
    let an_hour = match time.trim() {
        "h" | "hour" => 1.0,
        "m" | "min" | "minute" => 60.0,
        "s" | "second" => 3600.0,
        "d" | "day" => 1.0 / 24.0,
        other => return Err(format!("unknown time `{other}`; known are s, m, h and d")),
    };
    Ok(size(bytes.trim())? as f64 * an_hour)
}

/// `5%`, `0.5 %`: a share, 1 being the whole. A bare number is refused: it could mean either.
///
/// # Errors
/// What is wrong, in words.
pub fn share(text: &str) -> Result<f64, String> {
    let number = text
        .strip_suffix('%')
        .ok_or_else(|| format!("`{text}` is no share; write 5%"))?;
    match number.trim().parse::<f64>() {
        Ok(percent) if percent.is_finite() && percent >= 0.0 => Ok(percent / 100.0),
        _ => Err(format!("`{text}` is no share; write 5%")),
    }
}

/// A size in the largest unit in which it has at most three digits, and that unit's place.
fn digits(value: f64) -> (String, usize) {
    let mut size = value.abs();
    let mut unit = 0;
    while size >= 999.5 && unit < UNITS.len() - 1 {
        size /= 1024.0;
        unit += 1;
    }
    let decimals = match size {
        _ if unit == 0 => 0,
        size if size < 9.995 => 2,
        size if size < 99.95 => 1,
        _ => 0,
    };
    (format!("{size:.decimals$}"), unit)
}

/// Bytes for people: `817 B`, `12.5 KiB`, `310 MiB`.
pub fn bytes(value: f64) -> String {
    let (digits, unit) = digits(value);
    let sign = if value <= -0.5 { "-" } else { "" };
    format!("{sign}{digits} {}", UNITS[unit])
}

/// The same with its sign, also if that is `+`.
pub fn signed(value: f64) -> String {
    let sign = if value >= 0.5 { "+" } else { "" };
    format!("{sign}{}", bytes(value))
}

/// The same digits in at most five columns, without a sign: `0`, `817B`, `12.5K`, `310M`.
pub fn short_bytes(value: f64) -> String {
    let (digits, unit) = digits(value);
    match (digits.as_str(), unit) {
        ("0", 0) => digits,
        _ => format!("{digits}{}", &UNITS[unit][..1]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("512KiB"), Ok(512 << 10));
        assert_eq!(size("1.5m"), Ok(3 << 19));
        assert_eq!(size("2 GB"), Ok(2 << 30));
        assert_eq!(size("1T"), Ok(1 << 40));
        assert!(size("12 parsecs").is_err());
        assert!(size("99999999999G").is_err());
        assert!(size("-1").is_err());
    }

    #[test]
    fn a_bare_number_is_seconds() {
        assert_eq!(duration("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert!(duration("-3").is_err());
        assert!(duration("soon").is_err());
    }

    #[test]
    fn rates_are_by_the_hour() {
        assert_eq!(rate("10MiB/h"), Ok((10 << 20) as f64));
        assert_eq!(rate("1k / s"), Ok(3_686_400.0));
        assert_eq!(rate("24MiB/d"), Ok((1 << 20) as f64));
        assert!(rate("10MiB").is_err());
        assert!(rate("10MiB/fortnight").is_err());
        assert!(rate("/h").is_err());
    }

    #[test]
    fn shares_are_percentages() {
        assert_eq!(share("5%"), Ok(0.05));
        assert_eq!(share("0.5 %"), Ok(0.005));
        assert_eq!(share("150%"), Ok(1.5));
        for wrong in ["5", "-5%", "%", "nan%", "inf%"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "\\PC{0,24}") {
            let _ = (duration(&text), size(&text), rate(&text), share(&text));
        }
    }

    #[test]
    fn sizes_have_three_digits_in_both_styles() {
        let all = [0.0, 1.0, 999.0, 1000.0, 10_230.0, 1_047_552.0, -5e9, 3e15];
        let shown = |write: &dyn Fn(f64) -> String| all.map(write).join(", ");
        insta::assert_snapshot!(shown(&bytes), @"0 B, 1 B, 999 B, 0.98 KiB, 9.99 KiB, 1.00 MiB, -4.66 GiB, 2.66 PiB");
        insta::assert_snapshot!(shown(&short_bytes), @"0, 1B, 999B, 0.98K, 9.99K, 1.00M, 4.66G, 2.66P");
        assert_eq!(
            (signed(-2048.0).as_str(), signed(2048.0).as_str(), signed(0.0).as_str()),
            ("-2.00 KiB", "+2.00 KiB", "0 B")
        );
    }
}
