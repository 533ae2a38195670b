//! What can go wrong with object storage.

use std::io::ErrorKind;

use schemas::ErrorClass;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{store}, {operation} {path}: {source}{advice}", advice = advice(*.class))]
    Store {
        store: String,
        operation: &'static str,
        path: String,
        class: ErrorClass,
        #[source]
        source: Box<object_store::Error>,
    },
    #[error("{store} cannot be opened: {source}. Correct its options in the configuration")]
    Open { store: String, source: Box<object_store::Error> },
    #[error("{path}: {source}: the folder for objects cannot be made", path = .path.display())]
    Folder { path: std::path::PathBuf, source: std::io::Error },
    #[error("no AWS region is known for {store}: set `region`, or AWS_REGION")]
    Region { store: String },
    #[error(
        "{store}, {operation} {path}: the bucket does not exist: create it, or correct its name, region and account in the configuration"
    )]
    NoBucket { store: String, operation: &'static str, path: String },
}

fn advice(class: ErrorClass) -> &'static str {
    match class {
        ErrorClass::Misconfigured => {
            ". Allow s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket on it in the IAM policy of Tributary's role, or correct the folder's permissions and free space"
        }
        _ => "",
    }
}

impl Error {
    pub(crate) fn new(store: &str, operation: &'static str, path: String, source: object_store::Error) -> Self {
        let store = store.to_owned();
        if matches!(source, object_store::Error::NotFound { .. }) {
            // An object that is not there never comes here.
            return Self::NoBucket { store, operation, path };
        }
        let class = classify(&source);
        Self::Store { store, operation, path, class, source: Box::new(source) }
    }

    /// Whether the storage asks for less: what S3 says with 503 and 429 (`SlowDown`). It passes, and is nobody's fault.
    pub fn is_throttling(&self) -> bool {
        // The library retried it, and keeps its own type to itself: the status stands in its words.
        const SAID: [&str; 3] = ["SlowDown", "status code: 503", "status code: 429"];
        matches!(self, Self::Store { source, .. } if SAID.iter().any(|said| source.to_string().contains(said)))
    }

    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Store { class, .. } => *class,
            Self::Open { .. } | Self::Folder { .. } | Self::Region { .. } | Self::NoBucket { .. } => ErrorClass::Misconfigured,
        }
    }
}

/// What the library says, and the operating system's error below it where there is one. What it retried in vain may pass yet.
fn classify(error: &object_store::Error) -> ErrorClass {
    use object_store::Error as Store;
    match error {
        Store::PermissionDenied { .. } | Store::Unauthenticated { .. } => return ErrorClass::Misconfigured,
        Store::NotSupported { .. } | Store::NotImplemented { .. } | Store::InvalidPath { .. } => return ErrorClass::Bug,
        _ => {}
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(found) = cause {
        if let Some(error) = found.downcast_ref::<std::io::Error>()
            && matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::StorageFull | ErrorKind::ReadOnlyFilesystem)
        {
            return ErrorClass::Misconfigured;
        }
        cause = found.source();
    }
    ErrorClass::Transient
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::sync::Arc;

    use object_store::aws::{AmazonS3Builder, AwsCredential};
    use object_store::{RetryConfig, StaticCredentialProvider};

    use crate::Objects;
    use crate::http::Connector;

    /// What a bucket says that answers each request with this status and code.
    async fn said(status: &str, code: &str) -> super::Error {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let body = format!(
            "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>Please reduce your request rate.</Message></Error>"
        );
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        let serving = std::thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            let _asked = connection.read(&mut [0; 4096]).unwrap();
            connection.write_all(answer.as_bytes()).unwrap();
        });
        let credential = AwsCredential { key_id: "test".into(), secret_key: "test".into(), token: None };
        let store = AmazonS3Builder::new()
            .with_bucket_name("b")
            .with_region("eu-west-1")
            .with_endpoint(endpoint)
            .with_allow_http(true)
            .with_http_connector(Connector)
            .with_credentials(Arc::new(StaticCredentialProvider::new(credential)))
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            .build()
            .unwrap();
        let error = Objects::over(Arc::new(store), "bucket").get(&crate::ObjectPath::from("o")).await.unwrap_err();
        serving.join().unwrap();
        error
    }

    #[tokio::test]
    async fn a_bucket_that_asks_for_less_is_told_from_one_that_fails() {
        assert!(said("503 Slow Down", "SlowDown").await.is_throttling());
        assert!(said("429 Too Many Requests", "TooManyRequests").await.is_throttling());
        let error = said("500 Internal Server Error", "InternalError").await;
        assert!(!error.is_throttling() && error.class() == schemas::ErrorClass::Transient, "{error}");
    }
}
