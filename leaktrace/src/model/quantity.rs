//! Durations and sizes as people write them, on the command line and in the configuration.

use std::time::Duration;

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
}
