//! Several writers of one target, each of its own share of the entities, and what the target then says that it holds.
//!
//! The frontier is kept by *part*: a row for each range of keys that is written by itself, `all` where it is one. What a row says is true of its range for good, so a writer whose range is another than its predecessors' takes over what they
//! said: of a part that overlaps its own, the rest stays under the LSN that was said of it; and what was said of all of its own range holds for it. What nobody has written yet stands there at LSN zero. So the parts always make up all
//! keys, and the least of them is what the target holds of everything.

use schemas::{KeyRange, Lsn};

const ALL: &str = "all";

/// The name of a part.
pub(crate) fn part(range: KeyRange) -> String {
    if range.is_all() { ALL.to_owned() } else { range.to_string() }
}

fn read(known: &[(String, String)]) -> Vec<(KeyRange, Lsn)> {
    let range = |part: &str| if part == ALL { Some(KeyRange::ALL) } else { part.parse().ok() };
    let mut known: Vec<_> = known.iter().filter_map(|(part, lsn)| Some((range(part)?, lsn.parse().ok()?))).collect();
    known.sort_unstable();
    known
}

/// What is not in any of these.
fn holes(known: &[(KeyRange, Lsn)], of: KeyRange) -> Vec<KeyRange> {
    known.iter().fold(vec![of], |left, (range, _)| left.iter().flat_map(|left| left.without(range)).collect())
}

/// What is said of a range, by parts as they stand in the target; none where something of it has not been loaded.
pub(crate) fn held(known: &[(String, String)], range: KeyRange) -> Option<Lsn> {
    let known = read(known);
    let least = known.iter().filter(|(part, _)| part.overlaps(&range)).map(|(_, lsn)| *lsn).min();
    least.filter(|lsn| holes(&known, range).is_empty() && !lsn.is_zero())
}

/// The parts once a writer of a range, which is none of those that are known, has written up to a frontier.
pub(crate) fn take_part(known: &[(String, String)], range: KeyRange, frontier: Lsn) -> Vec<(String, Lsn)> {
    let said = held(known, range).map_or(frontier, |held| held.max(frontier));
    let known = read(known);
    let rest = known.iter().flat_map(|(part, lsn)| part.without(&range).map(|left| (left, *lsn)));
    let mut parts: Vec<(KeyRange, Lsn)> = rest.chain([(range, said)]).collect();
    let missing = holes(&parts, KeyRange::ALL);
    parts.extend(missing.into_iter().map(|hole| (hole, Lsn::ZERO)));
    parts.into_iter().map(|(range, lsn)| (part(range), lsn)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn lsn(n: u8) -> Lsn {
        Lsn::from_bytes([0, 0, 0, 0, 0, 0, 0, 0, 0, n])
    }

    fn range(text: &str) -> KeyRange {
        text.parse().unwrap()
    }

    /// Writes like a sink does.
    fn wrote(known: &[(String, String)], of: &str, frontier: u8) -> Vec<(String, String)> {
        let mut parts = take_part(known, range(of), lsn(frontier));
        parts.sort_unstable();
        parts.into_iter().map(|(part, lsn)| (part, lsn.to_string())).collect()
    }

    #[test]
    fn the_least_part_is_what_the_target_holds_of_everything() {
        let all = |known: &[(String, String)]| held(known, KeyRange::ALL);
        let whole = wrote(&[], "0/1", 5);
        assert_eq!(whole, [("all".to_owned(), lsn(5).to_string())]);
        let first = wrote(&whole, "0/2", 7);
        assert_eq!((first.len(), all(&first), held(&first, range("1/2"))), (2, Some(lsn(5)), Some(lsn(5))));
        let both = wrote(&first, "1/2", 6);
        assert_eq!((both.len(), all(&both)), (2, Some(lsn(6))));
        // A part of a part, then one that had been ahead of both that it takes the place of, and one that was behind.
        let quarter = wrote(&both, "2/4", 9);
        assert_eq!((quarter.len(), held(&quarter, range("3/4")), all(&quarter)), (3, Some(lsn(6)), Some(lsn(6))));
        assert_eq!(wrote(&quarter, "0/1", 8), [("all".to_owned(), lsn(8).to_string())]);
        assert_eq!(wrote(&quarter, "0/1", 1), [("all".to_owned(), lsn(6).to_string())]);
    }

    #[test]
    fn what_nobody_has_loaded_is_not_held() {
        let first = wrote(&[], "1/4", 7);
        assert_eq!((first.len(), held(&first, range("1/4")), held(&first, KeyRange::ALL)), (3, Some(lsn(7)), None));
        assert_eq!(held(&[], KeyRange::ALL), None);
        let rest = wrote(&wrote(&first, "0/4", 3), "1/2", 4);
        assert_eq!((rest.len(), held(&rest, KeyRange::ALL)), (3, Some(lsn(3))));
    }
}
