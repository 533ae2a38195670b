//! Log sequence numbers, and where a record of the imagined log lies.
//!
//! A real LSN is (virtual log file: 4 bytes, block offset: 4 bytes, slot: 2 bytes), big-endian, so that comparing bytes compares positions.
//! The stand-in has no log file; it hands out positions from one linear address, so that LSNs grow by uneven steps, roll over into the next virtual log
//! file, and leave gaps, as real ones do: an importer that counts on anything but their order fails here too.

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, Value, ValueRef};

/// A log sequence number: 10 bytes, compared bytewise.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn([u8; 10]);

/// Sectors (of 512 bytes) in a virtual log file of 64 MB.
const VLF_SECTORS: u64 = 0x2_0000;
/// The first virtual log file: a database has a history before CDC is enabled.
const FIRST_VLF: u64 = 0x25;
/// The block where a virtual log file's records begin, past its header.
const FIRST_BLOCK: u64 = 0x10;
/// Records in a full log block.
const RECORDS_PER_BLOCK: u64 = 120;
/// Sectors of a full log block.
const BLOCK_SECTORS: u64 = 0x40;
/// Sectors of the smallest log block: a commit flushes what there is.
const SMALL_BLOCK_SECTORS: u64 = 8;

impl Lsn {
    /// `0x00000000000000000000`: "unknown", never a position.
    pub const ZERO: Lsn = Lsn([0; 10]);

    pub const fn from_bytes(bytes: [u8; 10]) -> Lsn {
        Lsn(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 10] {
        &self.0
    }

    /// The LSN of the `record`th record (from 0) of a transaction that begins at `address`.
    pub(crate) fn of_record(address: u64, record: u64) -> Lsn {
        let sector = address + record / RECORDS_PER_BLOCK * BLOCK_SECTORS;
        let vlf = FIRST_VLF + sector / VLF_SECTORS;
        let block = FIRST_BLOCK + sector % VLF_SECTORS;
        let slot = record % RECORDS_PER_BLOCK + 1;
        let mut bytes = [0; 10];
        bytes[..4].copy_from_slice(&(vlf as u32).to_be_bytes());
        bytes[4..8].copy_from_slice(&(block as u32).to_be_bytes());
        bytes[8..].copy_from_slice(&(slot as u16).to_be_bytes());
        Lsn(bytes)
    }

    /// The address behind a transaction that begins at `address` and has `records` records.
    pub(crate) fn address_after(address: u64, records: u64) -> u64 {
        let last = records % RECORDS_PER_BLOCK;
        let full = records / RECORDS_PER_BLOCK * BLOCK_SECTORS;
        // A partial block takes 8 sectors for each 15 records begun, so never more than a full one.
        let partial = if last == 0 { 0 } else { SMALL_BLOCK_SECTORS * (1 + (last - 1) / 15) };
        address + full + partial
    }

    /// The next LSN (`sys.fn_cdc_increment_lsn`); the greatest has none and stays.
    pub fn increment(self) -> Lsn {
        let mut bytes = self.0;
        for byte in bytes.iter_mut().rev() {
            let (next, carry) = byte.overflowing_add(1);
            *byte = next;
            if !carry {
                return Lsn(bytes);
            }
        }
        self
    }

    /// The previous LSN (`sys.fn_cdc_decrement_lsn`); zero has none and stays.
    pub fn decrement(self) -> Lsn {
        let mut bytes = self.0;
        for byte in bytes.iter_mut().rev() {
            let (previous, borrow) = byte.overflowing_sub(1);
            *byte = previous;
            if !borrow {
                return Lsn(bytes);
            }
        }
        self
    }

    /// As the dynamic management views show it: `0000002d:00000580:001d`.
    pub fn to_colon_form(self) -> String {
        let digits = hex::encode(self.0);
        format!("{}:{}:{}", &digits[..8], &digits[8..16], &digits[16..])
    }
}

/// As T-SQL writes it: `0x0000002D00000580001D`.
impl std::fmt::Display for Lsn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "0x{}", hex::encode_upper(self.0))
    }
}

impl std::fmt::Debug for Lsn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// A `binary(10)` from a shorter or longer one, as T-SQL converts: padded with zeros or cut at the right.
impl From<&[u8]> for Lsn {
    fn from(bytes: &[u8]) -> Lsn {
        let mut lsn = [0; 10];
        let kept = bytes.len().min(10);
        lsn[..kept].copy_from_slice(&bytes[..kept]);
        Lsn(lsn)
    }
}

impl ToSql for Lsn {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Blob(&self.0)))
    }
}

impl FromSql for Lsn {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Lsn> {
        match value {
            ValueRef::Blob(bytes) => Ok(Lsn::from(bytes)),
            _ => Err(FromSqlError::InvalidType),
        }
    }
}

impl From<Lsn> for Value {
    fn from(lsn: Lsn) -> Value {
        Value::Blob(lsn.0.to_vec())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn records_grow_within_and_across_transactions_and_files() {
        let mut address = VLF_SECTORS - 100;
        let mut last = Lsn::ZERO;
        for records in [2, 3, 119, 120, 121, 1, 5000, 240] {
            for record in 0..records {
                let lsn = Lsn::of_record(address, record);
                assert!(lsn > last, "{lsn} after {last}");
                last = lsn;
            }
            address = Lsn::address_after(address, records);
        }
        assert!(address > VLF_SECTORS, "rolled over into the next file");
    }

    #[test]
    fn increment_and_decrement_carry() {
        let lsn = Lsn::from_bytes([0, 0, 0, 1, 0, 0, 0, 0, 0xFF, 0xFF]);
        assert_eq!(lsn.increment().to_string(), "0x00000001000000010000");
        assert_eq!(lsn.increment().decrement(), lsn);
        assert_eq!(Lsn::ZERO.decrement(), Lsn::ZERO);
        assert_eq!(Lsn::from_bytes([0xFF; 10]).increment(), Lsn::from_bytes([0xFF; 10]));
    }

    #[test]
    fn is_written_as_sql_server_writes_it() {
        let lsn = Lsn::of_record(0x570, 28);
        assert_eq!(lsn.to_string(), "0x0000002500000580001D");
        assert_eq!(lsn.to_colon_form(), "00000025:00000580:001d");
        assert_eq!(Lsn::from(&[0x00][..]), Lsn::ZERO);
    }
}
