//! MERGE: what becomes of which row, in one transaction; and names that look like variables.

use super::standin;
use sqlserver::{Running, Value};

const TABLES: &str = "
CREATE TABLE dbo.stock (id int NOT NULL PRIMARY KEY, qty int NOT NULL, note varchar(20) NULL);
CREATE TABLE dbo.delta (id int NOT NULL, qty int NULL);
INSERT INTO dbo.stock VALUES (1, 10, 'a'), (2, 20, 'b'), (3, 30, NULL), (4, 40, 'd');
INSERT INTO dbo.delta VALUES (1, 5), (2, 0), (3, NULL), (7, 70), (8, 0);
EXEC sys.sp_cdc_enable_db;
EXEC sys.sp_cdc_enable_table 'dbo', 'stock', @role_name = NULL;";

fn rows(running: &Running, text: &str) -> Vec<Vec<Value>> {
    running.execute(text).unwrap().pop().unwrap().rows
}

fn stock(running: &Running) -> Vec<(i64, i64)> {
    let int = |v: &Value| if let Value::Int(i) = v { *i } else { panic!("{v:?}") };
    rows(running, "SELECT id, qty FROM dbo.stock ORDER BY id").iter().map(|r| (int(&r[0]), int(&r[1]))).collect()
}

#[tokio::test]
async fn each_row_is_taken_by_the_first_clause_that_wants_it() {
    let running = standin().await;
    running.set_agent_running(false);
    running.execute(TABLES).unwrap();
    let merge = "MERGE INTO dbo.stock WITH (HOLDLOCK) AS t USING (SELECT id, qty FROM dbo.delta) AS s ON t.id = s.id
        WHEN MATCHED AND s.qty = 0 THEN DELETE
        WHEN MATCHED THEN UPDATE SET t.qty = t.qty + ISNULL(s.qty, 100), note = DEFAULT
        WHEN NOT MATCHED BY TARGET AND s.qty > 0 THEN INSERT (id, qty, note) VALUES (s.id, s.qty * 2, 'new')
        WHEN NOT MATCHED BY SOURCE AND t.note = 'd' THEN UPDATE SET qty = -1;
        SELECT @@ROWCOUNT";
    assert_eq!(rows(&running, merge), [[Value::Int(5)]]);
    assert_eq!(stock(&running), [(1, 15), (3, 130), (4, -1), (7, 140)]);
    // One transaction, and each row changed once.
    running.capture_now("shop").unwrap();
    let captured = "SELECT COUNT(DISTINCT __$start_lsn), COUNT(*) FROM cdc.dbo_stock_CT WHERE __$operation IN (1, 2, 4)";
    assert_eq!(rows(&running, captured), [[Value::Int(1), Value::Int(5)]]);
    // Into an empty table, from a list of values, with a variable and without aliases.
    running.execute("DELETE FROM dbo.stock").unwrap();
    let values = "DECLARE @by int = 3; MERGE dbo.stock USING (VALUES (1, 1), (2, 2)) AS v (a, b) ON stock.id = v.a
        WHEN NOT MATCHED THEN INSERT (id, qty) VALUES (v.a, v.b * @by) WHEN MATCHED THEN UPDATE SET qty += v.b;";
    running.execute(values).unwrap();
    running.execute(values).unwrap();
    assert_eq!(stock(&running), [(1, 4), (2, 8)]);
    running
        .execute(
            "MERGE dbo.stock t USING dbo.delta s ON t.id = s.id WHEN NOT MATCHED BY SOURCE THEN DELETE WHEN MATCHED THEN DELETE;",
        )
        .unwrap();
    assert_eq!(stock(&running), []);
}

#[tokio::test]
async fn a_merge_that_fails_has_done_nothing() {
    let running = standin().await;
    running.execute(TABLES).unwrap();
    let number = |text: &str| running.execute(text).unwrap_err().number;
    assert_eq!(number("MERGE dbo.stock t USING dbo.delta s ON t.id = s.id WHEN MATCHED THEN DELETE"), 10_713);
    running.execute("INSERT INTO dbo.delta VALUES (1, 6)").unwrap();
    let twice = "MERGE dbo.stock t USING dbo.delta s ON t.id = s.id AND s.qty > 0 WHEN MATCHED THEN UPDATE SET qty = s.qty;";
    assert_eq!(number(twice), 8672);
    let before = stock(&running);
    // The update has been done when the insertion fails.
    let fails = "MERGE dbo.stock t USING (VALUES (1, 1), (9, NULL)) AS s (id, qty) ON t.id = s.id
        WHEN MATCHED THEN UPDATE SET qty = s.qty WHEN NOT MATCHED THEN INSERT (id, qty) VALUES (s.id, s.qty);";
    assert_eq!(number(fails), 515);
    assert_eq!(stock(&running), before);
    let within = format!(
        "BEGIN TRANSACTION; UPDATE dbo.stock SET qty = 99 WHERE id = 4; BEGIN TRY {fails} END TRY BEGIN CATCH END CATCH; COMMIT TRANSACTION;"
    );
    running.execute(&within).unwrap();
    assert_eq!(stock(&running), [(1, 10), (2, 20), (3, 30), (4, 99)]);
}

#[tokio::test]
async fn a_quoted_name_is_a_columns_whatever_it_begins_with() {
    let running = standin().await;
    let script = "CREATE TABLE dbo.odd ([@P1] int NOT NULL PRIMARY KEY, [@@x] int NULL);
        DECLARE @P1 int = 7;
        INSERT INTO dbo.odd ([@P1], [@@x]) VALUES (1, @P1);
        UPDATE dbo.odd SET [@@x] = [@@x] + @P1, [@P1] += 1 WHERE [@P1] = 1;";
    running.execute(script).unwrap();
    let answer =
        running.execute("DECLARE @P1 int; SELECT [@P1], [@@x] AS [@y] FROM dbo.odd ORDER BY [@P1]").unwrap().pop().unwrap();
    assert_eq!(answer.rows, [[Value::Int(2), Value::Int(14)]]);
    assert_eq!(answer.columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>(), ["@P1", "@y"]);
    assert_eq!(rows(&running, "DECLARE @P1 int; SELECT @P1 = [@@x] FROM dbo.odd; SELECT @P1"), [[Value::Int(14)]]);
}
