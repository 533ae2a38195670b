//! The bytes that Avro and Protobuf share: variable-length numbers, seven bits a byte, least first; and a cursor that no input makes panic.

use crate::parse::ParseError;

pub(super) fn write_varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Small numbers of either sign become small numbers.
pub(super) const fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

pub(super) const fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -((number & 1).cast_signed())
}

pub(super) fn varint_length(number: u64) -> usize {
    (70 - (number | 1).leading_zeros() as usize) / 7
}

/// A place in an event.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    pub(super) fn error<T>(&self, expected: &'static str) -> Result<T, ParseError> {
        Err(ParseError::Damaged { offset: self.at, expected })
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.at >= self.bytes.len()
    }

    pub(super) fn end(&self) -> Result<(), ParseError> {
        if self.is_at_end() { Ok(()) } else { self.error("the end of the event") }
    }

    #[inline]
    pub(super) fn varint(&mut self) -> Result<u64, ParseError> {
        match self.bytes.get(self.at) {
            Some(&byte) if byte < 0x80 => {
                self.at += 1;
                Ok(u64::from(byte))
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, ParseError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let Some(&byte) = self.bytes.get(self.at) else { return self.error("more of a number") };
            self.at += 1;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        self.error("a number of at most ten bytes")
    }

    #[inline]
    pub(super) fn take(&mut self, length: u64) -> Result<&'a [u8], ParseError> {
        let end = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
        match end.and_then(|end| self.bytes.get(self.at..end)) {
            Some(taken) => {
                self.at += taken.len();
                Ok(taken)
            }
            None => self.error("more bytes"),
        }
    }

    pub(super) fn pass(&mut self, length: u64) -> Result<(), ParseError> {
        self.take(length).map(|_| ())
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], ParseError> {
        match self.bytes.get(self.at..).and_then(<[u8]>::first_chunk) {
            Some(array) => {
                self.at += N;
                Ok(*array)
            }
            None => self.error("more bytes"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_come_back(number: u64, shift in 0u32..64) {
            let number = number >> shift;
            let mut bytes = Vec::new();
            write_varint(number, &mut bytes);
            prop_assert_eq!(bytes.len(), varint_length(number));
            let mut cursor = Cursor::new(&bytes, 0);
            prop_assert_eq!(cursor.varint().unwrap(), number);
            cursor.end().unwrap();
            prop_assert_eq!(unzigzag(zigzag(number.cast_signed())), number.cast_signed());
        }
    }
}
