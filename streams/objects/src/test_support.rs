//! A store that does what a test tells it: each operation is asked about first, and is carried out, refused, or carried out and its answer lost. For tests alone.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream::{self, BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions,
    PutOptions, PutPayload, PutResult,
};

use crate::Objects;

/// What is about to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation<'a> {
    Put(&'a Path),
    /// A put that is to fail where there is such an object.
    Create(&'a Path),
    Get,
    List,
    Remove,
}

/// What becomes of it.
#[derive(Debug)]
pub enum Fate {
    Done,
    /// It is carried out, and answered with this.
    Lost(object_store::Error),
    Refused(object_store::Error),
}

/// Decides. It may take its time.
#[async_trait]
pub trait Control: fmt::Debug + Send + Sync + 'static {
    async fn fate(&self, operation: Operation<'_>) -> Fate;
}

/// A store under a test's control.
#[derive(Debug)]
pub struct Controlled<C> {
    inner: Arc<dyn ObjectStore>,
    control: Arc<C>,
}

impl<C: Control> Controlled<C> {
    /// A handle on `inner`, under that control.
    pub fn objects(inner: Arc<dyn ObjectStore>, control: Arc<C>) -> Objects {
        Objects::over(Arc::new(Self { inner, control }), "a store under control")
    }
}

impl<C> fmt::Display for Controlled<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("controlled")
    }
}

#[async_trait]
impl<C: Control> ObjectStore for Controlled<C> {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> object_store::Result<PutResult> {
        let operation = if options.mode == PutMode::Create { Operation::Create(path) } else { Operation::Put(path) };
        match self.control.fate(operation).await {
            Fate::Done => self.inner.put_opts(path, payload, options).await,
            Fate::Lost(error) => self.inner.put_opts(path, payload, options).await.and(Err(error)),
            Fate::Refused(error) => Err(error),
        }
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        match self.control.fate(Operation::Get).await {
            Fate::Done => self.inner.get_opts(path, options).await,
            Fate::Lost(error) | Fate::Refused(error) => Err(error),
        }
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        let (inner, control) = (self.inner.clone(), self.control.clone());
        let removed = async move {
            match control.fate(Operation::Remove).await {
                Fate::Done => inner.delete_stream(paths),
                Fate::Lost(error) => {
                    let _removed: Vec<_> = inner.delete_stream(paths).collect().await;
                    failed(error)
                }
                Fate::Refused(error) => failed(error),
            }
        };
        stream::once(removed).flatten().boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let (inner, control, prefix) = (self.inner.clone(), self.control.clone(), prefix.cloned());
        let listed = async move {
            match control.fate(Operation::List).await {
                Fate::Done => inner.list(prefix.as_ref()),
                Fate::Lost(error) | Fate::Refused(error) => failed(error),
            }
        };
        stream::once(listed).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        match self.control.fate(Operation::List).await {
            Fate::Done => self.inner.list_with_delimiter(prefix).await,
            Fate::Lost(error) | Fate::Refused(error) => Err(error),
        }
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

fn failed<T: Send + 'static>(error: object_store::Error) -> BoxStream<'static, object_store::Result<T>> {
    stream::iter([Err(error)]).boxed()
}
