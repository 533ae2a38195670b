//! The SQL Server stand-in: T-SQL over SQLite with change data capture, spoken to over TDS.
