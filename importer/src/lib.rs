//! SQL Server CDC to streams: snapshot, tail, validate, publish, progress.
