//! Between the bytes and the texts of hierarchyid, geometry and geography.

use tds::{DataType, SqlError};

use super::spatial::Spatial;
use super::{hierarchy, name};
use crate::message;

fn udt_failed(t: &DataType, what: &str) -> SqlError {
    let name = name(t);
    message::error(
        6522,
        16,
        format!("A .NET Framework error occurred during execution of user-defined routine or aggregate \"{name}\": {what}"),
    )
}

/// A shape from its bytes.
pub(crate) fn spatial(bytes: &[u8], t: &DataType) -> Result<Spatial, SqlError> {
    let geography = *t == DataType::Udt("geography");
    Spatial::from_bytes(bytes, geography)
        .ok_or_else(|| udt_failed(t, "the bytes are none that the stand-in reads: it knows points, lines and polygons."))
}

/// What ToString() answers.
pub(crate) fn udt_text(bytes: &[u8], t: &DataType) -> Result<String, SqlError> {
    if *t == DataType::Udt("hierarchyid") {
        return hierarchy::text(bytes).ok_or_else(|| udt_failed(t, "the bytes are no hierarchyid."));
    }
    Ok(spatial(bytes, t)?.text())
}

/// A value from its text. Without an SRID a geometry gets 0 and a geography 4326.
pub(crate) fn parse_udt(text: &str, t: &DataType, srid: Option<i32>) -> Result<Vec<u8>, SqlError> {
    if *t == DataType::Udt("hierarchyid") {
        return hierarchy::parse(text)
            .ok_or_else(|| udt_failed(t, &format!("24001: SqlHierarchyId.Parse failed because the input string '{text}' is not a valid string representation of a SqlHierarchyId node.")));
    }
    let geography = *t == DataType::Udt("geography");
    let srid = srid.unwrap_or(if geography { 4326 } else { 0 });
    let shape = Spatial::parse(text, srid).ok_or_else(|| {
        udt_failed(t, &format!("24114: The label or the text of '{text}' is not valid, or of a shape that the stand-in does not know: it knows points, lines and polygons in two dimensions."))
    })?;
    Ok(shape.to_bytes(geography))
}
