//! A stand-in with a database, and a client of it.

use std::sync::Arc;
use std::time::Duration;

use schemas::table::TableName;
use source::changes::ChangeTable;
use source::rows::SourceTable;
use source::{CapturedTable, Catalog, Client, Encryption, Password, Source};
use sqlserver::{Options, Running, Value};

pub(crate) struct World {
    pub(crate) server: Arc<Running>,
    pub(crate) source: Source,
    pub(crate) client: Client,
}

impl World {
    /// A stand-in with the database `shop`, in which the script has been run. Capture happens when the test says so.
    pub(crate) async fn start(script: &str) -> Self {
        let options = Options { capture_interval: Duration::from_secs(3600), ..Options::default() };
        let password = options.sa_password.clone();
        let server = Arc::new(sqlserver::start(options).await.unwrap());
        let (host, port) = (server.address().ip().to_string(), server.address().port());
        let login = Source::sql_login(host, port, "shop", "sa", Password::new(password));
        let source = Source { encrypt: Encryption::Off, ..login };
        let client = Client::connect(&source).await.unwrap();
        let world = Self { server, source, client };
        world.sql("EXEC sys.sp_cdc_enable_db;").await;
        world.sql(script).await;
        world
    }

    pub(crate) async fn sql(&self, script: &str) -> Vec<Vec<Vec<Value>>> {
        let (server, text) = (Arc::clone(&self.server), script.to_owned());
        let results = tokio::task::spawn_blocking(move || server.execute(&text)).await.unwrap();
        let results = results.unwrap_or_else(|error| panic!("{script}: {error:?}"));
        results.into_iter().map(|result| result.rows).collect()
    }

    /// Everything committed so far is captured.
    pub(crate) async fn capture(&self) {
        let server = Arc::clone(&self.server);
        tokio::task::spawn_blocking(move || server.capture_now("shop")).await.unwrap().unwrap();
    }

    pub(crate) async fn table(&mut self, name: &str) -> CapturedTable {
        let catalog = Catalog::read(&mut self.client).await.unwrap();
        catalog.table(&TableName::new("dbo", name)).unwrap().clone()
    }

    pub(crate) async fn source_table(&mut self, name: &str) -> SourceTable {
        let table = self.table(name).await;
        let instance = &table.instances[0];
        SourceTable::new(&instance.schema(&table.name), instance).unwrap()
    }

    pub(crate) async fn change_table(&mut self, name: &str, page_rows: usize) -> Arc<ChangeTable> {
        let table = self.table(name).await;
        let instance = &table.instances[0];
        Arc::new(ChangeTable::new(&instance.schema(&table.name), instance, instance.start_lsn, page_rows).unwrap())
    }
}

/// Enables capture of a table of `dbo`.
pub(crate) fn enable(table: &str) -> String {
    format!("EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N'{table}', @role_name = NULL;")
}
