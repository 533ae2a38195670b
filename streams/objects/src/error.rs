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
