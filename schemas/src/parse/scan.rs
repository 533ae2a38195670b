//! A strict JSON scanner over text that is known to be UTF-8: finds where values end, and refuses everything that RFC 8259 refuses.
//!
//! It accepts exactly what `serde_json::Value` accepts (a property test holds it to that), lone surrogates, numbers beyond `f64` and nesting past 127 levels
//! refused, because the fragments that it delimits are copied into documents as they are.

use super::ParseError;
use crate::json::plain_prefix;

/// Nesting past this is refused, as serde_json does.
const DEPTH_LIMIT: u32 = 127;

/// A place in the text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scanner<'a> {
    text: &'a str,
    pub(super) at: usize,
}

/// The characters of a string between its quotes, still escaped.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawString<'a> {
    pub(super) inner: &'a str,
    pub(super) escaped: bool,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a str, at: usize) -> Self {
        Self { text, at }
    }

    fn bytes(&self) -> &'a [u8] {
        self.text.as_bytes()
    }

    /// The text from a place to here: both are beside ASCII characters.
    pub(super) fn since(&self, start: usize) -> &'a str {
        self.text.get(start..self.at).unwrap_or_default()
    }

    /// Passes over a member that stands here as it does in another place, where it has been read: it ends with it if what follows can be nothing else.
    pub(super) fn repeats(&mut self, start: usize, end: usize) -> bool {
        let (bytes, behind) = (self.bytes(), self.at + (end - start));
        let repeats = matches!(bytes.get(behind), Some(b',' | b'}')) && bytes[self.at..behind] == bytes[start..end];
        if repeats {
            self.at = behind;
        }
        repeats
    }

    /// Passes over a text if it stands here.
    pub(super) fn passes(&mut self, text: &[u8]) -> bool {
        let here = self.bytes().get(self.at..self.at + text.len()) == Some(text);
        if here {
            self.at += text.len();
        }
        here
    }

    pub(super) fn error<T>(&self, expected: &'static str) -> Result<T, ParseError> {
        Err(ParseError::Syntax { offset: self.at, expected })
    }

    pub(super) fn peek(&self) -> u8 {
        // NUL is nowhere valid outside strings, so it can stand for the end.
        self.bytes().get(self.at).copied().unwrap_or(0)
    }

    pub(super) fn whitespace(&mut self) {
        // Our own events have none.
        while self.peek() <= b' ' && matches!(self.peek(), b' ' | b'\n' | b'\r' | b'\t') {
            self.at += 1;
        }
    }

    pub(super) fn byte(&mut self, byte: u8, expected: &'static str) -> Result<(), ParseError> {
        if self.peek() != byte {
            return self.error(expected);
        }
        self.at += 1;
        Ok(())
    }

    /// The end of the text, but for whitespace.
    pub(super) fn end(&mut self) -> Result<(), ParseError> {
        self.whitespace();
        if self.at == self.bytes().len() { Ok(()) } else { self.error("the end of the event") }
    }

    /// After a member or an element: whether another follows.
    pub(super) fn more(&mut self, close: u8) -> Result<bool, ParseError> {
        self.whitespace();
        match self.peek() {
            b',' => {
                self.at += 1;
                self.whitespace();
                Ok(true)
            }
            byte if byte == close => {
                self.at += 1;
                Ok(false)
            }
            _ => self.error("a comma or the closing bracket"),
        }
    }

    /// A member's name and its colon.
    pub(super) fn name(&mut self) -> Result<RawString<'a>, ParseError> {
        let name = self.string()?;
        self.colon()?;
        Ok(name)
    }

    pub(super) fn colon(&mut self) -> Result<(), ParseError> {
        self.whitespace();
        self.byte(b':', "a colon")?;
        self.whitespace();
        Ok(())
    }

    pub(super) fn string(&mut self) -> Result<RawString<'a>, ParseError> {
        self.byte(b'"', "a string")?;
        let start = self.at;
        let mut escaped = false;
        loop {
            self.at += plain_prefix(&self.bytes()[self.at..]);
            match self.bytes().get(self.at) {
                Some(b'"') => {
                    let inner = self.since(start);
                    self.at += 1;
                    return Ok(RawString { inner, escaped });
                }
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                }
                Some(_) => return self.error("no control character within a string"),
                None => return self.error("the end of the string"),
            }
        }
    }

    fn escape(&mut self) -> Result<(), ParseError> {
        self.at += 1;
        match self.peek() {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {
                self.at += 1;
                Ok(())
            }
            b'u' => {
                self.at += 1;
                match self.hex4()? {
                    0xD800..=0xDBFF => {
                        if self.bytes().get(self.at..self.at + 2) != Some(b"\\u") {
                            return self.error("the second half of a surrogate pair");
                        }
                        self.at += 2;
                        match self.hex4()? {
                            0xDC00..=0xDFFF => Ok(()),
                            _ => self.error("the second half of a surrogate pair"),
                        }
                    }
                    0xDC00..=0xDFFF => self.error("no second half of a surrogate pair without its first"),
                    _ => Ok(()),
                }
            }
            _ => self.error("an escape"),
        }
    }

    fn hex4(&mut self) -> Result<u32, ParseError> {
        let mut value = 0;
        for _ in 0..4 {
            match char::from(self.peek()).to_digit(16) {
                Some(digit) => value = value << 4 | digit,
                None => return self.error("four hexadecimal digits"),
            }
            self.at += 1;
        }
        Ok(value)
    }

    fn digits(&mut self) -> Result<(), ParseError> {
        if !self.peek().is_ascii_digit() {
            return self.error("a digit");
        }
        while self.peek().is_ascii_digit() {
            self.at += 1;
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), ParseError> {
        let start = self.at;
        if self.peek() == b'-' {
            self.at += 1;
        }
        if self.peek() == b'0' {
            self.at += 1;
            if self.peek().is_ascii_digit() {
                return self.error("no digit after a leading zero");
            }
        } else {
            self.digits()?;
        }
        if self.peek() == b'.' {
            self.at += 1;
            self.digits()?;
        }
        let mut suspect = self.at - start > 300;
        if matches!(self.peek(), b'e' | b'E') {
            suspect = true;
            self.at += 1;
            if matches!(self.peek(), b'+' | b'-') {
                self.at += 1;
            }
            self.digits()?;
        }
        if suspect {
            let value = self.since(start).parse::<f64>().ok();
            if !value.is_some_and(f64::is_finite) {
                return self.error("a number within the range of a double");
            }
        }
        Ok(())
    }

    /// A whole number of at most 18 digits; `None` for anything else.
    pub(super) fn integer(&mut self) -> Option<i64> {
        let negative = self.peek() == b'-';
        let start = self.at + usize::from(negative);
        let digits = self.bytes().get(start..)?;
        let mut number = 0;
        let mut length = 0;
        while let Some(digit @ b'0'..=b'9') = digits.get(length) {
            if length == 18 {
                return None;
            }
            number = number * 10 + i64::from(digit - b'0');
            length += 1;
        }
        let padded = length > 1 && digits[0] == b'0';
        // A number that goes on is no whole one.
        if length == 0 || padded || matches!(digits.get(length), Some(b'.' | b'e' | b'E')) {
            return None;
        }
        self.at = start + length;
        Some(if negative { -number } else { number })
    }

    fn literal(&mut self, text: &'static [u8]) -> Result<(), ParseError> {
        if self.bytes()[self.at..].starts_with(text) {
            self.at += text.len();
            Ok(())
        } else {
            self.error("a JSON value")
        }
    }

    /// Whether `null` stands here; if so it is passed over.
    pub(super) fn null(&mut self) -> Result<bool, ParseError> {
        if self.peek() == b'n' { self.literal(b"null").map(|()| true) } else { Ok(false) }
    }

    /// Passes over a value, checking it; the slice that it took. `depth`: how many brackets are open.
    pub(super) fn value(&mut self, depth: u32) -> Result<&'a str, ParseError> {
        let start = self.at;
        match self.peek() {
            b'"' => drop(self.string()?),
            b'-' | b'0'..=b'9' => self.number()?,
            b't' => self.literal(b"true")?,
            b'f' => self.literal(b"false")?,
            b'n' => self.literal(b"null")?,
            b'{' => {
                self.open(depth)?;
                let mut more = self.peek() != b'}';
                if !more {
                    self.at += 1;
                }
                while more {
                    self.name()?;
                    self.value(depth + 1)?;
                    more = self.more(b'}')?;
                }
            }
            b'[' => {
                self.open(depth)?;
                let mut more = self.peek() != b']';
                if !more {
                    self.at += 1;
                }
                while more {
                    self.value(depth + 1)?;
                    more = self.more(b']')?;
                }
            }
            _ => return self.error("a JSON value"),
        }
        Ok(self.since(start))
    }

    /// Passes over an opening bracket.
    pub(super) fn open(&mut self, depth: u32) -> Result<(), ParseError> {
        if depth >= DEPTH_LIMIT {
            return self.error("at most 127 levels of nesting");
        }
        self.at += 1;
        self.whitespace();
        Ok(())
    }
}
