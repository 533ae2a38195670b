//! The head of our own events, read by what [`crate::envelope`] writes: names need not be scanned to be known, so most of the head is passed over by comparing bytes.
//!
//! Where anything stands otherwise there is no answer, and the event is read as any JSON is. What is accepted here would be accepted there, with the same result.

use super::scan::Scanner;
use super::{Partial, Source, unescape};
use crate::event::Op;
use crate::lsn::Lsn;

/// Reads up to the first row. `None`: not quite what our own events look like.
pub(super) fn head(text: &str) -> Option<Partial<'_>> {
    let mut scanner = Scanner::new(text, 0);
    let pass = |scanner: &mut Scanner<'_>, literal: &[u8]| scanner.passes(literal).then_some(());
    pass(&mut scanner, br#"{"op":""#)?;
    let op = Op::from_letter(scanner.peek())?;
    scanner.at += 1;
    pass(&mut scanner, br#"","source":{"version":"#)?;
    scanner.string().ok()?;
    pass(&mut scanner, br#","connector":"sqlserver","name":"#)?;
    scanner.string().ok()?;
    pass(&mut scanner, br#","ts_ms":"#)?;
    let ts_ms = scanner.integer()?;
    pass(&mut scanner, br#","snapshot":"#)?;
    let snapshot = scanner.string().ok()?;
    pass(&mut scanner, br#","db":"#)?;
    scanner.string().ok()?;
    pass(&mut scanner, br#","schema":"#)?;
    let schema = unescape(scanner.string().ok()?);
    pass(&mut scanner, br#","table":"#)?;
    let table = unescape(scanner.string().ok()?);
    pass(&mut scanner, br#","commit_lsn":"#)?;
    let commit_lsn = lsn(&mut scanner)?;
    pass(&mut scanner, br#","change_lsn":"#)?;
    let seqval = if scanner.passes(b"null") { None } else { Some(lsn(&mut scanner)?) };
    pass(&mut scanner, br#","command_id":"#)?;
    let command_id = scanner.integer()?.try_into().ok()?;
    pass(&mut scanner, br#","event_serial_no":"#)?;
    scanner.integer()?;
    pass(&mut scanner, b"},")?;
    let resume = scanner.at;
    pass(&mut scanner, br#""before":"#)?;
    let source = Source {
        schema: Some(schema),
        table: Some(table),
        commit_lsn: Some(commit_lsn),
        seqval,
        command_id,
        ts_ms,
        incremental: !snapshot.escaped && snapshot.inner == "incremental",
    };
    Some(Partial { op: Some(op), source: Some(source), before: None, after: None, resume: Some(resume) })
}

fn lsn(scanner: &mut Scanner<'_>) -> Option<Lsn> {
    let text = scanner.string().ok()?;
    if text.escaped { None } else { text.inner.parse().ok() }
}
