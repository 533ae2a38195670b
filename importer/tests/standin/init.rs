//! `init` against a live catalog.

use importer::init;
use schemas::contract::Contract;
use schemas::entity::EntityDefinition;

use crate::support::World;

const SHOP: &str = "
CREATE TABLE dbo.customers (id int NOT NULL PRIMARY KEY, name nvarchar(40) NOT NULL, balance AS (id * 2));
GO
CREATE TABLE dbo.orders (id int NOT NULL PRIMARY KEY, customer_id int NOT NULL REFERENCES dbo.customers (id), placed datetime2(3) NULL);
GO
CREATE TABLE dbo.order_items (order_id int NOT NULL REFERENCES dbo.orders (id), line_no smallint NOT NULL, price money NOT NULL, note varchar(max) NULL,
  CONSTRAINT PK_items PRIMARY KEY (order_id, line_no));
GO
CREATE TABLE dbo.private_notes (id int NOT NULL PRIMARY KEY);
GO
EXEC sys.sp_cdc_enable_db;
GO
EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'customers', @role_name = NULL;
GO
EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'orders', @role_name = NULL;
GO
EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'order_items', @role_name = NULL;
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init_writes_what_the_catalog_says() {
    let world = World::start(SHOP).await;
    let out = world.directory.path().join("out");
    let report =
        init::run(&world.config.source, &out, |inferred| format!("# {} entities\n", inferred.entities.len())).await.unwrap();
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    let items = Contract::parse("dbo.order_items.json", &read("schemas/tables/dbo.order_items.json")).unwrap();
    let columns: Vec<String> =
        items.table.columns.iter().map(|column| format!("{} {} {}", column.name, column.sql_type, column.nullable)).collect();
    assert_eq!(columns, ["order_id int false", "line_no smallint false", "price money false", "note varchar(max) true"]);
    assert_eq!(items.table.key, [0, 1]);
    let order: EntityDefinition = serde_yaml_ng::from_str(&read("schemas/entities/order.yaml")).unwrap();
    assert_eq!(order.one["customer"].by, ["customer_id"]);
    assert_eq!(order.many["items"].by, ["order_id"]);
    assert_eq!(read("tributary.yaml"), "# 1 entities\n");
    assert!(report.notes.iter().any(|note| note.starts_with("dbo.private_notes is not captured")), "{:?}", report.notes);
    assert_eq!((report.written.len(), report.kept.len()), (5, 0));

    std::fs::write(out.join("tributary.yaml"), "edited").unwrap();
    let again = init::run(&world.config.source, &out, |_| String::new()).await.unwrap();
    assert_eq!((again.written.len(), again.kept.len()), (0, 5));
    assert_eq!(read("tributary.yaml"), "edited");
}
