//! Streams to entities: consume, keyed state in RocksDB, assemble, outbox, delivery.
