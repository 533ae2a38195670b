//! A sink that is told of documents with members, so that it can promote them.

use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::{KeyRange, Lsn};
use sinks::{ChildConfig, Error, Rejected, Sink, TableConfig, Tables, Terms};

use super::*;

pub(super) struct Rich(pub(super) Box<dyn Sink>);

fn rich(entities: &[EntityInfo]) -> Vec<EntityInfo> {
    // `n` is of every type in these cases.
    let items = json!({"type": "array", "items": {"type": "object", "properties": {"n": {}}}});
    let schema =
        json!({"type": "object", "properties": {"n": {}, "total": {"type": "string", "format": "decimal"}, "items": items}});
    entities.iter().map(|info| EntityInfo { document_schema: schema.clone(), ..info.clone() }).collect()
}

/// Columns, an index and a table of children for each entity.
pub(super) fn tables() -> Tables {
    let columns = |names: &[&str]| names.iter().map(|name| (name.to_string(), name.to_string())).collect();
    let table = |child: &str| TableConfig {
        columns: columns(&["n", "total"]),
        indexes: vec![vec!["total".to_owned()]],
        children: [(child.to_owned(), ChildConfig { list: "items".to_owned(), columns: columns(&["n"]), indexes: Vec::new() })]
            .into(),
        ..TableConfig::default()
    };
    [("order".to_owned(), table("order_item")), ("line-item".to_owned(), table("line_item_item"))].into()
}

#[async_trait::async_trait]
impl Sink for Rich {
    async fn prepare(&mut self, entities: &[EntityInfo]) -> Result<(), Error> {
        self.0.prepare(&rich(entities)).await
    }

    async fn write(&mut self, changes: &[EntityChange], frontier: Option<Lsn>) -> Result<Vec<Rejected>, Error> {
        self.0.write(changes, frontier).await
    }

    async fn begin_load(&mut self) -> Result<(), Error> {
        self.0.begin_load().await
    }

    async fn end_load(&mut self, entity: &str, version: Lsn) -> Result<(), Error> {
        self.0.end_load(entity, version).await
    }

    fn terms(&self) -> Terms {
        self.0.terms()
    }

    fn key_limit_bytes(&self) -> usize {
        self.0.key_limit_bytes()
    }

    async fn held(&mut self) -> Result<sinks::Held, Error> {
        self.0.held().await
    }

    async fn lacking(&mut self) -> Result<Vec<String>, Error> {
        self.0.lacking().await
    }

    fn own(&mut self, range: KeyRange) -> bool {
        self.0.own(range)
    }

    async fn older(
        &mut self,
        entity: &str,
        version: Lsn,
        after: Option<&EntityKey>,
        limit: usize,
    ) -> Result<Vec<EntityKey>, Error> {
        self.0.older(entity, version, after, limit).await
    }
}
