//! Types that are more than their bytes: hierarchyid, geometry, geography, json, vector, sql_variant.

use super::{sa, standin};
use sqlserver::{Running, Value};

fn first(running: &Running, text: &str) -> Value {
    running.execute(text).unwrap_or_else(|e| panic!("{text}: {} {}", e.number, e.message)).pop().unwrap().rows.remove(0).remove(0)
}

fn text(s: &str) -> Value {
    Value::Text(s.into())
}

const PLACES: &str = "
CREATE TABLE dbo.places (id int PRIMARY KEY, node hierarchyid, shape geometry, place geography, doc json, v vector(3), any_ sql_variant);
INSERT INTO dbo.places VALUES (1, hierarchyid::Parse('/1/2.5/'), geometry::STGeomFromText('LINESTRING (0 0, 1 2, 3 4)', 7), geography::Point(47.65, -122.35, 4326), N'{ \"a\": [1, 2] }', '[1, 2.5, -3e2]', CAST(1.50 AS decimal(9,4)));
INSERT INTO dbo.places VALUES (2, '/1/', 'POLYGON ((0 0, 9 0, 9 9, 0 0))', NULL, NULL, NULL, N'text');
EXEC sys.sp_cdc_enable_db; EXEC sys.sp_cdc_enable_table 'dbo', 'places', @role_name = NULL;";

#[tokio::test]
async fn clr_types_have_their_bytes_and_methods() {
    let running = standin().await;
    running.execute(PLACES).unwrap();
    for (query, expected) in [
        ("SELECT node.ToString() FROM dbo.places WHERE id = 1", text("/1/2.5/")),
        ("SELECT p.node.GetLevel() FROM dbo.places p WHERE id = 1", Value::Int(2)),
        ("SELECT TOP 1 id FROM dbo.places WHERE node > hierarchyid::GetRoot() ORDER BY node", Value::Int(2)),
        ("SELECT CAST(node AS nvarchar(max)) FROM dbo.places WHERE node = CAST('/1/' AS hierarchyid)", text("/1/")),
        ("SELECT CAST(node AS varbinary(max)) FROM dbo.places WHERE id = 2", Value::Bytes(vec![0x58])),
        ("SELECT p.shape.STAsText() FROM dbo.places AS p WHERE id = 1", text("LINESTRING (0 0, 1 2, 3 4)")),
        ("SELECT shape.STSrid FROM dbo.places WHERE id = 1", Value::Int(7)),
        ("SELECT p.place.Lat + p.place.Long FROM dbo.places p WHERE id = 1", Value::Float(47.65 - 122.35)),
        ("SELECT place.STAsText() FROM dbo.places WHERE id = 1", text("POINT (-122.35 47.65)")),
        ("SELECT DATALENGTH(place.STAsBinary()) FROM dbo.places WHERE id = 1", Value::Int(21)),
        ("SELECT geometry::Parse('POINT (5 10)').STAsText()", text("POINT (5 10)")),
        ("DECLARE @g geometry = geometry::Point(5, 10, 3); SELECT @g.STSrid", Value::Int(3)),
        (
            "SELECT CAST(geometry::Point(5, 10, 0) AS varbinary(max))",
            Value::Bytes(hex(b"00000000010c00000000000014400000000000002440")),
        ),
    ] {
        assert_eq!(first(&running, query), expected, "{query}");
    }
    for (wrong, number) in [
        ("SELECT hierarchyid::Parse('1/2')", 6522),
        ("SELECT geometry::STGeomFromText('CIRCULARSTRING (0 0, 1 1, 2 2)', 0)", 6522),
        ("SELECT shape.STBuffer(1) FROM dbo.places", 40_000),
        ("SELECT shape.STArea() FROM dbo.places", 40_000),
    ] {
        assert_eq!(running.execute(wrong).unwrap_err().number, number, "{wrong}");
    }
    running.stop().await.unwrap();
}

fn hex(digits: &[u8]) -> Vec<u8> {
    digits.chunks(2).map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
}

#[tokio::test]
async fn json_vectors_and_variants_are_kept_and_captured() {
    let running = standin().await;
    running.set_agent_running(false);
    running.execute(PLACES).unwrap();
    let shown = "[1.0000000e+000,2.5000000e+000,-3.0000000e+002]";
    assert_eq!(first(&running, "SELECT CAST(doc AS nvarchar(max)) FROM dbo.places WHERE id = 1"), text("{\"a\":[1,2]}"));
    assert_eq!(first(&running, "SELECT CAST(v AS nvarchar(max)) FROM dbo.places WHERE id = 1"), text(shown));
    assert_eq!(running.execute("UPDATE dbo.places SET doc = '{'").unwrap_err().number, 13_609);
    assert_eq!(running.execute("UPDATE dbo.places SET v = '[1, 2]'").unwrap_err().number, 42_204);
    let types = "SELECT STRING_AGG(t.name + ':' + CAST(c.max_length AS varchar(10)), ' ') WITHIN GROUP (ORDER BY c.column_id) FROM sys.columns c JOIN sys.types t ON t.user_type_id = c.user_type_id WHERE c.object_id = OBJECT_ID('dbo.places')";
    assert_eq!(first(&running, types), text("int:4 hierarchyid:892 geometry:-1 geography:-1 json:-1 vector:20 sql_variant:8016"));
    running.execute("UPDATE dbo.places SET doc = '[1]', v = '[0, 0, 0]', shape = geometry::Point(1, 2, 0), node = '/3/', any_ = CAST('2020-01-02' AS date) WHERE id = 1").unwrap();
    running.capture_now("shop").unwrap();
    let image = |operation: i32| {
        let columns = "node.ToString(), shape.STAsText(), place.STAsText(), CAST(doc AS nvarchar(max)), CAST(v AS nvarchar(max)), CAST(SQL_VARIANT_PROPERTY(any_, 'BaseType') AS nvarchar(128))";
        running
            .execute(&format!("SELECT {columns} FROM cdc.dbo_places_CT WHERE __$operation = {operation}"))
            .unwrap()
            .remove(0)
            .rows
    };
    // Large values that did not change are left out of the image before.
    assert_eq!(
        image(3),
        [[text("/1/2.5/"), text("LINESTRING (0 0, 1 2, 3 4)"), Value::Null, text("{\"a\":[1,2]}"), text(shown), text("decimal")]]
    );
    assert_eq!(
        image(4),
        [[
            text("/3/"),
            text("POINT (1 2)"),
            text("POINT (-122.35 47.65)"),
            text("[1]"),
            text("[0.0000000e+000,0.0000000e+000,0.0000000e+000]"),
            text("date")
        ]]
    );
    assert_eq!(first(&running, "SELECT CAST(SQL_VARIANT_PROPERTY(CAST(1.5 AS decimal(9,4)), 'Scale') AS int)"), Value::Int(4));
    let kinds = "SELECT STRING_AGG(column_type, ' ') WITHIN GROUP (ORDER BY column_ordinal) FROM cdc.captured_columns";
    assert_eq!(first(&running, kinds), text("int hierarchyid geometry geography json vector sql_variant"));
    // Over the wire as text, as clients get it that do not ask for the types of their own.
    let mut sql = sa(&running).await;
    let row = sql
        .simple_query("SELECT doc, v FROM cdc.dbo_places_CT WHERE __$operation = 4")
        .await
        .unwrap()
        .into_row()
        .await
        .unwrap()
        .unwrap();
    assert_eq!((row.get::<&str, _>(0), row.get::<&str, _>(1).map(str::len)), (Some("[1]"), Some(46)));
    drop(sql);
    running.stop().await.unwrap();
}

#[tokio::test]
async fn alias_types_are_their_bases_under_a_name() {
    let running = standin().await;
    running.set_agent_running(false);
    running
        .execute("CREATE TYPE dbo.phone FROM varchar(20) NOT NULL; CREATE TYPE [amount] FROM decimal(10,2); CREATE TABLE dbo.calls (id int PRIMARY KEY, caller dbo.phone, cost amount, note phone NULL); EXEC sys.sp_cdc_enable_db; EXEC sys.sp_cdc_enable_table 'dbo', 'calls', @role_name = NULL; DECLARE @p dbo.phone = '555'; INSERT INTO dbo.calls VALUES (1, @p, 1.5, NULL)")
        .unwrap();
    running.capture_now("shop").unwrap();
    let kept = "SELECT caller, cost FROM cdc.dbo_calls_CT";
    assert_eq!(running.execute(kept).unwrap().remove(0).rows, [[text("555"), Value::Decimal { mantissa: 150, scale: 2 }]]);
    let described = "SELECT STRING_AGG(c.name + ' ' + t.name + ' ' + b.name + ' ' + CAST(c.is_nullable AS char(1)), ', ') WITHIN GROUP (ORDER BY c.column_id) FROM sys.columns c JOIN sys.types t ON t.user_type_id = c.user_type_id JOIN sys.types b ON b.user_type_id = t.system_type_id WHERE c.object_id = OBJECT_ID('dbo.calls') AND t.is_user_defined = 1";
    assert_eq!(first(&running, described), text("caller phone varchar 0, cost amount decimal 1, note phone varchar 1"));
    assert_eq!(
        first(&running, "SELECT DATA_TYPE FROM INFORMATION_SCHEMA.COLUMNS WHERE COLUMN_NAME = 'cost' AND TABLE_NAME = 'calls'"),
        text("decimal")
    );
    for (wrong, number) in [
        ("CREATE TABLE dbo.x (a dbo.absent)", 2715),
        ("CREATE TYPE dbo.phone FROM int", 219),
        ("DROP TYPE dbo.phone", 3732),
        ("UPDATE dbo.calls SET caller = NULL", 515),
    ] {
        assert_eq!(running.execute(wrong).unwrap_err().number, number, "{wrong}");
    }
    running.execute("ALTER TABLE dbo.calls ALTER COLUMN note varchar(5); DROP TABLE dbo.calls; DROP TYPE dbo.phone").unwrap();
    running.stop().await.unwrap();
}
