//! Aggregates over decimals that do not fit SQLite's integers, also as window functions.

use rusqlite::functions::{Aggregate, Context, FunctionFlags, WindowAggregate};
use rusqlite::types::{Value as Stored, ValueRef};
use rusqlite::{Connection, Result};

use crate::message;
use crate::types::{self, decimal, storage};

/// `dsum(x, type of x, result type)`, `davg(…)`.
struct Sum {
    average: bool,
}

#[derive(Default, Clone, Copy)]
struct State {
    sum: i128,
    rows: i64,
    scale: u8,
    result: i64,
}

impl Sum {
    fn change(ctx: &Context<'_>, state: &mut State, sign: i128) {
        let mantissa = match ctx.get_raw(0) {
            ValueRef::Integer(i) => i128::from(i),
            ValueRef::Blob(b) => storage::wide_from_storage(b),
            _ => return,
        };
        state.sum += sign * mantissa;
        state.rows += sign as i64;
        if let (ValueRef::Integer(own), ValueRef::Integer(result)) = (ctx.get_raw(1), ctx.get_raw(2)) {
            state.scale = storage::scale(&types::decode(own));
            state.result = result;
        }
    }

    fn answer(&self, state: Option<&State>) -> Result<Stored> {
        let Some(state) = state.filter(|s| s.rows > 0) else { return Ok(Stored::Null) };
        let result = types::decode(state.result);
        let value = if self.average {
            decimal::operate('/', (state.sum, state.scale), (i128::from(state.rows), 0), storage::scale(&result))
                .map_err(|e| super::fail(&e))?
        } else {
            decimal::rescale(state.sum, state.scale, storage::scale(&result)).ok_or_else(|| {
                super::fail(&message::error(
                    8115,
                    16,
                    "Arithmetic overflow error converting expression to data type numeric.".into(),
                ))
            })?
        };
        Ok(storage::mantissa_to_storage(value, &result))
    }
}

impl Aggregate<State, Stored> for Sum {
    fn init(&self, _: &mut Context<'_>) -> Result<State> {
        Ok(State::default())
    }
    fn step(&self, ctx: &mut Context<'_>, state: &mut State) -> Result<()> {
        Sum::change(ctx, state, 1);
        Ok(())
    }
    fn finalize(&self, _: &mut Context<'_>, state: Option<State>) -> Result<Stored> {
        self.answer(state.as_ref())
    }
}

impl WindowAggregate<State, Stored> for Sum {
    fn value(&self, state: Option<&mut State>) -> Result<Stored> {
        self.answer(state.as_deref())
    }
    fn inverse(&self, ctx: &mut Context<'_>, state: &mut State) -> Result<()> {
        Sum::change(ctx, state, -1);
        Ok(())
    }
}

pub(super) fn register(db: &Connection) -> Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
    db.create_window_function("dsum", 3, flags, Sum { average: false })?;
    db.create_window_function("davg", 3, flags, Sum { average: true })
}
