//! The driver decodes rows in two ways (`vendor/README.md`): from its buffer where a row has arrived whole, column by column as packets come where it has not. They must not differ.

use tiberius::{AuthMethod, ColumnData, EncryptionLevel};
use tokio::net::TcpStream;
use tokio_util::compat::TokioAsyncWriteCompatExt;

use super::support::World;

const PACKETS: [u32; 3] = [512, 4096, 32_767];
const ROWS: u64 = 400;
const COLUMNS: &str = "id int NOT NULL PRIMARY KEY, small smallint NOT NULL, tiny tinyint NOT NULL, large bigint NOT NULL, bit_ bit NOT NULL, r real NOT NULL, f float NOT NULL, \
     n_int int NULL, n_small smallint NULL, n_tiny tinyint NULL, n_large bigint NULL, n_bit bit NULL, n_real real NULL, n_float float NULL, d9 decimal(9,2) NULL, d19 decimal(19,4) NULL, \
     d28 decimal(28,5) NULL, d38 decimal(38,10) NULL, text_ varchar(300) NULL, fixed_ char(20) NULL, wide nvarchar(300) NULL, wide_fixed nchar(10) NULL, bytes varbinary(300) NULL, \
     fixed_bytes binary(12) NULL, day_ date NULL, t0 time(0) NULL, t3 time(3) NULL, t7 time(7) NULL, m0 datetime2(0) NULL, m4 datetime2(4) NULL, m7 datetime2(7) NULL, \
     o datetimeoffset(3) NULL, dt datetime NULL, sdt smalldatetime NULL, g uniqueidentifier NULL, max_text varchar(max) NULL, max_wide nvarchar(max) NULL, max_bytes varbinary(max) NULL, \
     x xml NULL, v sql_variant NULL, stamp rowversion";

/// A number that follows from a row and a place, and looks like none.
fn mixed(row: u64, place: u64) -> u64 {
    let mut n = row.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ place.wrapping_mul(0xBF58_476D_1CE4_E5B9);
    n ^= n >> 29;
    n = n.wrapping_mul(0x94D0_49BB_1331_11EB);
    n ^ (n >> 32)
}

/// The row's literals: each of the columns that may be NULL is so in a quarter of the rows.
fn literals(row: u64) -> String {
    let n = |place| mixed(row, place);
    let text = |place, most: u64, unit: &str| format!("N'{}'", unit.repeat((n(place) % most) as usize));
    let time = |place| {
        let n = n(place);
        format!("{:02}:{:02}:{:02}.{:03}", n % 24, n / 24 % 60, n / 1440 % 60, n % 1000)
    };
    let day = |place| {
        let n = n(place);
        format!("{:04}-{:02}-{:02}", 1900 + n % 170, n % 12 + 1, n / 12 % 28 + 1)
    };
    let always = [
        format!("{row}"),
        format!("{}", n(1) as i16),
        format!("{}", n(2) as u8),
        format!("{}", n(3) as i64 / 2),
        format!("{}", n(4) % 2),
        format!("{}", n(5) as i32 / 16),
        format!("{}.5", n(6) as i32),
    ];
    let sometimes = [
        format!("{}", n(7) as i32 / 2),
        format!("{}", n(8) as i16),
        format!("{}", n(9) as u8),
        format!("{}", n(10) as i64 / 2),
        format!("{}", n(11) % 2),
        format!("{}.25", n(12) as i16),
        format!("{}.125", n(13) as i32),
        format!("{}.{:02}", n(14) as i16, n(14) % 100),
        format!("{}.{:04}", n(15) as i32, n(15) % 10_000),
        format!("{}.{:05}", n(16) as i64 / 2, n(16) % 100_000),
        format!("-{}{:09}.{:010}", n(17) % 1_000_000_000_000_000_000, n(17) % 1_000_000_000, n(17) % 10_000_000_000),
        text(18, 150, "ab"),
        text(19, 20, "é"),
        text(20, 60, if n(20) % 2 == 0 { "plain" } else { "ü€😀" }),
        text(21, 10, "ß"),
        format!("CAST(N'{}' AS varbinary(300))", "xy".repeat((n(22) % 60) as usize)),
        format!("0x{:024x}", n(23)),
        format!("'{}'", day(24)),
        format!("'{}'", &time(25)[..8]),
        format!("'{}'", time(26)),
        format!("'{}9876'", time(27)),
        format!("'{}T{}'", day(28), &time(28)[..8]),
        format!("'{}T{}9'", day(29), time(29)),
        format!("'{}T{}4321'", day(30), time(30)),
        format!("'{}T{}{}'", day(31), time(31), if n(31) % 2 == 0 { "+05:30" } else { "-11:00" }),
        format!("'{}T{}'", day(32), time(32)),
        format!("'{}T{}'", day(33), &time(33)[..8]),
        format!("'{:08x}-1234-5678-9abc-{:012x}'", n(34) as u32, n(35) & 0xffff_ffff_ffff),
        format!("REPLICATE(CAST('long ' AS varchar(max)), {})", n(36) % 2000),
        format!("REPLICATE(CAST(N'größe' AS nvarchar(max)), {})", n(37) % 2000),
        format!("CAST(REPLICATE(CAST('z' AS varchar(max)), {}) AS varbinary(max))", n(38) % 5000),
        format!("N'<a>{}</a>'", n(39)),
        format!("CAST({} AS bigint)", n(40) as i64 / 2),
    ];
    let sometimes = sometimes.into_iter().enumerate().map(|(place, literal)| {
        let null = mixed(row, 100 + place as u64).is_multiple_of(4);
        if null { "NULL".to_owned() } else { literal }
    });
    let all: Vec<String> = always.into_iter().chain(sometimes).collect();
    format!("({})", all.join(", "))
}

async fn rows(world: &World, packet: u32) -> Vec<Vec<ColumnData<'static>>> {
    let mut config = tiberius::Config::new();
    config.host(world.source.host.as_str());
    config.port(world.server.address().port());
    config.database("shop");
    config.authentication(AuthMethod::sql_server("sa", sqlserver::Options::default().sa_password));
    config.encryption(EncryptionLevel::NotSupported);
    config.packet_size(packet);
    let stream = TcpStream::connect(config.get_addr()).await.unwrap().compat_write();
    let mut client = Box::pin(tiberius::Client::connect(config, stream)).await.unwrap();
    let rows = client.simple_query("SELECT * FROM dbo.t ORDER BY id").await.unwrap().into_first_result().await.unwrap();
    rows.into_iter().map(|row| row.into_iter().collect()).collect()
}

#[tokio::test]
async fn rows_are_the_same_however_they_are_cut_into_packets() {
    let world = World::start(&format!("CREATE TABLE dbo.t ({COLUMNS})")).await;
    let tuples: Vec<String> = (0..ROWS).map(literals).collect();
    for some in tuples.chunks(100) {
        world.sql(&format!("INSERT dbo.t VALUES {}", some.join(", "))).await;
    }
    // Of packets that are smaller than most rows, few rows arrive whole.
    let [small, middle, large] = [rows(&world, PACKETS[0]).await, rows(&world, PACKETS[1]).await, rows(&world, PACKETS[2]).await];
    assert_eq!(small.len() as u64, ROWS);
    assert!(small == middle && middle == large);
}
