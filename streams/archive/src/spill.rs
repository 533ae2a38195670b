//! Events that wait to be put into the source's order, more of them than memory holds.
//!
//! They are held until they take [`HELD_BYTES`]; then they are sorted and written to a file without a name, which vanishes with the process. What is due comes out of a merge of the files and of what is held: a tick of any size takes
//! that much memory and a buffer for each file, of which there is one for every [`HELD_BYTES`] of it. Repeats stand next to one another in the order, so that one event back is all that has to be remembered to leave them out.
//!
//! # A file
//! One entry after another: `op` (0: a change, 1: a row that was read), the position (10, 4, 10 and 1 bytes, big-endian), the number under which it came (8), the lengths of the table's schema, its name and the event (4 each), and these three.
//! Nothing of it outlives the process.

use std::cmp::Ordering;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};

use bytes::Bytes;
use schemas::{Lsn, Position, TableName};

/// What is held in memory before it goes to a file.
const HELD_BYTES: usize = 64 << 20;
/// What an event weighs besides its data.
const EVENT_BYTES: usize = 160;

/// An event that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) position: Position,
    pub(crate) table: TableName,
    /// A row that was read: it stands for itself, even where another has the same position.
    pub(crate) is_row: bool,
    /// Rows that were read keep the order in which they came.
    arrival: u64,
    pub(crate) data: Bytes,
}

impl Waiting {
    fn order(&self, other: &Self) -> Ordering {
        let (one, two) = ((self.position, &self.table, self.arrival), (other.position, &other.table, other.arrival));
        one.cmp(&two)
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let Position { commit_lsn, command_id, seqval, operation } = self.position;
        out.write_all(&[u8::from(self.is_row)])?;
        out.write_all(commit_lsn.as_bytes())?;
        out.write_all(&command_id.to_be_bytes())?;
        out.write_all(seqval.as_bytes())?;
        out.write_all(&[operation])?;
        out.write_all(&self.arrival.to_be_bytes())?;
        let parts = [self.table.schema.as_bytes(), self.table.table.as_bytes(), &self.data];
        for part in parts {
            let length = u32::try_from(part.len()).map_err(io::Error::other)?;
            out.write_all(&length.to_be_bytes())?;
        }
        parts.into_iter().try_for_each(|part| out.write_all(part))
    }

    /// `None` at the end.
    fn read(input: &mut impl Read) -> io::Result<Option<Self>> {
        let mut is_row = [0];
        if input.read(&mut is_row)? == 0 {
            return Ok(None);
        }
        let commit_lsn = Lsn::from_bytes(bytes(input)?);
        let command_id = i32::from_be_bytes(bytes(input)?);
        let seqval = Lsn::from_bytes(bytes(input)?);
        let [operation] = bytes(input)?;
        let arrival = u64::from_be_bytes(bytes(input)?);
        let mut length = || bytes(input).map(u32::from_be_bytes);
        let (schema, table, data) = (length()?, length()?, length()?);
        let name = |part: Vec<u8>| String::from_utf8(part).map_err(io::Error::other);
        let (schema, table) = (name(text(input, schema)?)?, name(text(input, table)?)?);
        let (table, data) = (TableName::new(&schema, &table), text(input, data)?.into());
        let position = Position { commit_lsn, command_id, seqval, operation };
        Ok(Some(Self { position, table, is_row: is_row[0] == 1, arrival, data }))
    }
}

fn bytes<const N: usize>(input: &mut impl Read) -> io::Result<[u8; N]> {
    let mut read = [0; N];
    input.read_exact(&mut read)?;
    Ok(read)
}

fn text(input: &mut impl Read, length: u32) -> io::Result<Vec<u8>> {
    let mut read = vec![0; length as usize];
    input.read_exact(&mut read)?;
    Ok(read)
}

/// A sorted file, and the first of its events that has not come out.
#[derive(Debug)]
struct Spilled {
    file: BufReader<File>,
    next: Option<Waiting>,
}

/// Events by the source's order.
#[derive(Debug)]
pub(crate) struct Spill {
    held: Vec<Waiting>,
    held_bytes: usize,
    most_bytes: usize,
    /// `held` is in order, the first to come last.
    sorted: bool,
    arrivals: u64,
    files: Vec<Spilled>,
    /// Of the last change that came out.
    last: Option<(TableName, Position)>,
}

impl Spill {
    pub(crate) fn new() -> Self {
        Self::holding(HELD_BYTES)
    }

    fn holding(most_bytes: usize) -> Self {
        Self { held: Vec::new(), held_bytes: 0, most_bytes, sorted: true, arrivals: 0, files: Vec::new(), last: None }
    }

    pub(crate) fn push(&mut self, table: TableName, position: Position, is_row: bool, data: Bytes) -> io::Result<()> {
        self.arrivals += 1;
        self.held_bytes += data.len() + EVENT_BYTES;
        self.held.push(Waiting { position, table, is_row, arrival: self.arrivals, data });
        self.sorted = false;
        if self.held_bytes < self.most_bytes {
            return Ok(());
        }
        self.sort();
        let mut file = BufWriter::new(tempfile::tempfile()?);
        for event in self.held.drain(..).rev() {
            event.write(&mut file)?;
        }
        self.held_bytes = 0;
        let mut file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.rewind()?;
        let mut file = BufReader::new(file);
        let next = Waiting::read(&mut file)?;
        self.files.push(Spilled { file, next });
        Ok(())
    }

    fn sort(&mut self) {
        if !std::mem::replace(&mut self.sorted, true) {
            self.held.sort_unstable_by(|one, other| other.order(one));
        }
    }

    /// The next event at or below an LSN, each change once.
    pub(crate) fn next(&mut self, up_to: Lsn) -> io::Result<Option<Waiting>> {
        self.sort();
        loop {
            let heads = self.files.iter().enumerate().filter_map(|(at, file)| Some((Some(at), file.next.as_ref()?)));
            let all = heads.chain(self.held.last().map(|held| (None, held)));
            let Some((from, least)) = all.min_by(|(_, one), (_, other)| one.order(other)) else { return Ok(None) };
            if least.position.commit_lsn > up_to {
                return Ok(None);
            }
            let event = match from {
                Some(at) => {
                    let Spilled { file, next } = &mut self.files[at];
                    let following = Waiting::read(file)?;
                    std::mem::replace(next, following)
                }
                None => self.held.pop().inspect(|event| self.held_bytes -= event.data.len() + EVENT_BYTES),
            };
            self.files.retain(|file| file.next.is_some());
            let Some(event) = event else { return Ok(None) };
            let repeats =
                self.last.as_ref().is_some_and(|(table, position)| *table == event.table && *position == event.position);
            if event.is_row || !repeats {
                if !event.is_row {
                    self.last = Some((event.table.clone(), event.position));
                }
                return Ok(Some(event));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn lsn(n: u16) -> Lsn {
        let [high, low] = n.to_be_bytes();
        Lsn::from_bytes([0, 0, 0, 0, 0, 0, 0, 0, high, low])
    }

    proptest! {
        #[test]
        fn what_is_due_comes_in_order_however_little_is_held(
            events in prop::collection::vec((0..6u16, -2..3i32, 0..5u16, any::<bool>(), any::<bool>()), 0..200),
            held in 1..20_000usize,
            batch in 1..50usize,
        ) {
            let mut spill = Spill::holding(held);
            let (mut found, mut expected) = (Vec::new(), Vec::new());
            let mut seen = HashSet::new();
            for (nth, chunk) in events.chunks(batch).enumerate() {
                let mut due = Vec::new();
                for (number, &(at, command_id, seqval, is_row, other)) in chunk.iter().enumerate() {
                    // What comes later lies behind what has come out.
                    let commit_lsn = lsn(at + 1 + 6 * nth as u16);
                    let position = Position { commit_lsn, command_id, seqval: lsn(seqval), operation: if is_row { 0 } else { 2 } };
                    let table = TableName::new("dbo", if other { "items" } else { "orders" });
                    let data = Bytes::from(format!("{nth} {number}"));
                    spill.push(table.clone(), position, is_row, data.clone()).unwrap();
                    due.push((position, table, is_row, data));
                }
                expected.extend(due);
                let up_to = lsn(6 * nth as u16);
                while let Some(event) = spill.next(up_to).unwrap() {
                    prop_assert!(event.position.commit_lsn <= up_to);
                    found.push((event.position, event.table, event.is_row, event.data));
                }
            }
            while let Some(event) = spill.next(Lsn::MAX).unwrap() {
                found.push((event.position, event.table, event.is_row, event.data));
            }
            expected.sort_by(|one, other| (one.0, &one.1).cmp(&(other.0, &other.1)));
            expected.retain(|(position, table, is_row, _)| *is_row || seen.insert((*position, table.clone())));
            prop_assert_eq!(found, expected);
            prop_assert!(spill.files.is_empty() && spill.held.is_empty());
        }
    }
}
