//! When an entity's time is over, by a column of its root.
//!
//! What is compared is the column as it stands, and not the column plus the duration: the values that are past at a time are those at or below one bound ([`TimeToLive::past`]). So rows are looked up by the column alone, whatever the
//! duration; another duration finds the same index.

use super::instant::DAYS_TO_1970;
use super::resolve::{Place, Resolver};
use super::{KeyPart, KeyType, Mistake, PlanError};
use crate::entity::{EntityDefinition, Span};
use crate::table::SqlType;
use crate::value::civil;

const DAY_MS: i64 = 86_400_000;

/// A column of the root, and how long an entity lives from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeToLive {
    pub column: KeyPart,
    pub span: Span,
    /// The column holds dates: each stands for its beginning.
    dates: bool,
}

impl TimeToLive {
    /// The greatest value of the column of which the time is over at `now_ms`, in milliseconds since 1970-01-01 UTC, as the column's key has it; none while no value's is. Values without an offset are in UTC.
    pub fn past(&self, now_ms: i64) -> Option<String> {
        // Zero is a time that is not known.
        let since = now_ms.checked_sub_unsigned(self.span.milliseconds()).filter(|_| now_ms > 0)?;
        let (year, month, day) = civil(u32::try_from(since.div_euclid(DAY_MS) + DAYS_TO_1970).ok()?);
        let date = format!("{year:04}-{month:02}-{day:02}");
        if self.dates {
            return Some(date);
        }
        let of_day = since.rem_euclid(DAY_MS);
        let (seconds, milliseconds) = (of_day / 1000, of_day % 1000);
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        let zone = if self.column.key_type == KeyType::Instant { "Z" } else { "" };
        self.column.key_type.normalize(&format!("{date}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}{zone}"))
    }
}

impl Resolver<'_> {
    pub(super) fn time_to_live(&self, place: &Place, definition: &EntityDefinition) -> Result<Option<TimeToLive>, PlanError> {
        let Some(written) = &definition.time_to_live else { return Ok(None) };
        let column = self.column(place, &written.column, "time_to_live")?;
        let sql_type = place.table.columns[column].sql_type;
        let dates = match sql_type {
            SqlType::Date => true,
            SqlType::DateTime | SqlType::SmallDateTime | SqlType::DateTime2 { .. } | SqlType::DateTimeOffset { .. } => false,
            _ => {
                let (table, column, sql_type) = (place.table.name.clone(), written.column.clone(), sql_type.to_string());
                return Err(self.mistake(&place.path, Mistake::NotAMoment { table, column, sql_type }));
            }
        };
        Ok(Some(TimeToLive { column: self.key_part(place, column, "time_to_live")?, span: written.duration, dates }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_past_is_the_time_less_the_span_in_the_columns_own_form() {
        let past = |key_type, dates, span: &str, now_ms| {
            let column = KeyPart { column: 0, key_type };
            TimeToLive { column, span: span.parse().unwrap(), dates }.past(now_ms)
        };
        // 2024-03-01T00:00:00.120Z
        let now = 1_709_251_200_120;
        assert_eq!(past(KeyType::Time, false, "0s", now).unwrap(), "2024-03-01T00:00:00.12");
        assert_eq!(past(KeyType::Instant, false, "121ms", now).unwrap(), "2024-02-29T23:59:59.999Z");
        assert_eq!(past(KeyType::Time, false, "120ms", now).unwrap(), "2024-03-01T00:00:00");
        assert_eq!(past(KeyType::Time, true, "0s", now).unwrap(), "2024-03-01");
        assert_eq!(past(KeyType::Time, true, "121ms", now).unwrap(), "2024-02-29");
        assert_eq!(past(KeyType::Time, true, "2000w", 1).unwrap(), "1931-09-03");
        assert_eq!(past(KeyType::Time, true, "200000w", now), None, "before the calendar begins");
        assert_eq!(past(KeyType::Time, false, "0s", 0), None, "the time is not known");
    }
}
