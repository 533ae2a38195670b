//! How S3 is reached: hyper with rustls and aws-lc, as everything else of the project is, instead of the HTTP client that the library would bring along; and the AWS SDK's credentials.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use http_body_util::BodyExt;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::{Client, connect::HttpConnector as TcpConnector};
use hyper_util::rt::TokioExecutor;
use object_store::aws::AwsCredential;
use object_store::client::{
    ClientOptions, CredentialProvider, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody,
    HttpResponse, HttpService,
};
use tokio::sync::Mutex;

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// One request with its whole answer; objects are some megabytes.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);
/// Credentials are fetched anew when they have less left than this.
const RENEW_BEFORE: Duration = Duration::from_secs(300);

/// Makes the client.
#[derive(Debug)]
pub(crate) struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        let mut tcp = TcpConnector::new();
        tcp.set_connect_timeout(Some(CONNECT_LIMIT));
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        let provider = tokio_rustls::rustls::crypto::aws_lc_rs::default_provider();
        let tls = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(provider)
            .map_err(|error| object_store::Error::Generic { store: "S3", source: Box::new(error) })?
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        Ok(HttpClient::new(Service { client: Client::builder(TokioExecutor::new()).build(tls) }))
    }
}

#[derive(Debug)]
struct Service {
    client: Client<HttpsConnector<TcpConnector>, HttpRequestBody>,
}

#[derive(Debug, thiserror::Error)]
#[error("no whole answer within {} s", REQUEST_LIMIT.as_secs())]
struct TimedOut;

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let answer = async {
            let (head, body) = self.client.request(request).await.map_err(connection_error)?.into_parts();
            let body = body.collect().await.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, error))?;
            Ok(HttpResponse::from_parts(head, body.to_bytes().into()))
        };
        tokio::time::timeout(REQUEST_LIMIT, answer)
            .await
            .unwrap_or_else(|_| Err(HttpError::new(HttpErrorKind::Timeout, TimedOut)))
    }
}

/// A request that may have been carried out is *interrupted*: the library makes it again only where that does no harm.
fn connection_error(error: hyper_util::client::legacy::Error) -> HttpError {
    let kind = if error.is_connect() { HttpErrorKind::Connect } else { HttpErrorKind::Interrupted };
    HttpError::new(kind, error)
}

/// The credentials that the AWS SDK finds, kept until shortly before they expire.
#[derive(Debug)]
pub(crate) struct Credentials {
    provider: Option<SharedCredentialsProvider>,
    kept: Mutex<Option<(Arc<AwsCredential>, Option<SystemTime>)>>,
}

impl Credentials {
    pub(crate) fn new(provider: Option<SharedCredentialsProvider>) -> Self {
        Self { provider, kept: Mutex::new(None) }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("no AWS credentials are found: give a role, a profile, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")]
struct NoCredentials;

#[async_trait]
impl CredentialProvider for Credentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let mut kept = self.kept.lock().await;
        if let Some((credential, expiry)) = &*kept
            && expiry.is_none_or(|expiry| expiry > SystemTime::now() + RENEW_BEFORE)
        {
            return Ok(credential.clone());
        }
        let refused = |source: Box<dyn std::error::Error + Send + Sync>| object_store::Error::Unauthenticated {
            path: "AWS credentials".into(),
            source,
        };
        let provider = self.provider.as_ref().ok_or_else(|| refused(Box::new(NoCredentials)))?;
        let found = provider.provide_credentials().await.map_err(|error| refused(Box::new(error)))?;
        let credential = Arc::new(AwsCredential {
            key_id: found.access_key_id().to_owned(),
            secret_key: found.secret_access_key().to_owned(),
            token: found.session_token().map(str::to_owned),
        });
        *kept = Some((credential.clone(), found.expiry()));
        Ok(credential)
    }
}
