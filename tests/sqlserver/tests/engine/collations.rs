//! Collations by column: on the wire, in the code page, in the change table.

use super::{sa, standin};
use sqlserver::Value;

#[tokio::test]
async fn text_goes_in_its_column_s_code_page() {
    let running = standin().await;
    running.set_agent_running(false);
    running
        .execute("CREATE TABLE dbo.words (id int PRIMARY KEY, plain varchar(20), polish varchar(20) COLLATE Polish_CS_AS, cyrillic char(6) COLLATE Cyrillic_General_CI_AS, utf8 varchar(6) COLLATE Latin1_General_100_CI_AS_SC_UTF8, padded char(6) COLLATE Latin1_General_100_CI_AS_SC_UTF8, dos varchar(max) COLLATE SQL_Latin1_General_CP437_CI_AS);
EXEC sys.sp_cdc_enable_db; EXEC sys.sp_cdc_enable_table 'dbo', 'words', @role_name = NULL;
INSERT INTO dbo.words VALUES (1, N'żółw é', N'żółw é中', N'мир', N'žéa', N'žé', N'é')")
        .unwrap();
    let mut sql = sa(&running).await;
    running.capture_now("shop").unwrap();
    for query in [
        "SELECT plain, polish, cyrillic, CAST(utf8 AS nvarchar(6)), CAST(padded AS nvarchar(6)), CAST(dos AS nvarchar(max)) FROM dbo.words",
        "SELECT plain, polish, cyrillic, CAST(utf8 AS nvarchar(6)), CAST(padded AS nvarchar(6)), CAST(dos AS nvarchar(max)) FROM cdc.dbo_words_CT",
    ] {
        let row = sql.simple_query(query).await.unwrap().into_row().await.unwrap().unwrap();
        let texts: Vec<&str> = (0..6).map(|i| row.get(i).unwrap()).collect();
        assert_eq!(texts, ["?ó?w é", "żółw é?", "мир   ", "žéa", "žé    ", "é"], "{query}");
    }
    // The driver knows neither UTF-8 nor page 437; the stand-in's own session shows what is kept.
    let kept = running.execute("SELECT utf8, padded, dos FROM dbo.words").unwrap().remove(0).rows.remove(0);
    assert_eq!(kept, [Value::Text("žéa".into()), Value::Text("žé    ".into()), Value::Text("é".into())]);
    for (wrong, number) in [
        ("UPDATE dbo.words SET utf8 = N'žééa'", 2628),
        ("CREATE TABLE dbo.x (a varchar(1) COLLATE Martian_CI_AS)", 448),
        ("CREATE TABLE dbo.x (a varchar(1) COLLATE Japanese_CI_AS)", 40_000),
    ] {
        assert_eq!(running.execute(wrong).unwrap_err().number, number, "{wrong}");
    }
    running.execute("CREATE TABLE dbo.x (a nvarchar(1) COLLATE Japanese_CI_AS)").unwrap();
    let pages = "SELECT STRING_AGG(CAST(COLLATIONPROPERTY(N'Polish_CS_AS', 'CodePage') AS varchar(10)), '')";
    assert_eq!(running.execute(pages).unwrap().remove(0).rows, [[Value::Text("1250".into())]]);
    drop(sql);
    running.stop().await.unwrap();
}
