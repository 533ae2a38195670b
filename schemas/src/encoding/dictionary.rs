//! zstd, record by record, with a dictionary of the table.
//!
//! A record is too short to be compressed by itself: most of an event is what every event of its table has. A dictionary holds that: the envelope and the names of the columns, once for each operation, with
//! values as they typically begin. It is made from contract and configuration alone, never from rows: a dictionary lies beside the contracts, in version control, where nobody's data belongs.
//!
//! # The file
//! `<table>.dict` is a dictionary as zstd's format describes it (`zstd -D dbo.orders.dict` reads records with it):
//! ```text
//! 37 A4 30 EC | id, 4 bytes, little-endian | entropy tables | content
//! ```
//! Each record is a zstd frame that names the dictionary's id, which is a hash of the content. The entropy tables are the same for all tables: they have been trained on made-up events, digits and
//! hexadecimal and words, and say how often which byte is left once the content has been matched.

use std::sync::Arc;

use zstd::zstd_safe;

use super::SchemaError;
use super::rabin;
use crate::envelope;
use crate::event::{ChangeEvent, Op};
use crate::lsn::{Lsn, Position};
use crate::parse::ParseError;
use crate::table::{SqlType, TableSchema};
use crate::value::Value;

/// What zstd's frames begin with.
pub(super) const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const DICTIONARY_MAGIC: [u8; 4] = [0x37, 0xa4, 0x30, 0xec];
/// Ids below and from 2^31 on are kept for a registry.
const FIRST_ID: u64 = 32_768;
const LEVEL: i32 = 1;
/// A record that says it is larger than this is damaged.
const MOST_BYTES: u64 = 256 << 20;

/// Huffman table of literals, tables of offsets, match lengths and literal lengths, and the first three offsets.
const ENTROPY: [u8; 126] = [
    0x27, 0x10, 0xc8, 0x92, 0x24, 0x1d, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x97, 0x2f, 0x59, 0xaa, 0x6f, 0x6c, 0x6b, 0x0d, 0x7a,
    0x9b, 0xaa, 0xf8, 0xd8, 0x5a, 0x6b, 0xd0, 0xd5, 0xa4, 0x94, 0x52, 0x4a, 0x29, 0xe5, 0xed, 0x42, 0xec, 0xce, 0x18, 0xb3, 0x05,
    0x00, 0x08, 0x00, 0x08, 0x00, 0x20, 0x71, 0xd2, 0x94, 0x3a, 0x00, 0x04, 0xc0, 0x09, 0xc6, 0xc2, 0x83, 0xc6, 0x48, 0x43, 0x07,
    0xc5, 0x44, 0xc5, 0x45, 0x04, 0x31, 0x89, 0x24, 0x0a, 0x88, 0x44, 0x82, 0x10, 0x22, 0x05, 0x01, 0x20, 0x06, 0x21, 0x0c, 0x86,
    0x00, 0x18, 0x84, 0x33, 0x88, 0x95, 0x2a, 0x00, 0x00, 0x00, 0x34, 0x30, 0x8e, 0xb2, 0xc8, 0x60, 0x0a, 0x83, 0x8c, 0x01, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x03, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x04, 0x00, 0x00, 0x00, 0x08, 0x00, 0x00, 0x00,
];

/// A table's dictionary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dictionary {
    pub id: u32,
    /// The file.
    pub bytes: Arc<[u8]>,
}

impl Dictionary {
    /// For the events of a table as an importer of this source writes them.
    pub fn new(table: &Arc<TableSchema>, source: &str, database: &str) -> Self {
        let mut encoder = envelope::Encoder::new(source, database);
        let mut content = Vec::new();
        // zstd finds what stands last cheapest.
        for op in [Op::Read, Op::Delete, Op::Create, Op::Update] {
            let row: Vec<Value> = table.columns.iter().map(|column| typical(column.sql_type)).collect();
            let event = ChangeEvent {
                table: table.clone(),
                op,
                before: matches!(op, Op::Update | Op::Delete).then(|| row.clone()),
                after: (op != Op::Delete).then_some(row),
                position: Position { commit_lsn: Lsn::ZERO, command_id: 1, seqval: Lsn::ZERO, operation: 0 },
                commit_time_ms: 1_700_000_000_000,
            };
            encoder.encode(&event, &mut content);
        }
        let id = id_of(&content);
        let bytes = [&DICTIONARY_MAGIC[..], &id.to_le_bytes(), &ENTROPY, &content].concat();
        Self { id, bytes: bytes.into() }
    }

    /// Reads a dictionary's file. `file` is for messages alone.
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self, SchemaError> {
        let id = bytes.strip_prefix(&DICTIONARY_MAGIC).and_then(|rest| rest.first_chunk()).map(|id| u32::from_le_bytes(*id));
        let wrong = |problem: &str| SchemaError::File { file: file.to_owned(), problem: problem.to_owned() };
        let id = id.ok_or_else(|| wrong("not a zstd dictionary with an id"))?;
        // Records would come out as something else, where they come out.
        let content = bytes.get(DICTIONARY_MAGIC.len() + 4..).and_then(|rest| rest.strip_prefix(&ENTROPY));
        match content {
            Some(content) if id_of(content) == id => Ok(Self { id, bytes: bytes.into() }),
            _ => Err(wrong("the content is not what the dictionary's id is of")),
        }
    }
}

/// The id of a dictionary with this content.
fn id_of(content: &[u8]) -> u32 {
    let span = (1 << 31) - FIRST_ID;
    (FIRST_ID + rabin::fingerprint(content) % span) as u32
}

/// What values of a type often begin with or look like.
fn typical(sql_type: SqlType) -> Value {
    const DAY: u32 = 738_885;
    match sql_type {
        SqlType::Bit => Value::Bool(false),
        SqlType::TinyInt | SqlType::SmallInt | SqlType::Int | SqlType::BigInt => Value::Int(1),
        SqlType::Real | SqlType::Float => Value::Int(0),
        SqlType::Decimal { scale, .. } => Value::Decimal { mantissa: 0, scale },
        SqlType::Money | SqlType::SmallMoney => Value::Decimal { mantissa: 0, scale: 4 },
        SqlType::Date => Value::Date(DAY),
        SqlType::Time { scale } => Value::Time { ticks: 0, scale },
        SqlType::DateTime => Value::DateTime { days: DAY, ticks: 0, scale: 3 },
        SqlType::SmallDateTime => Value::DateTime { days: DAY, ticks: 0, scale: 0 },
        SqlType::DateTime2 { scale } => Value::DateTime { days: DAY, ticks: 0, scale },
        SqlType::DateTimeOffset { scale } => Value::DateTimeOffset { days: DAY, ticks: 0, scale, offset_minutes: 0 },
        other if other.may_be_unavailable() => Value::Unavailable,
        _ => Value::Text(String::new()),
    }
}

/// Compresses the records of one table.
pub struct Compressor(zstd::bulk::Compressor<'static>);

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Compressor")
    }
}

impl Compressor {
    pub fn new(dictionary: &Dictionary) -> Result<Self, SchemaError> {
        let compressor = zstd::bulk::Compressor::with_dictionary(LEVEL, &dictionary.bytes);
        compressor.map(Self).map_err(|error| SchemaError::Dictionary { id: dictionary.id, what: error.to_string() })
    }

    /// Appends a record as a frame, or as it is where that is shorter.
    pub(super) fn compress(&mut self, record: &[u8], frame: &mut Vec<u8>, out: &mut Vec<u8>) {
        frame.clear();
        frame.reserve(zstd_safe::compress_bound(record.len()));
        let done = self.0.compress_to_buffer(record, frame);
        out.extend_from_slice(if done.is_ok_and(|length| length < record.len()) { frame } else { record });
    }
}

/// Takes records out of their frames.
pub(super) struct Decompressor<'r> {
    context: zstd::bulk::Decompressor<'r>,
    /// Whose dictionary the context has.
    id: u32,
    pub(super) plain: Vec<u8>,
}

/// A dictionary ready for reading.
pub(super) struct Prepared(zstd::dict::DecoderDictionary<'static>);

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Prepared")
    }
}

impl Prepared {
    pub(super) fn new(dictionary: &Dictionary) -> Self {
        Self(zstd::dict::DecoderDictionary::copy(&dictionary.bytes))
    }
}

/// The dictionary that a frame names; 0: none.
pub(super) fn named(frame: &[u8]) -> u32 {
    zstd_safe::get_dict_id_from_frame(frame).map_or(0, std::num::NonZero::get)
}

/// How large a frame says that its content is, or what is wrong with that.
fn content_bytes(frame: &[u8]) -> Result<u64, String> {
    match zstd_safe::get_frame_content_size(frame) {
        Ok(Some(size)) if size <= MOST_BYTES => Ok(size),
        Ok(Some(size)) => Err(format!("a record of {size} bytes")),
        _ => Err("a frame that does not say how large its content is".to_owned()),
    }
}

/// How many bytes of memory a record takes before and while it is read: as it is, and unpacked beside that where it is packed. Nothing is unpacked for it. (One that is damaged is not unpacked either.)
pub fn unpacked_bytes(record: &[u8]) -> usize {
    let packed = Some(record).filter(|record| record.starts_with(&MAGIC));
    let content = packed.and_then(|frame| content_bytes(frame).ok()).unwrap_or_default();
    record.len() + usize::try_from(content).unwrap_or_default()
}

impl<'r> Decompressor<'r> {
    pub(super) fn new() -> Self {
        Self { context: zstd::bulk::Decompressor::default(), id: 0, plain: Vec::new() }
    }

    /// Leaves the record in `plain`.
    pub(super) fn open(&mut self, frame: &[u8], id: u32, dictionary: Option<&'r Prepared>) -> Result<(), ParseError> {
        let wrong = |what: String| ParseError::Zstd { what };
        if let Some(dictionary) = dictionary.filter(|_| self.id != id) {
            self.context.set_prepared_dictionary(&dictionary.0).map_err(|error| wrong(error.to_string()))?;
            self.id = id;
        }
        let size = content_bytes(frame).map_err(wrong)?;
        self.plain.clear();
        self.plain.reserve(usize::try_from(size).unwrap_or(usize::MAX));
        let length = self.context.decompress_to_buffer(frame, &mut self.plain).map_err(|error| wrong(error.to_string()))?;
        if length as u64 == size { Ok(()) } else { Err(wrong(format!("{length} bytes instead of {size}"))) }
    }
}
