//! Documents that are too large for an item, as objects, which the item points to.
//!
//! The object is put before the item and under a name of its own, `ENTITY/HASH OF THE KEY/VERSION.json`, so that no item ever points to what is not there, and a stale write never touches a newer
//! document. When an item has been replaced, the object that it pointed to is removed; one whose removal a crash prevented stays, and so does one whose item was not taken because a newer one was there.

use objects::{ObjectPath, Objects};
use schemas::change::EntityChange;
use sha2::{Digest, Sha256};

use super::item::Item;
use crate::Error;

pub(super) struct Oversize {
    objects: Objects,
    target: String,
}

impl Oversize {
    pub(super) async fn open(config: &objects::Config, target: &str) -> Result<Self, Error> {
        let objects = Objects::open(config).await.map_err(|error| failed(target, &error))?;
        Ok(Self { objects, target: target.to_owned() })
    }

    /// Puts a change's document. Answers the object's name, which the item has as `document_at`.
    pub(super) async fn put(&self, change: &EntityChange) -> Result<String, Error> {
        let hash: String = Sha256::digest(change.key.as_str()).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        // A colon is no good in a file's name everywhere.
        let name = format!("{}/{hash}/{}.json", change.entity, change.version.to_string().replace(':', "-"));
        let document = change.document.as_deref().unwrap_or_default().as_bytes().to_vec();
        self.objects.put(&self.path(&name)?, document.into()).await.map_err(|error| failed(&self.target, &error))?;
        Ok(name)
    }

    /// An item was replaced by one that points to `now`: what it pointed to is not needed any more. A failure costs the space alone.
    pub(super) async fn replaced(&self, item: Option<&Item>, now: Option<&str>) {
        let before = item.and_then(|item| item.get("document_at")).and_then(|at| at.as_s().ok());
        let Some(before) = before.filter(|before| Some(before.as_str()) != now) else { return };
        let Ok(path) = self.path(before) else { return };
        if let Err(error) = self.objects.remove([path]).await {
            tracing::warn!(target_name = %self.target, object = before, %error, "a document that is not needed any more could not be removed");
        }
    }

    fn path(&self, name: &str) -> Result<ObjectPath, Error> {
        ObjectPath::parse(name).map_err(|error| Error::unexpected(&self.target, error))
    }
}

fn failed(target: &str, error: &objects::Error) -> Error {
    Error::of_objects(target, error, "Correct the sink's `oversize`")
}
