//! Unique keys: checked when a statement ends, and named by value when two rows have them.

use super::{SHOP, standin};
use sqlserver::{Running, Value};

fn rows(running: &Running, text: &str) -> Vec<Vec<Value>> {
    running.execute(text).unwrap().pop().unwrap().rows
}

fn ints(running: &Running, text: &str) -> Vec<Vec<i64>> {
    let int = |v: &Value| if let Value::Int(i) = v { *i } else { panic!("{v:?}") };
    rows(running, text).iter().map(|r| r.iter().map(int).collect()).collect()
}

const TABLES: &str = "
CREATE TABLE dbo.t (id int NOT NULL CONSTRAINT PK_t PRIMARY KEY, u int NOT NULL CONSTRAINT CK_u CHECK (u > 0), name nvarchar(10) COLLATE Latin1_General_CI_AS, v AS (u * 2));
CREATE UNIQUE INDEX ix_u ON dbo.t (u);
CREATE UNIQUE INDEX ix_name ON dbo.t (name, u);
CREATE TABLE dbo.c (a int NOT NULL, b varchar(10) NOT NULL, n int, CONSTRAINT PK_c PRIMARY KEY (a, b));
CREATE TABLE dbo.child (id int PRIMARY KEY, t int REFERENCES dbo.t (id) ON UPDATE CASCADE);
INSERT INTO dbo.t (id, u, name) VALUES (1, 1, N'a'), (2, 2, N'b'), (3, 3, N'c');
INSERT INTO dbo.c VALUES (1, 'x', 1), (2, 'x', 2), (3, 'x', 3);
INSERT INTO dbo.child VALUES (10, 1), (20, 2);
EXEC sys.sp_cdc_enable_db;
EXEC sys.sp_cdc_enable_table 'dbo', 't', @role_name = NULL;
EXEC sys.sp_cdc_enable_table 'dbo', 'c', @role_name = NULL;";

#[tokio::test]
async fn an_update_may_move_keys_onto_each_other() {
    let running = standin().await;
    running.set_agent_running(false);
    running.execute(TABLES).unwrap();
    running.execute("UPDATE dbo.t SET u = u + 1").unwrap();
    running.execute("UPDATE dbo.t SET id = id + 1, name = name + N'!'").unwrap();
    running.execute("UPDATE dbo.t SET u = CASE u WHEN 2 THEN 3 WHEN 3 THEN 2 ELSE u END").unwrap();
    running.execute("UPDATE c SET a = c.a + 1 FROM dbo.c AS c JOIN dbo.t AS t ON t.id = c.a + 1").unwrap();
    assert_eq!(ints(&running, "SELECT id, u, v FROM dbo.t ORDER BY id"), [[2, 3, 6], [3, 2, 4], [4, 4, 8]]);
    assert_eq!(ints(&running, "SELECT a, n FROM dbo.c ORDER BY a"), [[2, 1], [3, 2], [4, 3]]);
    assert_eq!(ints(&running, "SELECT t FROM dbo.child ORDER BY id"), [[2], [3]]);
    assert_eq!(rows(&running, "SELECT name FROM dbo.t WHERE id = 2"), [[Value::Text("a!".into())]]);
    // The log shows the rows as they were and as they are, and nothing in between.
    running.capture_now("shop").unwrap();
    assert_eq!(
        ints(
            &running,
            "SELECT __$operation, id, u FROM cdc.dbo_t_CT ORDER BY __$start_lsn, __$command_id, __$seqval, __$operation"
        ),
        [
            [3, 1, 1],
            [4, 1, 2],
            [3, 2, 2],
            [4, 2, 3],
            [3, 3, 3],
            [4, 3, 4],
            [1, 1, 2],
            [2, 2, 2],
            [1, 2, 3],
            [2, 3, 3],
            [1, 3, 4],
            [2, 4, 4],
            [3, 2, 2],
            [4, 2, 3],
            [3, 3, 3],
            [4, 3, 2],
        ]
    );
    assert_eq!(
        ints(&running, "SELECT __$operation, a FROM cdc.dbo_c_CT ORDER BY __$start_lsn, __$command_id"),
        [[1, 1], [2, 2], [1, 2], [2, 3], [1, 3], [2, 4]]
    );
    // Inside a transaction, and rolled back with it.
    running.execute("BEGIN TRAN; UPDATE dbo.t SET u = u + 1; ROLLBACK").unwrap();
    running.execute("BEGIN TRAN; UPDATE dbo.t SET u = u + 1; UPDATE dbo.t SET u = u - 1; COMMIT").unwrap();
    running.capture_now("shop").unwrap();
    assert_eq!(ints(&running, "SELECT COUNT(*) FROM cdc.dbo_t_CT"), [[28]]);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_duplicate_key_is_named() {
    let running = standin().await;
    running.execute(SHOP).unwrap();
    running.execute(TABLES).unwrap();
    let failed = |text: &str, number: i32, end: &str| {
        let e = running.execute(text).unwrap_err();
        assert_eq!(e.number, number, "{text}: {}", e.message);
        assert!(e.message.ends_with(&format!(" The duplicate key value is ({end}).")), "{text}: {}", e.message);
    };
    failed("INSERT INTO dbo.t (id, u) VALUES (7, 7), (2, 8)", 2627, "2");
    failed("INSERT INTO dbo.t (id, u, name) VALUES (7, 7, N'p'), (8, 7, N'q')", 2601, "7");
    failed("DECLARE @a int = 3; INSERT INTO dbo.t (id, u) VALUES (@a + 5, @a)", 2601, "3");
    failed("INSERT INTO dbo.c (a, b) SELECT id, 'X' FROM dbo.t WHERE id > 1", 2627, "2, X");
    failed("INSERT INTO dbo.c (a, b) SELECT 9, 'X' FROM dbo.t", 2627, "9, X");
    failed("UPDATE dbo.t SET u = 9", 2601, "9");
    failed("UPDATE dbo.t SET u = u + 1 WHERE id < 3", 2601, "3");
    failed("UPDATE dbo.t SET id = 3 WHERE id = 1", 2627, "3");
    failed("INSERT INTO dbo.customers (name, code) VALUES (N'X', 'a')", 2627, "a");
    // NULLs are alike to a unique index, in SQL Server.
    running.execute("CREATE TABLE dbo.n (a int NULL, b varchar(5) NULL, CONSTRAINT UQ_n UNIQUE (a, b)); CREATE UNIQUE INDEX ix_n ON dbo.n (b) WHERE a = 9; INSERT INTO dbo.n VALUES (1, NULL), (NULL, NULL), (2, NULL), (NULL, 'x')").unwrap();
    failed("INSERT INTO dbo.n VALUES (1, NULL)", 2627, "1, <NULL>");
    failed("INSERT INTO dbo.n VALUES (NULL, 'X')", 2627, "<NULL>, X");
    failed("UPDATE dbo.n SET a = NULL WHERE a = 2", 2627, "<NULL>, <NULL>");
    running.execute("EXEC sp_rename 'dbo.n', 'm'; EXEC sp_rename 'dbo.m.UQ_n', 'UQ_m', 'INDEX'").unwrap();
    failed("INSERT INTO dbo.m VALUES (1, NULL)", 2627, "1, <NULL>");
    running.execute("ALTER TABLE dbo.m DROP CONSTRAINT UQ_m; INSERT INTO dbo.m VALUES (1, NULL)").unwrap();
    // Nothing of it stays, and the checks hold again.
    assert_eq!(ints(&running, "SELECT SUM(id), SUM(u) FROM dbo.t"), [[6, 6]]);
    assert_eq!(running.execute("UPDATE dbo.t SET u = -u").unwrap_err().number, 547);
    assert_eq!(running.execute("DELETE FROM dbo.t WHERE id = 1").unwrap_err().number, 547);
    running.stop().await.unwrap();
}
