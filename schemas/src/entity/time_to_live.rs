//! How long an entity lives: `time_to_live: {column: placed_at, duration: 90d}`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// From when on an entity is there no more, although its row is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimeToLive {
    /// A date or a time of the root.
    pub column: String,
    /// How long after it. Nothing: the column itself says when the entity ends.
    #[serde(default, skip_serializing_if = "Span::is_zero")]
    pub duration: Span,
}

/// A length of time in milliseconds, written with its unit: `90d`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(u64);

/// By name, greatest first, in milliseconds. Months and years are not among them: they differ in length.
const UNITS: [(&str, u64); 6] = [("w", 604_800_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a length of time: expected a whole number with its unit (`w`, `d`, `h`, `m`, `s`, `ms`), such as `90d` or `12h`"
)]
pub struct ParseSpanError {
    pub text: String,
}

impl Span {
    pub const fn milliseconds(self) -> u64 {
        self.0
    }

    const fn is_zero(&self) -> bool {
        self.0 == 0
    }
}

impl FromStr for Span {
    type Err = ParseSpanError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = || {
            let digits = text.bytes().take_while(u8::is_ascii_digit).count();
            let (number, unit) = text.split_at(digits);
            let (_, milliseconds) = UNITS.iter().find(|(name, _)| *name == unit.trim_start())?;
            number.parse::<u64>().ok()?.checked_mul(*milliseconds)
        };
        parsed().map(Self).ok_or_else(|| ParseSpanError { text: text.to_owned() })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |(_, milliseconds): &&(&str, u64)| self.0.is_multiple_of(*milliseconds);
        let (unit, milliseconds) = UNITS.iter().filter(|_| self.0 > 0).find(whole).unwrap_or(&("s", 1000));
        write!(f, "{}{unit}", self.0 / milliseconds)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn spans_read_back(milliseconds in prop_oneof![any::<u64>(), (0..1_000_000u64).prop_map(|seconds| seconds * 60_000)]) {
            prop_assert_eq!(Span(milliseconds).to_string().parse(), Ok(Span(milliseconds)));
        }

        #[test]
        fn no_text_panics(text in "[0-9é]{0,22} ?[a-zé]{0,3}") {
            let _ = text.parse::<Span>();
        }
    }

    #[test]
    fn spans_are_written_with_their_unit() {
        for (text, milliseconds) in
            [("90d", 90 * 86_400_000), ("2w", 14 * 86_400_000), ("12 h", 43_200_000), ("0s", 0), ("1500ms", 1500)]
        {
            assert_eq!(text.parse(), Ok(Span(milliseconds)), "{text}");
        }
        assert_eq!((Span(0).to_string(), Span(86_400_000 * 90).to_string()), ("0s".to_owned(), "90d".to_owned()));
        for text in ["", "90", "d", "-1d", "1.5d", "1y", "3 months", "99999999999999999w"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }
}
