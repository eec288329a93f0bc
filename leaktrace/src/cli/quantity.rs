//! Durations and sizes as people write them.

use std::time::Duration;

/// `30s`, `5m`, `1h30m`; a bare number means seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string());
    }
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

/// `512`, `512k`, `512KiB`, `1.5M`, `2GB`: powers of 1024, as pprof has them.
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
        other => return Err(format!("unknown unit `{other}`; known are B, KiB, MiB and GiB")),
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

/// Bytes for people: `1.25MB`, in pprof's units.
pub fn bytes(value: u64) -> String {
    let value = i64::try_from(value).unwrap_or(i64::MAX);
    crate::report::unit::label(value, "bytes", &crate::report::unit::Scale::Auto)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("512KiB"), Ok(512 << 10));
        assert_eq!(size("1.5m"), Ok(3 << 19));
        assert_eq!(size("2 GB"), Ok(2 << 30));
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
}
