//! Whether commit times can be told from the server's local times ([`source::clock`]), and whether the zone that is configured is the one that the server's clock shows.

use schemas::Lsn;
use source::clock::Clock;
use source::{Client, Error, Source};

use super::CheckItem;

const NAME: &str = "time zone";
/// Two questions, one after the other, are less apart; and zones differ by more.
const APART_MS: u64 = 600_000;

/// A look at the zone that is configured, if one is, and at the server's clock. `None`: the source cannot be read, which [`check`](super::check()) says.
pub async fn time_zone(source: &Source, configured: Option<&str>) -> Option<CheckItem> {
    let clock = match Clock::new(configured) {
        Ok(clock) => clock,
        Err(error) => return Some(CheckItem::problem(NAME, error.to_string(), "Correct `time_zone` in the configuration")),
    };
    let looked = async {
        let mut client = Client::connect(source).await?;
        let clock = clock.of_server(&mut client).await?;
        let by_offset = Clock::default().as_of(&mut client, Lsn::ZERO).await?.now_ms;
        let by_zone = clock.as_of(&mut client, Lsn::ZERO).await?.now_ms;
        Ok::<_, Error>((clock, by_zone - by_offset))
    };
    let (clock, ahead_ms) = looked.await.ok()?;
    Some(item(clock.zone(), ahead_ms))
}

fn item(zone: Option<&str>, ahead_ms: i64) -> CheckItem {
    let Some(zone) = zone else {
        let detail = "the server does not say in which it is (from SQL Server 2022 on it does): commit times from before its clocks were last changed come out an hour off, and with them `ts_ms`, the lag and when a time to live is over";
        return CheckItem::warning(NAME, detail, "Name it in the configuration: `time_zone: Europe/Zurich`, or whichever it is");
    };
    if ahead_ms.unsigned_abs() <= APART_MS {
        return CheckItem::ok(NAME, zone);
    }
    let (minutes, way) = ((ahead_ms.unsigned_abs() + 30_000) / 60_000, if ahead_ms > 0 { "late" } else { "early" });
    let detail = format!(
        "{zone} is not the one that the server's clock shows: commit times come out {minutes} minutes {way}, and with them `ts_ms`, the lag and when a time to live is over"
    );
    CheckItem::warning(
        NAME,
        detail,
        "Correct `time_zone` in the configuration, or leave it out where the server is of 2022 or later",
    )
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn a_zone_that_is_missing_or_another_is_told() {
        assert_eq!(item(Some("UTC"), -40).level, Level::Ok);
        let other = item(Some("UTC"), 7_200_012);
        assert!(other.level == Level::Warning && other.detail.contains("120 minutes late"), "{other:?}");
        assert!(item(Some("UTC"), -19_799_990).detail.contains("330 minutes early"));
        let missing = item(None, 0);
        assert!(missing.level == Level::Warning && missing.remedy.is_some_and(|remedy| remedy.contains("time_zone:")));
    }
}
