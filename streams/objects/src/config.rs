//! Which object storage to use, as the configuration file says it: exactly one of
//!
//! ```yaml
//! local: {path: data/archive}
//! s3: {bucket: shop-archive, prefix: tributary, region: eu-central-1}
//! ```

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aws_config::{BehaviorVersion, Region};
use aws_smithy_http_client::tls::{Provider as TlsProvider, rustls_provider::CryptoMode};
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, RetryConfig, StaticCredentialProvider};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::http::{Connector, Credentials};

/// How long a request that fails is made again before the failure is told.
const RETRY_FOR: Duration = Duration::from_secs(60);

/// The choice of an object storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Choices", into = "Choices")]
pub enum Config {
    Local(LocalOptions),
    S3(S3Options),
}

/// A folder of this machine, or one that is mounted there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalOptions {
    /// The folder; made where it does not exist.
    pub path: PathBuf,
}

/// A bucket. Credentials come from where every AWS tool takes them: environment, profile, container or instance role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Options {
    pub bucket: String,
    /// What every object's name begins with. Default: nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// Default: `AWS_REGION`, or the profile's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Another endpoint than the region's: a VPC endpoint, another vendor's store, or a stand-in. Default: the region's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Uses made-up credentials, for stand-ins that check none. Default: false.
    #[serde(default)]
    pub stand_in_credentials: bool,
}

/// How the choice is written: a mapping with one key, as for streams.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Choices {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    local: Option<LocalOptions>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    s3: Option<S3Options>,
}

#[derive(Debug, thiserror::Error)]
#[error("name exactly one object storage: local or s3")]
struct NotOne;

impl TryFrom<Choices> for Config {
    type Error = NotOne;

    fn try_from(choices: Choices) -> Result<Self, NotOne> {
        match choices {
            Choices { local: Some(options), s3: None } => Ok(Self::Local(options)),
            Choices { local: None, s3: Some(options) } => Ok(Self::S3(options)),
            _ => Err(NotOne),
        }
    }
}

impl From<Config> for Choices {
    fn from(config: Config) -> Self {
        match config {
            Config::Local(options) => Self { local: Some(options), s3: None },
            Config::S3(options) => Self { local: None, s3: Some(options) },
        }
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(options) => write!(f, "{}", options.path.display()),
            Self::S3(S3Options { bucket, prefix, .. }) if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3(S3Options { bucket, prefix, .. }) => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

impl Config {
    /// Takes a relative path as one from this folder on.
    pub fn relative_to(&mut self, folder: &std::path::Path) {
        if let Self::Local(options) = self {
            options.path = folder.join(&options.path);
        }
    }

    /// A folder in it, as a store of its own.
    #[must_use]
    pub fn below(&self, folder: &str) -> Self {
        match self {
            Self::Local(options) => Self::Local(LocalOptions { path: options.path.join(folder) }),
            Self::S3(options) => {
                let mut options = options.clone();
                options.prefix = format!("{}/{folder}", options.prefix.trim_matches('/')).trim_start_matches('/').to_owned();
                Self::S3(options)
            }
        }
    }

    pub(crate) async fn store(&self) -> Result<Arc<dyn ObjectStore>, Error> {
        let failed = |source| Error::Open { store: self.to_string(), source: Box::new(source) };
        match self {
            Self::Local(LocalOptions { path }) => {
                std::fs::create_dir_all(path).map_err(|source| Error::Folder { path: path.clone(), source })?;
                Ok(Arc::new(LocalFileSystem::new_with_prefix(path).map_err(failed)?.with_fsync(true)))
            }
            Self::S3(options) => {
                let store = options.builder(&self.to_string()).await?.build().map_err(failed)?;
                if options.prefix.is_empty() {
                    return Ok(Arc::new(store));
                }
                let prefix = Path::parse(&options.prefix).map_err(|error| failed(error.into()))?;
                Ok(Arc::new(PrefixStore::new(store, prefix)))
            }
        }
    }
}

impl S3Options {
    async fn builder(&self, store: &str) -> Result<AmazonS3Builder, Error> {
        let retry = RetryConfig { retry_timeout: RETRY_FOR, ..RetryConfig::default() };
        let mut builder = AmazonS3Builder::new().with_bucket_name(&self.bucket).with_retry(retry).with_http_connector(Connector);
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint).with_allow_http(true);
        }
        let mut region = self.region.clone();
        if self.stand_in_credentials {
            let credential = object_store::aws::AwsCredential { key_id: "test".into(), secret_key: "test".into(), token: None };
            builder = builder.with_credentials(Arc::new(StaticCredentialProvider::new(credential)));
            region.get_or_insert_with(|| "us-east-1".into());
        } else {
            let tls = TlsProvider::rustls(CryptoMode::AwsLc);
            let mut loader = aws_config::defaults(BehaviorVersion::latest())
                .http_client(aws_smithy_http_client::Builder::new().tls_provider(tls).build_https());
            if let Some(region) = &region {
                loader = loader.region(Region::new(region.clone()));
            }
            let found = loader.load().await;
            region = region.or_else(|| found.region().map(ToString::to_string));
            builder = builder.with_credentials(Arc::new(Credentials::new(found.credentials_provider())));
        }
        let region = region.ok_or_else(|| Error::Region { store: store.to_owned() })?;
        Ok(builder.with_region(region))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_folder_is_a_store_of_its_own() {
        let below = |text: &str| serde_json::from_str::<Config>(text).unwrap().below("shop").to_string();
        assert_eq!(below(r#"{"local": {"path": "p/q"}}"#), "p/q/shop");
        assert_eq!(below(r#"{"s3": {"bucket": "b"}}"#), "s3://b/shop");
        assert_eq!(below(r#"{"s3": {"bucket": "b", "prefix": "a/b/"}}"#), "s3://b/a/b/shop");
    }

    #[test]
    fn a_choice_reads_back_and_typos_are_refused() {
        let text = r#"{"s3":{"bucket":"b","prefix":"a/b","region":"eu-west-1","stand_in_credentials":false}}"#;
        let config: Config = serde_json::from_str(text).unwrap();
        assert_eq!((serde_json::to_string(&config).unwrap().as_str(), config.to_string().as_str()), (text, "s3://b/a/b"));
        let refused = |text: &str| serde_json::from_str::<Config>(text).unwrap_err().to_string();
        assert!(refused("{}").contains("exactly one"));
        assert!(refused(r#"{"local": {"path": "p"}, "s3": {"bucket": "b"}}"#).contains("exactly one"));
        assert!(refused(r#"{"s3": {"bukket": "b"}}"#).contains("bukket"));
        assert!(refused(r#"{"gcs": {}}"#).contains("gcs"));
    }
}
