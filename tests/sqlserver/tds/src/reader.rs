//! A checked cursor over bytes that a client sent: no read goes past the end, no length is believed before the bytes are there.

use crate::error::{Error, Result};

#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// `what` names the message in errors.
    pub(crate) fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Reader { rest: bytes, what }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    pub(crate) fn fail<T>(&self, why: &'static str) -> Result<T> {
        Err(Error::Malformed { what: self.what, why })
    }

    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        match self.rest.split_at_checked(count) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => self.fail("it ends too early"),
        }
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        match self.rest.split_first_chunk::<N>() {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(*taken)
            }
            None => self.fail("it ends too early"),
        }
    }

    pub(crate) fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A length of 32 bits as a size.
    pub(crate) fn len32(&mut self) -> Result<usize> {
        Ok(self.u32()? as usize)
    }

    /// UTF-16 text of so many code units.
    pub(crate) fn utf16(&mut self, units: usize) -> Result<String> {
        Ok(utf16_text(self.take(units * 2)?))
    }

    /// B_VARCHAR: the length in code units in one byte.
    pub(crate) fn b_varchar(&mut self) -> Result<String> {
        let units = self.u8()?;
        self.utf16(usize::from(units))
    }

    /// US_VARCHAR: the length in code units in two bytes.
    pub(crate) fn us_varchar(&mut self) -> Result<String> {
        let units = self.u16()?;
        self.utf16(usize::from(units))
    }
}

/// Text of UTF-16LE bytes. Unpaired surrogates, which SQL Server stores happily and a Rust string cannot hold, become U+FFFD; an odd last byte is
/// left out by the callers' length checks.
pub(crate) fn utf16_text(bytes: &[u8]) -> String {
    let units = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}
