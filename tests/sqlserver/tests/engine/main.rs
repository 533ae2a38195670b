//! The engine over a real socket, asked by tiberius: T-SQL, errors, transactions, the catalog, change data capture.
#![allow(clippy::unwrap_used)]

mod clock;
mod collations;
mod keys;
mod merge;
mod operations;
mod types;

use std::time::{Duration, Instant};

use sqlserver::{Options, Running, Value};
use tiberius::{AuthMethod, Client, Config, EncryptionLevel};
use tokio::net::TcpStream;
use tokio_util::compat::{Compat, TokioAsyncWriteCompatExt};

type Sql = Client<Compat<TcpStream>>;

async fn standin() -> Running {
    sqlserver::start(Options { capture_interval: Duration::from_millis(20), ..Options::default() }).await.unwrap()
}

async fn login(running: &Running, user: &str, password: &str, database: &str) -> Result<Sql, tiberius::error::Error> {
    let mut config = Config::new();
    config.host("127.0.0.1");
    config.port(running.address().port());
    config.database(database);
    config.authentication(AuthMethod::sql_server(user, password));
    config.encryption(EncryptionLevel::NotSupported);
    config.trust_cert();
    let stream = TcpStream::connect(config.get_addr()).await.unwrap();
    Box::pin(Client::connect(config, stream.compat_write())).await
}

async fn sa(running: &Running) -> Sql {
    login(running, "sa", &running.options().sa_password, "shop").await.unwrap()
}

async fn number(sql: &mut Sql, text: &str) -> u32 {
    let answer = match sql.simple_query(text).await {
        Ok(stream) => stream.into_results().await.map(|_| ()),
        Err(e) => Err(e),
    };
    answer.unwrap_err().code().unwrap()
}

async fn int(sql: &mut Sql, text: &str) -> i32 {
    sql.simple_query(text).await.unwrap().into_row().await.unwrap().unwrap().get(0).unwrap()
}

async fn run(sql: &mut Sql, text: &str) {
    sql.simple_query(text).await.unwrap().into_results().await.unwrap();
}

const SHOP: &str = "
CREATE TABLE dbo.customers (id int IDENTITY(1,1) CONSTRAINT PK_customers PRIMARY KEY, name nvarchar(20) NOT NULL, code varchar(5) COLLATE Latin1_General_CS_AS NULL, CONSTRAINT UQ_code UNIQUE (code));
CREATE TABLE dbo.orders (id bigint PRIMARY KEY, customer_id int NOT NULL CONSTRAINT FK_customer REFERENCES dbo.customers (id), qty int CONSTRAINT CK_qty CHECK (qty > 0), price decimal(18,2), total AS (qty * price));
CREATE INDEX ix_customer ON dbo.orders (customer_id);
INSERT INTO dbo.customers (name, code) VALUES (N'Ann', 'a'), (N'Bob', 'b');
INSERT INTO dbo.orders VALUES (1, 1, 2, 9.99), (2, 1, 1, 0.01), (3, 2, 3, 100);
";

#[tokio::test]
async fn errors_have_the_numbers_and_texts_of_sql_server() {
    let running = standin().await;
    running.execute(SHOP).unwrap();
    let mut sql = sa(&running).await;
    for (text, expected) in [
        ("SELECT * FROM dbo.absent", 208),
        ("SELECT absent FROM dbo.orders", 207),
        ("SELECT o.absent FROM dbo.orders o", 207),
        ("SELECT x.id FROM dbo.orders o", 4104),
        ("SELECT id FROM dbo.orders o JOIN dbo.customers c ON c.id = o.customer_id", 209),
        ("SELECT FROM dbo.orders", 156),
        ("SELECT * FROM dbo.orders WHERE", 102),
        ("SELECT @nothing", 137),
        ("EXEC dbo.nothing", 2812),
        ("SELECT dbo.nothing(1)", 4121),
        ("SELECT nothing(1)", 195),
        ("SELECT 1 / 0", 8134),
        ("SELECT CAST('x' AS int)", 245),
        ("SELECT CAST('99999999999' AS int)", 248),
        ("SELECT CAST(300 AS tinyint)", 220),
        ("SELECT 2147483647 + 1", 8115),
        ("SELECT CAST('2024-13-01' AS date)", 241),
        ("INSERT INTO dbo.customers (name, code) VALUES (N'X', 'a')", 2627),
        ("INSERT INTO dbo.orders VALUES (1, 1, 1, 1)", 2627),
        ("INSERT INTO dbo.orders VALUES (9, 99, 1, 1)", 547),
        ("INSERT INTO dbo.orders VALUES (9, 1, 0, 1)", 547),
        ("DELETE FROM dbo.customers WHERE id = 1", 547),
        ("UPDATE dbo.customers SET name = NULL", 515),
        ("INSERT INTO dbo.customers (name) VALUES (N'123456789012345678901')", 2628),
        ("INSERT INTO dbo.customers (id, name) VALUES (1, N'x')", 544),
        ("UPDATE dbo.customers SET id = 7", 8102),
        ("UPDATE dbo.orders SET total = 7", 271),
        ("DROP TABLE dbo.customers", 3726),
        ("CREATE TABLE dbo.orders (a int)", 2714),
        ("USE nothing", 911),
        ("COMMIT", 3902),
        ("RAISERROR('own %s %d', 16, 1, 'text', 5)", 50_000),
        ("THROW 51000, 'mine', 1", 51_000),
        ("MERGE INTO dbo.orders AS t USING dbo.orders AS s ON t.id = s.id WHEN MATCHED THEN DELETE", 10_713),
        ("BULK INSERT dbo.orders FROM 'rows.csv'", 40_000),
    ] {
        assert_eq!(number(&mut sql, text).await, expected, "{text}");
    }
    let error = sql
        .simple_query("SELECT 1\n\nINSERT INTO dbo.customers (name, code) VALUES (N'X', 'a')")
        .await
        .unwrap()
        .into_results()
        .await
        .unwrap_err();
    let tiberius::error::Error::Server(token) = &error else { panic!("{error}") };
    assert_eq!(
        (token.line(), token.message()),
        (
            3,
            "Violation of UNIQUE KEY constraint 'UQ_code'. Cannot insert duplicate key in object 'dbo.customers'. The duplicate key value is (a)."
        )
    );
    let error = login(&running, "sa", "wrong", "shop").await.unwrap_err();
    assert_eq!(error.code(), Some(18456));
    let error = login(&running, "sa", &running.options().sa_password, "nothing").await.unwrap_err();
    assert_eq!(error.code(), Some(4060));
    drop(sql);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn decimals_are_exact_and_strings_compare_by_their_collation() {
    let running = standin().await;
    running.execute(SHOP).unwrap();
    let answer = |text: &str| running.execute(text).unwrap().remove(0).rows;
    let decimal = |mantissa, scale| Value::Decimal { mantissa, scale };
    assert_eq!(
        answer("SELECT SUM(price), SUM(total), MAX(price), MIN(price) FROM dbo.orders"),
        [[decimal(11000, 2), decimal(31_999, 2), decimal(10_000, 2), decimal(1, 2)]]
    );
    assert_eq!(
        answer("SELECT 0.1 + 0.2, CAST(1 AS decimal(10,4)) / 3, 12.5 * 2"),
        [[decimal(3, 1), decimal(333_333, 6), decimal(250, 1)]]
    );
    assert_eq!(answer("SELECT id FROM dbo.orders WHERE price > 9.985 ORDER BY price DESC"), [[Value::Int(3)], [Value::Int(1)]]);
    assert_eq!(answer("SELECT COUNT(*) FROM dbo.customers WHERE name = 'ANN  '"), [[Value::Int(1)]]);
    assert_eq!(answer("SELECT COUNT(*) FROM dbo.customers WHERE code = 'A'"), [[Value::Int(0)]]);
    assert_eq!(
        answer("SELECT name FROM dbo.customers WHERE name LIKE '[a-b]%' ORDER BY name DESC"),
        [[Value::Text("Bob".into())], [Value::Text("Ann".into())]]
    );
    assert_eq!(
        answer("SELECT UPPER(name) + '!' , LEN(name), LEFT(name, 2) FROM dbo.customers WHERE id = 1"),
        [[Value::Text("ANN!".into()), Value::Int(3), Value::Text("An".into())]]
    );
    assert_eq!(
        answer("SELECT STRING_AGG(name, ',') WITHIN GROUP (ORDER BY name DESC) FROM dbo.customers"),
        [[Value::Text("Bob,Ann".into())]]
    );
    assert_eq!(
        answer("SELECT ROW_NUMBER() OVER (PARTITION BY customer_id ORDER BY price DESC) FROM dbo.orders ORDER BY id"),
        [[Value::Int(1)], [Value::Int(2)], [Value::Int(1)]]
    );
    assert_eq!(answer("SELECT CASE WHEN 1 = 1 THEN 1 ELSE 2.5 END"), [[decimal(10, 1)]]);
    assert_eq!(
        answer("SELECT a FROM (VALUES (1), (2), (NULL)) AS v(a) WHERE a IS NOT NULL UNION ALL SELECT 9.5 ORDER BY 1 DESC"),
        [[decimal(95, 1)], [decimal(20, 1)], [decimal(10, 1)]]
    );
    running.stop().await.unwrap();
}

#[tokio::test]
async fn transactions_isolate_save_and_roll_back() {
    let running = standin().await;
    running.execute(SHOP).unwrap();
    let snapshot = "SET TRANSACTION ISOLATION LEVEL SNAPSHOT; SELECT COUNT(*) FROM dbo.orders";
    assert_eq!(running.execute(snapshot).unwrap_err().number, 3952);
    running.execute("ALTER DATABASE shop SET ALLOW_SNAPSHOT_ISOLATION ON").unwrap();
    let (mut a, mut b) = (sa(&running).await, sa(&running).await);
    run(&mut a, "BEGIN TRAN; DELETE FROM dbo.orders WHERE id = 1").await;
    // Readers do not wait and do not see it; a second writer waits as long as it said.
    assert_eq!(int(&mut b, "SELECT COUNT(*) FROM dbo.orders").await, 3);
    assert_eq!(number(&mut b, "SET LOCK_TIMEOUT 50; DELETE FROM dbo.orders WHERE id = 2").await, 1222);
    run(&mut b, "SET TRANSACTION ISOLATION LEVEL SNAPSHOT; BEGIN TRAN; SELECT COUNT(*) FROM dbo.orders").await;
    run(&mut a, "SAVE TRAN s; DELETE FROM dbo.orders; ROLLBACK TRAN s; COMMIT").await;
    assert_eq!(int(&mut a, "SELECT COUNT(*) FROM dbo.orders").await, 2);
    assert_eq!(int(&mut b, "SELECT COUNT(*) FROM dbo.orders").await, 3);
    assert_eq!(number(&mut b, "DELETE FROM dbo.orders WHERE id = 2").await, 3960);
    assert_eq!(int(&mut b, "SELECT @@TRANCOUNT").await, 0);
    // An error undoes its statement alone, unless XACT_ABORT is on.
    assert_eq!(number(&mut a, "BEGIN TRAN; INSERT INTO dbo.customers (name) VALUES (N'Eve'); INSERT INTO dbo.customers (name, code) VALUES (N'x', 'z'), (N'y', 'b')").await, 2627);
    assert_eq!(int(&mut a, "SELECT COUNT(*) + 100 * @@TRANCOUNT FROM dbo.customers").await, 103);
    assert_eq!(number(&mut a, "SET XACT_ABORT ON; INSERT INTO dbo.customers (name, code) VALUES (N'x', 'a')").await, 2627);
    assert_eq!(int(&mut a, "SELECT COUNT(*) + 100 * @@TRANCOUNT FROM dbo.customers").await, 2);
    // Caught under XACT_ABORT, the transaction can only be rolled back.
    let state = int(&mut a, "DECLARE @s int; BEGIN TRAN; BEGIN TRY INSERT INTO dbo.customers (name, code) VALUES (N'x', 'a') END TRY BEGIN CATCH SET @s = XACT_STATE(); ROLLBACK END CATCH; SELECT @s").await;
    assert_eq!(state, -1);
    // A lost connection takes its transaction with it.
    run(&mut a, "BEGIN TRAN; DELETE FROM dbo.orders").await;
    drop(a);
    let start = Instant::now();
    run(
        &mut b,
        "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; SET LOCK_TIMEOUT 20000; UPDATE dbo.orders SET qty = 7 WHERE id = 2",
    )
    .await;
    assert!(start.elapsed() < Duration::from_secs(15));
    assert_eq!(int(&mut b, "SELECT COUNT(*) FROM dbo.orders").await, 2);
    drop(b);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_login_may_do_what_it_was_granted() {
    let running = standin().await;
    running.execute(SHOP).unwrap();
    running
        .execute("CREATE LOGIN reader WITH PASSWORD = 'Reader!1'; CREATE USER reader FOR LOGIN reader; GRANT SELECT ON dbo.orders TO reader; EXEC sys.sp_cdc_enable_db")
        .unwrap();
    let mut sql = login(&running, "reader", "Reader!1", "shop").await.unwrap();
    assert_eq!(int(&mut sql, "SELECT COUNT(*) FROM dbo.orders").await, 3);
    assert_eq!(number(&mut sql, "SELECT COUNT(*) FROM dbo.customers").await, 229);
    assert_eq!(number(&mut sql, "DELETE FROM dbo.orders").await, 229);
    assert_eq!(number(&mut sql, "CREATE TABLE dbo.mine (a int)").await, 262);
    assert_eq!(number(&mut sql, "SELECT status FROM sys.dm_server_services").await, 300);
    assert_eq!(number(&mut sql, "EXEC sys.sp_cdc_disable_db").await, 22_904);
    running.execute("ALTER ROLE db_datareader ADD MEMBER reader; DENY SELECT ON dbo.orders TO reader").unwrap();
    assert_eq!(int(&mut sql, "SELECT COUNT(*) FROM dbo.customers").await, 2);
    assert_eq!(number(&mut sql, "SELECT COUNT(*) FROM dbo.orders").await, 229);
    drop(sql);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn tables_change_under_capture() {
    let running = standin().await;
    running.execute(SHOP).unwrap();
    running.execute("EXEC sys.sp_cdc_enable_db; EXEC sys.sp_cdc_enable_table 'dbo', 'orders', @role_name = NULL; EXEC sys.sp_cdc_enable_table 'dbo', 'customers', @role_name = NULL").unwrap();
    running.execute("UPDATE dbo.orders SET qty = qty + 1 WHERE customer_id = 1; ALTER TABLE dbo.orders ADD note varchar(20) NOT NULL DEFAULT 'none', at datetime2(0) NULL").unwrap();
    running.execute("INSERT INTO dbo.orders (id, customer_id, qty, price) VALUES (4, 2, 1, 5); ALTER TABLE dbo.orders ALTER COLUMN price decimal(20,4); DELETE FROM dbo.orders WHERE id = 4; ALTER TABLE dbo.orders DROP COLUMN at").unwrap();
    running.capture_now("shop").unwrap();
    let rows = running.execute("SELECT __$operation, id, qty, price FROM cdc.dbo_orders_CT ORDER BY __$start_lsn, __$command_id, __$seqval, __$operation").unwrap().remove(0).rows;
    let row =
        |op, id, qty, mantissa| vec![Value::Int(op), Value::Int(id), Value::Int(qty), Value::Decimal { mantissa, scale: 4 }];
    assert_eq!(
        rows,
        [
            row(3, 1, 2, 99_900),
            row(4, 1, 3, 99_900),
            row(3, 2, 1, 100),
            row(4, 2, 2, 100),
            row(2, 4, 1, 50_000),
            row(1, 4, 1, 50_000)
        ]
    );
    assert_eq!(
        running.execute("SELECT note, price FROM dbo.orders WHERE id = 1").unwrap().remove(0).rows,
        [[Value::Text("none".into()), Value::Decimal { mantissa: 99_900, scale: 4 }]]
    );
    assert_eq!(running.execute("SELECT COUNT(*) FROM cdc.ddl_history").unwrap().remove(0).rows, [[Value::Int(3)]]);
    assert_eq!(running.execute("TRUNCATE TABLE dbo.orders").unwrap_err().number, 4711);
    // A new instance has the new columns; the old one goes on.
    running.execute("EXEC sys.sp_cdc_enable_table 'dbo', 'orders', @role_name = NULL, @capture_instance = 'second'; UPDATE dbo.orders SET note = 'seen' WHERE id = 1").unwrap();
    running.capture_now("shop").unwrap();
    let both = "SELECT (SELECT COUNT(*) FROM cdc.dbo_orders_CT), (SELECT COUNT(*) FROM cdc.second_CT WHERE note = 'seen')";
    assert_eq!(running.execute(both).unwrap().remove(0).rows, [[Value::Int(6), Value::Int(1)]]);
    running
        .execute("EXEC sys.sp_cdc_disable_table 'dbo', 'orders', 'dbo_orders'; DROP TABLE dbo.orders; EXEC sys.sp_cdc_disable_db")
        .unwrap();
    assert_eq!(
        running.execute("SELECT COUNT(*) FROM sys.tables WHERE is_tracked_by_cdc = 1 OR name LIKE '%CT'").unwrap().remove(0).rows,
        [[Value::Int(0)]]
    );
    running.stop().await.unwrap();
}

/// SQL Server would grant these locks at once, or after a wait: the capture job locks no table, and readers of the catalog hold nobody up.
#[tokio::test]
async fn a_reader_may_lock_after_the_capture_job_has_written() {
    let running = standin().await;
    running.execute(SHOP).unwrap();
    running.execute("EXEC sys.sp_cdc_enable_db; EXEC sys.sp_cdc_enable_table 'dbo', 'orders', @role_name = NULL").unwrap();
    // Only this test says when changes are captured.
    running.set_agent_running(false);
    let (mut a, mut b) = (sa(&running).await, sa(&running).await);
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        run(&mut b, "UPDATE dbo.orders SET qty = qty + 1").await;
        run(&mut a, &format!("SET TRANSACTION ISOLATION LEVEL {level}; BEGIN TRAN; SAVE TRAN s")).await;
        let read = int(&mut a, "SELECT SUM(qty) FROM dbo.orders").await;
        running.capture_now("shop").unwrap();
        run(&mut a, "SELECT TOP (0) * FROM dbo.orders WITH (TABLOCKX)").await;
        run(&mut a, "UPDATE dbo.orders SET qty = qty + 1; ROLLBACK TRAN s").await;
        assert_eq!(int(&mut a, "SELECT SUM(qty) FROM dbo.orders").await, read, "{level}");
        run(&mut a, "UPDATE dbo.orders SET qty = qty + 1; COMMIT").await;
        assert_eq!(int(&mut b, "SELECT SUM(qty) FROM dbo.orders").await, read + 3, "{level}");

        // What it read was the catalog: others' commits do not matter, and it sees them once it has the lock.
        run(&mut a, "BEGIN TRAN; SELECT name FROM sys.tables").await;
        run(&mut b, "UPDATE dbo.orders SET qty = qty + 1").await;
        assert_eq!(int(&mut a, "SELECT SUM(qty) FROM dbo.orders WITH (TABLOCKX)").await, read + 6, "{level}");
        run(&mut a, "ROLLBACK").await;

        // A row that it read has changed: to write on that would lose the change.
        run(&mut a, "BEGIN TRAN; SELECT qty FROM dbo.orders").await;
        run(&mut b, "UPDATE dbo.orders SET qty = qty + 1").await;
        assert_eq!(number(&mut a, "UPDATE dbo.orders SET qty = 1").await, 1205, "{level}");
        assert_eq!(int(&mut a, "SELECT @@TRANCOUNT").await, 0);
    }
    drop((a, b));
    running.stop().await.unwrap();
}

#[tokio::test]
async fn databases_outlive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let options =
        Options { data: Some(folder.path().to_path_buf()), capture_interval: Duration::from_millis(20), ..Options::default() };
    let running = sqlserver::start(options.clone()).await.unwrap();
    running.execute(SHOP).unwrap();
    running.execute("CREATE DATABASE other; CREATE LOGIN extra WITH PASSWORD = 'Extra!1'").unwrap();
    running.execute("CREATE TABLE other.dbo.t (a int); INSERT INTO other.dbo.t VALUES (7)").unwrap();
    running.stop().await.unwrap();
    let running = sqlserver::start(options).await.unwrap();
    assert_eq!(
        running.execute("SELECT t.a, c.name FROM other.dbo.t JOIN dbo.customers c ON c.id = 1").unwrap().remove(0).rows,
        [[Value::Int(7), Value::Text("Ann".into())]]
    );
    assert!(login(&running, "extra", "Extra!1", "master").await.is_ok());
    running.stop().await.unwrap();
}

/// A change table's reader pays for the rows it reads, not for those it skips; writers reach tens of thousands of rows a second. The bounds are far
/// from what a quiet machine does, so that only a lost index or cache breaks them.
#[tokio::test]
async fn bulk_writes_and_change_reads_are_fast() {
    let running = standin().await;
    running.execute(SHOP).unwrap();
    running.execute("EXEC sys.sp_cdc_enable_db; EXEC sys.sp_cdc_enable_table 'dbo', 'orders', @role_name = NULL").unwrap();
    let start = Instant::now();
    for batch in 0..20 {
        let rows: Vec<String> = (0..1000).map(|i| format!("({}, 1, {}, {}.25)", 100 + batch * 1000 + i, i + 1, i)).collect();
        running.execute(&format!("INSERT INTO dbo.orders (id, customer_id, qty, price) VALUES {}", rows.join(", "))).unwrap();
    }
    let written = start.elapsed();
    running.capture_now("shop").unwrap();
    let mut sql = sa(&running).await;
    let start = Instant::now();
    let (mut from, mut seen) = (vec![0u8; 10], 0);
    loop {
        let rows = sql
            .query("SELECT TOP (@P1) __$start_lsn, __$command_id, __$seqval, __$operation, id, qty, price FROM cdc.[dbo_orders_CT] WHERE __$start_lsn > @P2 AND __$start_lsn <= @P3 ORDER BY __$start_lsn, __$command_id, __$seqval, __$operation", &[&1000i32, &from.as_slice(), &[0xFFu8; 10].as_slice()])
            .await
            .unwrap()
            .into_first_result()
            .await
            .unwrap();
        let Some(last) = rows.last() else { break };
        from = last.get::<&[u8], _>(0).unwrap().to_vec();
        seen += rows.len();
    }
    let read = start.elapsed();
    assert_eq!(seen, 20_000);
    println!("20,000 rows written in {written:?}, their changes read in {read:?}");
    assert!(written < Duration::from_secs(30) && read < Duration::from_secs(20), "{written:?} {read:?}");
    drop(sql);
    running.stop().await.unwrap();
}
