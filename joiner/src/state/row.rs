//! Rows as they are kept: for each stored column its JSON fragment, behind its length as a varint (seven bits a byte, least first, the high bit says that more follow). A length of zero is NULL.
//!
//! Fragments are kept as they came, so that assembling a document is copying bytes.

use schemas::value::UNAVAILABLE;

/// Appends one column.
pub(crate) fn put(fragment: &[u8], out: &mut Vec<u8>) {
    if fragment == b"null" {
        return out.push(0);
    }
    let mut length = fragment.len();
    while length >= 0x80 {
        out.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(fragment);
}

/// Passes over one column; `None` when the bytes are not a row.
fn take(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&first, mut rest) = bytes.split_first()?;
    let mut length = usize::from(first & 0x7f);
    let mut last = first;
    let mut shift = 7;
    while last & 0x80 != 0 {
        let (&byte, after) = rest.split_first()?;
        length |= usize::from(byte & 0x7f).checked_shl(shift)?;
        (last, rest) = (byte, after);
        shift += 7;
    }
    rest.split_at_checked(length)
}

/// The columns of a row, one after another.
pub(crate) fn columns(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (column, rest) = take(bytes)?;
        bytes = rest;
        Some(column)
    })
}

/// Where the columns of a row stand in it. Kept from row to row, so that reading one allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct Spans(Vec<(u32, u32)>);

impl Spans {
    pub(crate) fn read<'a>(&'a mut self, bytes: &'a [u8]) -> Row<'a> {
        self.0.clear();
        let mut rest = bytes;
        while let Some((column, after)) = take(rest) {
            let end = (bytes.len() - after.len()) as u32;
            self.0.push((end - column.len() as u32, end));
            rest = after;
        }
        Row { bytes, spans: &self.0 }
    }
}

/// A row that has been read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'a> {
    bytes: &'a [u8],
    spans: &'a [(u32, u32)],
}

impl<'a> Row<'a> {
    /// The fragment in a slot, empty for NULL.
    pub(crate) fn get(&self, slot: usize) -> &'a [u8] {
        self.spans.get(slot).map_or(&[], |&(start, end)| &self.bytes[start as usize..end as usize])
    }
}

/// Whether the fragment is the placeholder for a value that the source did not record.
pub(crate) fn is_unavailable(fragment: &[u8]) -> bool {
    fragment.len() == UNAVAILABLE.len() + 2 && &fragment[1..=UNAVAILABLE.len()] == UNAVAILABLE.as_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rows_round_trip(fragments in prop::collection::vec(prop::collection::vec(1u8.., 0..300), 0..6)) {
            let mut bytes = Vec::new();
            fragments.iter().for_each(|fragment| put(fragment, &mut bytes));
            let expected: Vec<&[u8]> = fragments.iter().map(|fragment| if fragment == b"null" { &b""[..] } else { fragment }).collect();
            prop_assert_eq!(columns(&bytes).collect::<Vec<_>>(), expected.clone());
            let mut spans = Spans::default();
            let row = spans.read(&bytes);
            for (slot, fragment) in expected.iter().enumerate() {
                prop_assert_eq!(row.get(slot), *fragment);
            }
            prop_assert_eq!(row.get(expected.len()), b"");
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = columns(&bytes).count();
            let _ = Spans::default().read(&bytes).get(3);
        }
    }
}
