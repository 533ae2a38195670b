//! The server's clock and time zone, as tests set them.

use std::time::{Duration, SystemTime};

use super::{SHOP, standin};
use sqlserver::{Running, Value};

fn text(running: &Running, query: &str) -> String {
    match &running.execute(query).unwrap().pop().unwrap().rows[0][0] {
        Value::Text(t) => t.clone(),
        other => panic!("{other:?}"),
    }
}

/// 2024-10-27 00:30 UTC, half an hour before Zurich sets its clocks back.
const AUTUMN: Duration = Duration::from_secs(1_729_989_000);

#[tokio::test]
async fn times_follow_the_server_s_zone_through_the_end_of_summer() {
    let running = standin().await;
    running.set_agent_running(false);
    running.execute(SHOP).unwrap();
    running.execute("EXEC sys.sp_cdc_enable_db; EXEC sys.sp_cdc_enable_table 'dbo', 'orders', @role_name = NULL").unwrap();
    running.set_time_zone("Europe/Zurich").unwrap();
    let commit = |after: u64| {
        running.set_time(SystemTime::UNIX_EPOCH + AUTUMN + Duration::from_secs(after));
        running.execute("UPDATE dbo.orders SET qty = qty + 1 WHERE id = 1").unwrap();
        running.capture_now("shop").unwrap();
        let last = "SELECT TOP 1 CONVERT(varchar(16), tran_end_time, 120) FROM cdc.lsn_time_mapping ORDER BY start_lsn DESC";
        text(&running, last)
    };
    assert_eq!(commit(0), "2024-10-27 02:30");
    assert_eq!(commit(1800), "2024-10-27 02:00");
    assert_eq!(commit(3600), "2024-10-27 02:30");
    assert_eq!(commit(7200), "2024-10-27 03:30");
    assert_eq!(text(&running, "SELECT CONVERT(varchar(16), GETDATE(), 120)"), "2024-10-27 03:30");
    assert_eq!(text(&running, "SELECT CONVERT(varchar(16), GETUTCDATE(), 120)"), "2024-10-27 02:30");
    assert_eq!(text(&running, "SELECT RIGHT(CONVERT(varchar(40), SYSDATETIMEOFFSET(), 121), 6)"), "+01:00");
    assert_eq!(text(&running, "SELECT CURRENT_TIMEZONE_ID()"), "W. Europe Standard Time");
    assert_eq!(text(&running, "SELECT current_utc_offset FROM sys.time_zone_info WHERE name = CURRENT_TIMEZONE_ID()"), "+01:00");
    let zoned = |local: &str| {
        text(
            &running,
            &format!(
                "SELECT CONVERT(varchar(40), CAST('{local}' AS datetime2(0)) AT TIME ZONE 'Central European Standard Time', 121)"
            ),
        )
    };
    // As Microsoft's page on AT TIME ZONE has it.
    assert_eq!(zoned("2015-03-29T01:01:00"), "2015-03-29 01:01:00.0000000 +01:00");
    assert_eq!(zoned("2015-03-29T02:01:00"), "2015-03-29 03:01:00.0000000 +02:00");
    assert_eq!(zoned("2015-10-25T02:00:00"), "2015-10-25 02:00:00.0000000 +02:00");
    assert_eq!(zoned("2015-10-25T03:01:00"), "2015-10-25 03:01:00.0000000 +01:00");
    assert_eq!(running.execute("SELECT GETDATE() AT TIME ZONE 'Mars'").unwrap_err().number, 9820);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn times_that_are_written_into_the_mapping_stay() {
    let running = standin().await;
    running.set_agent_running(false);
    running.execute(SHOP).unwrap();
    running.execute("EXEC sys.sp_cdc_enable_db; EXEC sys.sp_cdc_enable_table 'dbo', 'orders', @role_name = NULL").unwrap();
    running.execute("UPDATE dbo.orders SET qty = 5").unwrap();
    running.capture_now("shop").unwrap();
    running.execute("UPDATE cdc.lsn_time_mapping SET tran_begin_time = DATEADD(day, -3, '2024-02-03T10:11:12.123'), tran_end_time = '2024-02-01T00:00:00.997'").unwrap();
    running.execute("INSERT INTO cdc.lsn_time_mapping (start_lsn, tran_begin_time, tran_end_time, tran_id) VALUES (0x00000001000000020003, NULL, '2020-01-01', 0x00)").unwrap();
    let read = "SELECT DISTINCT CONVERT(varchar(30), tran_begin_time, 121), CONVERT(varchar(30), tran_end_time, 121) FROM cdc.lsn_time_mapping ORDER BY 2 DESC";
    assert_eq!(
        running.execute(read).unwrap().pop().unwrap().rows,
        [
            [Value::Text("2024-01-31 10:11:12.123".into()), Value::Text("2024-02-01 00:00:00.997".into())],
            [Value::Null, Value::Text("2020-01-01 00:00:00.000".into())]
        ]
    );
    assert_eq!(
        text(&running, "SELECT CONVERT(varchar(10), sys.fn_cdc_map_lsn_to_time(0x00000001000000020003), 120)"),
        "2020-01-01"
    );
    running.stop().await.unwrap();
}
