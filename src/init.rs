//! What `tributary init` writes, from what the importer reads in the catalog.
