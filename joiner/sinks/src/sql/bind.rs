//! Cells as parameters of the databases that are spoken to by sqlx. Decimals, dates and times are texts, which the server reads exactly.

use sqlx::query::Query;
use sqlx::{Database, Encode, Type};

use super::cells::Cell;

pub(crate) fn bind_cell<'q, D: Database>(query: Query<'q, D, D::Arguments>, cell: &'q Cell<'_>) -> Query<'q, D, D::Arguments>
where
    Option<&'q str>: Encode<'q, D> + Type<D>,
    bool: Encode<'q, D> + Type<D>,
    i64: Encode<'q, D> + Type<D>,
    f64: Encode<'q, D> + Type<D>,
    &'q [u8]: Encode<'q, D> + Type<D>,
{
    match cell {
        Cell::Null => query.bind(None::<&str>),
        Cell::Bool(value) => query.bind(*value),
        Cell::Int(value) => query.bind(*value),
        Cell::Double(value) => query.bind(*value),
        Cell::Text(text) => query.bind(Some(&**text)),
        Cell::Bytes(bytes) => query.bind(bytes.as_slice()),
    }
}
