//! Events in every encoding, in turns: a stream may hold them side by side.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use schemas::TableName;
use schemas::encoding::{Compressor, Dictionary, Encoder, Format, Registry, Schemas, Written, avro, protobuf};
use schemas::event::ChangeEvent;
use schemas::table::TableSchema;

pub(crate) struct Encodings {
    encoder: Encoder,
    /// By table: every encoding, with and without compression.
    formats: HashMap<TableName, Vec<Format>>,
    written: usize,
}

impl Encodings {
    /// Also what a reader knows: nothing at first, everything once it has looked again.
    pub(crate) fn of(tables: &[Arc<TableSchema>]) -> (Self, Arc<Schemas>) {
        let mut formats = HashMap::new();
        let mut files: Vec<(String, Vec<u8>)> = Vec::new();
        for table in tables {
            let avro = Arc::new(avro::Schema::new(table, 1));
            let protobuf = Arc::new(protobuf::Schema::new(table, 1, None));
            let dictionary = Dictionary::new(table, "shop", "db");
            files.push((format!("{}.avsc", table.name), avro.text.clone().into_bytes()));
            files.push((format!("{}.proto", table.name), protobuf.text.clone().into_bytes()));
            files.push((format!("{}.dict", table.name), dictionary.bytes.to_vec()));
            let schemas = || [Written::Json, Written::Avro(avro.clone()), Written::Protobuf(protobuf.clone())];
            let plain = schemas().map(|schema| Format { schema, compressor: None });
            let compressed = schemas().map(|schema| Format { schema, compressor: Some(Compressor::new(&dictionary).unwrap()) });
            formats.insert(table.name.clone(), plain.into_iter().chain(compressed).collect());
        }
        let looked = AtomicBool::new(false);
        let schemas = Schemas::new(move || {
            let mut registry = Registry::default();
            if looked.swap(true, Ordering::Relaxed) {
                files.iter().try_for_each(|(file, bytes)| registry.add_file(file, bytes))?;
            }
            Ok(registry)
        });
        (Self { encoder: Encoder::new("shop", "db"), formats, written: 0 }, Arc::new(schemas.unwrap()))
    }

    pub(crate) fn encode(&mut self, event: &ChangeEvent) -> Vec<u8> {
        let formats = self.formats.get_mut(&event.table.name).unwrap();
        let format = self.written % formats.len();
        self.written += 1;
        let mut data = Vec::new();
        self.encoder.encode(&mut formats[format], event, &mut data);
        data
    }
}
