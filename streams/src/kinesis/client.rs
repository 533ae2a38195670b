//! The SDK's client, what its failures mean, and trying again.
//!
//! The SDK's own retries are off: a writer has to know of every failed attempt, so that nothing of a lane is sent before what failed has been acknowledged.

use std::future::Future;
use std::ops::RangeInclusive;
use std::time::Duration;

use aws_config::{BehaviorVersion, Region, timeout::TimeoutConfig};
use aws_sdk_kinesis::config::Credentials;
use aws_sdk_kinesis::config::http::HttpResponse;
use aws_sdk_kinesis::config::retry::RetryConfig;
use aws_sdk_kinesis::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_kinesis::types::Shard as SdkShard;
use aws_smithy_http_client::tls::Provider as TlsProvider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use objects::Objects;
use schemas::ErrorClass;
use schemas::progress::{ShardId, StreamName};
use tokio::time::Instant;

use crate::config::{KinesisOptions, Oversize};
use crate::{Error, iam};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Too much at once: slow down, and try again.
    Throttled,
    /// The call may or may not have been carried out: try again.
    Transient,
    NotFound,
    ExpiredIterator,
    InUse,
    /// Kinesis refuses an argument.
    Invalid,
    /// A permission is missing.
    Forbidden,
    /// Credentials, keys.
    Misconfigured,
}

/// A call that failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    pub(super) message: String,
}

impl Failure {
    pub(super) fn from_code(code: &str, message: &str) -> Self {
        let kind = match code {
            "ProvisionedThroughputExceededException"
            | "LimitExceededException"
            | "KMSThrottlingException"
            | "ThrottlingException"
            | "RequestLimitExceeded"
            | "Throttling" => Kind::Throttled,
            "InternalFailure"
            | "InternalFailureException"
            | "ServiceUnavailable"
            | "ServiceUnavailableException"
            | "RequestTimeout" => Kind::Transient,
            "ResourceNotFoundException" => Kind::NotFound,
            "ExpiredIteratorException" => Kind::ExpiredIterator,
            "ResourceInUseException" => Kind::InUse,
            "InvalidArgumentException" | "ValidationException" => Kind::Invalid,
            "AccessDeniedException" | "AccessDenied" | KMS_REFUSAL => Kind::Forbidden,
            _ => Kind::Misconfigured,
        };
        Self { kind, message: format!("{code}: {message}") }
    }

    /// That something is not found is not for good: the stream is there, and what is looked for in it may be too young for whoever was asked.
    pub(super) fn of_a_shard(self) -> Self {
        Self { kind: Kind::Transient, ..self }
    }

    pub(super) fn into_error(self, operation: &'static str, stream: &StreamName) -> Error {
        let class = match self.kind {
            Kind::NotFound => return Error::NoSuchStream { stream: stream.clone() },
            Kind::Throttled => {
                return Error::Throttled { operation, stream: stream.clone(), message: self.message };
            }
            Kind::Transient | Kind::InUse | Kind::ExpiredIterator => ErrorClass::Transient,
            Kind::Invalid => ErrorClass::Bug,
            Kind::Forbidden => return self.forbidden(operation, stream),
            Kind::Misconfigured => ErrorClass::Misconfigured,
        };
        Error::Kinesis { operation, stream: stream.clone(), message: self.message, class }
    }

    /// What is missing stands in AWS's message, mostly; what does not follows from the call.
    fn forbidden(&self, operation: &'static str, stream: &StreamName) -> Error {
        let (action, resource) = if self.message.starts_with(KMS_REFUSAL) {
            let action = if operation == "PutRecords" { "kms:GenerateDataKey" } else { "kms:Decrypt" };
            (action.to_owned(), "the KMS key of the stream".to_owned())
        } else {
            (format!("kinesis:{operation}"), iam::Place::default().stream_arn(stream))
        };
        let said = |said: Option<&str>, otherwise| said.map_or(otherwise, str::to_owned);
        Error::Forbidden {
            operation,
            stream: stream.clone(),
            action: said(iam::refused_action(&self.message), action),
            resource: said(iam::refused_resource(&self.message), resource),
        }
    }
}

const KMS_REFUSAL: &str = "KMSAccessDeniedException";

impl<E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static> From<SdkError<E, HttpResponse>> for Failure {
    fn from(error: SdkError<E, HttpResponse>) -> Self {
        Self::of(&error, |answer| answer.status().is_server_error())
    }
}

impl Failure {
    /// What an error of the SDK means; `of_server` says of an answer whether the server itself failed.
    pub(super) fn of<E, R>(error: &SdkError<E, R>, of_server: impl Fn(&R) -> bool) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
        R: std::fmt::Debug + Send + Sync + 'static,
    {
        let context = || format!("{}", DisplayErrorContext(error));
        match error {
            SdkError::ServiceError(service) => {
                let mut failure =
                    Self::from_code(service.err().code().unwrap_or("unnamed error"), service.err().message().unwrap_or_default());
                // What Kinesis gives no name to says nothing for good either.
                let unnamed = service.err().code().is_none();
                if failure.kind == Kind::Misconfigured && (unnamed || of_server(service.raw())) {
                    failure.kind = Kind::Transient;
                }
                failure
            }
            SdkError::DispatchFailure(dispatch) if !dispatch.is_io() && !dispatch.is_timeout() => {
                // The SDK reports missing credentials as a failure to dispatch; only its words tell them from a broken connection.
                let message = context();
                let kind = if message.contains("credentials") { Kind::Misconfigured } else { Kind::Transient };
                Self { kind, message }
            }
            SdkError::ConstructionFailure(_) => Self { kind: Kind::Misconfigured, message: context() },
            _ => Self { kind: Kind::Transient, message: context() },
        }
    }
}

/// A shard as the shard map has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shard {
    pub(super) id: ShardId,
    pub(super) first_hash: u128,
    pub(super) last_hash: u128,
    pub(super) parents: Vec<ShardId>,
    pub(super) starting: String,
    /// Where it ended, once it is closed.
    pub(super) ending: Option<String>,
}

impl Shard {
    pub(super) fn overlaps(&self, hashes: &RangeInclusive<u128>) -> bool {
        self.first_hash <= *hashes.end() && *hashes.start() <= self.last_hash
    }

    pub(super) fn is_whole_space(&self) -> bool {
        (self.first_hash, self.last_hash) == (0, u128::MAX)
    }

    pub(super) fn holds(&self, hash: u128) -> bool {
        (self.first_hash..=self.last_hash).contains(&hash)
    }

    /// None where a range is missing or is no number.
    fn read(shard: &SdkShard) -> Option<Self> {
        let hashes = shard.hash_key_range()?;
        let sequence = shard.sequence_number_range()?;
        Some(Self {
            id: ShardId(shard.shard_id().to_owned()),
            first_hash: hashes.starting_hash_key().parse().ok()?,
            last_hash: hashes.ending_hash_key().parse().ok()?,
            parents: [shard.parent_shard_id(), shard.adjacent_parent_shard_id()]
                .into_iter()
                .flatten()
                .map(|id| ShardId(id.to_owned()))
                .collect(),
            starting: sequence.starting_sequence_number().to_owned(),
            ending: sequence.ending_sequence_number().map(str::to_owned),
        })
    }
}

#[derive(Debug)]
pub(super) struct Client {
    pub(super) sdk: aws_sdk_kinesis::Client,
    pub(super) options: KinesisOptions,
    /// Where what is too large for a record is kept.
    pub(super) outside: Option<Objects>,
}

impl Client {
    pub(super) async fn connect(options: KinesisOptions) -> Result<Self, Error> {
        let http = aws_smithy_http_client::Builder::new().tls_provider(TlsProvider::Rustls(CryptoMode::AwsLc)).build_https();
        let timeout = Duration::from_secs(options.call_timeout_seconds.max(1));
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http)
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().operation_timeout(timeout).build());
        if let Some(region) = &options.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(endpoint) = &options.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        if options.stand_in_credentials {
            loader = loader.credentials_provider(Credentials::new("stand-in", "stand-in", None, None, "stand-in"));
        }
        let outside = match &options.oversize {
            Oversize::Pointer(config) => {
                let opened = Objects::open(config).await;
                Some(opened.map_err(|source| Error::Objects { stream: StreamName("(all)".into()), source: Box::new(source) })?)
            }
            Oversize::Stop | Oversize::DeadLetter => None,
        };
        Ok(Self { sdk: aws_sdk_kinesis::Client::new(&loader.load().await), options, outside })
    }

    pub(super) fn attempts(&self) -> Attempts {
        self.attempts_within(Duration::MAX)
    }

    /// No longer than this, and no longer than is configured.
    pub(super) fn attempts_within(&self, most: Duration) -> Attempts {
        let attempts = Attempts::new(&self.options);
        Attempts { budget: attempts.budget.min(most), ..attempts }
    }

    /// Makes the call until it succeeds, fails for a reason that time does not heal, or has failed for `retry_seconds`.
    pub(super) async fn retry<T, F>(&self, operation: &'static str, mut call: impl FnMut() -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut attempts = self.attempts();
        loop {
            match call().await {
                Ok(answer) => return Ok(answer),
                Err(failure) => attempts.pause(operation, failure).await?,
            }
        }
    }

    /// The whole shard map, closed shards included.
    pub(super) async fn shards(&self, stream: &StreamName) -> Result<Vec<Shard>, Error> {
        const OPERATION: &str = "ListShards";
        let mut shards = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let call = || async {
                // A further page is asked for by its token alone.
                let request = self.sdk.list_shards();
                let request = match &token {
                    Some(token) => request.next_token(token),
                    None => request.stream_name(&stream.0),
                };
                Ok(request.send().await?)
            };
            let answer = self.retry(OPERATION, call).await.map_err(|failure| failure.into_error(OPERATION, stream))?;
            for shard in answer.shards() {
                shards.push(Shard::read(shard).ok_or_else(|| Error::Kinesis {
                    operation: OPERATION,
                    stream: stream.clone(),
                    message: format!("shard {} has no hash key range or sequence number range", shard.shard_id()),
                    class: ErrorClass::Bug,
                })?);
            }
            token = answer.next_token().map(str::to_owned);
            if token.is_none() {
                return Ok(shards);
            }
        }
    }
}

/// The attempts at one thing: pauses that grow, and a budget from the first failure on.
pub(super) struct Attempts {
    backoff: ExponentialBackoff,
    budget: Duration,
    since: Option<Instant>,
    /// How many of them were throttled.
    pub(super) throttled: u32,
}

impl Attempts {
    fn new(options: &KinesisOptions) -> Self {
        let backoff = ExponentialBuilder::new()
            .with_jitter()
            .with_min_delay(Duration::from_millis(20))
            .with_max_delay(Duration::from_millis(options.retry_pause_ms.max(20)))
            .without_max_times();
        Self { backoff: backoff.build(), budget: Duration::from_secs(options.retry_seconds), since: None, throttled: 0 }
    }

    /// Waits before the next attempt, or hands the failure back when there is to be none.
    pub(super) async fn pause(&mut self, operation: &'static str, failure: Failure) -> Result<(), Failure> {
        match failure.kind {
            Kind::Throttled => self.throttled += 1,
            Kind::Transient => {}
            _ => return Err(failure),
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        let pause = self.backoff.next().unwrap_or_default();
        if since.elapsed() + pause > self.budget {
            return Err(failure);
        }
        metrics::counter!(crate::metrics::RETRIES, "operation" => operation).increment(1);
        tracing::debug!(operation, message = failure.message, "Kinesis: trying again");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forbidden(operation: &'static str, code: &str, message: &str) -> (String, String) {
        match Failure::from_code(code, message).into_error(operation, &StreamName("shop.events".into())) {
            Error::Forbidden { action, resource, .. } => (action, resource),
            error => panic!("{error}"),
        }
    }

    #[test]
    fn what_is_missing_is_named_also_where_aws_does_not() {
        let (action, resource) = forbidden("PutRecords", "AccessDeniedException", "no");
        assert_eq!((action.as_str(), resource.as_str()), ("kinesis:PutRecords", "arn:aws:kinesis:*:*:stream/shop.events"));
        let (action, resource) =
            forbidden("GetRecords", "KMSAccessDeniedException", "The ciphertext refers to a key that you may not use");
        assert_eq!((action.as_str(), resource.as_str()), ("kms:Decrypt", "the KMS key of the stream"));
        let said = "User: u is not authorized to perform: kms:GenerateDataKey on resource: arn:aws:kms:eu-west-1:1:key/k because it is not";
        let (action, resource) = forbidden("PutRecords", "KMSAccessDeniedException", said);
        assert_eq!((action.as_str(), resource.as_str()), ("kms:GenerateDataKey", "arn:aws:kms:eu-west-1:1:key/k"));
    }
}
