//! The types beyond the ordinary, the same from the source table and from the change table.

use std::sync::Arc;

use schemas::Lsn;
use schemas::value::Value;
use source::changes::Cursor;
use source::rows::KeyRange;

use super::support::{World, enable};

/// Every row of a table as JSON text, from the table itself and from its change table, which must be alike.
async fn told(world: &mut World, name: &str) -> Vec<Vec<String>> {
    world.capture().await;
    let rows = world.source_table(name).await;
    let rows = rows.read(&mut world.client, &KeyRange::default(), 1000, usize::MAX).await.unwrap().rows;
    let changes = world.change_table(name, 1000).await;
    let mut cursor = Cursor::new(Arc::clone(&changes), Lsn::ZERO, Lsn::MAX, 1);
    let mut captured = Vec::new();
    while let Some(page) = cursor.page(&mut world.client).await.unwrap() {
        captured.extend(page.into_iter().filter_map(|change| change.after));
    }
    assert_eq!(rows, captured);
    let text = |row: Vec<Value>| row.iter().map(|value| value.to_json().to_string()).collect();
    rows.into_iter().map(text).collect()
}

#[tokio::test]
async fn json_and_vectors_come_as_text() {
    let script = "CREATE TABLE dbo.t (id int NOT NULL PRIMARY KEY, doc json NULL, v vector(3) NULL);".to_owned() + &enable("t");
    let mut world = World::start(&script).await;
    world.sql("INSERT dbo.t VALUES (1, '{\"a\": [1, 2]}', '[1, 2.5, -3]'); INSERT dbo.t VALUES (2, NULL, NULL);").await;
    let rows = told(&mut world, "t").await;
    let parsed = |text: &str| serde_json::from_str::<serde_json::Value>(&serde_json::from_str::<String>(text).unwrap()).unwrap();
    assert_eq!(parsed(&rows[0][1]), serde_json::json!({"a": [1, 2]}));
    assert_eq!(parsed(&rows[0][2]), serde_json::json!([1.0, 2.5, -3.0]));
    assert_eq!(rows[1], ["2", "null", "null"]);
}

#[tokio::test]
async fn objects_come_as_sql_server_shows_them_and_paths_are_keys() {
    let script = "CREATE TABLE dbo.t (node hierarchyid NOT NULL PRIMARY KEY, place geography NULL, shape geometry NULL);"
        .to_owned()
        + &enable("t");
    let mut world = World::start(&script).await;
    world
        .sql(
            "INSERT dbo.t VALUES ('/1/2.1/', geography::STGeomFromText('POINT (8.5 47.25)', 4326), \
             geometry::STGeomFromText('POLYGON ((0 0, 3 0, 3 3, 0 0))', 0)); INSERT dbo.t VALUES ('/3/', NULL, NULL);",
        )
        .await;
    let rows = told(&mut world, "t").await;
    let polygon = "\"SRID=0;POLYGON ((0 0, 3 0, 3 3, 0 0))\"";
    assert_eq!(rows[0], ["\"/1/2.1/\"", "\"SRID=4326;POINT (8.5 47.25)\"", polygon]);
    assert_eq!(rows[1], ["\"/3/\"", "null", "null"]);
    let table = world.source_table("t").await;
    let first = table.read(&mut world.client, &KeyRange::default(), 1, usize::MAX).await.unwrap();
    let rest = KeyRange::default().after(table.key_of(&first.rows[0]).unwrap());
    let second = table.read(&mut world.client, &rest, 10, usize::MAX).await.unwrap();
    assert_eq!((second.rows.len(), &second.rows[0][0]), (1, &Value::Text("/3/".into())));
}

/// A value of each type that a sql_variant may hold, and how it is written.
const VARIANTS: [(&str, &str); 19] = [
    ("CAST(1 AS bit)", "true"),
    ("CAST(255 AS tinyint)", "255"),
    ("CAST(-7 AS smallint)", "-7"),
    ("CAST(-1 AS bigint)", "-1"),
    ("CAST(1.5 AS real)", "1.5"),
    ("CAST(0.1 AS float)", "0.1"),
    ("CAST(12.30 AS decimal(10,2))", "\"12.30\""),
    ("CAST(922337203685477.5807 AS money)", "\"922337203685477.5807\""),
    ("CAST(0.0001 AS smallmoney)", "\"0.0001\""),
    ("CAST('ab' AS char(4))", "\"ab  \""),
    ("CAST('é' AS varchar(10))", "\"é\""),
    ("CAST(N'ü' AS nvarchar(5))", "\"ü\""),
    ("0x0102", "\"AQI=\""),
    ("CAST('2024-01-01' AS date)", "\"2024-01-01\""),
    ("CAST('12:34:56.789' AS time(3))", "\"12:34:56.789\""),
    ("CAST('2024-01-01T12:34:56.789' AS datetime2(3))", "\"2024-01-01T12:34:56.789\""),
    ("CAST('2024-01-01T12:34:56.789+02:00' AS datetimeoffset(3))", "\"2024-01-01T12:34:56.789+02:00\""),
    ("CAST('6F9619FF-8B86-D011-B42D-00C04FC964FF' AS uniqueidentifier)", "\"6F9619FF-8B86-D011-B42D-00C04FC964FF\""),
    ("NULL", "null"),
];

#[tokio::test]
async fn a_variant_comes_as_the_type_that_it_holds() {
    let mut script = "CREATE TABLE dbo.t (id int NOT NULL PRIMARY KEY, v sql_variant NULL);".to_owned() + &enable("t");
    for (id, (value, _)) in VARIANTS.iter().enumerate() {
        script += &format!("INSERT dbo.t VALUES ({id}, {value});");
    }
    let mut world = World::start(&script).await;
    let rows = told(&mut world, "t").await;
    for (row, (value, expected)) in rows.iter().zip(VARIANTS) {
        assert_eq!(row[1], expected, "{value}");
    }
    assert_eq!(rows.len(), VARIANTS.len());
}

#[tokio::test]
async fn text_comes_through_any_code_page_and_alias_types_are_what_they_are_made_of() {
    let script = "CREATE TYPE dbo.phone FROM nvarchar(20) NOT NULL;\nGO\n\
        CREATE TABLE dbo.t (id int NOT NULL PRIMARY KEY, p dbo.phone, utf8 varchar(10) COLLATE Latin1_General_100_CI_AS_SC_UTF8 NULL, \
        greek varchar(10) COLLATE Greek_CI_AS NULL, dos char(4) COLLATE SQL_Latin1_General_CP850_CI_AS NULL, polish varchar(20) COLLATE Polish_CI_AS NULL, \
        russian text COLLATE Cyrillic_General_CI_AS NULL);\nGO\n"
        .to_owned()
        + &enable("t");
    let mut world = World::start(&script).await;
    world.sql("INSERT dbo.t VALUES (1, N'+41 ☎', N'ü☕', N'αβγ', N'ä', N'Łódź', N'привет');").await;
    let rows = told(&mut world, "t").await;
    let expected = ["+41 ☎", "ü☕", "αβγ", "ä   ", "Łódź", "привет"].map(|text| format!("\"{text}\""));
    assert_eq!(rows[0][1..], expected);
    let table = world.table("t").await;
    assert_eq!(table.instances[0].columns[1].sql_type.to_string(), "nvarchar(20)");
}
