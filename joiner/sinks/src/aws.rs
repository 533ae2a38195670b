//! Reaching AWS: one way of making clients, and one reading of their errors.
//!
//! A service that throttles is told from one that is down ([`Error::Throttled`]): what it did not take is nobody's poison, however long it goes on.

use std::time::Duration;

use aws_config::identity::IdentityCache;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};

use crate::Error;

/// The SDK's own attempts at one request, with backoff and jitter; throttling is among what it retries.
const ATTEMPTS: u32 = 6;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(20);

/// What the services call it when they are asked too much.
const THROTTLED: [&str; 14] = [
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "LimitExceededException",
    "BandwidthLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "Throttled",
    "ThrottledException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
    "SlowDown",
    "KMSThrottling",
    "KmsThrottled",
];

/// Where a sink's clients come from. They are made anew in each `prepare`, and look for credentials anew: those that are there then.
#[derive(Debug, Clone)]
pub(crate) enum Access {
    Found {
        region: Option<String>,
        endpoint_url: Option<String>,
    },
    /// What the process has already.
    Given(Box<SdkConfig>),
}

impl Access {
    pub(crate) async fn sdk_config(&self) -> SdkConfig {
        match self {
            Self::Found { region, endpoint_url } => load(region.as_deref(), endpoint_url.as_deref()).await,
            // What it has cached of its credentials is left behind.
            Self::Given(sdk) => sdk.to_builder().identity_cache(IdentityCache::lazy().build()).build(),
        }
    }
}

/// Region and credentials come from where every AWS tool looks for them, unless they are given.
pub(crate) async fn load(region: Option<&str>, endpoint_url: Option<&str>) -> SdkConfig {
    let tls = Provider::rustls(CryptoMode::AwsLc);
    let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT).operation_attempt_timeout(ATTEMPT_TIMEOUT).build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(aws_smithy_http_client::Builder::new().tls_provider(tls).build_https())
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
        .timeout_config(timeouts);
    if let Some(region) = region {
        loader = loader.region(Region::new(region.to_owned()));
    }
    if let Some(url) = endpoint_url {
        loader = loader.endpoint_url(url);
    }
    loader.load().await
}

/// What a failed call means. `code` and `message` are the service's, where it answered; `description` is the SDK's whole chain of causes.
pub(crate) fn classify(target: &str, code: Option<&str>, message: Option<&str>, description: &str) -> Error {
    let Some(code) = code else {
        if description.contains("credential") || description.contains("no providers in chain") {
            let remedy = "Give AWS credentials: a role, a profile, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY";
            return Error::misconfigured(target, description, remedy);
        }
        if description.contains("egion") && description.contains("missing") {
            return Error::misconfigured(target, description, "Set the sink's region, or AWS_REGION");
        }
        return Error::unavailable(target, description);
    };
    let said = format!("{} [{code}]", message.unwrap_or("no message"));
    match code {
        code if is_throttling(code) => Error::throttled(target, said, None),
        "AccessDeniedException" | "AuthorizationError" | "AuthorizationErrorException" | "AccessDenied" => {
            Error::misconfigured(target, said, "Allow the action in the IAM policy of Tributary's role")
        }
        "KMSAccessDenied" | "KmsAccessDenied" | "KMSDisabled" | "KmsDisabled" | "KMSNotFound" | "KmsNotFound"
        | "KMSOptInRequired" | "KmsOptInRequired" | "KMSInvalidState" | "KmsInvalidState" => Error::misconfigured(
            target,
            said,
            "Enable the key that encrypts it, and allow Tributary's role kms:GenerateDataKey and kms:Decrypt on it",
        ),
        "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "MissingAuthenticationToken"
        | "IncompleteSignature"
        | "InvalidSecurity" => Error::misconfigured(target, said, "Check the AWS credentials and this machine's clock"),
        "ResourceNotFoundException"
        | "NotFound"
        | "NotFoundException"
        | "QueueDoesNotExist"
        | "AWS.SimpleQueueService.NonExistentQueue" => {
            Error::misconfigured(target, said, "Create it, or correct its name, region and account in the sink's options")
        }
        "ValidationException"
        | "InvalidParameter"
        | "InvalidParameterException"
        | "InvalidParameterValue"
        | "InvalidMessageContents"
        | "InvalidAddress" => Error::unexpected(target, said),
        // Internal errors, expired tokens: all of them pass.
        _ => Error::unavailable(target, said),
    }
}

/// Whether a code says that the service is asked too much.
pub(crate) fn is_throttling(code: &str) -> bool {
    THROTTLED.contains(&code)
}

/// The client that a sink's `prepare` makes.
#[cfg(any(feature = "sns", feature = "sqs"))]
pub(crate) fn prepared<'a, C>(client: Option<&'a C>, target: &str) -> Result<&'a C, Error> {
    client.ok_or_else(|| Error::unavailable(target, "it has not been prepared"))
}
