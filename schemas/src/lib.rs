//! The contract: LSNs, values, table schemas, change events and their encodings, entity definitions. Pure: no I/O, no async.
