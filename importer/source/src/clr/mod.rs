//! The types that SQL Server keeps as serialised CLR objects: hierarchyid, geometry, geography.
//!
//! Source tables and change tables hold the same bytes, and so they are read here rather than by calls of the types' methods on the server: the same value comes out of
//! both, at no cost to the source. The formats are those of MS-SSCLRT. What comes out is what the server's `ToString()` shows, for spatial values
//! with the spatial reference before it, as PostGIS and others read it (EWKT): `/1/2.1/`, `SRID=4326;POINT (8.54 47.37)`.
//!
//! The bytes come from a server that may be anything: readers check every length and offset, answer `None` for what is not of the format, and bound their
//! recursion.

pub mod hierarchy;
pub mod spatial;
