//! Promoted columns, tables of children and kept deletions, in each of the three databases: what is in them, how they follow the configuration, and what does not fit.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::table::SqlType;
use schemas::{ErrorClass, Lsn};
use serde_json::{Value, json};
use sinks::mysql::{MysqlConfig, MysqlReader, MysqlSink};
use sinks::postgres::{PostgresConfig, PostgresReader, PostgresSink};
use sinks::sqlite::{SqliteConfig, SqliteReader, SqliteSink};
use sinks::test_support::{MysqlServer, PostgresServer};
use sinks::{EntityReader, Filter, Held, Operator, Query, Rejected, Sink, Tables};
use sqlx::{AssertSqlSafe, Connection, MySqlConnection, Row, SqliteConnection};

fn lsn(number: u32) -> Lsn {
    let [a, b, c, d] = number.to_be_bytes();
    Lsn::from_bytes([0, 0, 0, 1, a, b, c, d, 0, 1])
}

fn typed(kind: &str, format: Option<&str>, declared: &str) -> Value {
    match format {
        Some(format) => json!({"type": [kind, "null"], "format": format, "x-sql-type": declared}),
        None => json!({"type": [kind, "null"], "x-sql-type": declared}),
    }
}

/// An order with a member of each type.
fn order() -> EntityInfo {
    let item = json!({"type": "object", "properties": {
        "sku": typed("string", None, "nvarchar(20)"), "price": typed("string", Some("decimal"), "decimal(10,2)"),
        "product": {"type": "object", "properties": {"name": typed("string", None, "nvarchar(max)")}},
    }});
    let customer =
        json!({"anyOf": [{"type": "object", "properties": {"name": typed("string", None, "nvarchar(50)")}}, {"type": "null"}]});
    let schema = json!({"type": "object", "properties": {
        "id": typed("integer", None, "int"),
        "small": typed("integer", None, "smallint"),
        "big": typed("integer", None, "bigint"),
        "paid": typed("boolean", None, "bit"),
        "rate": typed("number", None, "float"),
        "single": typed("number", None, "real"),
        "total": typed("string", Some("decimal"), "decimal(10,2)"),
        "sum": {"type": "string", "format": "decimal"},
        "status": typed("string", None, "nvarchar(20)"),
        "note": typed("string", None, "nvarchar(max)"),
        "uid": typed("string", Some("uuid"), "uniqueidentifier"),
        "day": typed("string", Some("date"), "date"),
        "clock": typed("string", Some("local-time"), "time(6)"),
        "placed": typed("string", Some("local-date-time"), "datetime2(6)"),
        "at": typed("string", Some("date-time"), "datetimeoffset(6)"),
        "photo": typed("string", Some("base64"), "varbinary(max)"),
        "customer": customer,
        "items": {"type": "array", "items": item},
    }});
    EntityInfo { name: Arc::from("order"), key: vec![("id".to_owned(), SqlType::Int)], document_schema: schema }
}

fn change(key: &str, version: u32, document: Option<&Value>) -> EntityChange {
    EntityChange {
        entity: "order".into(),
        key: EntityKey::from_text(key),
        version: lsn(version),
        commit_time_ms: 0,
        document: document.map(|document| document.to_string().into()),
    }
}

fn tables(yaml: &str) -> Tables {
    serde_yaml_ng::from_str(yaml).unwrap()
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Database {
    Postgres,
    Mysql,
    Sqlite,
}

/// The three databases; a name stands for a schema, a database or a file.
struct Places {
    postgres: PostgresServer,
    mysql: MysqlServer,
    directory: tempfile::TempDir,
}

const ALL: [Database; 3] = [Database::Postgres, Database::Mysql, Database::Sqlite];

impl Places {
    fn file(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(format!("{name}.db"))
    }

    async fn fresh(&self, name: &str) {
        let mut root = MySqlConnection::connect(&self.mysql.root_url()).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE `{name}` CHARACTER SET latin1"))).execute(&mut root).await.unwrap();
    }

    fn postgres(&self, name: &str, tables: Tables) -> PostgresConfig {
        PostgresConfig { schema: name.to_owned(), tables, ..PostgresConfig::new(self.postgres.url()) }
    }

    fn mysql(&self, name: &str, tables: Tables) -> MysqlConfig {
        MysqlConfig { tables, ..MysqlConfig::new(self.mysql.url_of(name)) }
    }

    fn sqlite(&self, name: &str, tables: Tables) -> SqliteConfig {
        SqliteConfig { tables, ..SqliteConfig::new(self.file(name)) }
    }

    fn sink(&self, database: Database, name: &str, tables: Tables) -> Box<dyn Sink> {
        match database {
            Database::Postgres => Box::new(PostgresSink::new(self.postgres(name, tables)).unwrap()),
            Database::Mysql => Box::new(MysqlSink::new(self.mysql(name, tables)).unwrap()),
            Database::Sqlite => Box::new(SqliteSink::new(self.sqlite(name, tables))),
        }
    }

    fn reader(&self, database: Database, name: &str, tables: Tables) -> Box<dyn EntityReader> {
        match database {
            Database::Postgres => Box::new(PostgresReader::new(&self.postgres(name, tables)).unwrap()),
            Database::Mysql => Box::new(MysqlReader::new(&self.mysql(name, tables)).unwrap()),
            Database::Sqlite => Box::new(SqliteReader::new(&self.sqlite(name, tables))),
        }
    }

    /// The rows of a query as texts; NULL is `-`. Names are quoted with double quotes.
    async fn ask(&self, database: Database, name: &str, statement: &str) -> Vec<Vec<String>> {
        let shown = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        match database {
            Database::Postgres => {
                let (client, connection) = tokio_postgres::connect(&self.postgres.url(), tokio_postgres::NoTls).await.unwrap();
                tokio::spawn(connection);
                client.batch_execute(&format!("SET search_path TO \"{name}\"; SET TimeZone TO 'UTC'")).await.unwrap();
                let messages = client.simple_query(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
                let rows = messages.iter().filter_map(|message| match message {
                    tokio_postgres::SimpleQueryMessage::Row(row) => Some(row),
                    _ => None,
                });
                rows.map(|row| (0..row.len()).map(|nth| shown(row.get(nth).map(str::to_owned))).collect()).collect()
            }
            Database::Mysql => {
                let mut connection = MySqlConnection::connect(&self.mysql.url_of(name)).await.unwrap();
                let mode = "SET SESSION sql_mode = 'ANSI_QUOTES,STRICT_ALL_TABLES'";
                sqlx::raw_sql(mode).execute(&mut connection).await.unwrap();
                let rows = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).fetch_all(&mut connection).await;
                let rows = rows.unwrap_or_else(|error| panic!("{statement}: {error}"));
                let text = |row: &sqlx::mysql::MySqlRow, nth| shown(row.try_get_unchecked::<Option<String>, _>(nth).unwrap());
                rows.iter().map(|row| (0..row.len()).map(|nth| text(row, nth)).collect()).collect()
            }
            Database::Sqlite => {
                let path = format!("sqlite://{}", self.file(name).display());
                let mut connection = SqliteConnection::connect(&path).await.unwrap();
                let rows = sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).fetch_all(&mut connection).await;
                let rows = rows.unwrap_or_else(|error| panic!("{statement}: {error}"));
                let text = |row: &sqlx::sqlite::SqliteRow, nth| shown(row.try_get_unchecked::<Option<String>, _>(nth).unwrap());
                rows.iter().map(|row| (0..row.len()).map(|nth| text(row, nth)).collect()).collect()
            }
        }
    }
}

/// One cluster and one server serve every check, in turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_in_three_databases() {
    let places =
        Places { postgres: PostgresServer::start(), mysql: MysqlServer::start(), directory: tempfile::tempdir().unwrap() };
    // MariaDB counts the use of indexes where it is told to.
    let mut root = MySqlConnection::connect(&places.mysql.root_url()).await.unwrap();
    sqlx::raw_sql("SET GLOBAL userstat = 1").execute(&mut root).await.unwrap();
    for database in ALL {
        for check in ["columns", "filters", "follow", "unfit", "kept", "children", "taken", "types"] {
            if database == Database::Mysql {
                places.fresh(check).await;
            }
            eprintln!("{database:?} {check}");
            match check {
                "columns" => columns_equal_what_sql_extracts(&places, database, check).await,
                "filters" => filters_by_columns_find_what_the_documents_say(&places, database, check).await,
                "follow" => tables_follow_the_configuration(&places, database, check).await,
                "unfit" => what_does_not_fit_is_rejected_by_name(&places, database, check).await,
                "kept" => the_deleted_may_be_kept(&places, database, check).await,
                "children" => children_are_those_of_the_document(&places, database, check).await,
                "taken" => what_others_made_is_left_alone(&places, database, check).await,
                _ => a_wider_column_is_widened_and_another_is_filled_anew(&places, database, check).await,
            }
        }
    }
}

/// Prepares a sink, again where a table is just being altered by the one before.
async fn prepare(sink: &mut dyn Sink, entities: &[EntityInfo]) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    while let Err(error) = sink.prepare(entities).await {
        assert!(error.class() == ErrorClass::Transient && tokio::time::Instant::now() < deadline, "{error}");
    }
}

/// What the target says that it holds, and which entities lack something.
async fn standing(sink: &mut dyn Sink) -> (Held, Vec<String>) {
    (sink.held().await.unwrap(), sink.lacking().await.unwrap())
}

/// Documents with edges of every type in them, made from a number.
fn document(n: u32) -> Value {
    let pick = |values: &[Value]| values[n as usize % values.len()].clone();
    let null_each = |every: u32, value: Value| if n.is_multiple_of(every) { Value::Null } else { value };
    let items: Vec<Value> = (0..n % 4)
        .map(|line| json!({"sku": format!("s{line}"), "price": format!("{line}.{:02}", n % 100), "product": null_each(3, json!({"name": "ü\"\\"}))}))
        .collect();
    let day = format!("{:04}-{:02}-{:02}", [1, 1000, 1970, 2024, 9999][n as usize % 5], n % 12 + 1, n % 28 + 1);
    let time = format!("{:02}:{:02}:{:02}.{:06}", n % 24, n % 60, n * 7 % 60, n * 999 % 1_000_000);
    json!({
        "id": n, "small": pick(&[json!(-32768), json!(32767), json!(0)]), "big": pick(&[json!(i64::MIN), json!(i64::MAX), json!(7)]),
        "paid": null_each(5, json!(n.is_multiple_of(2))), "rate": pick(&[json!(0.1), json!(-1.5e20), json!(3), json!(1e-7)]),
        "single": pick(&[json!(0.5), json!(-2.25), json!(16_777_216)]),
        "total": null_each(7, json!(format!("{}{}.{:02}", if n.is_multiple_of(2) { "-" } else { "" }, n * 12_345 % 99_999_999, n % 100))),
        "sum": pick(&[json!("0"), json!("123456789012345678901234567890.123456"), json!("-0.000001"), json!("10000")]),
        "status": null_each(4, json!(pick(&[json!("OPEN"), json!("a'b\"c\\d"), json!(""), json!("ünïcödé ✓ 🙂"), json!("tab\tnewline\n")]))),
        "note": "x".repeat(n as usize % 300), "uid": format!("6f9619ff-8b86-d011-b42d-{n:012x}"), "day": null_each(6, json!(day)), "clock": time,
        "placed": format!("{day}T{time}"), "at": format!("2024-{:02}-15T{time}{}", n % 12 + 1, ["Z", "+02:00", "-09:30"][n as usize % 3]),
        "photo": pick(&[json!("AP8="), json!(""), json!("aGVsbG8=")]), "customer": null_each(3, json!({"name": format!("Ann {n}")})), "items": items,
    })
}

const EVERY: &str = "{order: {columns: {small: small, big: big, paid: paid, rate: rate, single: single, total: total, sum: sum, status: status, note: note, uid: uid, \
                     day: day, clock: clock, placed: placed, at: at, photo: photo, who: customer.name, customer: customer, select: id}, \
                     indexes: [[status, total], [who], [note], [placed, key]]}}";

/// Each promoted column beside what the database's own functions make of the document.
fn comparisons(database: Database) -> Vec<(&'static str, String)> {
    let path = |member: &str| member.split('.').map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(".");
    let of = |member: &str| match database {
        Database::Postgres => format!("(document #>> '{{{}}}')", member.replace('.', ",")),
        Database::Mysql => format!("NULLIF(JSON_UNQUOTE(JSON_EXTRACT(document, '$.{}')), 'null')", path(member)),
        Database::Sqlite => format!("json_extract(document, '$.{}')", path(member)),
    };
    let cast = |member: &str, postgres: &str, mysql: &str, sqlite: &str| {
        let kind = match database {
            Database::Postgres => postgres,
            Database::Mysql => mysql,
            Database::Sqlite => sqlite,
        };
        if kind.is_empty() { of(member) } else { format!("CAST({} AS {kind})", of(member)) }
    };
    let boolean = match database {
        Database::Mysql => format!("CASE {} WHEN 'true' THEN 1 WHEN 'false' THEN 0 END", of("paid")),
        _ => cast("paid", "boolean", "", ""),
    };
    let instant = match database {
        Database::Postgres => cast("at", "timestamptz", "", ""),
        Database::Mysql => format!(
            "CONVERT_TZ(CAST(LEFT({0}, 26) AS DATETIME(6)), IF({0} LIKE '%Z', '+00:00', RIGHT({0}, 6)), '+00:00')",
            of("at")
        ),
        Database::Sqlite => {
            "strftime('%Y-%m-%dT%H:%M:', document ->> 'at') || substr(document ->> 'at', 18, 9) || 'Z'".to_owned()
        }
    };
    let photo = match database {
        Database::Postgres => "decode(document ->> 'photo', 'base64')".to_owned(),
        Database::Mysql => format!("FROM_BASE64({})", of("photo")),
        Database::Sqlite => {
            "CASE document ->> 'photo' WHEN 'AP8=' THEN x'00ff' WHEN '' THEN x'' ELSE x'68656c6c6f' END".to_owned()
        }
    };
    vec![
        ("small", cast("small", "smallint", "SIGNED", "")),
        ("big", cast("big", "bigint", "SIGNED", "")),
        ("paid", boolean),
        ("rate", cast("rate", "float8", "DOUBLE", "REAL")),
        ("single", cast("single", "real", "DOUBLE", "REAL")),
        ("total", cast("total", "numeric(10,2)", "DECIMAL(10,2)", "REAL")),
        ("sum", cast("sum", "numeric", "DECIMAL(65,30)", "REAL")),
        ("status", of("status")),
        ("note", of("note")),
        ("uid", cast("uid", "uuid", "", "")),
        ("day", cast("day", "date", "DATE", "")),
        ("clock", cast("clock", "time", "TIME(6)", "")),
        ("placed", cast("placed", "timestamp", "DATETIME(6)", "")),
        ("at", instant),
        ("photo", photo),
        ("who", of("customer.name")),
        ("select", cast("id", "integer", "SIGNED", "")),
    ]
}

async fn columns_equal_what_sql_extracts(places: &Places, database: Database, name: &str) {
    const ROWS: u32 = 700;
    let mut sink = places.sink(database, name, tables(EVERY));
    sink.prepare(&[order()]).await.unwrap();
    let all = |version: u32, shift: u32| -> Vec<EntityChange> {
        (0..ROWS).map(|n| change(&n.to_string(), version, Some(&document(n + shift)))).collect()
    };
    // By a load; then in batches of both sizes, with every document another.
    sink.begin_load().await.unwrap();
    assert_eq!(sink.write(&all(1, 0), None).await.unwrap(), []);
    sink.end_load("order", lsn(1)).await.unwrap();
    sink.write(&[], Some(lsn(1))).await.unwrap();
    equal(places, database, name, ROWS).await;
    let next = all(2, 1);
    assert_eq!(sink.write(&next[..600], Some(lsn(2))).await.unwrap(), []);
    for part in next[600..].chunks(50) {
        assert_eq!(sink.write(part, Some(lsn(2))).await.unwrap(), []);
    }
    equal(places, database, name, ROWS).await;
    // What is older changes no column.
    sink.write(&all(1, 2), None).await.unwrap();
    equal(places, database, name, ROWS).await;
    assert_eq!(
        places
            .ask(database, name, "SELECT \"select\" FROM \"order\" WHERE key = '7'".replace("key", &key(database)).as_str())
            .await,
        [["8"]]
    );
}

fn key(database: Database) -> String {
    if database == Database::Mysql { "`key`".to_owned() } else { "key".to_owned() }
}

async fn equal(places: &Places, database: Database, name: &str, rows: u32) {
    for (column, extracted) in comparisons(database) {
        let same = match database {
            Database::Postgres => format!("\"{column}\" IS NOT DISTINCT FROM {extracted}"),
            Database::Mysql => format!("\"{column}\" <=> {extracted}"),
            Database::Sqlite => format!("\"{column}\" IS {extracted}"),
        };
        let count = format!("SELECT count(*) FROM \"order\" WHERE {same}");
        let found = places.ask(database, name, &count).await;
        if found != [[rows.to_string()]] {
            let which = format!("SELECT \"{column}\", {extracted} FROM \"order\" WHERE NOT ({same}) LIMIT 5");
            panic!("{database:?} {column}: {found:?} of {rows}; {:?}", places.ask(database, name, &which).await);
        }
    }
}

/// The indexes of the table of orders that a sink made, without the end of their names.
async fn indexes(places: &Places, database: Database, name: &str) -> Vec<String> {
    let ask = match database {
        Database::Postgres => {
            format!("SELECT indexname FROM pg_indexes WHERE schemaname = '{name}' AND left(indexname, 11) = '_tributary_'")
        }
        Database::Mysql => format!(
            "SELECT DISTINCT index_name FROM information_schema.statistics WHERE table_schema = '{name}' AND left(index_name, 11) = '_tributary_'"
        ),
        Database::Sqlite => {
            "SELECT name FROM sqlite_schema WHERE type = 'index' AND substr(name, 1, 11) = '_tributary_'".to_owned()
        }
    };
    let mut names: Vec<String> = places.ask(database, name, &ask).await.into_iter().map(|row| row[0].clone()).collect();
    names.retain(|index| index.contains("order"));
    names.iter_mut().for_each(|index| index.truncate(index.len() - 9));
    names.sort();
    names
}

/// They are made beside what the sink writes.
async fn until_indexed(places: &Places, database: Database, name: &str, wanted: &str) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        let found = indexes(places, database, name).await;
        if found == [wanted] {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "in vain: {wanted}; there are {found:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// The keys on the first page of what meets a condition.
async fn found(reader: &dyn EntityReader, path: &str, operator: Operator, value: &str) -> Vec<String> {
    let filter = Filter { path: path.split('.').map(str::to_owned).collect(), operator, value: value.to_owned() };
    let query = Query { entity: "order".to_owned(), filters: vec![filter], after: None, limit: 30 };
    reader.list(&query).await.unwrap().into_iter().map(|stored| stored.key.to_string()).collect()
}

/// For every type and operator, with values that are there and others; and an index is what finds them.
async fn filters_by_columns_find_what_the_documents_say(places: &Places, database: Database, name: &str) {
    let mut sink = places.sink(database, name, tables(EVERY));
    prepare(&mut *sink, &[order()]).await;
    sink.begin_load().await.unwrap();
    let all: Vec<_> = (0..400).map(|n| change(&n.to_string(), 1, Some(&document(n)))).collect();
    assert_eq!(sink.write(&all, None).await.unwrap(), []);
    sink.end_load("order", lsn(1)).await.unwrap();
    sink.write(&[], Some(lsn(1))).await.unwrap();
    let (by_columns, by_documents) = (places.reader(database, name, tables(EVERY)), places.reader(database, name, Tables::new()));
    let members = [
        "small",
        "big",
        "paid",
        "rate",
        "single",
        "total",
        "sum",
        "status",
        "uid",
        "day",
        "clock",
        "placed",
        "at",
        "customer.name",
        "id",
    ];
    let mut cases: Vec<(&str, String)> = [
        ("placed", "2024-03-04"),
        ("total", "0"),
        ("total", "12345.000"),
        ("paid", "1"),
        ("paid", "0"),
        ("status", "open"),
        ("status", "OPEN "),
        ("id", "7.0"),
        ("day", "2024"),
    ]
    .map(|(path, value)| (path, value.to_owned()))
    .into();
    for path in members {
        for n in [0, 1, 8, 13] {
            let value = document(n).pointer(&format!("/{}", path.replace('.', "/"))).cloned().unwrap_or_default();
            cases.push((path, value.as_str().map_or_else(|| value.to_string(), str::to_owned)));
        }
    }
    use Operator::{Eq, Gt, Gte, Lt, Lte, Neq};
    for (path, value) in &cases {
        for operator in [Eq, Neq, Gt, Gte, Lt, Lte] {
            let (ours, expected) =
                (found(&*by_columns, path, operator, value).await, found(&*by_documents, path, operator, value).await);
            assert_eq!(ours, expected, "{path} {operator:?} {value}");
        }
    }
    // The server counts who was of use.
    let used = match database {
        Database::Postgres => Some(
            "SELECT idx_scan FROM pg_stat_user_indexes WHERE schemaname = 'filters' AND indexrelname LIKE '%order_who%' AND idx_scan > 0",
        ),
        Database::Mysql => Some(
            "SELECT rows_read FROM information_schema.index_statistics WHERE table_schema = 'filters' AND index_name LIKE '%order_who%' AND rows_read > 0",
        ),
        // `joiner/sinks/src/sqlite/reader.rs` asks for the plan.
        Database::Sqlite => None,
    };
    if let Some(used) = used {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
        loop {
            assert_eq!(found(&*by_columns, "customer.name", Eq, "Ann 7").await, ["7"]);
            if !places.ask(database, name, used).await.is_empty() {
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "the index is of no use");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
    // A column that means something else, and is empty until it has been loaded, is not relied on; nor is one that is gone.
    let mut sink = places.sink(database, name, tables("{order: {columns: {status: note}}}"));
    prepare(&mut *sink, &[order()]).await;
    for (path, value) in [("status", "OPEN"), ("customer.name", "Ann 7")] {
        let expected = found(&*by_documents, path, Eq, value).await;
        assert!(!expected.is_empty());
        assert_eq!(found(&*by_columns, path, Eq, value).await, expected);
    }
}

async fn tables_follow_the_configuration(places: &Places, database: Database, name: &str) {
    let load = async |sink: &mut dyn Sink, version: u32| {
        sink.begin_load().await.unwrap();
        let all: Vec<_> = (0..10).map(|n| change(&n.to_string(), version, Some(&document(n)))).collect();
        assert_eq!(sink.write(&all, None).await.unwrap(), []);
        sink.end_load("order", lsn(version)).await.unwrap();
        sink.write(&[], Some(lsn(version))).await.unwrap();
    };
    // At first there is nothing but the document.
    let mut sink = places.sink(database, name, Tables::new());
    prepare(&mut *sink, &[order()]).await;
    load(&mut *sink, 5).await;
    assert_eq!(sink.held().await.unwrap(), Held::UpTo(lsn(5)));

    // Columns, an index and children are new: said before, made empty, and filled by a load of the version that is there already.
    let wanted = "{order: {columns: {status: status, total: total}, indexes: [[status, total]], children: {order_items: {list: items, columns: {sku: sku}}}}}";
    let mut sink = places.sink(database, name, tables(wanted));
    let checked = sink.check(&[order()]).await.unwrap();
    let said = checked.warnings.join("\n");
    for words in ["ADD COLUMN", "CREATE TABLE", "INDEX", "loaded anew"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(places.sink(database, name, Tables::new()).check(&[order()]).await.unwrap().warnings, Vec::<String>::new());
    prepare(&mut *sink, &[order()]).await;
    assert_eq!(standing(&mut *sink).await, (Held::UpTo(lsn(5)), vec!["order".to_owned()]));
    let reader = places.reader(database, name, tables(wanted));
    assert_eq!(reader.frontier().await.unwrap(), Some(lsn(5)), "documents are served meanwhile");
    sink.write(&[change("3", 6, Some(&document(3)))], None).await.unwrap();
    prepare(&mut *sink, &[order()]).await;
    assert_eq!(standing(&mut *sink).await, (Held::UpTo(lsn(5)), vec!["order".to_owned()]), "also after a restart");
    assert_eq!(indexes(places, database, name).await, Vec::<String>::new(), "made when the table is full");
    load(&mut *sink, 6).await;
    assert_eq!(standing(&mut *sink).await, (Held::UpTo(lsn(6)), Vec::new()));
    until_indexed(places, database, name, "_tributary_order_status_total").await;
    let unfilled = "SELECT count(*) FROM \"order\" WHERE total IS NULL";
    // Those whose documents have none.
    assert_eq!(places.ask(database, name, unfilled).await, [["2"]]);
    assert_eq!(places.ask(database, name, "SELECT count(*) FROM order_items").await, [["13"]]);
    let checked = places.sink(database, name, tables(wanted)).check(&[order()]).await.unwrap();
    assert_eq!(checked.warnings, Vec::<String>::new(), "nothing is left to do");

    // An index alone needs no load.
    let more = wanted.replace("[[status, total]]", "[[total]]");
    let mut sink = places.sink(database, name, tables(&more));
    prepare(&mut *sink, &[order()]).await;
    assert_eq!(sink.held().await.unwrap(), Held::UpTo(lsn(6)));
    until_indexed(places, database, name, "_tributary_order_total").await;

    // A column of another member is another column; what is no longer wanted goes.
    let mut sink = places.sink(database, name, tables("{order: {columns: {total: sum}, indexes: [[total]]}}"));
    prepare(&mut *sink, &[order()]).await;
    assert_eq!(standing(&mut *sink).await, (Held::UpTo(lsn(6)), vec!["order".to_owned()]));
    assert_eq!(places.ask(database, name, unfilled).await, [["10"]], "nobody reads what it meant before");
    load(&mut *sink, 6).await;
    assert_eq!(places.ask(database, name, unfilled).await, [["0"]], "also at the version that is there");
    let mut sink = places.sink(database, name, Tables::new());
    prepare(&mut *sink, &[order()]).await;
    assert_eq!(sink.held().await.unwrap(), Held::UpTo(lsn(6)));
    assert_eq!(indexes(places, database, name).await, Vec::<String>::new());
    let versions = places.ask(database, name, "SELECT version, statements FROM _tributary_shape ORDER BY version").await;
    let versions: Vec<&str> = versions.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(versions, ["1", "2", "3"], "an index is in the catalog alone");
}

fn by_key(rejected: &[Rejected]) -> BTreeMap<&str, &str> {
    rejected.iter().map(|rejected| (rejected.change.key.as_str(), rejected.reason.as_str())).collect()
}

async fn what_does_not_fit_is_rejected_by_name(places: &Places, database: Database, name: &str) {
    let wanted = "{order: {columns: {total: total, day: day, status: status, number: id}, children: {order_items: {list: items, columns: {price: price}}}}}";
    let mut sink = places.sink(database, name, tables(wanted));
    sink.prepare(&[order()]).await.unwrap();
    let mut all: Vec<_> = (0..300).map(|n| change(&n.to_string(), 1, Some(&document(n)))).collect();
    let strange = [
        ("a", json!({"id": 3_000_000_000_u64}), "order a: column number: 3000000000"),
        ("b", json!({"day": "2024-02-30"}), "order b: column day: \"2024-02-30\""),
        ("c", json!({"total": "x"}), "order c: column total: \"x\""),
        ("d", json!({"items": [{"price": "1.00"}, {"price": true}]}), "order d: items[1], table order_items, column price: true"),
        ("e", json!({"items": 5}), "order e: items is no list"),
    ];
    all.extend(strange.iter().map(|(key, document, _)| change(key, 1, Some(document))));
    for loaded in [true, false] {
        if loaded {
            sink.begin_load().await.unwrap();
        }
        let rejected = sink.write(&all, None).await.unwrap();
        let reasons = by_key(&rejected);
        assert_eq!(reasons.len(), strange.len(), "{reasons:?}");
        for (key, _, reason) in &strange {
            assert!(reasons[key].starts_with(reason), "{}", reasons[key]);
        }
        sink.write(&[], Some(lsn(1))).await.unwrap();
    }
    let long = [
        change("long", 2, Some(&json!({"status": "x".repeat(21)}))),
        change("dear", 2, Some(&json!({"total": "1234567890.00"}))),
    ];
    let rejected = sink.write(&long, None).await.unwrap();
    let reasons = by_key(&rejected);
    assert_eq!(reasons.contains_key("long"), database == Database::Mysql, "{reasons:?}");
    assert_eq!(reasons.contains_key("dear"), database != Database::Sqlite, "{reasons:?}");
    assert_eq!(places.reader(database, name, Tables::new()).count("order").await.unwrap(), 302 - reasons.len() as u64);

    // A document that only the database refuses, with its columns and children, and the rest of the batch.
    let constraint = match database {
        Database::Postgres | Database::Mysql => "ALTER TABLE order_items ADD CONSTRAINT cheap CHECK (price < 1000)",
        Database::Sqlite => return,
    };
    places.ask(database, name, constraint).await;
    let priced = |n: u32, price: &str| change(&n.to_string(), 3, Some(&json!({"id": n, "items": [{"price": price}]})));
    let batch: Vec<_> = (0..300).map(|n| priced(n, if n == 40 { "5000.00" } else { "2.00" })).collect();
    let rejected = sink.write(&batch, Some(lsn(3))).await.unwrap();
    let reasons = by_key(&rejected);
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    assert!(reasons["40"].contains("cheap"), "{reasons:?}");
    assert_eq!(places.ask(database, name, "SELECT count(*) FROM order_items WHERE price = 2").await, [["299"]]);
}

async fn the_deleted_may_be_kept(places: &Places, database: Database, name: &str) {
    let wanted =
        || tables("{order: {columns: {number: id}, deleted: keep, children: {order_items: {list: items, columns: {sku: sku}}}}}");
    let (mut sink, reader) = (places.sink(database, name, wanted()), places.reader(database, name, wanted()));
    sink.prepare(&[order()]).await.unwrap();
    let all: Vec<_> = (1..=3).map(|n| change(&n.to_string(), 1, Some(&document(n)))).collect();
    sink.write(&all, Some(lsn(1))).await.unwrap();
    sink.write(&[change("2", 4, None), change("9", 4, None)], Some(lsn(4))).await.unwrap();
    let rows = format!("SELECT {}, number, deleted, version FROM \"order\" ORDER BY number", key(database));
    let deleted = |row: &[String]| matches!(row[2].as_str(), "t" | "1");
    let kept = places.ask(database, name, &rows).await;
    assert_eq!(kept.iter().map(|row| deleted(row)).collect::<Vec<_>>(), [false, true, false], "what was never there is not");
    assert_eq!(kept[1][3], lsn(4).to_string());
    assert_eq!(reader.count("order").await.unwrap(), 2);
    assert_eq!(reader.get("order", &EntityKey::from_text("2")).await.unwrap(), None);
    let query = sinks::Query { entity: "order".to_owned(), filters: Vec::new(), after: None, limit: 10 };
    assert_eq!(reader.list(&query).await.unwrap().len(), 2);
    // What is older brings nothing back, what is newer does.
    sink.write(&[change("2", 3, Some(&document(2)))], None).await.unwrap();
    assert_eq!(reader.count("order").await.unwrap(), 2);
    sink.write(&[change("2", 5, Some(&document(2)))], None).await.unwrap();
    assert_eq!(reader.count("order").await.unwrap(), 3);
    // What has vanished by the end of a load is marked too.
    sink.begin_load().await.unwrap();
    sink.write(&[change("1", 9, Some(&document(1)))], None).await.unwrap();
    sink.end_load("order", lsn(9)).await.unwrap();
    sink.write(&[], Some(lsn(9))).await.unwrap();
    assert_eq!(reader.count("order").await.unwrap(), 1);
    assert_eq!(places.ask(database, name, &rows).await.len(), 3);
    // Without the setting they go.
    let mut sink = places.sink(database, name, tables("{order: {columns: {number: id}}}"));
    sink.prepare(&[order()]).await.unwrap();
    assert_eq!(places.ask(database, name, "SELECT number FROM \"order\"").await, [["1"]]);
    assert_eq!(sink.held().await.unwrap(), Held::UpTo(lsn(9)));
}

async fn children_are_those_of_the_document(places: &Places, database: Database, name: &str) {
    let wanted = "{order: {children: {order_items: {list: items, columns: {sku: sku, price: price, product: product.name}, indexes: [[sku]]}}}}";
    let mut sink = places.sink(database, name, tables(wanted));
    sink.prepare(&[order()]).await.unwrap();
    let rows = format!("SELECT {}, position, sku FROM order_items ORDER BY 1, 2", key(database));
    // Against the documents that stand there, whatever has been written.
    let compare = async |what: &str| {
        let text = if database == Database::Postgres { "document::text" } else { "document" };
        let documents = places.ask(database, name, &format!("SELECT {}, {text} FROM \"order\" ORDER BY 1", key(database))).await;
        let mut expected = Vec::new();
        for row in documents {
            let document: Value = serde_json::from_str(&row[1]).unwrap();
            for (position, item) in document["items"].as_array().into_iter().flatten().enumerate() {
                expected.push(vec![row[0].clone(), position.to_string(), item["sku"].as_str().unwrap().to_owned()]);
            }
        }
        assert_eq!(places.ask(database, name, &rows).await, expected, "{what}");
        expected.len()
    };
    let of = |shift: u32, version: u32, count: u32| -> Vec<EntityChange> {
        (0..count).map(|n| change(&format!("{n:03}"), version, Some(&document(n + shift)))).collect()
    };
    sink.begin_load().await.unwrap();
    sink.write(&of(0, 2, 700), None).await.unwrap();
    sink.end_load("order", lsn(2)).await.unwrap();
    sink.write(&[], Some(lsn(2))).await.unwrap();
    assert_eq!(compare("a load").await, 1050);
    sink.write(&of(1, 3, 400), Some(lsn(3))).await.unwrap();
    sink.write(&of(2, 3, 30), Some(lsn(3))).await.unwrap();
    compare("updates").await;
    sink.write(&of(3, 1, 700), None).await.unwrap();
    compare("what is older").await;
    let deletions: Vec<_> = (0..100).map(|n| change(&format!("{n:03}"), 4, None)).collect();
    sink.write(&deletions, Some(lsn(4))).await.unwrap();
    compare("deletions").await;
    sink.begin_load().await.unwrap();
    sink.write(&of(5, 6, 20), None).await.unwrap();
    sink.end_load("order", lsn(6)).await.unwrap();
    sink.write(&[], Some(lsn(6))).await.unwrap();
    assert_eq!(compare("what vanished").await, 30);
    // Another list is another table.
    let error = places
        .sink(database, name, tables("{order: {children: {order_items: {list: customer, columns: {}}}}}"))
        .prepare(&[order()])
        .await;
    assert!(error.unwrap_err().to_string().contains("customer is no list"));
}

async fn what_others_made_is_left_alone(places: &Places, database: Database, name: &str) {
    let mut sink = places.sink(database, name, Tables::new());
    sink.prepare(&[order()]).await.unwrap();
    sink.write(&[change("1", 1, Some(&document(1)))], Some(lsn(1))).await.unwrap();
    places.ask(database, name, "ALTER TABLE \"order\" ADD COLUMN mine INTEGER").await;
    places.ask(database, name, "CREATE TABLE order_items (x INTEGER)").await;
    for (wanted, said) in [
        ("{order: {columns: {mine: status}}}", "column \"mine\" of type"),
        ("{order: {children: {order_items: {list: items, columns: {}}}}}", "\"order_items\" exists"),
    ] {
        let mut sink = places.sink(database, name, tables(wanted));
        for error in [sink.check(&[order()]).await.unwrap_err(), sink.prepare(&[order()]).await.unwrap_err()] {
            assert_eq!(error.class(), ErrorClass::Misconfigured);
            assert!(error.to_string().contains(said) && error.to_string().contains("Rename"), "{error}");
        }
    }
    // A column of somebody's own does no harm.
    let mut sink = places.sink(database, name, tables("{order: {columns: {status: status}}}"));
    sink.prepare(&[order()]).await.unwrap();
    places.ask(database, name, "UPDATE \"order\" SET mine = 7").await;
    sink.write(&[change("1", 2, Some(&document(2)))], Some(lsn(2))).await.unwrap();
    let mut sink = places.sink(database, name, Tables::new());
    sink.prepare(&[order()]).await.unwrap();
    assert_eq!(places.ask(database, name, "SELECT mine FROM \"order\"").await, [["7"]]);
    // One without which no row can be written is told.
    places.ask(database, name, "DELETE FROM \"order\"").await;
    let required = match database {
        Database::Sqlite => {
            places.ask(database, name, "DROP TABLE \"order\"").await;
            "CREATE TABLE \"order\" (key TEXT PRIMARY KEY NOT NULL, version TEXT, commit_time_ms INTEGER, document TEXT, must TEXT NOT NULL) STRICT"
        }
        _ => "ALTER TABLE \"order\" ADD COLUMN must INTEGER NOT NULL",
    };
    places.ask(database, name, required).await;
    let error = sink.prepare(&[order()]).await;
    // MySQL gives it a value of its own where it is strict about nothing; not so here.
    let error = error.unwrap_err();
    assert!(error.to_string().contains("\"must\" without which"), "{error}");
}

async fn a_wider_column_is_widened_and_another_is_filled_anew(places: &Places, database: Database, name: &str) {
    let of = |declared: &str, format: Option<&str>, kind: &str| {
        let mut info = order();
        info.document_schema["properties"]["total"] = typed(kind, format, declared);
        info
    };
    let wanted = || tables("{order: {columns: {total: total}, indexes: [[total]]}}");
    let mut sink = places.sink(database, name, wanted());
    prepare(&mut *sink, &[of("decimal(5,2)", Some("decimal"), "string")]).await;
    sink.write(&[change("1", 1, Some(&json!({"total": "1.50"})))], Some(lsn(1))).await.unwrap();
    let mut sink = places.sink(database, name, wanted());
    prepare(&mut *sink, &[of("decimal(12,2)", Some("decimal"), "string")]).await;
    assert_eq!(sink.held().await.unwrap(), Held::UpTo(lsn(1)), "every value is there as it was");
    assert_eq!(sink.write(&[change("2", 1, Some(&json!({"total": "1234567890.50"})))], None).await.unwrap(), []);
    let mut sink = places.sink(database, name, wanted());
    prepare(&mut *sink, &[of("nvarchar(30)", None, "string")]).await;
    assert_eq!(standing(&mut *sink).await, (Held::UpTo(lsn(1)), vec!["order".to_owned()]));
    sink.begin_load().await.unwrap();
    sink.write(&[change("1", 1, Some(&json!({"total": "one"})))], None).await.unwrap();
    sink.end_load("order", lsn(1)).await.unwrap();
    sink.write(&[], Some(lsn(1))).await.unwrap();
    assert_eq!(places.ask(database, name, "SELECT total FROM \"order\" WHERE total IS NOT NULL").await, [["one"]]);
    until_indexed(places, database, name, "_tributary_order_total").await;
}
