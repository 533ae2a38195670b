//! Times as CDC's own tables hold them.
//!
//! They are `datetime`: zoneless, and precise to 1/300 s only, shown as .000, .003 and .007. Two transactions within one tick carry the same time,
//! which is why an importer may never order by it.

use crate::DateTime;

/// The stored form of a `datetime`: rounded to 1/300 s.
pub(crate) fn stored(moment: DateTime) -> String {
    let millis = moment.millisecond() as i64;
    // Ticks of 1/300 s, rounded to the nearest, and shown in whole milliseconds as the server shows them.
    let ticks = (millis * 3 + 5) / 10;
    let shown = (ticks * 10 + 1) / 3;
    let second = moment - jiff_span_of_fraction(moment);
    let rounded = second.saturating_add(jiff::SignedDuration::from_millis(shown));
    rounded.strftime("%Y-%m-%d %H:%M:%S.%3f").to_string()
}

fn jiff_span_of_fraction(moment: DateTime) -> jiff::SignedDuration {
    jiff::SignedDuration::from_nanos(i64::from(moment.subsec_nanosecond()))
}

/// The moment behind a stored `datetime`, if it is one.
pub(crate) fn parsed(stored: &str) -> Option<DateTime> {
    stored.replacen(' ', "T", 1).parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn is_rounded_to_a_three_hundredth_of_a_second() {
        let shown = |millis: i64| {
            let base: DateTime = "2026-03-29T01:59:59".parse().unwrap();
            stored(base.saturating_add(jiff::SignedDuration::from_millis(millis)))
        };
        assert_eq!(shown(0), "2026-03-29 01:59:59.000");
        assert_eq!(shown(1), "2026-03-29 01:59:59.000");
        assert_eq!(shown(2), "2026-03-29 01:59:59.003");
        assert_eq!(shown(5), "2026-03-29 01:59:59.007");
        assert_eq!(shown(8), "2026-03-29 01:59:59.007");
        assert_eq!(shown(9), "2026-03-29 01:59:59.010");
        assert_eq!(shown(999), "2026-03-29 02:00:00.000");
        assert_eq!(parsed(&shown(3)).unwrap().to_string(), "2026-03-29T01:59:59.003");
    }
}
