//! Events that are larger than a Kinesis record may be: kept in object storage, with a pointer to them in the stream.
//!
//! ```text
//! {"tributary_pointer":{"object":"shop.dbo.orders/9f86d0…","bytes":1234567,"sha256":"9f86d0…"}}
//! ```
//!
//! The object is written before the pointer is accepted, so a pointer that can be read has its object. Its name is the digest of what it holds: an append that is repeated writes the
//! same object again. What becomes of objects whose records have aged is for a lifecycle rule of the bucket; it must let them live longer than the stream does its records.
//!
//! Data that reads as a pointer and is not one (an event about pointers, say) is itself kept outside, and comes back as it was.

use bytes::Bytes;
use objects::{ObjectPath, Objects};
use schemas::progress::StreamName;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Error;

const START: &[u8] = br#"{"tributary_pointer":"#;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pointer {
    tributary_pointer: Target,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Target {
    object: String,
    bytes: usize,
    /// In hexadecimal.
    sha256: String,
}

fn parse(data: &[u8]) -> Option<Target> {
    let pointer: Pointer = data.starts_with(START).then(|| serde_json::from_slice(data).ok())??;
    Some(pointer.tributary_pointer)
}

/// Whether a reader would take this data for a pointer.
pub(super) fn looks_like_pointer(data: &[u8]) -> bool {
    parse(data).is_some()
}

fn digest(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes the object and answers the pointer.
pub(super) async fn put(objects: &Objects, stream: &StreamName, data: Bytes) -> Result<Bytes, Error> {
    let target = Target { object: String::new(), bytes: data.len(), sha256: digest(&data) };
    let path = ObjectPath::from(format!("{stream}/{}", target.sha256));
    let failed = |source| Error::Objects { stream: stream.clone(), source: Box::new(source) };
    // One that is there already holds the same.
    objects.put(&path, data).await.map_err(failed)?;
    let target = Target { object: path.to_string(), ..target };
    let Target { object, bytes, sha256 } = target;
    Ok(serde_json::json!({"tributary_pointer": {"object": object, "bytes": bytes, "sha256": sha256}}).to_string().into())
}

/// What the data stands for: itself, or the object that it points to.
pub(super) async fn resolve(objects: Option<&Objects>, stream: &StreamName, data: Bytes) -> Result<Bytes, Error> {
    let Some(target) = parse(&data) else { return Ok(data) };
    let lost = |what: &str| Error::Pointer { stream: stream.clone(), object: target.object.clone(), what: what.to_owned() };
    let objects =
        objects.ok_or_else(|| lost("no object storage is configured (`oversize: {pointer: …}` of the stream store)"))?;
    let failed = |source| Error::Objects { stream: stream.clone(), source: Box::new(source) };
    let found = objects.get(&ObjectPath::from(target.object.as_str())).await.map_err(failed)?;
    let found = found.ok_or_else(|| lost("the object is missing: restore it"))?;
    if found.len() != target.bytes || digest(&found) != target.sha256 {
        return Err(lost("the object is not what was written: restore it"));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn what_is_kept_outside_comes_back_and_a_loss_is_told() {
        let (objects, stream) = (Objects::memory(), StreamName("s".into()));
        let data = Bytes::from(vec![7; 100]);
        let pointer = put(&objects, &stream, data.clone()).await.unwrap();
        assert!(looks_like_pointer(&pointer) && pointer.starts_with(START), "{pointer:?}");
        assert_eq!(put(&objects, &stream, data.clone()).await.unwrap(), pointer);
        assert_eq!(resolve(Some(&objects), &stream, pointer.clone()).await.unwrap(), data);
        let twice = put(&objects, &stream, pointer.clone()).await.unwrap();
        assert_eq!(resolve(Some(&objects), &stream, twice).await.unwrap(), pointer);
        for other in [&b"{}"[..], START, br#"{"tributary_pointer":{"object":"a"}}"#] {
            let other = Bytes::from_static(other);
            assert_eq!(resolve(None, &stream, other.clone()).await.unwrap(), other);
        }
        assert!(resolve(None, &stream, pointer.clone()).await.unwrap_err().to_string().contains("configured"));
        let path = ObjectPath::from(parse(&pointer).unwrap().object);
        objects.put(&path, Bytes::from_static(b"x")).await.unwrap();
        assert!(
            resolve(Some(&objects), &stream, pointer.clone()).await.unwrap_err().to_string().contains("not what was written")
        );
        objects.remove([path]).await.unwrap();
        assert!(resolve(Some(&objects), &stream, pointer).await.unwrap_err().to_string().contains("missing"));
    }
}
