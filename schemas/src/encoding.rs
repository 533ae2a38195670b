//! How change events are written on a stream: Debezium's JSON ([`crate::envelope`], the default), Avro or Protobuf, and any of them compressed by zstd.
//!
//! # Records say what they are
//! | first bytes | what |
//! |---|---|
//! | `{`, or whitespace | JSON |
//! | `C3 01` | Avro, single-object encoding: the fingerprint of the schema follows ([`avro`]) |
//! | `C5 01` | Protobuf: the fingerprint of the schema follows ([`protobuf`]) |
//! | `28 B5 2F FD` | a zstd frame that names its dictionary, around one of the above ([`dictionary`]) |
//!
//! So a reader needs no setting, a stream may change its encoding while it runs, and records of different encodings may stand side by side. What a reader needs are the schemas and dictionaries, which the importer writes
//! beside the table contracts before it publishes the first record under them: all that a folder has are a [`Registry`]. A record under one that is not there is nobody's fault but the folder's: it is
//! never dropped ([`crate::parse::ParseError::UnknownSchema`]), the reader looks again ([`Schemas::look_again`]) and otherwise stops and says what is missing.
//!
//! # Nothing is lost
//! Every encoding carries what the JSON form says of an event: operation, position, times, source and both rows, to the digit; only `source.version` and `source.connector` are left out. An event with a value that is not of
//! its column's type (the image before a change may be from a time when the column was another) is written as JSON, whatever the table's encoding.
//!
//! Reading makes JSON text of the columns that are wanted, and only of them: that is what documents are made of.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};

pub mod avro;
mod bytes;
mod carry;
pub mod dictionary;
mod names;
pub mod protobuf;
mod rabin;
mod read;
mod registry;

pub use dictionary::{Compressor, Dictionary, unpacked_bytes};
pub(crate) use read::SPECIALS;
pub use read::{Opener, to_json};
pub use registry::{Registry, kept_name};

use crate::envelope;
use crate::event::ChangeEvent;

/// How the events of a table are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    #[default]
    DebeziumJson,
    Avro,
    Protobuf,
}

/// How records are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    #[default]
    None,
    /// With a dictionary of the table.
    Zstd,
}

/// A schema or a dictionary that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    #[error(
        "{file}: {problem}. The importer writes this file beside the table's contract: take its copy, or remove this one and start the importer"
    )]
    File { file: String, problem: String },
    #[error(
        "{file} and the schema of version {version} of the same table differ only in what Avro's fingerprints do not tell (a decimal's or a time's scale): count up the contract's x-version"
    )]
    SameFingerprint { file: String, version: u32 },
    #[error("dictionary {id}: {what}. Remove its .dict file beside the contracts and start the importer, which writes it anew")]
    Dictionary { id: u32, what: String },
    #[error("{path}: {doing}: {what}", path = .path.display())]
    Io { path: PathBuf, doing: &'static str, what: String },
}

/// What the events of one table are written in.
#[derive(Debug, Default)]
pub struct Format {
    pub schema: Written,
    pub compressor: Option<Compressor>,
}

#[derive(Debug, Default)]
pub enum Written {
    #[default]
    Json,
    Avro(Arc<avro::Schema>),
    Protobuf(Arc<protobuf::Schema>),
}

/// What an encoder knows and uses again.
#[derive(Debug, Clone, Default)]
struct Writing {
    source: String,
    database: String,
    message: Vec<u8>,
    plain: Vec<u8>,
    frame: Vec<u8>,
}

/// Writes the events of one source.
#[derive(Debug, Clone)]
pub struct Encoder {
    json: envelope::Encoder,
    writing: Writing,
}

impl Encoder {
    /// `source` is the source's name in the configuration, `database` its database.
    pub fn new(source: &str, database: &str) -> Self {
        let writing = Writing { source: source.to_owned(), database: database.to_owned(), ..Writing::default() };
        Self { json: envelope::Encoder::new(source, database), writing }
    }

    /// The encoder of the default form, which dead letters are always in.
    pub fn json(&mut self) -> &mut envelope::Encoder {
        &mut self.json
    }

    /// Appends the values of an event's key ([`envelope::Encoder::encode_key`]).
    pub fn encode_key(&self, event: &ChangeEvent, out: &mut Vec<u8>) {
        self.json.encode_key(event, out);
    }

    /// Appends an event in its table's format.
    pub fn encode(&mut self, format: &mut Format, event: &ChangeEvent, out: &mut Vec<u8>) {
        let Some(compressor) = &mut format.compressor else { return self.plain(&format.schema, event, out) };
        let mut plain = std::mem::take(&mut self.writing.plain);
        plain.clear();
        self.plain(&format.schema, event, &mut plain);
        compressor.compress(&plain, &mut self.writing.frame, out);
        self.writing.plain = plain;
    }

    fn plain(&mut self, written: &Written, event: &ChangeEvent, out: &mut Vec<u8>) {
        let start = out.len();
        let done = match written {
            Written::Json => None,
            Written::Avro(schema) => schema.encode(&self.writing, event, out),
            Written::Protobuf(schema) => schema.encode(&mut self.writing, event, out),
        };
        if done.is_none() {
            out.truncate(start);
            self.json.encode(event, out);
        }
    }
}

/// Where the bytes of an event's rows begin and end, before and after.
pub(crate) type RowPlaces = [Option<(usize, usize)>; 2];

/// One row of an event as it is read: where the wanted columns stand in a text that holds them one after another.
#[derive(Debug, Clone, Default)]
pub(crate) struct Image {
    pub(crate) present: bool,
    /// Empty: the row does not have the column.
    pub(crate) spans: Vec<(u32, u32)>,
}

impl Image {
    pub(crate) fn clear(&mut self, slots: usize) {
        self.present = false;
        self.spans.clear();
        self.spans.resize(slots, (0, 0));
    }

    pub(crate) fn set(&mut self, slot: u32, start: usize, end: usize) {
        self.spans[slot as usize] = (start as u32, end as u32);
    }

    fn set_null(&mut self, slot: u32) {
        self.set(slot, 0, read::NULL.len());
    }

    fn set_unavailable(&mut self, slot: u32) {
        self.set(slot, read::NULL.len(), read::SPECIALS.len());
    }
}

/// Reads the registry of a folder.
type Load = dyn Fn() -> Result<Registry, SchemaError> + Send + Sync;

/// The schemas that readers know, and how to look for more: shared by everything in a process that reads one source's streams.
pub struct Schemas {
    known: RwLock<Arc<Registry>>,
    load: Option<Box<Load>>,
}

impl std::fmt::Debug for Schemas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Schemas").field("known", &self.known()).finish_non_exhaustive()
    }
}

impl Schemas {
    /// Looks where `load` does, now and whenever a record is under a schema that is not known yet.
    pub fn new(load: impl Fn() -> Result<Registry, SchemaError> + Send + Sync + 'static) -> Result<Self, SchemaError> {
        let known = load()?;
        Ok(Self { known: RwLock::new(Arc::new(known)), load: Some(Box::new(load)) })
    }

    /// These and no more.
    pub fn fixed(registry: Registry) -> Self {
        Self { known: RwLock::new(Arc::new(registry)), load: None }
    }

    pub fn known(&self) -> Arc<Registry> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the folder again: the importer may have written a schema since.
    pub fn look_again(&self) -> Result<Arc<Registry>, SchemaError> {
        let Some(load) = &self.load else { return Ok(self.known()) };
        let found = Arc::new(load()?);
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = found.clone();
        Ok(found)
    }
}

#[cfg(test)]
mod tests;
