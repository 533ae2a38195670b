//! Delta tables in a folder, read by DuckDB; "down" is a store that refuses.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions,
    PutPayload, PutResult,
};
use objects::{LocalOptions, Objects};
use sinks::lake::{LakeConfig, LakeSink};

use super::*;
use crate::duckdb::DuckDb;

/// A folder that can be out of reach.
#[derive(Debug)]
struct Switched {
    inner: LocalFileSystem,
    down: Arc<AtomicBool>,
}

impl Switched {
    fn reached(&self) -> object_store::Result<()> {
        if self.down.load(Ordering::SeqCst) {
            return Err(object_store::Error::Generic { store: "test", source: "out of reach".into() });
        }
        Ok(())
    }
}

impl fmt::Display for Switched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("switched")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Switched {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> object_store::Result<PutResult> {
        self.reached()?;
        self.inner.put_opts(path, payload, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.reached()?;
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
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

pub(super) struct Lake {
    directory: tempfile::TempDir,
    case: String,
    down: Arc<AtomicBool>,
    reader: DuckDb,
}

impl Lake {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { directory, case: String::new(), down: Arc::default(), reader: DuckDb::start() }
    }

    fn folder(&self) -> PathBuf {
        self.directory.path().join(&self.case)
    }
}

#[async_trait::async_trait]
impl Target for Lake {
    async fn fresh(&mut self, case: &str) {
        case.clone_into(&mut self.case);
        std::fs::create_dir_all(self.folder()).unwrap();
    }

    async fn sink(&self) -> Box<dyn Sink> {
        let store = objects::Config::Local(LocalOptions { path: self.folder() });
        // Small files, so that a few hundred rows make several.
        let config = LakeConfig { commit_seconds: 0, current_seconds: 0, file_bytes: 10_000, ..LakeConfig::new(store) };
        let inner = LocalFileSystem::new_with_prefix(self.folder()).unwrap();
        let objects = Objects::over(Arc::new(Switched { inner, down: self.down.clone() }), "a folder");
        Box::new(LakeSink::over(config, objects))
    }

    async fn held(&self) -> Held {
        let mut held = Held::new();
        for entity in entities() {
            let folder = self.folder().join(entity.name.as_ref());
            let rows =
                self.reader.rows(&format!("SELECT _key, _version, _document FROM delta_scan('{}/current')", folder.display()));
            for row in rows {
                let [key, version, document] = [0, 1, 2].map(|column: usize| row[column].as_str().unwrap());
                let stored = (version.parse().unwrap(), serde_json::from_str(document).unwrap());
                assert!(held.insert(format!("{}/{key}", entity.name), stored).is_none(), "{key} is there twice");
            }
            // The table of changes holds a version of a key once, unless it says another thing the second time, and its latest rows are the current ones.
            let changes = format!("delta_scan('{}/changes')", folder.display());
            let twice = self.reader.rows(&format!(
                "SELECT _key, _version, _operation, _document, count(*) FROM {changes} GROUP BY ALL HAVING count(*) > 1"
            ));
            assert!(twice.is_empty(), "{twice:?}");
            let differ = self.reader.rows(&format!(
                "WITH latest AS (SELECT * FROM {changes} QUALIFY row_number() OVER (PARTITION BY _key ORDER BY _version DESC, _written_at DESC) = 1)
                 SELECT l._key FROM (SELECT * FROM latest WHERE _operation <> 'delete') l
                 FULL JOIN delta_scan('{}/current') c ON l._key = c._key AND l._version = c._version AND l._document = c._document
                 WHERE l._key IS NULL OR c._key IS NULL",
                folder.display()
            ));
            assert!(differ.is_empty(), "{differ:?}");
        }
        held
    }

    /// The least that a table's log says.
    async fn frontier(&self) -> Option<Option<Lsn>> {
        let of_table = |folder: PathBuf| {
            let entries = std::fs::read_dir(folder.join("_delta_log")).unwrap();
            let entries =
                entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|of| of == "json"));
            let told = entries.filter_map(|path| {
                let text = std::fs::read_to_string(path).unwrap();
                let first: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
                Some(first["commitInfo"]["tributary"]["frontier"].as_str()?.parse::<Lsn>().unwrap())
            });
            told.max()
        };
        let tables = entities()
            .into_iter()
            .flat_map(|entity| ["changes", "current"].map(|table| self.folder().join(entity.name.as_ref()).join(table)));
        Some(tables.map(of_table).min().unwrap())
    }

    async fn down(&mut self) {
        self.down.store(true, Ordering::SeqCst);
    }

    async fn up(&mut self) {
        self.down.store(false, Ordering::SeqCst);
    }
}
