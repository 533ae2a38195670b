//! Reading records of any encoding.

use super::{Registry, avro, dictionary, protobuf};
use crate::envelope;
use crate::parse::{Head, ParseError, RowBuffer};

/// What NULL is read as; stands before the text of every event that is not JSON itself.
pub(crate) const NULL: &[u8] = b"null";
/// NULL, and what stands for a value that was not recorded ([`crate::value::UNAVAILABLE`]).
pub(crate) const SPECIALS: &[u8] = b"null\"__debezium_unavailable_value\"";

/// Opens records one after another.
pub struct Opener<'r> {
    registry: &'r Registry,
    decompressor: Option<dictionary::Decompressor<'r>>,
}

impl std::fmt::Debug for Opener<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opener").finish_non_exhaustive()
    }
}

impl<'r> Opener<'r> {
    pub fn new(registry: &'r Registry) -> Self {
        Self { registry, decompressor: None }
    }

    /// What an event is about.
    pub fn head<'a>(&'a mut self, record: &'a [u8]) -> Result<Head<'a>, ParseError>
    where
        'r: 'a,
    {
        let registry = self.registry;
        if record.starts_with(&dictionary::MAGIC) {
            let decompressor = self.decompressor.get_or_insert_with(dictionary::Decompressor::new);
            let id = dictionary::named(record);
            let known = registry.dictionary(id);
            if id != 0 && known.is_none() {
                return Err(ParseError::UnknownSchema { what: format!("the zstd dictionary {id}"), extension: "dict" });
            }
            decompressor.open(record, id, known)?;
            return plain(registry, &decompressor.plain);
        }
        plain(registry, record)
    }
}

fn plain<'a>(registry: &'a Registry, record: &'a [u8]) -> Result<Head<'a>, ParseError> {
    if let Some(fingerprint) = avro::named(record) {
        let Some(schema) = registry.avro(fingerprint) else { return Err(unknown("Avro", fingerprint, "avsc")) };
        let (stated, at) = schema.head(record)?;
        return Head::of_avro(stated, record, schema, at);
    }
    if let Some(fingerprint) = protobuf::named(record) {
        let Some(schema) = registry.protobuf(fingerprint) else { return Err(unknown("Protobuf", fingerprint, "proto")) };
        let (stated, rows) = schema.head(record)?;
        return Head::of_protobuf(stated, record, schema, rows);
    }
    Head::read(record)
}

fn unknown(kind: &str, fingerprint: u64, extension: &'static str) -> ParseError {
    ParseError::UnknownSchema { what: format!("the {kind} schema {fingerprint:016x}"), extension }
}

/// Appends a record of any encoding as Debezium's JSON, on one line; a record that is JSON already as it is.
pub fn to_json(opener: &mut Opener<'_>, rows: &mut RowBuffer, record: &[u8], out: &mut Vec<u8>) -> Result<(), ParseError> {
    let head = opener.head(record)?;
    if let Some(text) = head.json_text() {
        out.extend_from_slice(text.as_bytes());
        return Ok(());
    }
    let (source, database) = head.origin();
    let columns = head.all_columns();
    let (before, after) = head.rows(&columns, rows)?;
    envelope::write_fragments(&head, (source, database), &columns, (before, after), out);
    Ok(())
}
