//! Strings: positions and lengths count UTF-16 code units, searches follow the collation, LIKE knows character classes.

use rusqlite::Connection;
use rusqlite::functions::Context;
use rusqlite::types::{Value as Stored, ValueRef};
use tds::SqlError;

use super::{int, is_null, scalar, string};
use crate::message;

fn units(s: &str) -> usize {
    if s.is_ascii() { s.len() } else { s.encode_utf16().count() }
}

/// The code units `[start, start + length)`, both counted from zero and cut to the string.
fn slice(s: &str, start: i64, length: i64) -> String {
    let from = start.max(0) as usize;
    let to = start.saturating_add(length).max(0) as usize;
    if s.is_ascii() {
        let (from, to) = (from.min(s.len()), to.min(s.len()));
        return s.get(from..to.max(from)).unwrap_or_default().to_string();
    }
    let all: Vec<u16> = s.encode_utf16().collect();
    let (from, to) = (from.min(all.len()), to.min(all.len()));
    String::from_utf16_lossy(all.get(from..to.max(from)).unwrap_or_default())
}

/// Byte offset of `needle` in `text` from byte `from`, cases alike unless `sensitive`.
fn find(text: &str, needle: &str, from: usize, sensitive: bool) -> Option<(usize, usize)> {
    if needle.is_empty() {
        return None;
    }
    if sensitive {
        return text.get(from..)?.find(needle).map(|i| (from + i, needle.len()));
    }
    let wanted: Vec<char> = needle.chars().flat_map(char::to_lowercase).collect();
    for (i, _) in text.get(from..)?.char_indices() {
        let start = from + i;
        let mut matched = 0;
        for (j, c) in text[start..].char_indices() {
            for l in c.to_lowercase() {
                if wanted.get(matched) != Some(&l) {
                    matched = usize::MAX;
                    break;
                }
                matched += 1;
            }
            if matched == usize::MAX {
                break;
            }
            if matched == wanted.len() {
                return Some((start, j + c.len_utf8()));
            }
        }
    }
    None
}

/// One element of a LIKE pattern.
enum Element {
    Any,
    One,
    Literal(char),
    Class { negated: bool, ranges: Vec<(char, char)> },
}

fn pattern(text: &str, escape: Option<char>) -> Vec<Element> {
    let mut out = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if Some(c) == escape {
            out.push(Element::Literal(chars.next().unwrap_or(c)));
            continue;
        }
        match c {
            '%' => out.push(Element::Any),
            '_' => out.push(Element::One),
            '[' => {
                let negated = chars.peek() == Some(&'^');
                if negated {
                    chars.next();
                }
                let mut set: Vec<char> = Vec::new();
                for c in chars.by_ref() {
                    if c == ']' {
                        break;
                    }
                    set.push(c);
                }
                let mut ranges = Vec::new();
                let mut i = 0;
                while i < set.len() {
                    if i + 2 < set.len() && set[i + 1] == '-' {
                        ranges.push((set[i], set[i + 2]));
                        i += 3;
                    } else {
                        ranges.push((set[i], set[i]));
                        i += 1;
                    }
                }
                out.push(Element::Class { negated, ranges });
            }
            c => out.push(Element::Literal(c)),
        }
    }
    out
}

fn fold(c: char, sensitive: bool) -> char {
    if sensitive { c } else { c.to_lowercase().next().unwrap_or(c) }
}

fn matches(element: &Element, c: char, sensitive: bool) -> bool {
    match element {
        Element::Any | Element::One => true,
        Element::Literal(l) => fold(*l, sensitive) == fold(c, sensitive),
        Element::Class { negated, ranges } => {
            let inside = |c: char| ranges.iter().any(|(a, b)| (fold(*a, sensitive)..=fold(*b, sensitive)).contains(&c));
            inside(fold(c, sensitive)) != *negated
        }
    }
}

/// Whether the whole text matches: greedy with one point of return, so that it is linear but for `%`.
pub(crate) fn like(text: &str, pattern_text: &str, escape: Option<char>, sensitive: bool) -> bool {
    let elements = pattern(pattern_text, escape);
    let text: Vec<char> = text.chars().collect();
    let (mut t, mut p) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while t < text.len() {
        match elements.get(p) {
            Some(Element::Any) => {
                back = Some((p + 1, t));
                p += 1;
            }
            Some(e) if matches(e, text[t], sensitive) => {
                t += 1;
                p += 1;
            }
            // Blanks at the end of the text do not count.
            None if text[t..].iter().all(|c| *c == ' ') => return true,
            _ => match back {
                Some((bp, bt)) => {
                    p = bp;
                    t = bt + 1;
                    back = Some((bp, t));
                }
                None => return false,
            },
        }
    }
    elements[p..].iter().all(|e| matches!(e, Element::Any))
}

fn text_function<F>(db: &Connection, name: &str, f: F) -> rusqlite::Result<()>
where
    F: Fn(&str) -> String + Send + std::panic::UnwindSafe + 'static,
{
    scalar(db, name, 1, move |ctx| Ok(string(ctx, 0).map_or(Stored::Null, |s| Stored::Text(f(s)))))
}

fn any_null(ctx: &Context<'_>, n: usize) -> bool {
    (0..n).any(|i| is_null(ctx, i))
}

fn substring(ctx: &Context<'_>) -> Result<Stored, SqlError> {
    if any_null(ctx, 3) {
        return Ok(Stored::Null);
    }
    let (start, length) = (int(ctx, 1) - 1, int(ctx, 2));
    if length < 0 {
        return Err(message::error(537, 16, "Invalid length parameter passed to the LEFT or SUBSTRING function.".into()));
    }
    Ok(match ctx.get_raw(0) {
        ValueRef::Blob(b) => {
            let from = (start.max(0) as usize).min(b.len());
            let to = (start.saturating_add(length).max(0) as usize).clamp(from, b.len());
            Stored::Blob(b[from..to].to_vec())
        }
        _ => Stored::Text(slice(string(ctx, 0).unwrap_or_default(), start, length)),
    })
}

pub(super) fn register(db: &Connection) -> rusqlite::Result<()> {
    text_function(db, "tupper", str::to_uppercase)?;
    text_function(db, "tlower", str::to_lowercase)?;
    text_function(db, "tltrim", |s| s.trim_start_matches(' ').to_string())?;
    text_function(db, "trtrim", |s| s.trim_end_matches(' ').to_string())?;
    text_function(db, "ttrim", |s| s.trim_matches(' ').to_string())?;
    text_function(db, "treverse", |s| s.chars().rev().collect())?;
    scalar(db, "tlen", 1, |ctx| {
        Ok(match ctx.get_raw(0) {
            ValueRef::Null => Stored::Null,
            ValueRef::Blob(b) => Stored::Integer(b.len() as i64),
            _ => Stored::Integer(units(string(ctx, 0).unwrap_or_default().trim_end_matches(' ')) as i64),
        })
    })?;
    // tdatalength(x, bytes a code unit)
    scalar(db, "tdatalength", 2, |ctx| {
        Ok(match ctx.get_raw(0) {
            ValueRef::Null => Stored::Null,
            ValueRef::Blob(b) => Stored::Integer(b.len() as i64),
            _ => Stored::Integer(units(string(ctx, 0).unwrap_or_default()) as i64 * int(ctx, 1)),
        })
    })?;
    scalar(db, "padc", 2, |ctx| {
        let Some(s) = string(ctx, 0) else { return Ok(super::copy(ctx)) };
        let missing = (int(ctx, 1) as usize).saturating_sub(units(s));
        Ok(Stored::Text(format!("{s}{}", " ".repeat(missing))))
    })?;
    scalar(db, "tsubstring", 3, substring)?;
    scalar(db, "tright", 2, |ctx| {
        let (Some(s), false) = (string(ctx, 0), is_null(ctx, 1)) else { return Ok(Stored::Null) };
        let n = int(ctx, 1);
        if n < 0 {
            return Err(message::error(536, 16, "Invalid length parameter passed to the RIGHT function.".into()));
        }
        let total = units(s) as i64;
        Ok(Stored::Text(slice(s, (total - n).max(0), n)))
    })?;
    // tcharindex(needle, text, start, sensitive)
    scalar(db, "tcharindex", 4, |ctx| {
        let (Some(needle), Some(text)) = (string(ctx, 0), string(ctx, 1)) else { return Ok(Stored::Null) };
        let skipped = slice(text, 0, (int(ctx, 2) - 1).max(0)).len();
        let at = find(text, needle, skipped, int(ctx, 3) != 0).map_or(0, |(i, _)| units(&text[..i]) + 1);
        Ok(Stored::Integer(at as i64))
    })?;
    scalar(db, "tpatindex", 2, |ctx| {
        let (Some(wanted), Some(text)) = (string(ctx, 0), string(ctx, 1)) else { return Ok(Stored::Null) };
        let (open, core) = wanted.strip_prefix('%').map_or((false, wanted), |c| (true, c));
        let starts = text.char_indices().map(|(i, _)| i).take(if open { usize::MAX } else { 1 });
        let at = starts.into_iter().find(|i| like(&text[*i..], core, None, false)).map_or(0, |i| units(&text[..i]) + 1);
        Ok(Stored::Integer(at as i64))
    })?;
    // treplace(text, old, new, sensitive)
    scalar(db, "treplace", 4, |ctx| {
        let (Some(text), Some(old), Some(new)) = (string(ctx, 0), string(ctx, 1), string(ctx, 2)) else {
            return Ok(Stored::Null);
        };
        let (mut out, mut at) = (String::with_capacity(text.len()), 0);
        while let Some((i, length)) = find(text, old, at, int(ctx, 3) != 0) {
            out.push_str(&text[at..i]);
            out.push_str(new);
            at = i + length;
        }
        out.push_str(&text[at..]);
        Ok(Stored::Text(out))
    })?;
    scalar(db, "tstuff", 4, |ctx| {
        let (Some(text), false) = (string(ctx, 0), is_null(ctx, 1) || is_null(ctx, 2)) else { return Ok(Stored::Null) };
        let (start, length) = (int(ctx, 1), int(ctx, 2));
        if start < 1 || length < 0 || start > units(text) as i64 {
            return Ok(Stored::Null);
        }
        let new = string(ctx, 3).unwrap_or_default();
        Ok(Stored::Text(format!("{}{new}{}", slice(text, 0, start - 1), slice(text, start - 1 + length, i64::from(i32::MAX)))))
    })?;
    scalar(db, "treplicate", 2, |ctx| {
        let (Some(text), false) = (string(ctx, 0), is_null(ctx, 1)) else { return Ok(Stored::Null) };
        let n = int(ctx, 1);
        if n < 0 {
            return Ok(Stored::Null);
        }
        // Cut as SQL Server cuts a string that is not of a max type; larger ones may be asked for up to 64 MiB.
        let n = (n as usize).min((64 << 20) / text.len().max(1));
        Ok(Stored::Text(text.repeat(n)))
    })?;
    // tlike(text, pattern, escape, sensitive)
    scalar(db, "tlike", 4, |ctx| {
        let (Some(text), Some(wanted)) = (string(ctx, 0), string(ctx, 1)) else { return Ok(Stored::Null) };
        let escape = string(ctx, 2).and_then(|e| e.chars().next());
        Ok(Stored::Integer(i64::from(like(text, wanted, escape, int(ctx, 3) != 0))))
    })?;
    scalar(db, "tquotename", 2, |ctx| {
        let Some(text) = string(ctx, 0) else { return Ok(Stored::Null) };
        Ok(Stored::Text(match string(ctx, 1).and_then(|q| q.chars().next()).unwrap_or('[') {
            '\'' => format!("'{}'", text.replace('\'', "''")),
            '"' => format!("\"{}\"", text.replace('"', "\"\"")),
            '(' | ')' => format!("({text})"),
            _ => format!("[{}]", text.replace(']', "]]")),
        }))
    })?;
    scalar(db, "parsename", 2, |ctx| {
        let Some(text) = string(ctx, 0) else { return Ok(Stored::Null) };
        let part = int(ctx, 1);
        let parts = split_name(text);
        let found = (1..=4).contains(&part).then(|| parts.len().checked_sub(part as usize)).flatten().and_then(|i| parts.get(i));
        Ok(found.map_or(Stored::Null, |p| Stored::Text(p.clone())))
    })?;
    scalar(db, "tascii", 2, |ctx| {
        Ok(string(ctx, 0)
            .map_or(Stored::Null, |s| s.chars().next().map_or(Stored::Null, |c| Stored::Integer(i64::from(c as u32)))))
    })?;
    scalar(db, "tchar", 1, |ctx| {
        Ok(if is_null(ctx, 0) {
            Stored::Null
        } else {
            char::from_u32(int(ctx, 0) as u32).map_or(Stored::Null, |c| Stored::Text(c.to_string()))
        })
    })
}

/// The parts of `[a].b."c"`.
pub(crate) fn split_name(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.trim().chars().peekable();
    let mut closing: Option<char> = None;
    while let Some(c) = chars.next() {
        match closing {
            Some(q) if c == q => {
                if chars.peek() == Some(&q) {
                    chars.next();
                    if let Some(last) = parts.last_mut() {
                        last.push(c);
                    }
                } else {
                    closing = None;
                }
            }
            None if c == '[' => closing = Some(']'),
            None if c == '"' => closing = Some('"'),
            None if c == '.' => parts.push(String::new()),
            _ => {
                if let Some(last) = parts.last_mut() {
                    last.push(c);
                }
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn like_knows_classes_escapes_and_trailing_blanks() {
        assert!(like("SQL Server Agent (MSSQLSERVER)", "SQL Server Agent (%", None, false));
        assert!(like("abc", "[a-c]_%", None, false));
        assert!(!like("xbc", "[^x]%", None, false));
        assert!(like("50%", "50!%", Some('!'), false));
        assert!(like("abc   ", "abc", None, false));
        assert!(like("ABC", "a%C", None, false) && !like("ABC", "a%C", None, true));
        assert!(like("aXbXc", "%b%c", None, false));
    }

    #[test]
    fn names_are_split_at_dots_outside_brackets() {
        assert_eq!(split_name("[a.b].c"), ["a.b", "c"]);
        assert_eq!(split_name("dbo.[x]]y]"), ["dbo", "x]y"]);
    }
}
