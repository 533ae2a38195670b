//! Ranges of source tables: exact, in the server's order, whatever the key.

use schemas::value::Value;
use source::Client;
use source::rows::{KeyRange, SourceTable, Start};

use super::support::{World, enable};

/// All rows of a range, read in chunks.
async fn read(client: &mut Client, table: &SourceTable, range: &KeyRange, rows: usize, bytes: usize) -> Vec<Vec<Value>> {
    let (mut range, mut all) = (range.clone(), Vec::new());
    loop {
        let chunk = table.read(client, &range, rows, bytes).await.unwrap();
        assert!(chunk.rows.len() <= rows);
        assert!(chunk.at_end || !chunk.rows.is_empty());
        if let Some(last) = chunk.rows.last() {
            range = range.after(table.key_of(last).unwrap());
        }
        all.extend(chunk.rows);
        if chunk.at_end {
            return all;
        }
    }
}

/// Cut into any number of parts and read in chunks of any size, a table comes out whole and in the server's order.
async fn tiles(world: &mut World, name: &str, order: &str) {
    let table = world.source_table(name).await;
    let expected: i64 = match &world.sql(&format!("SELECT COUNT_BIG(*) FROM dbo.{name}")).await[0][0][0] {
        sqlserver::Value::Int(count) => *count,
        other => panic!("{other:?}"),
    };
    let whole = read(&mut world.client, &table, &KeyRange::default(), 1000, usize::MAX).await;
    assert_eq!(i64::try_from(whole.len()).unwrap(), expected);
    let sorted: Vec<_> =
        world.client.rows("sorting", &format!("SELECT * FROM dbo.{name} ORDER BY {order}"), vec![]).await.unwrap();
    let sorted: Vec<Vec<Value>> = sorted.into_iter().map(|row| table.values(row).unwrap()).collect();
    assert_eq!(whole, sorted);
    for parts in [1, 2, 3, 7, 1000] {
        let points = table.split_points(&mut world.client, parts, whole.len() as u64).await.unwrap();
        assert!(points.len() < parts, "{parts} parts are cut by {points:?}");
        assert_eq!(points.len() + 1, parts.min(whole.len()).max(1));
        let mut tiled = Vec::new();
        for range in KeyRange::between(points) {
            tiled.extend(read(&mut world.client, &table, &range, 3, usize::MAX).await);
        }
        assert_eq!(tiled, whole, "{parts} parts");
    }
    assert!(table.estimated_rows(&mut world.client).await.unwrap().is_some());
}

const NAMES: [&str; 8] = ["a", "B", "bb ", "C", "ä", "z", "Zz", "É"];

#[tokio::test]
async fn composite_keys_tile_exactly() {
    let mut script =
        String::from("CREATE TABLE dbo.items (a int NOT NULL, b int NOT NULL, c int NOT NULL, v int, PRIMARY KEY (a, b, c));");
    for number in 0..60 {
        script += &format!("INSERT dbo.items VALUES ({}, {}, {}, {number});", number % 3, number % 4, number);
    }
    let mut world = World::start(&(script + &enable("items"))).await;
    tiles(&mut world, "items", "a, b, c").await;
}

#[tokio::test]
async fn case_insensitive_composite_keys_tile_exactly() {
    let mut script = String::from(
        "CREATE TABLE dbo.names (n nvarchar(20) COLLATE Latin1_General_CI_AS NOT NULL, k int NOT NULL, PRIMARY KEY (n, k));",
    );
    for name in NAMES {
        for number in 0..4 {
            script += &format!("INSERT dbo.names VALUES (N'{name}', {number});");
        }
    }
    let mut world = World::start(&(script + &enable("names"))).await;
    tiles(&mut world, "names", "n, k").await;
}

#[tokio::test]
async fn uniqueidentifier_and_decimal_keys_tile_exactly() {
    let mut script = String::from(
        "CREATE TABLE dbo.ids (id uniqueidentifier NOT NULL PRIMARY KEY); CREATE TABLE dbo.sums (d decimal(10,2) NOT NULL, t datetime2(3) NOT NULL, PRIMARY KEY (d, t));",
    );
    for number in 0u32..40 {
        let scattered = u128::from(number.wrapping_mul(2_654_435_761)) << (number % 90);
        let hex = format!("{scattered:032x}");
        script +=
            &format!("INSERT dbo.ids VALUES ('{}-{}-{}-{}-{}');", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
        script += &format!(
            "INSERT dbo.sums VALUES ({}.{:02}, '2024-01-01T00:00:{:02}.{:03}');",
            number % 5,
            number % 3,
            number,
            number
        );
    }
    let mut world = World::start(&(script + &enable("ids") + &enable("sums"))).await;
    tiles(&mut world, "ids", "id").await;
    tiles(&mut world, "sums", "d, t").await;
}

#[tokio::test]
async fn a_range_that_a_person_asks_for_is_read_and_no_more() {
    let mut script = String::from("CREATE TABLE dbo.items (a int NOT NULL, b varchar(5) NOT NULL, PRIMARY KEY (a, b));");
    for number in 0..30 {
        script += &format!("INSERT dbo.items VALUES ({}, 'x{number:02}');", number / 3);
    }
    let mut world = World::start(&(script + &enable("items"))).await;
    let table = world.source_table("items").await;
    let key = |parts: &[&str]| table.key_from_text(parts).unwrap();
    let range = |from: &[&str], to: &[&str]| KeyRange { start: Start::From(key(from)), to: Some(key(to)) };
    let names = |rows: Vec<Vec<Value>>| -> Vec<String> {
        rows.into_iter().map(|row| format!("{} {}", row[0].to_json(), row[1].to_json().as_str().unwrap())).collect()
    };
    for rows in [1, 2, 100] {
        let mut ask = async |range: KeyRange| names(read(&mut world.client, &table, &range, rows, usize::MAX).await);
        assert_eq!(ask(range(&["2"], &["3"])).await, ["2 x06", "2 x07", "2 x08", "3 x09", "3 x10", "3 x11"]);
        assert_eq!(ask(range(&["2", "x07"], &["3", "x09"])).await, ["2 x07", "2 x08", "3 x09"]);
        assert_eq!(ask(range(&["2", "x07a"], &["2", "x07b"])).await, Vec::<String>::new());
        assert_eq!(ask(range(&["9", "x28"], &["99"])).await, ["9 x28", "9 x29"]);
    }
    assert!(table.key_from_text(&["x"]).unwrap_err().to_string().contains("is not a value of int"));
    assert!(table.key_from_text(&["1", "x", "y"]).is_err());
}

#[tokio::test]
async fn a_chunk_is_cut_where_its_rows_are_too_large() {
    let mut script = String::from("CREATE TABLE dbo.texts (id int NOT NULL PRIMARY KEY, v varchar(8000));");
    for number in 0..50 {
        script += &format!("INSERT dbo.texts VALUES ({number}, '{}');", "x".repeat(1000));
    }
    let mut world = World::start(&(script + &enable("texts"))).await;
    let table = world.source_table("texts").await;
    let chunk = table.read(&mut world.client, &KeyRange::default(), 50, 5000).await.unwrap();
    assert!((4..=6).contains(&chunk.rows.len()) && !chunk.at_end && chunk.bytes < 7000, "{} rows", chunk.rows.len());
    let all = read(&mut world.client, &table, &KeyRange::default(), 50, 5000).await;
    assert_eq!(all.len(), 50);
    assert_eq!(read(&mut world.client, &table, &KeyRange::default(), 50, 1).await, all);
}

/// Whatever a table, its columns and its instance are called, they are names and nothing else.
#[tokio::test]
async fn names_with_quotes_brackets_spaces_and_unicode_are_names() {
    let quoted = |name: &str| format!("[{}]", name.replace(']', "]]"));
    let (schema, name) = ("it's; DROP TABLE dbo.x --", "o]rd'er \" Ünï");
    let columns = ["k]ey'", "se lect", "not @P1", "ä\"b"];
    let [first, second, third, fourth] = columns.map(quoted);
    let table = format!("{}.{}", quoted(schema), quoted(name));
    let literal = |text: &str| format!("N'{}'", text.replace('\'', "''"));
    let mut script = format!(
        "CREATE TABLE dbo.x (id int);\nGO\nCREATE SCHEMA {};\nGO\nCREATE TABLE {table} ({first} int NOT NULL, {second} varchar(9) NOT NULL, {third} xml NULL, {fourth} money NULL, \
         PRIMARY KEY ({first}, {second}));\nGO\nEXEC sys.sp_cdc_enable_table @source_schema = {}, @source_name = {}, @role_name = NULL, @capture_instance = {};\nGO\n",
        quoted(schema),
        literal(schema),
        literal(name),
        literal("in'st]ance; --")
    );
    for number in 0..9 {
        script += &format!("INSERT {table} VALUES ({}, 'x{number}', N'<a/>', {number}.5);", number / 3);
    }
    let mut world = World::start(&script).await;
    world.capture().await;
    let catalog = source::Catalog::read(&mut world.client).await.unwrap();
    let name = schemas::TableName::new(schema, name);
    let captured = catalog.table(&name).unwrap();
    let instance = &captured.instances[0];
    let schema = instance.schema(&name);
    let rows = SourceTable::new(&schema, instance).unwrap();
    assert_eq!(rows.estimated_rows(&mut world.client).await.unwrap(), Some(9));
    let points = rows.split_points(&mut world.client, 3, 9).await.unwrap();
    let mut all = Vec::new();
    for range in KeyRange::between(points) {
        all.extend(read(&mut world.client, &rows, &range, 2, usize::MAX).await);
    }
    assert_eq!(all.len(), 9);
    let changes = source::changes::ChangeTable::new(&schema, instance, instance.start_lsn, 2).unwrap();
    let mut cursor = source::changes::Cursor::new(changes.into(), schemas::Lsn::ZERO, schemas::Lsn::MAX, 1);
    let mut captured = Vec::new();
    while let Some(page) = cursor.page(&mut world.client).await.unwrap() {
        captured.extend(page.into_iter().filter_map(|change| change.after));
    }
    assert_eq!(captured, all);
    let from = instance.start_lsn;
    let counted = source::recount::changes(&mut world.client, &[&instance.name], from, schemas::Lsn::MAX).await.unwrap();
    assert_eq!(counted, [source::recount::Count::Changes(9)]);
    let found = source::changes::Probe::new(&[&instance.name]).ask(&mut world.client).await.unwrap();
    assert_eq!(found.newest.len(), 1);
    world.sql("ALTER DATABASE shop SET ALLOW_SNAPSHOT_ISOLATION ON;").await;
    source::fence::open(&world.source, std::slice::from_ref(&name), 1).await.unwrap();
    world.sql("SELECT id FROM dbo.x").await;
}
