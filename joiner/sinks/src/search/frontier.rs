//! The document that says up to which LSN everything is in the indices.

use async_trait::async_trait;
use schemas::KeyRange;
use serde_json::{Value, json};

use super::cluster::Cluster;
use crate::Error;
use crate::shares::{self, Kept, Register};

const ID: &str = "frontier";

pub(super) struct FrontierDocument<'s> {
    pub(super) target: &'s str,
    pub(super) cluster: &'s Cluster,
    pub(super) index: String,
}

/// The numbers by which the cluster tells one state of the document from another; none where there is no document.
pub(super) type Edition = Option<(u64, u64)>;

fn edition(answer: &Value) -> Edition {
    Some((answer["_seq_no"].as_u64()?, answer["_primary_term"].as_u64()?))
}

/// What a document says. One that a single writer has written before there were parts says it of all.
fn parts(source: &Value) -> Option<Vec<(String, String)>> {
    match source["parts"].as_object() {
        Some(parts) => parts.iter().map(|(part, lsn)| Some((part.clone(), lsn.as_str()?.to_owned()))).collect(),
        None => Some(vec![(shares::part(KeyRange::ALL), source["lsn"].as_str()?.to_owned())]),
    }
}

impl FrontierDocument<'_> {
    fn path(&self) -> String {
        format!("/{}/_doc/{ID}", self.index)
    }

    /// Takes back what it says: an index that it speaks of is gone.
    pub(super) async fn remove(&self) -> Result<(), Error> {
        self.cluster.delete_document(&self.path()).await
    }
}

#[async_trait]
impl Register for FrontierDocument<'_> {
    type Edition = Edition;

    fn target(&self) -> &str {
        self.target
    }

    async fn read(&self) -> Result<Kept<Edition>, Error> {
        let Some(found) = self.cluster.document(&self.path()).await? else {
            return Ok(Kept { parts: Vec::new(), edition: None });
        };
        let unreadable = || Error::unexpected(self.target, format!("the frontier in {} holds no LSN: {found}", self.index));
        let parts = parts(&found["_source"]).ok_or_else(unreadable)?;
        Ok(Kept { parts, edition: Some(edition(&found).ok_or_else(unreadable)?) })
    }

    async fn replace(&self, parts: &[(String, String)], read: Edition) -> Result<Option<Edition>, Error> {
        let path = match read {
            None => format!("/{}/_create/{ID}", self.index),
            Some((number, term)) => format!("{}?if_seq_no={number}&if_primary_term={term}", self.path()),
        };
        let lsns: serde_json::Map<String, Value> = parts.iter().map(|(part, lsn)| (part.clone(), json!(lsn))).collect();
        let mut document = json!({"parts": lsns});
        if let Some(least) = shares::held(parts, KeyRange::ALL) {
            document["lsn"] = json!(least);
        }
        Ok(self.cluster.put_document(&path, &document).await?.map(|answer| edition(&answer)))
    }
}
