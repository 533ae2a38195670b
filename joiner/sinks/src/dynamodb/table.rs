//! The table: found, checked, or made.

use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType, TableDescription, TableStatus,
    TimeToLiveSpecification,
};

use super::DynamodbSink;
use crate::Error;

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
        let keys: Vec<String> =
            table.key_schema().iter().map(|key| format!("{} {}", key.attribute_name(), key.key_type())).collect();
        let expected = format!("{} HASH", self.config.key_attribute);
        let text = table.attribute_definitions().iter().any(|attribute| {
            attribute.attribute_name() == self.config.key_attribute && *attribute.attribute_type() == ScalarAttributeType::S
        });
        if keys != [expected.clone()] || !text {
            let message = format!("its key is ({}), but Tributary's is ({expected}), a string", keys.join(", "));
            return Err(Error::misconfigured(&self.target, message, "Set key_attribute to its name, or name another table"));
        }
        Ok(())
    }

    async fn describe(&self, client: &Client) -> Result<Option<TableDescription>, Error> {
        match client.describe_table().table_name(&self.config.table).send().await {
            Ok(answer) => Ok(answer.table),
            Err(error) if error.as_service_error().is_some_and(|error| error.is_resource_not_found_exception()) => Ok(None),
            Err(error) => Err(self.failed(&error)),
        }
    }

    async fn create(&self, client: &Client) -> Result<(), Error> {
        let name = &self.config.key_attribute;
        let attribute = AttributeDefinition::builder().attribute_name(name).attribute_type(ScalarAttributeType::S).build();
        let key = KeySchemaElement::builder().attribute_name(name).key_type(KeyType::Hash).build();
        let (attribute, key) = (attribute.map_err(|error| self.bug(&error))?, key.map_err(|error| self.bug(&error))?);
        let create = client.create_table().table_name(&self.config.table).attribute_definitions(attribute).key_schema(key);
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
