//! A position in Kinesis's terms, and in ours.
//!
//! Kinesis numbers its records; an aggregate holds many of ours. Our sequence number is Kinesis's followed by six decimal digits: the place within the
//! aggregate, from 0 (a plain record is at place 0). It compares as it should, and a reader can go on in the middle of an aggregate.

use schemas::progress::SequenceNumber;

const PLACE_DIGITS: usize = 6;
/// Records in one aggregate.
pub(super) const PLACES: usize = 1_000_000;

pub(super) fn join(kinesis: &str, place: usize) -> Option<SequenceNumber> {
    if place >= PLACES {
        return None;
    }
    let mut number = String::with_capacity(kinesis.len() + PLACE_DIGITS);
    number.push_str(kinesis);
    let mut unit = PLACES;
    for _ in 0..PLACE_DIGITS {
        unit /= 10;
        number.push(char::from(b'0' + (place / unit % 10) as u8));
    }
    number.try_into().ok()
}

/// Kinesis's number and the place; none when the number is too short to be ours.
pub(super) fn split(number: &SequenceNumber) -> Option<(&str, usize)> {
    let (kinesis, place) = number.as_str().split_at_checked(number.as_str().len().checked_sub(PLACE_DIGITS)?)?;
    if kinesis.is_empty() { None } else { Some((kinesis, place.parse().ok()?)) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn positions_read_back_and_compare() {
        let kinesis = "49590338271490256608559692538361571095921575989136588898";
        let number = join(kinesis, 17).unwrap();
        assert_eq!(split(&number), Some((kinesis, 17)));
        assert!(number < join(kinesis, 999_999).unwrap());
        assert!(join(kinesis, 999_999).unwrap() < join("49590338271490256608559692538361571095921575989136588899", 0).unwrap());
        assert_eq!(join(kinesis, PLACES), None);
        assert_eq!(split(&SequenceNumber::from(999_999)), None);
        assert_eq!(split(&SequenceNumber::from(1_000_002)), Some(("1", 2)));
    }
}
