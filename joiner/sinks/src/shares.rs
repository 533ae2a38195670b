//! Several writers of one target, each of its own share of the entities, and what the target then says that it holds.
//!
//! The frontier is kept by *part*: an entry for each range of keys that is written by itself, `all` where it is one. What an entry says is true of its range for good, so a writer whose range is another than its predecessors' takes over
//! what they said, before it writes anything ([`take`]): of a part that overlaps its own, the rest stays under the LSN that was said of it; and what was said of all of its own range holds for it. What nobody has written yet stands there
//! at LSN zero. So the parts always make up all keys, and the least of them is what the target holds of everything.
//!
//! # Why a writer never says more than is there
//! It raises the entry of its own range and no other, and only while that still says at least what it said last ([`Share::said`]). Whoever finds that something is gone (a table was removed, and is made anew) sets all entries to zero,
//! those of others too: they find it at their next frontier ([`lost`]), prepare themselves again, and learn that they hold nothing.

use schemas::{KeyRange, Lsn};

use crate::Error;

const ALL: &str = "all";

/// What one writer writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share {
    pub(crate) range: KeyRange,
    /// What the target said last that it holds of it; zero before a load has ended.
    pub(crate) said: Lsn,
}

impl Share {
    pub(crate) const WHOLE: Self = Self { range: KeyRange::ALL, said: Lsn::ZERO };

    pub(crate) fn part(&self) -> String {
        part(self.range)
    }
}

/// The entry of a writer's share is gone, or says less than it did.
pub(crate) fn lost(target: &str) -> Error {
    Error::unavailable(
        target,
        "what it said of this sink's share is gone: another writer has made a table anew, or has taken over the share",
    )
}

/// The name of a part.
pub(crate) fn part(range: KeyRange) -> String {
    if range.is_all() { ALL.to_owned() } else { range.to_string() }
}

fn range(part: &str) -> Option<KeyRange> {
    if part == ALL { Some(KeyRange::ALL) } else { part.parse().ok() }
}

fn read(known: &[(String, String)]) -> Vec<(KeyRange, Lsn)> {
    let mut known: Vec<_> = known.iter().filter_map(|(part, lsn)| Some((range(part)?, lsn.parse().ok()?))).collect();
    known.sort_unstable();
    known
}

/// What is not in any of these.
fn holes(known: impl IntoIterator<Item = KeyRange>, of: KeyRange) -> Vec<KeyRange> {
    known.into_iter().fold(vec![of], |left, range| left.iter().flat_map(|left| left.without(&range)).collect())
}

/// What is said of a range, by parts as they stand in the target; none where something of it has not been loaded.
pub(crate) fn held(known: &[(String, String)], range: KeyRange) -> Option<Lsn> {
    let known = read(known);
    let least = known.iter().filter(|(part, _)| part.overlaps(&range)).map(|(_, lsn)| *lsn).min();
    least.filter(|lsn| holes(known.iter().map(|(part, _)| *part), range).is_empty() && !lsn.is_zero())
}

/// The parts with one that is just this range, and says of it what they say; none where there is one.
pub(crate) fn take(known: &[(String, String)], range: KeyRange) -> Option<Vec<(String, Lsn)>> {
    let said = held(known, range).unwrap_or(Lsn::ZERO);
    let known = read(known);
    if known.iter().any(|(part, _)| *part == range) {
        return None;
    }
    let rest = known.iter().flat_map(|(part, lsn)| part.without(&range).map(|left| (left, *lsn)));
    let mut parts: Vec<(KeyRange, Lsn)> = rest.chain([(range, said)]).collect();
    let missing = holes(parts.iter().map(|(part, _)| *part), KeyRange::ALL);
    parts.extend(missing.into_iter().map(|hole| (hole, Lsn::ZERO)));
    Some(parts.into_iter().map(|(range, lsn)| (part(range), lsn)).collect())
}

/// Ranges as one text.
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
fn ranges(text: &str) -> Vec<KeyRange> {
    text.split(' ').filter_map(range).collect()
}

/// Whether ranges, as [`with`] writes them, are all of this one.
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
pub(crate) fn cover(written: Option<&str>, range: KeyRange) -> bool {
    written.is_some_and(|written| holes(ranges(written), range).is_empty())
}

/// Ranges with one more, as text, and whether that is all there is.
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
pub(crate) fn with(written: Option<&str>, range: KeyRange) -> (String, bool) {
    let mut all = ranges(written.unwrap_or_default());
    all.extend(holes(all.iter().copied(), range));
    all.sort_unstable();
    let mut joined: Vec<KeyRange> = Vec::new();
    for range in all {
        match joined.last_mut().and_then(|last| last.joined(&range).map(|both| (last, both))) {
            Some((last, both)) => *last = both,
            None => joined.push(range),
        }
    }
    (joined.iter().map(|range| part(*range)).collect::<Vec<_>>().join(" "), joined == [KeyRange::ALL])
}

/// Where a target keeps its parts as one value, which is replaced only where it still is what was read.
#[cfg(any(feature = "dynamodb", feature = "search"))]
#[async_trait::async_trait]
pub(crate) trait Register: Sync {
    /// Tells a value from those before and after it.
    type Edition: Send;
    /// How errors name the target.
    fn target(&self) -> &str;
    async fn read(&self) -> Result<Kept<Self::Edition>, Error>;
    /// Answers nothing where the value is another by now.
    async fn replace(&self, parts: &[(String, String)], read: Self::Edition) -> Result<Option<Self::Edition>, Error>;
}

/// The parts of a [`Register`] as they were read or written last.
#[cfg(any(feature = "dynamodb", feature = "search"))]
pub(crate) struct Kept<E> {
    pub(crate) parts: Vec<(String, String)>,
    pub(crate) edition: E,
}

/// Attempts at a value that others replace. Each of theirs is progress.
#[cfg(any(feature = "dynamodb", feature = "search"))]
const ATTEMPTS: u32 = 50;

#[cfg(any(feature = "dynamodb", feature = "search"))]
fn contended(target: &str) -> Error {
    Error::unavailable(target, "other writers replaced its frontier each time that it was tried")
}

/// Makes a share one of the parts.
#[cfg(any(feature = "dynamodb", feature = "search"))]
pub(crate) async fn take_in<R: Register>(register: &R, share: &mut Share) -> Result<Kept<R::Edition>, Error> {
    for _ in 0..ATTEMPTS {
        let known = register.read().await?;
        share.said = held(&known.parts, share.range).unwrap_or(Lsn::ZERO);
        let Some(taken) = take(&known.parts, share.range) else { return Ok(known) };
        let parts: Vec<(String, String)> = taken.into_iter().map(|(part, lsn)| (part, lsn.to_string())).collect();
        if let Some(edition) = register.replace(&parts, known.edition).await? {
            return Ok(Kept { parts, edition });
        }
    }
    Err(contended(register.target()))
}

/// Says of a share that it is there up to the frontier.
#[cfg(any(feature = "dynamodb", feature = "search"))]
pub(crate) async fn raise_in<R: Register>(
    register: &R,
    share: &mut Share,
    kept: &mut Option<Kept<R::Edition>>,
    frontier: Lsn,
) -> Result<(), Error> {
    let (part, said, reached) = (share.part(), share.said.to_string(), frontier.to_string());
    for _ in 0..ATTEMPTS {
        let mut known = match kept.take() {
            Some(known) => known,
            None => register.read().await?,
        };
        let own = known.parts.iter_mut().find(|(known, lsn)| *known == part && *lsn >= said);
        let (_, lsn) = own.ok_or_else(|| lost(register.target()))?;
        let done = if *lsn >= reached {
            Some(known)
        } else {
            reached.clone_into(lsn);
            register.replace(&known.parts, known.edition).await?.map(|edition| Kept { parts: known.parts, edition })
        };
        if done.is_some() {
            share.said = share.said.max(frontier);
            *kept = done;
            return Ok(());
        }
    }
    Err(contended(register.target()))
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
        let taken = take(known, range(of)).map(|parts| parts.into_iter().map(|(part, lsn)| (part, lsn.to_string())).collect());
        let mut parts: Vec<(String, String)> = taken.unwrap_or_else(|| known.to_vec());
        assert_eq!(held(&parts, range(of)), held(known, range(of)), "taking a share changes nothing of what is said");
        let (_, said) = parts.iter_mut().find(|(name, _)| *name == part(range(of))).unwrap();
        *said = lsn(frontier).to_string().max(std::mem::take(said));
        parts.sort_unstable();
        parts
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

    #[test]
    fn ranges_are_gathered_until_they_are_all() {
        let (first, all) = with(None, range("1/4"));
        assert!(!all && cover(Some(&first), range("1/4")) && !cover(Some(&first), range("0/2")) && !cover(None, range("1/4")));
        let (two, all) = with(Some(&first), range("3/4"));
        assert!(!all && two.split(' ').count() == 2, "{two}");
        let (half, all) = with(Some(&two), range("0/2"));
        assert!(!all && half.split(' ').count() == 2 && cover(Some(&half), range("0/2")), "{half}");
        assert_eq!(with(Some(&half), range("1/2")), ("all".to_owned(), true));
        assert_eq!(with(None, KeyRange::ALL), ("all".to_owned(), true));
    }
}
