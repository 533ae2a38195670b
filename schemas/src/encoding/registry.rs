//! The schemas and dictionaries of a folder of contracts, by what records name them.
//!
//! A table's files are `dbo.orders.avsc`, `dbo.orders.proto` and `dbo.orders.dict`, as its contract is `dbo.orders.json`. When one is written anew, what it was stays beside it, named after the contract's version
//! ([`kept_name`]): records under it are still in the streams.

use std::collections::HashMap;
use std::sync::Arc;

use super::dictionary::{self, Dictionary, Prepared};
use super::{SchemaError, avro, protobuf};

/// Everything that records may name.
#[derive(Debug, Default)]
pub struct Registry {
    avro: HashMap<u64, Arc<avro::Schema>>,
    protobuf: HashMap<u64, Arc<protobuf::Schema>>,
    dictionaries: HashMap<u32, Prepared>,
}

impl Registry {
    /// Takes in one file of the folder; others than those three kinds are passed over. `file` is its name.
    pub fn add_file(&mut self, file: &str, bytes: &[u8]) -> Result<(), SchemaError> {
        let text = || {
            let problem = |_| SchemaError::File { file: file.to_owned(), problem: "not UTF-8".to_owned() };
            std::str::from_utf8(bytes).map_err(problem)
        };
        match file.rsplit_once('.') {
            Some((_, "avsc")) => self.add_avro(file, Arc::new(avro::Schema::parse(file, text()?)?)),
            Some((_, "proto")) => self.add_protobuf(file, Arc::new(protobuf::Schema::parse(file, text()?)?)),
            Some((_, "dict")) => {
                self.add_dictionary(&Dictionary::parse(file, bytes)?);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Whether a file of this name is one of those that [`add_file`](Self::add_file) takes in.
    pub fn takes(file: &str) -> bool {
        file.rsplit_once('.').is_some_and(|(_, extension)| matches!(extension, "avsc" | "proto" | "dict"))
    }

    pub fn add_avro(&mut self, file: &str, schema: Arc<avro::Schema>) -> Result<(), SchemaError> {
        match self.avro.get(&schema.fingerprint) {
            Some(known) if !known.reads_as(&schema) => {
                Err(SchemaError::SameFingerprint { file: file.to_owned(), version: known.version })
            }
            _ => {
                self.avro.insert(schema.fingerprint, schema);
                Ok(())
            }
        }
    }

    pub fn add_protobuf(&mut self, file: &str, schema: Arc<protobuf::Schema>) -> Result<(), SchemaError> {
        match self.protobuf.get(&schema.fingerprint) {
            // The fingerprint is of all that reading depends on: two that differ in it meet by chance alone.
            Some(known) if !known.reads_as(&schema) => Err(SchemaError::File {
                file: file.to_owned(),
                problem: format!(
                    "the schema of {} in version {} has the same fingerprint, and other columns",
                    known.table, known.version
                ),
            }),
            _ => {
                self.protobuf.insert(schema.fingerprint, schema);
                Ok(())
            }
        }
    }

    pub fn add_dictionary(&mut self, dictionary: &Dictionary) {
        self.dictionaries.insert(dictionary.id, Prepared::new(dictionary));
    }

    pub(super) fn avro(&self, fingerprint: u64) -> Option<&avro::Schema> {
        self.avro.get(&fingerprint).map(Arc::as_ref)
    }

    pub(super) fn protobuf(&self, fingerprint: u64) -> Option<&protobuf::Schema> {
        self.protobuf.get(&fingerprint).map(Arc::as_ref)
    }

    pub(super) fn dictionary(&self, id: u32) -> Option<&dictionary::Prepared> {
        self.dictionaries.get(&id)
    }
}

/// The name under which a file is kept once it has been replaced: `dbo.orders.v3.avsc`, or `dbo.orders.v3-2.avsc` where that name is taken. `version` is the contract's that it was written for.
pub fn kept_name(file: &str, version: u32, count: u32) -> String {
    let (stem, extension) = file.rsplit_once('.').unwrap_or((file, ""));
    if count < 2 { format!("{stem}.v{version}.{extension}") } else { format!("{stem}.v{version}-{count}.{extension}") }
}
