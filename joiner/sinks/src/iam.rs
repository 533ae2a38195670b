//! Tokens of AWS in place of a database's password (IAM database authentication of RDS and Aurora).
//!
//! A token is a signed request that is never sent: `GET https://host:port/?Action=connect&DBUser=user`, signed in its query for the service `rds-db` (Signature Version 4), without the scheme. It opens connections for a quarter of
//! an hour, and what it has opened stays open. So one is made for each connection, which costs nothing but a signature: credentials are kept by the SDK, and looked for anew before they expire.
//!
//! It is a password in plain text on the wire, so a sink that uses one refuses to connect without TLS.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign};
use aws_sigv4::sign::v4;
use tokio::sync::OnceCell;

use crate::{Error, Secret, aws};

/// As long as AWS takes a token.
const TOKEN_LIFE: Duration = Duration::from_secs(900);

/// Makes tokens for the databases of a region.
#[derive(Clone)]
pub(crate) struct Iam {
    region: String,
    credentials: Arc<OnceCell<SharedCredentialsProvider>>,
}

impl Iam {
    pub(crate) fn new(region: &str) -> Self {
        Self { region: region.to_owned(), credentials: Arc::default() }
    }

    #[cfg(test)]
    pub(crate) fn with(region: &str, credentials: Credentials) -> Self {
        let credentials = Arc::new(OnceCell::new_with(Some(SharedCredentialsProvider::new(credentials))));
        Self { region: region.to_owned(), credentials }
    }

    /// The password of this user for a connection that is opened now.
    pub(crate) async fn token(&self, target: &str, host: &str, port: u16, user: &str) -> Result<Secret, Error> {
        let failed = |error: String| aws::classify(target, None, None, &error);
        let load = async || {
            let config = aws::load(Some(&self.region), None).await;
            config.credentials_provider().ok_or_else(|| failed("AWS gave no source of credentials".to_owned()))
        };
        let provider = self.credentials.get_or_try_init(load).await?;
        let credentials = provider.provide_credentials().await;
        let credentials = credentials.map_err(|error| failed(format!("no AWS credentials: {}", chain(&error))))?;
        signed(credentials, &self.region, &format!("{host}:{port}"), user, SystemTime::now()).map(Secret::new).map_err(failed)
    }
}

/// An error and its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn signed(credentials: Credentials, region: &str, place: &str, user: &str, now: SystemTime) -> Result<String, String> {
    let mut settings = SigningSettings::default();
    settings.expires_in = Some(TOKEN_LIFE);
    settings.signature_location = SignatureLocation::QueryParams;
    let identity = credentials.into();
    let parameters =
        v4::SigningParams::builder().identity(&identity).region(region).name("rds-db").time(now).settings(settings).build();
    let parameters = parameters.map_err(|error| error.to_string())?.into();
    let token = format!("{place}/?Action=connect&DBUser={}", encoded(user));
    let url = format!("https://{token}");
    let request = SignableRequest::new("GET", &url, std::iter::empty(), SignableBody::Bytes(&[]));
    let request = request.map_err(|error| error.to_string())?;
    let (instructions, _) = sign(request, &parameters).map_err(|error| error.to_string())?.into_parts();
    let pairs = instructions.params().iter();
    Ok(pairs.fold(token, |token, (name, value)| format!("{token}&{name}={}", encoded(value))))
}

/// As Signature Version 4 wants it in a query: all but letters, digits and `-._~` as bytes.
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte.into()),
            byte => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HOST: &str = "prod-instance.us-east-1.rds.amazonaws.com";

    /// What AWS's own SDKs are held to.
    #[test]
    fn a_token_is_signed_as_aws_does() {
        let credentials = Credentials::new("akid", "secret", None, None, "test");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_724_709_600);
        let token = signed(credentials, "us-east-1", &format!("{HOST}:3306"), "peccy", now).unwrap();
        let expected = "prod-instance.us-east-1.rds.amazonaws.com:3306/?Action=connect&DBUser=peccy&X-Amz-Algorithm=AWS4-HMAC-SHA256\
             &X-Amz-Credential=akid%2F20240826%2Fus-east-1%2Frds-db%2Faws4_request&X-Amz-Date=20240826T220000Z&X-Amz-Expires=900\
             &X-Amz-SignedHeaders=host&X-Amz-Signature=dd0cba843009474347af724090233265628ace491ea17ce3eb3da098b983ad89";
        assert_eq!(token, expected);
    }

    #[tokio::test]
    async fn a_role_s_token_carries_its_session() {
        let credentials = Credentials::new("akid", "secret", Some("a+b/c==".to_owned()), None, "test");
        let iam = Iam::with("eu-central-1", credentials);
        let token = iam.token("PostgreSQL", HOST, 5432, "app user").await.unwrap();
        let token = token.reveal();
        assert!(token.starts_with(&format!("{HOST}:5432/?Action=connect&DBUser=app%20user&")), "{token}");
        assert!(token.contains("&X-Amz-Security-Token=a%2Bb%2Fc%3D%3D"), "{token}");
    }
}
