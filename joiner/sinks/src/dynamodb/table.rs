//! The table: found, checked, or made.

use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, CreateGlobalSecondaryIndexAction, GlobalSecondaryIndex, GlobalSecondaryIndexUpdate,
    KeySchemaElement, KeyType, Projection, ProjectionType, ScalarAttributeType, TableDescription, TableStatus,
    TimeToLiveSpecification,
};

use super::{DynamodbSink, IndexConfig};
use crate::{Checked, Error};

const POLL: Duration = Duration::from_millis(250);
/// DynamoDB makes a table within seconds.
const POLLS: u32 = 240;

impl DynamodbSink {
    pub(super) async fn ensure_table(&self, client: &Client) -> Result<(), Error> {
        let table = match self.describe(client).await? {
            Some(table) => table,
            None => {
                self.create(client).await?;
                self.wait_until_active(client).await?
            }
        };
        self.fits(&table)?;
        self.ensure_index(client, &table).await
    }

    /// What a look at the table tells, without making it.
    pub(super) async fn look(&self, client: &Client) -> Result<Checked, Error> {
        let Some(table) = self.describe(client).await? else {
            return Ok(Checked { detail: "the table is not there yet, and will be made".to_owned(), warnings: Vec::new() });
        };
        self.fits(&table)?;
        self.may_put(client).await?;
        let missing =
            self.missing_indexes(&table).map(|index| format!("index {} is not there yet, and will be made", index.name));
        let warnings = missing.collect();
        Ok(Checked { detail: format!("the table is there with about {} items", table.item_count().unwrap_or(0)), warnings })
    }

    /// Whether items may be put: by a put whose condition holds for no item, so that it changes nothing.
    async fn may_put(&self, client: &Client) -> Result<(), Error> {
        let put = client.put_item().table_name(&self.config.table).set_item(Some(self.frontier_item(client).key()));
        let put = put.condition_expression("attribute_exists(lsn) AND attribute_not_exists(lsn)");
        match put.send().await {
            Err(error) if !error.as_service_error().is_some_and(|error| error.is_conditional_check_failed_exception()) => {
                Err(self.failed(&error))
            }
            _ => Ok(()),
        }
    }

    /// Whether the table has the key and, as far as they are there, the indexes of the configuration.
    fn fits(&self, table: &TableDescription) -> Result<(), Error> {
        let found = described(table.key_schema(), table.attribute_definitions());
        let wanted = self.key_attributes().map(|(name, role)| format!("{name} {role} S")).collect::<Vec<_>>();
        if found != wanted {
            let message = format!("its key is ({}), but Tributary's is ({})", found.join(", "), wanted.join(", "));
            let remedy = "Set key_attribute and sort_key_attribute to the names of strings, or name another table";
            return Err(Error::misconfigured(&self.target, message, remedy));
        }
        for index in &self.config.indexes {
            let there = table.global_secondary_indexes().iter().find(|there| there.index_name() == Some(&index.name));
            let Some(there) = there else { continue };
            let found = described(there.key_schema(), table.attribute_definitions());
            let wanted: Vec<String> =
                self.index_attributes(index).map(|(name, role, kind)| format!("{name} {role} {kind}")).collect();
            if found != wanted {
                let message = format!(
                    "its index {} is over ({}), but the sink's is over ({})",
                    index.name,
                    found.join(", "),
                    wanted.join(", ")
                );
                return Err(Error::misconfigured(
                    &self.target,
                    message,
                    "Name the sink's index otherwise, or delete the one that is there",
                ));
            }
        }
        Ok(())
    }

    fn key_attributes(&self) -> impl Iterator<Item = (&str, KeyType)> {
        let sort = self.config.sort_key_attribute.as_deref().map(|name| (name, KeyType::Range));
        std::iter::once((self.config.key_attribute.as_str(), KeyType::Hash)).chain(sort)
    }

    fn index_attributes<'a>(&'a self, index: &'a IndexConfig) -> impl Iterator<Item = (&'a str, KeyType, ScalarAttributeType)> {
        let parts = [(Some(&index.partition), KeyType::Hash), (index.sort.as_ref(), KeyType::Range)];
        parts.into_iter().filter_map(|(path, role)| {
            let path = path?;
            let kind = self.shapes.indexed.iter().find(|indexed| indexed.path == *path)?.kind.clone();
            Some((path.as_str(), role, kind))
        })
    }

    fn missing_indexes<'a>(&'a self, table: &'a TableDescription) -> impl Iterator<Item = &'a IndexConfig> {
        let there = |index: &&IndexConfig| {
            !table.global_secondary_indexes().iter().any(|there| there.index_name() == Some(index.name.as_str()))
        };
        self.config.indexes.iter().filter(there)
    }

    /// Makes the first index that an older table lacks. DynamoDB fills it by itself, and makes one at a time.
    async fn ensure_index(&self, client: &Client, table: &TableDescription) -> Result<(), Error> {
        let mut missing = self.missing_indexes(table);
        let Some(index) = missing.next() else { return Ok(()) };
        let mut update = client.update_table().table_name(&self.config.table);
        for (name, _, kind) in self.index_attributes(index) {
            update = update.attribute_definitions(self.attribute(name, kind)?);
        }
        let mut create = CreateGlobalSecondaryIndexAction::builder().index_name(&index.name).projection(all());
        for (name, role, _) in self.index_attributes(index) {
            create = create.key_schema(self.key(name, role)?);
        }
        let create = create.build().map_err(|error| self.bug(&error))?;
        update = update.global_secondary_index_updates(GlobalSecondaryIndexUpdate::builder().create(create).build());
        match update.send().await {
            Ok(_) => {
                tracing::info!(target_name = %self.target, index = index.name, "the index is being made, which may take DynamoDB a while")
            }
            // Another is being made.
            Err(error)
                if error
                    .as_service_error()
                    .is_some_and(|error| error.is_limit_exceeded_exception() || error.is_resource_in_use_exception()) =>
            {
                tracing::warn!(target_name = %self.target, index = index.name, "the index is made at the sink's next start: DynamoDB is making another");
            }
            Err(error) => return Err(self.failed(&error)),
        }
        for later in missing {
            tracing::warn!(target_name = %self.target, index = later.name, "the index is made at the sink's next start: DynamoDB makes one at a time");
        }
        Ok(())
    }

    fn attribute(&self, name: &str, kind: ScalarAttributeType) -> Result<AttributeDefinition, Error> {
        AttributeDefinition::builder().attribute_name(name).attribute_type(kind).build().map_err(|error| self.bug(&error))
    }

    fn key(&self, name: &str, role: KeyType) -> Result<KeySchemaElement, Error> {
        KeySchemaElement::builder().attribute_name(name).key_type(role).build().map_err(|error| self.bug(&error))
    }

    async fn describe(&self, client: &Client) -> Result<Option<TableDescription>, Error> {
        match client.describe_table().table_name(&self.config.table).send().await {
            Ok(answer) => Ok(answer.table),
            Err(error) if error.as_service_error().is_some_and(|error| error.is_resource_not_found_exception()) => Ok(None),
            Err(error) => Err(self.failed(&error)),
        }
    }

    async fn create(&self, client: &Client) -> Result<(), Error> {
        let mut create = client.create_table().table_name(&self.config.table);
        for (name, role) in self.key_attributes() {
            create =
                create.attribute_definitions(self.attribute(name, ScalarAttributeType::S)?).key_schema(self.key(name, role)?);
        }
        for indexed in &self.shapes.indexed {
            create = create.attribute_definitions(self.attribute(&indexed.path, indexed.kind.clone())?);
        }
        for index in &self.config.indexes {
            let mut made = GlobalSecondaryIndex::builder().index_name(&index.name).projection(all());
            for (name, role, _) in self.index_attributes(index) {
                made = made.key_schema(self.key(name, role)?);
            }
            create = create.global_secondary_indexes(made.build().map_err(|error| self.bug(&error))?);
        }
        match create.billing_mode(BillingMode::PayPerRequest).send().await {
            Ok(_) => Ok(()),
            // Somebody else was quicker.
            Err(error) if error.as_service_error().is_some_and(|error| error.is_resource_in_use_exception()) => Ok(()),
            Err(error) => Err(self.failed(&error)),
        }
    }

    async fn wait_until_active(&self, client: &Client) -> Result<TableDescription, Error> {
        for _ in 0..POLLS {
            match self.describe(client).await? {
                Some(table) if table.table_status() == Some(&TableStatus::Active) => {
                    self.expire_tombstones(client).await;
                    return Ok(table);
                }
                _ => tokio::time::sleep(POLL).await,
            }
        }
        Err(Error::unavailable(&self.target, "it was created and is not active yet"))
    }

    /// Without it, tombstones stay for ever: that costs space and nothing else, so a refusal is a warning.
    async fn expire_tombstones(&self, client: &Client) {
        let Ok(specification) = TimeToLiveSpecification::builder().enabled(true).attribute_name("expires_at").build() else {
            return;
        };
        let request = client.update_time_to_live().table_name(&self.config.table).time_to_live_specification(specification);
        if let Err(error) = request.send().await {
            tracing::warn!(target_name = %self.target, error = %self.failed(&error), "time-to-live could not be set on expires_at; tombstones stay");
        }
    }

    fn bug(&self, error: &aws_sdk_dynamodb::error::BuildError) -> Error {
        Error::unexpected(&self.target, error)
    }
}

/// An index holds whole items.
fn all() -> Projection {
    Projection::builder().projection_type(ProjectionType::All).build()
}

/// `name HASH S`, `name RANGE N`.
fn described(key: &[KeySchemaElement], attributes: &[AttributeDefinition]) -> Vec<String> {
    let kind = |name: &str| {
        let found = attributes.iter().find(|attribute| attribute.attribute_name() == name);
        found.map_or("?", |attribute| attribute.attribute_type().as_str())
    };
    key.iter().map(|key| format!("{} {} {}", key.attribute_name(), key.key_type(), kind(key.attribute_name()))).collect()
}
