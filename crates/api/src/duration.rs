//! Go-style durations (`720h`, `1h30m`) and the `Never` that Karpenter allows beside them.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration as the user wrote it, or `Never`. The text is kept and written back unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NillableDuration {
    /// Not bounded in time.
    Never,
    /// A bounded time: its original text and value.
    After(String, Duration),
    /// A text that is neither, which the pattern of v1beta1 lets through (`1hr`). One such object
    /// must not keep all others from being read: it stands for no bound until validation finds it.
    Invalid(String),
}

impl NillableDuration {
    /// The bounded time, or `None` for `Never`.
    #[must_use]
    pub fn duration(&self) -> Option<Duration> {
        match self {
            Self::Never | Self::Invalid(_) => None,
            Self::After(_, d) => Some(*d),
        }
    }

    /// What is wrong with the text, if it is no duration.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        match self {
            Self::Invalid(text) => parse_go(text).err().map(|error| error.to_string()),
            Self::Never | Self::After(..) => None,
        }
    }

    /// Parses `Never` or a Go duration.
    ///
    /// # Errors
    /// When the text is neither.
    pub fn parse(text: &str) -> Result<Self, DurationError> {
        if text == "Never" {
            return Ok(Self::Never);
        }
        Ok(Self::After(text.to_owned(), parse_go(text)?))
    }
}

impl fmt::Display for NillableDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("Never"),
            Self::After(text, _) | Self::Invalid(text) => f.write_str(text),
        }
    }
}

impl Serialize for NillableDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NillableDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(Self::parse(&text).unwrap_or(Self::Invalid(text)))
    }
}

/// A text that is not a Go duration, or one that Go could not hold.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DurationError {
    /// The text has another form.
    #[error("invalid duration {0:?}: expected a number with a unit such as \"10m\" or \"1h30m\"")]
    Malformed(String),
    /// More nanoseconds than 64 bits hold.
    #[error("invalid duration {0:?}: too long, expected at most 2562047h (292 years)")]
    TooLong(String),
}

/// Parses a non-negative Go duration: decimal numbers with units ns, us, ms, s, m, h; `0` alone is zero.
///
/// # Errors
/// When the text does not have that form, is negative, or is too long for Go's 64-bit nanoseconds.
pub fn parse_go(text: &str) -> Result<Duration, DurationError> {
    let error = || DurationError::Malformed(text.to_owned());
    let too_long = || DurationError::TooLong(text.to_owned());
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(error());
    }
    let mut nanos: f64 = 0.0;
    let mut exact: u128 = 0;
    while !rest.is_empty() {
        let split = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(error)?;
        let (number, tail) = rest.split_at(split);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, next) = tail.split_at(unit_end);
        let scale: u64 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(error()),
        };
        // Whole numbers are added exactly: a float holds no more than 53 bits of nanoseconds, some
        // 104 days.
        if let Ok(whole) = number.parse::<u64>() {
            exact += u128::from(whole) * u128::from(scale);
        } else if number.bytes().all(|b| b.is_ascii_digit()) && !number.is_empty() {
            return Err(too_long());
        } else {
            let value: f64 = number.parse().map_err(|_| error())?;
            nanos += value * scale as f64;
        }
        rest = next;
    }
    let total = exact + nanos as u128;
    u64::try_from(total)
        .ok()
        // Go's time.Duration is a signed 64-bit number.
        .filter(|n| i64::try_from(*n).is_ok())
        .map(Duration::from_nanos)
        .ok_or_else(too_long)
}

/// Prints a duration as Go does: `1h30m0s`, `37.301795ms`, `0s`.
#[must_use]
pub fn format_go(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    let fraction = |value: u128, unit: u128| -> String {
        let (whole, rest) = (value / unit, value % unit);
        if rest == 0 {
            return whole.to_string();
        }
        // Units are powers of ten, so the exponent is the number of digits.
        let width = unit.ilog10() as usize;
        let digits = format!("{rest:0width$}");
        format!("{whole}.{}", digits.trim_end_matches('0'))
    };
    if nanos < 1_000 {
        return format!("{nanos}ns");
    }
    if nanos < 1_000_000 {
        return format!("{}µs", fraction(nanos, 1_000));
    }
    if nanos < 1_000_000_000 {
        return format!("{}ms", fraction(nanos, 1_000_000));
    }
    let hours = nanos / 3_600_000_000_000;
    let minutes = nanos / 60_000_000_000 % 60;
    let seconds = fraction(nanos % 60_000_000_000, 1_000_000_000);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, m) => format!("{m}m{seconds}s"),
        (h, m) => format!("{h}h{m}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_that_is_too_long_is_reported_to_be() {
        for text in ["2562048h", "99999999999999999999h", "9999999999.5h"] {
            let error = parse_go(text).unwrap_err();
            assert_eq!(error, DurationError::TooLong(text.to_owned()));
            assert!(
                NillableDuration::Invalid(text.to_owned()).problem().unwrap().contains("too long")
            );
        }
        assert!(matches!(parse_go("1hr"), Err(DurationError::Malformed(_))));
    }

    #[test]
    fn go_durations_parse() {
        assert_eq!(parse_go("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_go("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_go("0"), Ok(Duration::ZERO));
        for bad in ["", "10", "-1h", "1x", "h", "1h-3m"] {
            assert!(parse_go(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn go_durations_print() {
        assert_eq!(format_go(Duration::from_secs(5400)), "1h30m0s");
        assert_eq!(format_go(Duration::from_nanos(37_301_795)), "37.301795ms");
        assert_eq!(format_go(Duration::from_millis(1500)), "1.5s");
        assert_eq!(format_go(Duration::ZERO), "0s");
    }

    #[test]
    fn a_wrong_text_is_kept_and_found() {
        let d: NillableDuration = serde_json::from_str("\"1hr\"").unwrap();
        assert_eq!(d.duration(), None);
        assert_eq!(serde_json::to_string(&d).unwrap(), "\"1hr\"");
        assert!(d.problem().unwrap().contains("1hr"));
    }

    #[test]
    fn text_is_kept() {
        let d: NillableDuration = serde_json::from_str("\"720h\"").unwrap();
        assert_eq!(d.duration(), Some(Duration::from_secs(720 * 3600)));
        assert_eq!(serde_json::to_string(&d).unwrap(), "\"720h\"");
        assert_eq!(serde_json::from_str::<NillableDuration>("\"Never\"").unwrap().duration(), None);
    }
}
