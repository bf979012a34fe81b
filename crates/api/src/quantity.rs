//! Kubernetes quantities: exact parsing and canonical printing.

use std::fmt;

/// A text that is not a Kubernetes quantity, or one that is too large.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// The text has another form.
    #[error(
        "invalid quantity {0:?}: expected a number with an optional suffix such as \"500m\" or \"2Gi\""
    )]
    Malformed(String),
    /// Nothing that exists has so much.
    #[error("invalid quantity {0:?}: too large, expected less than 2^63")]
    TooLarge(String),
}

/// How a quantity is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Powers of 1024: `Ki`, `Mi`, `Gi`.
    Binary,
    /// Powers of 1000: `m`, `k`, `M`.
    Decimal,
    /// Scientific: `1e3`.
    Exponent,
}

/// A parsed quantity in billionths of its unit, rounded up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantity {
    /// Value times 10^9.
    pub nanos: i128,
    /// How it was written.
    pub format: Format,
}

// Billionths are the finest unit that Kubernetes keeps; finer ones are rounded up.
const NANO: i128 = 1_000_000_000;
const BINARY: [(&str, u32); 6] =
    [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
const DECIMAL: [(&str, i32); 9] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];

enum Scale {
    Binary(u32),
    Decimal(i32),
}

/// Parses a quantity such as `1`, `500m`, `1.5Gi` or `2e3`.
///
/// # Errors
/// When the text is no quantity, or is too large to hold.
pub fn parse(text: &str) -> Result<Quantity, QuantityError> {
    parse_parts(text).ok_or_else(|| {
        let text = text.to_owned();
        if is_well_formed(&text) {
            QuantityError::TooLarge(text)
        } else {
            QuantityError::Malformed(text)
        }
    })
}

/// Whether the text has a quantity's form, however large it is.
fn is_well_formed(text: &str) -> bool {
    let rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    let exponent = suffix.strip_prefix(['e', 'E']).unwrap_or_default();
    let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    let scaled = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    number.bytes().any(|b| b.is_ascii_digit())
        && number.matches('.').count() <= 1
        && (scaled || parse_suffix(suffix).is_some())
}

fn parse_parts(text: &str) -> Option<Quantity> {
    let negative = text.starts_with('-');
    let rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(number_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let (format, scale) = parse_suffix(suffix)?;
    let mut numerator: i128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        numerator = numerator.checked_mul(10)?.checked_add(i128::from(digit - b'0'))?;
    }
    let decimals = i32::try_from(fraction.len()).ok()?;
    let nanos = match scale {
        Scale::Binary(bits) => {
            div_ceil_pow10(numerator.checked_mul(NANO)?.checked_mul(1_i128 << bits)?, decimals)
        }
        Scale::Decimal(exponent) => {
            let power = exponent + 9 - decimals;
            if power >= 0 {
                numerator.checked_mul(10_i128.checked_pow(power.unsigned_abs())?)?
            } else {
                div_ceil_pow10(numerator, -power)
            }
        }
    };
    Some(Quantity { nanos: if negative { -nanos } else { nanos }, format })
}

fn parse_suffix(suffix: &str) -> Option<(Format, Scale)> {
    if suffix.is_empty() {
        return Some((Format::Decimal, Scale::Decimal(0)));
    }
    if let Some((_, bits)) = BINARY.iter().find(|(s, _)| *s == suffix) {
        return Some((Format::Binary, Scale::Binary(*bits)));
    }
    if let Some((_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Some((Format::Decimal, Scale::Decimal(*exponent)));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // However small it is, an amount that is not zero counts as the smallest, 1n.
    let value: i32 =
        exponent.parse().ok().or_else(|| exponent.starts_with('-').then_some(-1000))?;
    // Beyond this, powers of ten no longer fit into the 128 bits below.
    (value <= 30).then_some((Format::Exponent, Scale::Decimal(value.max(-1000))))
}

fn div_ceil_pow10(value: i128, power: i32) -> i128 {
    match 10_i128.checked_pow(power.unsigned_abs()) {
        Some(divisor) => value / divisor + i128::from(value % divisor != 0),
        None => i128::from(value > 0),
    }
}

impl Quantity {
    /// The value in thousandths, rounded up, held within 64 bits.
    #[must_use]
    pub fn milli(self) -> i64 {
        clamp(div_ceil(self.nanos, 1_000_000))
    }

    /// The value in whole units, rounded up, held within 64 bits.
    #[must_use]
    pub fn value(self) -> i64 {
        clamp(div_ceil(self.nanos, NANO))
    }
}

fn div_ceil(value: i128, by: i128) -> i128 {
    value.div_euclid(by) + i128::from(value.rem_euclid(by) != 0)
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

impl fmt::Display for Quantity {
    /// The canonical form: the largest suffix that leaves a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let whole = self.nanos % NANO == 0;
        match self.format {
            // Below 1024 and with fractions, Kubernetes writes even binary quantities in decimal
            // form.
            Format::Binary if whole && (self.nanos / NANO).abs() >= 1024 => {
                let value = self.nanos / NANO;
                let (suffix, bits) = BINARY
                    .iter()
                    .rev()
                    .find(|(_, bits)| value % (1_i128 << bits) == 0)
                    .copied()
                    .unwrap_or(("", 0));
                write!(f, "{}{suffix}", value / (1_i128 << bits))
            }
            Format::Exponent => {
                let (mut value, mut exponent) = (self.nanos, -9);
                while value % 1000 == 0 {
                    value /= 1000;
                    exponent += 3;
                }
                if exponent == 0 { write!(f, "{value}") } else { write!(f, "{value}e{exponent}") }
            }
            Format::Binary | Format::Decimal => {
                let (mut value, mut exponent) = (self.nanos, -9);
                while value % 1000 == 0 && exponent < 18 {
                    value /= 1000;
                    exponent += 3;
                }
                let suffix = DECIMAL.iter().find(|(_, e)| *e == exponent).map_or("", |(s, _)| s);
                write!(f, "{value}{suffix}")
            }
        }
    }
}

/// Canonical text of thousandths, as for cpu.
#[must_use]
pub fn format_milli(milli: i64) -> String {
    Quantity { nanos: i128::from(milli) * 1_000_000, format: Format::Decimal }.to_string()
}

/// Canonical text of bytes.
#[must_use]
pub fn format_bytes(bytes: i64) -> String {
    Quantity { nanos: i128::from(bytes) * NANO, format: Format::Binary }.to_string()
}

/// Canonical text of a plain count.
#[must_use]
pub fn format_count(count: i64) -> String {
    Quantity { nanos: i128::from(count) * NANO, format: Format::Decimal }.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_too_small_to_show_counts_as_the_smallest() {
        for text in ["1e-50", "1e-2000", "1E-99999999999"] {
            assert_eq!(parse(text).unwrap().nanos, 1, "{text}");
        }
        assert_eq!(parse("0e-50").unwrap().nanos, 0);
        assert!(matches!(parse("1e31"), Err(QuantityError::TooLarge(_))));
    }

    #[test]
    fn a_quantity_that_is_too_large_is_reported_to_be() {
        for text in ["1e99", "99999999999999999999999999999999Ei", "-1e40"] {
            assert_eq!(parse(text), Err(QuantityError::TooLarge(text.to_owned())), "{text}");
        }
        assert!(matches!(parse("1.2.3"), Err(QuantityError::Malformed(_))));
        assert!(matches!(parse("2GB"), Err(QuantityError::Malformed(_))));
    }

    #[test]
    fn canonical_forms() {
        for (text, want) in [
            ("1", "1"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("0.5", "500m"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("870Mi", "870Mi"),
            ("1000", "1k"),
            ("1e3", "1e3"),
            ("100e-3", "100e-3"),
            ("0", "0"),
            ("-5Gi", "-5Gi"),
            (".5Ki", "512"),
            ("3388300Ki", "3388300Ki"),
            ("1n", "1n"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), want, "{text}");
        }
    }

    #[test]
    fn values_round_up() {
        assert_eq!(parse("100n").unwrap().milli(), 1);
        assert_eq!(parse("1500m").unwrap().value(), 2);
        assert_eq!(parse("-1500m").unwrap().value(), -1);
        assert_eq!(parse("1930m").unwrap().milli(), 1930);
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in ["", "Gi", "1.2.3", "1gi", "0x1", "1e", "--1", "1 Gi", "e5"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn printing_and_parsing_agree(value in -1_000_000_000_000_i64..1_000_000_000_000) {
            // Bytes that no binary suffix divides are written without one, and read as a count.
            for text in [format_milli(value), format_bytes(value << 10), format_count(value)] {
                proptest::prop_assert_eq!(parse(&text).unwrap().to_string(), text);
            }
            proptest::prop_assert_eq!(parse(&format_milli(value)).unwrap().milli(), value);
            proptest::prop_assert_eq!(parse(&format_bytes(value)).unwrap().value(), value);
        }

        #[test]
        fn parsing_never_panics(text in ".{0,24}") {
            let _ = parse(&text);
        }
    }
}
