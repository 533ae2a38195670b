//! Requests other than RPCs: the headers before them, SQL batches and transaction-manager requests (MS-TDS 2.2.5.3, 2.2.6.7, 2.2.6.9).

use crate::error::{Error, Result, malformed};
use crate::reader::{Reader, utf16_text};
use crate::session::{Command, Isolation, TransactionRequest};

/// Skips ALL_HEADERS. The transaction descriptor in it is the one that the connection was told: without MARS there is no other.
pub(crate) fn skip_headers(from: &mut Reader<'_>) -> Result<()> {
    let total = from.len32()?;
    match total.checked_sub(4) {
        Some(rest) => from.take(rest).map(|_| ()),
        None => from.fail("its headers have an impossible length"),
    }
}

pub(crate) fn batch(payload: &[u8]) -> Result<String> {
    let mut from = Reader::new(payload, "SQL batch");
    skip_headers(&mut from)?;
    if !from.remaining().is_multiple_of(2) {
        return from.fail("its text has an odd number of bytes");
    }
    Ok(utf16_text(from.rest()))
}

pub(crate) fn transaction(payload: &[u8]) -> Result<TransactionRequest> {
    const WHAT: &str = "transaction request";
    let mut from = Reader::new(payload, WHAT);
    skip_headers(&mut from)?;
    match from.u16()? {
        5 => {
            let isolation = isolation(from.u8()?)?;
            Ok(TransactionRequest::Begin { isolation, name: name(&mut from)? })
        }
        7 => {
            let name = name(&mut from)?;
            Ok(TransactionRequest::Commit { name, begin_again: begin_again(&mut from)? })
        }
        8 => {
            let name = name(&mut from)?;
            Ok(TransactionRequest::Rollback { name, begin_again: begin_again(&mut from)? })
        }
        9 => Ok(TransactionRequest::Save { name: name(&mut from)? }),
        0 | 1 | 6 => Err(Error::Unsupported { what: "a distributed transaction" }),
        _ => malformed(WHAT, "its kind is unknown"),
    }
}

/// A name with its length in bytes before it.
fn name(from: &mut Reader<'_>) -> Result<String> {
    let bytes = usize::from(from.u8()?);
    Ok(utf16_text(from.take(bytes)?))
}

fn begin_again(from: &mut Reader<'_>) -> Result<Option<Isolation>> {
    // Some clients leave the flags away altogether.
    if from.is_empty() || from.u8()? & 1 == 0 {
        return Ok(None);
    }
    isolation(from.u8()?).map(Some)
}

fn isolation(byte: u8) -> Result<Isolation> {
    Ok(match byte {
        0 => Isolation::Current,
        1 => Isolation::ReadUncommitted,
        2 => Isolation::ReadCommitted,
        3 => Isolation::RepeatableRead,
        4 => Isolation::Serializable,
        5 => Isolation::Snapshot,
        _ => return malformed("transaction request", "its isolation level is unknown"),
    })
}

/// The statement kind that a row count without a result most likely belongs to: the first of the text's DML keywords, outside of comments and
/// quotes; a SELECT where there is none (`SELECT @x = 1` has a count and no result). A text that starts with DDL is DDL.
pub(crate) fn guess_command(sql: &str) -> Command {
    let mut first = true;
    for word in Words(sql) {
        let first = std::mem::take(&mut first);
        let command = match word.len() {
            5 if word.eq_ignore_ascii_case("merge") => Command::Merge,
            6 if word.eq_ignore_ascii_case("insert") => Command::Insert,
            6 if word.eq_ignore_ascii_case("update") => Command::Update,
            6 if word.eq_ignore_ascii_case("delete") => Command::Delete,
            4..=8 if first && ["create", "alter", "drop", "truncate"].iter().any(|define| word.eq_ignore_ascii_case(define)) => {
                Command::Define
            }
            _ => continue,
        };
        return command;
    }
    Command::Select
}

/// The bare words of SQL text.
struct Words<'a>(&'a str);

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        loop {
            let text = self.0;
            let first = text.chars().next()?;
            let skip = |end: Option<usize>, closing: usize| end.map_or("", |at| &text[at + closing..]);
            self.0 = match first {
                '\'' | '"' => skip(text[1..].find(first).map(|at| at + 1), 1),
                '[' => skip(text.find(']'), 1),
                '-' if text.starts_with("--") => skip(text.find('\n'), 1),
                '/' if text.starts_with("/*") => skip(text[2..].find("*/").map(|at| at + 2), 2),
                _ if first.is_alphanumeric() || "_@#$".contains(first) => {
                    let end = text.find(|c: char| !(c.is_alphanumeric() || "_@#$".contains(c))).unwrap_or(text.len());
                    let (word, rest) = text.split_at(end);
                    self.0 = rest;
                    return Some(word);
                }
                _ => &text[first.len_utf8()..],
            };
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_statement_kind_is_found_behind_comments_and_declarations() {
        assert_eq!(guess_command("-- update\n/* delete */ insert into [update] values ('delete')"), Command::Insert);
        assert_eq!(guess_command("declare @update int; delete t"), Command::Delete);
        assert_eq!(guess_command("select @x = 'update"), Command::Select);
        assert_eq!(guess_command(""), Command::Select);
        assert_eq!(guess_command("\ncreate trigger t on u after delete"), Command::Define);
        assert_eq!(guess_command("select 1; drop table x; delete y"), Command::Delete);
    }

    #[test]
    fn transaction_requests_are_read() {
        let mut payload = 22u32.to_le_bytes().to_vec();
        payload.extend([0; 18]);
        let mut begin = payload.clone();
        begin.extend([5, 0, 5, 2, b'x', 0]);
        assert_eq!(transaction(&begin).unwrap(), TransactionRequest::Begin { isolation: Isolation::Snapshot, name: "x".into() });
        payload.extend([7, 0, 0, 1, 2]);
        let commit = TransactionRequest::Commit { name: String::new(), begin_again: Some(Isolation::ReadCommitted) };
        assert_eq!(transaction(&payload).unwrap(), commit);
    }
}
