//! Every data type, through snapshot and tail.

use serde_json::Value as Json;

use crate::support::{World, tail_in_order};

/// Columns with two values each: ordinary, and at the edge of the type.
const COLUMNS: &[(&str, &str, &str, &str, &str, &str)] = &[
    // name, type, first value, how it is written, second value, how it is written
    ("bit_", "bit", "1", "true", "0", "false"),
    ("tiny", "tinyint", "255", "255", "0", "0"),
    ("small", "smallint", "-32768", "-32768", "32767", "32767"),
    ("int_", "int", "-2147483648", "-2147483648", "2147483647", "2147483647"),
    ("big", "bigint", "-9223372036854775808", "-9223372036854775808", "9223372036854775807", "9223372036854775807"),
    ("real_", "real", "1.5", "1.5", "-3.4e38", "-3.4e38"),
    ("float_", "float", "0.1", "0.1", "1.7976931348623157e308", "1.7976931348623157e308"),
    ("dec", "decimal(10,2)", "-12345678.90", "\"-12345678.90\"", "0.01", "\"0.01\""),
    (
        "dec38",
        "decimal(38,10)",
        "1234567890123456789012345678.0123456789",
        "\"1234567890123456789012345678.0123456789\"",
        "-0.0000000001",
        "\"-0.0000000001\"",
    ),
    ("num", "numeric(5,0)", "99999", "\"99999\"", "-1", "\"-1\""),
    ("money_", "money", "922337203685477.5807", "\"922337203685477.5807\"", "-922337203685477.5808", "\"-922337203685477.5808\""),
    ("smallmoney_", "smallmoney", "214748.3647", "\"214748.3647\"", "-0.0001", "\"-0.0001\""),
    ("char_", "char(5)", "'ab'", "\"ab   \"", "''", "\"     \""),
    ("varchar_", "varchar(20)", "'ab''c '", "\"ab'c \"", "''", "\"\""),
    ("nchar_", "nchar(4)", "N'ü'", "\"ü   \"", "N'abcd'", "\"abcd\""),
    ("nvarchar_", "nvarchar(20)", "N'漢字 ☕ 😀'", "\"漢字 ☕ 😀\"", "N''", "\"\""),
    ("varcharmax", "varchar(max)", "REPLICATE(CAST('x' AS varchar(max)), 10000)", "LONG", "'short'", "\"short\""),
    ("nvarcharmax", "nvarchar(max)", "N'漢'", "\"漢\"", "N''", "\"\""),
    ("binary_", "binary(4)", "0x0102", "\"AQIAAA==\"", "0xFFFFFFFF", "\"/////w==\""),
    ("varbinary_", "varbinary(10)", "0x00FF", "\"AP8=\"", "0x", "\"\""),
    ("varbinarymax", "varbinary(max)", "0xDEADBEEF", "\"3q2+7w==\"", "0x", "\"\""),
    (
        "guid",
        "uniqueidentifier",
        "'6F9619FF-8B86-D011-B42D-00C04FC964FF'",
        "\"6F9619FF-8B86-D011-B42D-00C04FC964FF\"",
        "'00000000-0000-0000-0000-000000000001'",
        "\"00000000-0000-0000-0000-000000000001\"",
    ),
    ("date_", "date", "'0001-01-01'", "\"0001-01-01\"", "'9999-12-31'", "\"9999-12-31\""),
    ("time0", "time(0)", "'23:59:59'", "\"23:59:59\"", "'00:00:00'", "\"00:00:00\""),
    ("time7", "time(7)", "'23:59:59.9999999'", "\"23:59:59.9999999\"", "'00:00:00.0000001'", "\"00:00:00.0000001\""),
    (
        "datetime_",
        "datetime",
        "'1753-01-01T00:00:00.003'",
        "\"1753-01-01T00:00:00.003\"",
        "'9999-12-31T23:59:59.997'",
        "\"9999-12-31T23:59:59.997\"",
    ),
    (
        "smalldatetime_",
        "smalldatetime",
        "'1900-01-01T00:00:00'",
        "\"1900-01-01T00:00:00\"",
        "'2079-06-06T23:59:00'",
        "\"2079-06-06T23:59:00\"",
    ),
    (
        "datetime2_3",
        "datetime2(3)",
        "'2024-02-29T12:34:56.789'",
        "\"2024-02-29T12:34:56.789\"",
        "'0001-01-01T00:00:00'",
        "\"0001-01-01T00:00:00.000\"",
    ),
    (
        "datetime2_7",
        "datetime2(7)",
        "'9999-12-31T23:59:59.9999999'",
        "\"9999-12-31T23:59:59.9999999\"",
        "'2024-02-29T00:00:00.0000001'",
        "\"2024-02-29T00:00:00.0000001\"",
    ),
    (
        "offset_",
        "datetimeoffset(7)",
        "'2024-02-29T00:30:00.1234567 +05:30'",
        "\"2024-02-29T00:30:00.1234567+05:30\"",
        "'2024-12-31T23:00:00 -08:00'",
        "\"2024-12-31T23:00:00.0000000-08:00\"",
    ),
    ("xml_", "xml", "N'<a b=\"1\">ü</a>'", "\"<a b=\\\"1\\\">ü</a>\"", "N'<x/>'", "\"<x/>\""),
];

fn expected(written: &str) -> Json {
    if written == "LONG" { Json::String("x".repeat(10_000)) } else { serde_json::from_str(written).unwrap() }
}

fn insert(id: usize, values: impl Iterator<Item = &'static str>) -> String {
    format!(
        "INSERT INTO dbo.types (id, {}) VALUES ({id}, {});\nGO\n",
        COLUMNS.iter().map(|column| column.0).collect::<Vec<_>>().join(", "),
        values.collect::<Vec<_>>().join(", ")
    )
}

fn rows(first_id: usize) -> String {
    insert(first_id, COLUMNS.iter().map(|column| column.2))
        + &insert(first_id + 1, COLUMNS.iter().map(|column| column.4))
        + &insert(first_id + 2, COLUMNS.iter().map(|_| "NULL"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type_comes_through_snapshot_and_tail_alike() {
    let columns: Vec<String> = COLUMNS.iter().map(|column| format!("{} {} NULL", column.0, column.1)).collect();
    let script = format!(
        "CREATE TABLE dbo.types (id int NOT NULL PRIMARY KEY, {});\nGO\nEXEC sys.sp_cdc_enable_db;\nGO\nEXEC sys.sp_cdc_enable_table @source_schema = N'dbo', \
         @source_name = N'types', @role_name = NULL;\nGO\n{}",
        columns.join(", "),
        rows(1)
    );
    let world = World::start(&script).await;
    let import = world.import();
    import.until("the tail", |status| status.activity == importer::Activity::Tailing).await;
    world.sql(&rows(11)).await;
    import.reaches(world.captured().await).await;
    import.stop().await;
    let events = world.events().await;
    let dead = world.records(&importer::dead_letter_stream("shop")).await;
    assert!(dead.is_empty(), "every value keeps the contract that its own type makes: {dead:?}");
    let row =
        |id: usize| events.iter().find(|event| event["after"]["id"] == id).unwrap_or_else(|| panic!("row {id}"))["after"].clone();
    for start in [1, 11] {
        for (name, sql_type, _, first, _, second) in COLUMNS {
            assert_eq!(row(start)[*name], expected(first), "{sql_type} at {start}");
            assert_eq!(row(start + 1)[*name], expected(second), "{sql_type} at {start}");
            assert_eq!(row(start + 2)[*name], Json::Null, "{sql_type} at {start}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cdc_does_not_record_is_unavailable_and_not_null() {
    let script = "
CREATE TABLE dbo.large (id int NOT NULL PRIMARY KEY, n int NULL, doc nvarchar(max) NULL, c1 int, c2 int, c3 int, c4 int, c5 int, c6 int, other varchar(max) NULL);
GO
EXEC sys.sp_cdc_enable_db;
GO
EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'large', @role_name = NULL;
GO
INSERT INTO dbo.large (id, n, doc, other) VALUES (1, 1, N'text', 'more');
";
    let world = World::start(script).await;
    let import = world.import();
    import.until("the tail", |status| status.activity == importer::Activity::Tailing).await;
    world
        .sql("UPDATE dbo.large SET n = 2;\nGO\nUPDATE dbo.large SET other = NULL;\nGO\nUPDATE dbo.large SET other = 'again';")
        .await;
    import.reaches(world.captured().await).await;
    import.stop().await;
    let told: Vec<String> = tail_in_order(&world.events().await)
        .iter()
        .map(|event| format!("{} {} {}", event["before"]["doc"], event["before"]["other"], event["after"]["other"]))
        .collect();
    let gone = "\"__debezium_unavailable_value\"";
    assert_eq!(told, [format!("{gone} {gone} \"more\""), format!("{gone} \"more\" null"), format!("{gone} null \"again\"")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_and_odd_types_come_through_as_well() {
    let script = "
CREATE TABLE dbo.odd (id int NOT NULL PRIMARY KEY, text_ text NULL, ntext_ ntext NULL, image_ image NULL, version_ rowversion NOT NULL, variant_ sql_variant NULL,
  node hierarchyid NULL, utf8 varchar(20) COLLATE Latin1_General_100_CI_AS_SC_UTF8 NULL, polish varchar(20) COLLATE Polish_CI_AS NULL, twice AS (id * 2));
GO
EXEC sys.sp_cdc_enable_db;
GO
EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'odd', @role_name = NULL;
GO
";
    let insert = |id: usize| {
        format!(
            "INSERT INTO dbo.odd (id, text_, ntext_, image_, variant_, node, utf8, polish) VALUES \
             ({id}, 'old text', N'древний', 0x0102, CAST(922337203685477.5807 AS money), 0x5AC0, N'déjà', N'Zürich'), \
             ({}, '', N'', 0x, CAST(N'a variant' AS nvarchar(20)), NULL, N'', N''), ({}, NULL, NULL, NULL, CAST(7 AS smallint), NULL, NULL, NULL);",
            id + 1,
            id + 2
        )
    };
    let world = World::start(&(script.to_owned() + &insert(1))).await;
    let import = world.import();
    import.until("the tail", |status| status.activity == importer::Activity::Tailing).await;
    world.sql(&insert(11)).await;
    import.reaches(world.captured().await).await;
    let warnings = import.status.get().warnings;
    assert!(warnings.iter().any(|warning| warning.contains("dbo.odd: column twice is computed")), "{warnings:?}");
    import.stop().await;
    let events = world.events().await;
    let row =
        |id: usize| events.iter().find(|event| event["after"]["id"] == id).unwrap_or_else(|| panic!("row {id}"))["after"].clone();
    for start in [1, 11] {
        let (first, second, third) = (row(start), row(start + 1), row(start + 2));
        let told = |row: &Json| {
            ["text_", "ntext_", "image_", "variant_", "node", "utf8", "polish"].map(|column| row[column].to_string()).join(" ")
        };
        assert_eq!(told(&first), r#""old text" "древний" "AQI=" "922337203685477.5807" "/1/1/" "déjà" "Zürich""#);
        assert_eq!(told(&second), r#""" "" "" "a variant" null "" """#);
        assert_eq!(told(&third), "null null null 7 null null null");
        assert_eq!(first["version_"].as_str().unwrap().len(), 12, "eight bytes in base64");
        // Capture does not record a computed column, so the snapshot does not show it either.
        assert!(first.get("twice").is_none(), "{first}");
    }
}
