//! Which sink, and its options, as they stand under `sinks:` in the configuration.
//!
//! ```yaml
//! sinks:
//!   - type: sqlite
//!     path: data/entities.db
//!   - type: postgres
//!     url: {env: ENTITIES_URL}
//! ```

use std::sync::Arc;

use serde::Deserialize;

use crate::{EntityReader, Error, Sink};

/// One sink. The fields of each kind are documented where the sink is.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum SinkConfig {
    #[cfg(feature = "sqlite")]
    Sqlite(crate::sqlite::SqliteConfig),
    #[cfg(feature = "postgres")]
    Postgres(crate::postgres::PostgresConfig),
    #[cfg(feature = "mysql")]
    Mysql(crate::mysql::MysqlConfig),
    #[cfg(feature = "dynamodb")]
    Dynamodb(crate::dynamodb::DynamodbConfig),
    #[cfg(feature = "lake")]
    Lake(crate::lake::LakeConfig),
    #[cfg(feature = "sns")]
    Sns(crate::sns::SnsConfig),
    #[cfg(feature = "sqs")]
    Sqs(crate::sqs::SqsConfig),
    #[cfg(feature = "kinesis")]
    Kinesis(crate::kinesis::KinesisConfig),
    #[cfg(feature = "webhook")]
    Webhook(crate::webhook::WebhookConfig),
    #[cfg(feature = "search")]
    Search(crate::search::SearchConfig),
}

impl SinkConfig {
    /// How status, logs and metrics call it.
    pub fn name(&self) -> &str {
        match *self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(ref config) => &config.name,
            #[cfg(feature = "postgres")]
            Self::Postgres(ref config) => &config.name,
            #[cfg(feature = "mysql")]
            Self::Mysql(ref config) => &config.name,
            #[cfg(feature = "dynamodb")]
            Self::Dynamodb(ref config) => &config.name,
            #[cfg(feature = "lake")]
            Self::Lake(ref config) => &config.name,
            #[cfg(feature = "sns")]
            Self::Sns(ref config) => &config.name,
            #[cfg(feature = "sqs")]
            Self::Sqs(ref config) => &config.name,
            #[cfg(feature = "kinesis")]
            Self::Kinesis(ref config) => &config.name,
            #[cfg(feature = "webhook")]
            Self::Webhook(ref config) => &config.name,
            #[cfg(feature = "search")]
            Self::Search(ref config) => &config.name,
        }
    }

    /// Whether [`open_reader`] gives a reader for it.
    pub fn can_be_read(&self) -> bool {
        match self {
            #[cfg(feature = "sqlite")]
            Self::Sqlite(_) => true,
            #[cfg(feature = "postgres")]
            Self::Postgres(_) => true,
            #[cfg(feature = "mysql")]
            Self::Mysql(_) => true,
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }
}

/// The sink of a configuration. Nothing is contacted before [`Sink::prepare`].
pub fn open(config: &SinkConfig) -> Result<Box<dyn Sink>, Error> {
    match *config {
        #[cfg(feature = "sqlite")]
        SinkConfig::Sqlite(ref config) => Ok(Box::new(crate::sqlite::SqliteSink::new(config.clone()))),
        #[cfg(feature = "postgres")]
        SinkConfig::Postgres(ref config) => Ok(Box::new(crate::postgres::PostgresSink::new(config.clone())?)),
        #[cfg(feature = "mysql")]
        SinkConfig::Mysql(ref config) => Ok(Box::new(crate::mysql::MysqlSink::new(config.clone())?)),
        #[cfg(feature = "dynamodb")]
        SinkConfig::Dynamodb(ref config) => Ok(Box::new(crate::dynamodb::DynamodbSink::new(config.clone()))),
        #[cfg(feature = "lake")]
        SinkConfig::Lake(ref config) => Ok(Box::new(crate::lake::LakeSink::new(config.clone()))),
        #[cfg(feature = "sns")]
        SinkConfig::Sns(ref config) => Ok(Box::new(crate::sns::SnsSink::new(config.clone()))),
        #[cfg(feature = "sqs")]
        SinkConfig::Sqs(ref config) => Ok(Box::new(crate::sqs::SqsSink::new(config.clone()))),
        #[cfg(feature = "kinesis")]
        SinkConfig::Kinesis(ref config) => Ok(Box::new(crate::kinesis::KinesisSink::new(config.clone()))),
        #[cfg(feature = "webhook")]
        SinkConfig::Webhook(ref config) => Ok(Box::new(crate::webhook::WebhookSink::new(config.clone()))),
        #[cfg(feature = "search")]
        SinkConfig::Search(ref config) => Ok(Box::new(crate::search::SearchSink::new(config.clone()))),
    }
}

/// A reader of what the sink of a configuration writes; `None` for sinks that cannot be queried. Nothing is contacted yet.
pub fn open_reader(config: &SinkConfig) -> Result<Option<Arc<dyn EntityReader>>, Error> {
    match config {
        #[cfg(feature = "sqlite")]
        SinkConfig::Sqlite(config) => Ok(Some(Arc::new(crate::sqlite::SqliteReader::new(config)))),
        #[cfg(feature = "postgres")]
        SinkConfig::Postgres(config) => Ok(Some(Arc::new(crate::postgres::PostgresReader::new(config)?))),
        #[cfg(feature = "mysql")]
        SinkConfig::Mysql(config) => Ok(Some(Arc::new(crate::mysql::MysqlReader::new(config)?))),
        #[allow(unreachable_patterns)]
        _ => Ok(None),
    }
}

#[cfg(all(
    test,
    feature = "sqlite",
    feature = "postgres",
    feature = "dynamodb",
    feature = "sns",
    feature = "sqs",
    feature = "kinesis",
    feature = "webhook",
    feature = "search"
))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn parse(yaml: &str) -> Result<SinkConfig, serde_yaml_ng::Error> {
        serde_yaml_ng::from_str(yaml)
    }

    #[test]
    fn each_kind_is_read_and_unknown_keys_are_refused() {
        assert_eq!(parse("{type: sqlite, path: a.db}").unwrap().name(), "sqlite");
        assert_eq!(parse("{type: postgres, name: aurora, url: {env: URL}}").unwrap().name(), "aurora");
        assert!(parse("{type: dynamodb, table: entities}").is_ok());
        assert!(parse("{type: sns, topic_arn: 'arn:aws:sns:eu-west-1:1:t'}").is_ok());
        let sqs = parse("{type: sqs, queue_url: 'https://h/q', event: thin, attributes: {city: customer.city}}").unwrap();
        assert_eq!(sqs.name(), "sqs");
        assert_eq!(parse("{type: kinesis, stream: entities, shards: 2}").unwrap().name(), "kinesis");
        let hook = "{type: webhook, url: {env: URL}, secrets: [{env: S}], allow_networks: [10.20.0.0/16, '::1/128']}";
        assert_eq!(parse(hook).unwrap().name(), "webhook");
        assert!(parse("{type: webhook, url: u, secrets: [], allow_networks: [10.20.0.0/40]}").is_err());
        assert_eq!(parse("{type: search, name: find, url: 'https://h:9200', api_key: {env: K}}").unwrap().name(), "find");
        let error = parse("{type: sqlite, path: a.db, pth: b}").unwrap_err().to_string();
        assert!(error.contains("pth") && error.contains("busy_timeout_ms"), "{error}");
        let error = parse("{type: oracle}").unwrap_err().to_string();
        assert!(error.contains("oracle") && error.contains("postgres"), "{error}");
    }

    #[test]
    fn what_can_be_read_has_a_reader() {
        for (yaml, readable) in [
            ("{type: sqlite, path: a.db}", true),
            ("{type: postgres, url: 'postgres://u@127.0.0.1/d'}", true),
            ("{type: mysql, url: 'mysql://u@127.0.0.1/d'}", true),
            ("{type: dynamodb, table: entities}", false),
            ("{type: sns, topic_arn: 'arn:aws:sns:eu-west-1:1:t'}", false),
        ] {
            let config = parse(yaml).unwrap();
            assert_eq!(config.can_be_read(), readable);
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let _entered = runtime.enter();
            assert_eq!(open_reader(&config).unwrap().is_some(), readable);
            assert!(open(&config).is_ok());
        }
    }
}
