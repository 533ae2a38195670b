//! What the message services (SNS, SQS) have in common: an entity change becomes a message with attributes, messages travel in batches within the service's limits, and each
//! entry of a batch has its own fate.
//!
//! # Order
//! A write holds at most one change of a key, and ends when every message of it has been taken, so changes of one key never overtake each other on their way to the service, in however
//! many batches at once they travel. What the service does with order afterwards is its own: only FIFO topics and queues keep it.
//!
//! # Poison
//! A message that the service names as the sender's fault is rejected. A request that is refused as a whole because of something in it is sent again entry by entry, so that one bad
//! message is found and the others get through.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use schemas::change::EntityChange;
use schemas::entity::EntityInfo;
use schemas::{KeyRange, Lsn};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::cloudevent::{self, Detail, Origin};
use crate::{Checked, Error, Rejected, Sink, Versions, aws, check};

/// Entries of one request, of SNS's PublishBatch as of SQS's SendMessageBatch.
const BATCH_ENTRIES: usize = 10;
const BATCHES_IN_FLIGHT: usize = 16;
/// Limit of group and deduplication ids.
const ID_CHARACTERS: usize = 128;
/// Attempts at an entry that the service failed for a reason of its own, and the pause before the second.
const ENTRY_ATTEMPTS: u32 = 5;
const ENTRY_PAUSE: Duration = Duration::from_millis(50);
/// SQS takes no message with more, and SNS drops those with more on their way to a queue with raw delivery.
const ATTRIBUTES: usize = 10;
const OWN_ATTRIBUTES: [&str; 3] = ["entity", "op", "key"];

/// The options of a message service's sink: the same for all, but for what names the target.
macro_rules! message_config {
    ($(#[$about:meta])* $config:ident, $name:literal, $(#[$about_target:meta])* $target:ident) => {
        $(#[$about])*
        #[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $config {
            /// How status, logs and metrics call it. Default: the kind's name.
            #[serde(default = "default_name")]
            pub name: String,
            $(#[$about_target])*
            pub $target: String,
            /// The events' `source`. Default: `/tributary`.
            #[serde(default = "crate::cloudevent::default_source")]
            pub source: String,
            /// `full` (default), `thin` or `full_if_it_fits`.
            #[serde(default)]
            pub event: crate::cloudevent::Detail,
            /// Members of the document that become attributes, by the attribute's name: paths such as `customer.city`. Default: none.
            #[serde(default)]
            pub attributes: std::collections::BTreeMap<String, String>,
            /// The same for decimals, which are strings in the document, as numbers. Default: none.
            #[serde(default)]
            pub number_attributes: std::collections::BTreeMap<String, String>,
            /// Whether the documents of a load are sent. Default: false.
            #[serde(default)]
            pub notify_load: bool,
            /// Default: the target's own.
            #[serde(default)]
            pub region: Option<String>,
            /// Another endpoint than AWS's own.
            #[serde(default)]
            pub endpoint_url: Option<String>,
        }

        fn default_name() -> String {
            $name.to_owned()
        }

        impl $config {
            pub fn new($target: impl Into<String>) -> Self {
                Self {
                    name: default_name(),
                    $target: $target.into(),
                    source: crate::cloudevent::default_source(),
                    event: crate::cloudevent::Detail::default(),
                    attributes: std::collections::BTreeMap::new(),
                    number_attributes: std::collections::BTreeMap::new(),
                    notify_load: false,
                    region: None,
                    endpoint_url: None,
                }
            }

            fn shape(&self) -> crate::notification::Shape {
                crate::notification::Shape {
                    origin: crate::cloudevent::Origin::new(&self.source),
                    detail: self.event,
                    attributes: self.attributes.clone(),
                    number_attributes: self.number_attributes.clone(),
                }
            }

            /// `region` is what the target's name says of it.
            fn access(&self, region: Option<&str>) -> crate::aws::Access {
                let region = self.region.clone().or_else(|| region.map(str::to_owned));
                crate::aws::Access::Found { region, endpoint_url: self.endpoint_url.clone() }
            }
        }
    };
}
pub(crate) use message_config;

/// How changes become messages.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) origin: Origin,
    pub(crate) detail: Detail,
    /// Name of the attribute, and the path of the member in the document.
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) number_attributes: BTreeMap<String, String>,
}

/// What the service says of the topic or queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) fifo: bool,
    /// The largest message, and the most that a batch of them may come to.
    pub(crate) message_bytes: usize,
    pub(crate) batch_bytes: usize,
}

pub(crate) struct Attribute {
    pub(crate) name: String,
    pub(crate) data_type: &'static str,
    pub(crate) value: String,
}

pub(crate) struct Message {
    /// Shares its document with the batch that it came in.
    pub(crate) change: EntityChange,
    pub(crate) body: String,
    pub(crate) attributes: Vec<Attribute>,
    bytes: usize,
}

/// How one entry of a batch ended.
pub(crate) enum Fate {
    Taken,
    Refused(String),
    /// Failed for a reason of the service's own, or not named in the answer at all.
    Again,
    /// The service is asked too much, in its words.
    Throttled(String),
}

/// An entry that has failed, as the answer has it.
pub(crate) struct FailedEntry<'a> {
    pub(crate) id: &'a str,
    /// The service says that it is the sender's fault.
    pub(crate) at_fault: bool,
    pub(crate) code: &'a str,
    pub(crate) message: Option<&'a str>,
}

impl FailedEntry<'_> {
    fn fate(&self, target: &str) -> Result<Fate, Error> {
        let Self { at_fault, code, message, .. } = *self;
        // Services have called throttling the sender's fault.
        if aws::is_throttling(code) {
            return Ok(Fate::Throttled(format!("{} [{code}]", message.unwrap_or("no message"))));
        }
        if !at_fault {
            return Ok(Fate::Again);
        }
        match aws::classify(target, Some(code), message, "") {
            // A key that may not be used is no fault of the message.
            error @ Error::Misconfigured { .. } => Err(error),
            _ => Ok(Fate::Refused(format!("{} [{code}]", message.unwrap_or("the target refuses it")))),
        }
    }
}

/// How the entries of a batch ended, which are named by their place in it. Services answer 200 also when entries failed: each is looked at.
pub(crate) fn fates(target: &str, count: usize, taken: &[&str], failed: &[FailedEntry<'_>]) -> Result<Vec<Fate>, Error> {
    let fate = |index: usize| {
        let id = index.to_string();
        if taken.contains(&id.as_str()) {
            return Ok(Fate::Taken);
        }
        // One that is not named at all is sent again.
        failed.iter().find(|entry| entry.id == id).map_or(Ok(Fate::Again), |entry| entry.fate(target))
    };
    (0..count).map(fate).collect()
}

/// A topic or a queue.
#[async_trait]
pub(crate) trait Service: Send + Sync {
    /// How errors and logs call it.
    fn target(&self) -> &str;
    /// Connects, and looks at what is there.
    async fn prepare(&mut self) -> Result<Facts, Error>;
    /// Sends a batch. Answers one fate for each message, in their order.
    async fn send(&self, batch: &[Message], fifo: bool) -> Result<Vec<Fate>, Error>;
}

/// A sink of messages; its kinds are [`crate::sns::SnsSink`] and [`crate::sqs::SqsSink`].
pub struct MessageSink<S> {
    pub(crate) service: S,
    shape: Shape,
    notify_load: bool,
    facts: Facts,
    /// Between `begin_load` and the next frontier.
    loading: bool,
}

impl<S> MessageSink<S> {
    /// `facts` are what holds until [`Service::prepare`] has looked.
    pub(crate) fn over(service: S, shape: Shape, notify_load: bool, facts: Facts) -> Self {
        Self { service, shape, notify_load, facts, loading: false }
    }
}

#[async_trait]
impl<S: Service> Sink for MessageSink<S> {
    async fn prepare(&mut self, _entities: &[EntityInfo]) -> Result<(), Error> {
        self.shape.check(self.service.target())?;
        self.facts = self.service.prepare().await?;
        Ok(())
    }

    fn know(&mut self, versions: Arc<dyn Versions>) {
        self.shape.origin.know(versions);
    }

    async fn begin_load(&mut self) -> Result<(), Error> {
        self.loading = true;
        if !self.notify_load {
            tracing::warn!(
                target_name = self.service.target(),
                "a load begins, and what it writes is not notified (notify_load: false)"
            );
        }
        Ok(())
    }

    async fn write(&mut self, changes: &[EntityChange], frontier: Option<Lsn>) -> Result<Vec<Rejected>, Error> {
        let silent = self.loading && !self.notify_load;
        let mut rejected = Vec::new();
        if !silent && !changes.is_empty() {
            let facts = self.facts;
            let (accepted, refused) = check::sort(changes);
            let (batches, too_large) = batches(&accepted, &self.shape, facts);
            rejected = refused;
            rejected.extend(too_large);
            let service = &self.service;
            let sending = stream::iter(batches).map(|batch| send(service, batch, facts.fifo));
            let refused: Vec<Vec<Rejected>> = sending.buffer_unordered(BATCHES_IN_FLIGHT).try_collect().await?;
            rejected.extend(refused.into_iter().flatten());
        }
        if frontier.is_some() {
            self.loading = false;
        }
        Ok(rejected)
    }

    /// What vanished between two loads is not known to a topic or a queue, and not notified.
    // Each instance tells of its own share, and nothing is removed at the end of a load.
    fn own(&mut self, _range: KeyRange) -> bool {
        true
    }

    async fn end_load(&mut self, _entity: &str, _version: Lsn) -> Result<(), Error> {
        Ok(())
    }

    /// To prepare is to look already.
    async fn check(&mut self, entities: &[EntityInfo]) -> Result<Checked, Error> {
        self.prepare(entities).await?;
        let Facts { fifo, message_bytes, .. } = self.facts;
        let kind = if fifo { "FIFO" } else { "standard" };
        let detail = format!("{} is there: {kind}, messages of up to {message_bytes} bytes", self.service.target());
        Ok(Checked { detail, warnings: Vec::new() })
    }
}

/// Sends a batch until every entry is in, or refused.
async fn send<S: Service>(service: &S, batch: Vec<Message>, fifo: bool) -> Result<Vec<Rejected>, Error> {
    let mut rejected = Vec::new();
    let mut left = batch;
    let (mut pause, mut throttled) = (ENTRY_PAUSE, None);
    for _ in 0..ENTRY_ATTEMPTS {
        let fates = match service.send(&left, fifo).await {
            // Something in it is not valid, and the answer does not say in which entry.
            Err(Error::Unexpected { message, .. }) if left.len() == 1 => vec![Fate::Refused(message)],
            Err(Error::Unexpected { .. }) => {
                for message in left {
                    rejected.extend(Box::pin(send(service, vec![message], fifo)).await?);
                }
                return Ok(rejected);
            }
            answer => answer?,
        };
        let mut again = Vec::new();
        for (message, fate) in left.into_iter().zip(fates) {
            match fate {
                Fate::Taken => {}
                Fate::Refused(reason) => rejected.push(Rejected { change: message.change, reason }),
                Fate::Again => again.push(message),
                Fate::Throttled(said) => {
                    throttled = Some(said);
                    again.push(message);
                }
            }
        }
        if again.is_empty() {
            return Ok(rejected);
        }
        left = again;
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    let message = format!("{} messages of a batch were not taken in {ENTRY_ATTEMPTS} attempts", left.len());
    Err(match throttled {
        Some(said) => Error::throttled(service.target(), format!("{message}; {said}"), None),
        None => Error::unavailable(service.target(), message),
    })
}

/// Batches within both limits, and the changes that by themselves are over.
fn batches(changes: &[&EntityChange], shape: &Shape, facts: Facts) -> (Vec<Vec<Message>>, Vec<Rejected>) {
    let (mut batches, mut too_large) = (Vec::new(), Vec::new());
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for change in changes {
        match shape.message(change, facts.message_bytes) {
            Err(reason) => too_large.push(Rejected { change: (*change).clone(), reason }),
            Ok(message) => {
                if batch.len() == BATCH_ENTRIES || bytes + message.bytes > facts.batch_bytes {
                    batches.push(std::mem::take(&mut batch));
                    bytes = 0;
                }
                bytes += message.bytes;
                batch.push(message);
            }
        }
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    // A first message that is as large as a whole batch closes an empty one before it.
    batches.retain(|batch| !batch.is_empty());
    (batches, too_large)
}

impl Shape {
    /// Whether the services would take the attributes that are asked for.
    fn check(&self, target: &str) -> Result<(), Error> {
        let names: Vec<&str> = self.attributes.keys().chain(self.number_attributes.keys()).map(String::as_str).collect();
        let wrong = |what: String, remedy: &str| Err(Error::misconfigured(target, what, remedy));
        if names.len() + OWN_ATTRIBUTES.len() > ATTRIBUTES {
            let what = format!("{} attributes are asked for, beside {}", names.len(), OWN_ATTRIBUTES.join(", "));
            return wrong(what, "A message has at most 10 attributes: name fewer");
        }
        for (index, name) in names.iter().enumerate() {
            if OWN_ATTRIBUTES.contains(name) || names[..index].contains(name) {
                return wrong(format!("the attribute {name:?} is there already"), "Give it another name");
            }
            let reserved = ["aws.", "amazon."].iter().any(|prefix| name.to_ascii_lowercase().starts_with(prefix));
            let dots = name.starts_with('.') || name.ends_with('.') || name.contains("..");
            let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
            if name.is_empty() || name.len() > 256 || reserved || dots || !name.chars().all(legal) {
                let remedy = "Use letters, digits, underscores, hyphens and single dots, and begin with neither AWS. nor Amazon.";
                return wrong(format!("the services take no attribute of the name {name:?}"), remedy);
            }
        }
        Ok(())
    }

    fn message(&self, change: &EntityChange, limit: usize) -> Result<Message, String> {
        let attributes = self.attributes_of(change);
        let described: usize = attributes.iter().map(|a| a.name.len() + a.data_type.len() + a.value.len()).sum();
        let body = self.detail.event(change, &self.origin, described, limit);
        let body =
            body.map_err(|bytes| format!("the message takes {bytes} bytes, more than the {limit} that the target takes"))?;
        let body = without_noncharacters(body);
        Ok(Message { change: change.clone(), bytes: body.len() + described, body, attributes })
    }

    fn attributes_of(&self, change: &EntityChange) -> Vec<Attribute> {
        let own = [&*change.entity, cloudevent::operation(change), change.key.as_str()];
        let mut attributes: Vec<Attribute> =
            OWN_ATTRIBUTES.iter().zip(own).map(|(name, value)| attribute(name, "String", value)).collect();
        let promoted = !self.attributes.is_empty() || !self.number_attributes.is_empty();
        if let Some(document) = change.document.as_deref().filter(|_| promoted) {
            // What is no JSON has been refused before.
            let document: Value = serde_json::from_str(document).unwrap_or_default();
            for (name, path) in &self.attributes {
                attributes.extend(promoted_attribute(name, member(&document, path)));
            }
            for (name, path) in &self.number_attributes {
                attributes.extend(number_attribute(name, member(&document, path)));
            }
        }
        attributes
    }
}

fn member<'a>(document: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(document, |value, step| &value[step])
}

fn attribute(name: &str, data_type: &'static str, value: &str) -> Attribute {
    Attribute { name: name.to_owned(), data_type, value: printable(value).into_owned() }
}

/// None for what is not there, null, empty or an object: services take no empty attribute.
fn promoted_attribute(name: &str, value: &Value) -> Option<Attribute> {
    match value {
        Value::String(text) if !text.is_empty() => Some(attribute(name, "String", text)),
        Value::Bool(value) => Some(attribute(name, "String", &value.to_string())),
        Value::Number(number) => Some(attribute(name, "Number", &number.to_string())),
        Value::Array(items) if !items.is_empty() && items.iter().all(|item| !item.is_array() && !item.is_object()) => {
            Some(attribute(name, "String.Array", &value.to_string()))
        }
        _ => None,
    }
}

/// The source's decimals are strings in the document; filter policies compare numbers. None for what is no number.
fn number_attribute(name: &str, value: &Value) -> Option<Attribute> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    text.parse::<f64>().is_ok_and(f64::is_finite).then(|| attribute(name, "Number", &text))
}

/// The services refuse what XML 1.0 cannot hold. An attribute is text as it is, so such characters are percent-encoded, as others are in an entity's key.
fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().all(in_xml) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if in_xml(c) {
            out.push(c);
        } else {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                // Writing to a String cannot fail.
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    Cow::Owned(out)
}

fn in_xml(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}' | '\u{10000}'..)
}

/// JSON escapes control characters anyway; the two noncharacters that XML lacks beside those may stand in it as they are, but only within strings: they are escaped there.
fn without_noncharacters(json: String) -> String {
    if json.contains(['\u{FFFE}', '\u{FFFF}']) {
        return json.replace('\u{FFFE}', "\\ufffe").replace('\u{FFFF}', "\\uffff");
    }
    json
}

/// The message group: changes of one entity keep their order.
pub(crate) fn group_id(change: &EntityChange) -> String {
    short_id(&format!("{}:{}", change.entity, change.key))
}

pub(crate) fn deduplication_id(change: &EntityChange) -> String {
    short_id(&cloudevent::id(change))
}

/// Group and deduplication ids are at most 128 of ASCII's printable characters: what is longer or holds others is told by its hash.
fn short_id(text: &str) -> String {
    if text.len() <= ID_CHARACTERS && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return text.to_owned();
    }
    Sha256::digest(text.as_bytes()).iter().fold(String::with_capacity(64), |mut id, byte| {
        // Writing to a String cannot fail.
        let _ = write!(id, "{byte:02x}");
        id
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use schemas::change::EntityKey;

    use super::*;

    const FACTS: Facts = Facts { fifo: false, message_bytes: 256 << 10, batch_bytes: 256 << 10 };

    fn shape() -> Shape {
        Shape { origin: Origin::new("/s"), detail: Detail::Full, attributes: BTreeMap::new(), number_attributes: BTreeMap::new() }
    }

    fn change(key: &str, document: &str) -> EntityChange {
        EntityChange {
            entity: "order".into(),
            key: EntityKey::from_text(key),
            version: Lsn::ZERO,
            commit_time_ms: 0,
            document: Some(document.into()),
        }
    }

    fn sized(key: &str, size: usize) -> EntityChange {
        change(key, &format!(r#"{{"text":"{}"}}"#, "x".repeat(size)))
    }

    #[test]
    fn batches_keep_both_limits() {
        let changes: Vec<_> = (0..25)
            .map(|n| sized(&n.to_string(), 10))
            .chain([sized("big", 200_000), sized("big2", 200_000), sized("no", 300_000)])
            .collect();
        let references: Vec<_> = changes.iter().collect();
        let (batches, too_large) = batches(&references, &shape(), FACTS);
        let sizes: Vec<_> = batches.iter().map(Vec::len).collect();
        assert_eq!(sizes, [10, 10, 6, 1]);
        assert!(batches.iter().all(|batch| batch.iter().map(|message| message.bytes).sum::<usize>() <= FACTS.batch_bytes));
        assert_eq!(too_large.len(), 1);
        assert!(too_large[0].reason.contains("262144"));
        let thinned = Shape { detail: Detail::FullIfItFits, ..shape() };
        let (batches, too_large) = super::batches(&[&sized("no", 300_000)], &thinned, FACTS);
        assert!(too_large.is_empty() && !batches[0][0].body.contains("data"));
    }

    #[test]
    fn members_become_attributes() {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let shape = Shape {
            attributes: map(&[
                ("status", "status"),
                ("city", "customer.city"),
                ("tags", "tags"),
                ("none", "none"),
                ("nil", "nil"),
            ]),
            number_attributes: map(&[("total", "total"), ("text", "status")]),
            ..shape()
        };
        shape.check("topic").unwrap();
        let document = r#"{"status":"PAID","customer":{"city":"Köln"},"tags":["a","b"],"total":"12.50","nil":null}"#;
        let found: Vec<_> =
            shape.attributes_of(&change("a\u{1}b", document)).into_iter().map(|a| (a.name, a.data_type, a.value)).collect();
        let found: Vec<_> = found.iter().map(|(name, kind, value)| (name.as_str(), *kind, value.as_str())).collect();
        assert_eq!(
            found,
            [
                ("entity", "String", "order"),
                ("op", "String", "upserted"),
                ("key", "String", "a%01b"),
                ("city", "String", "Köln"),
                ("status", "String", "PAID"),
                ("tags", "String.Array", r#"["a","b"]"#),
                ("total", "Number", "12.50"),
            ]
        );
    }

    #[test]
    fn attributes_that_no_service_takes_are_refused() {
        for names in [&["op"][..], &["a b"], &["AWS.x"], &["a..b"], &[""], &["1", "2", "3", "4", "5", "6", "7", "8"]] {
            let attributes = names.iter().map(|name| ((*name).to_owned(), "x".to_owned())).collect();
            assert!(Shape { attributes, ..shape() }.check("topic").is_err(), "{names:?}");
        }
    }

    #[test]
    fn bodies_hold_what_xml_can() {
        let message = shape().message(&change("1", "{\"a\":\"\u{FFFE}\u{FFFF}\"}"), 1000).unwrap();
        assert!(message.body.chars().all(in_xml));
        let event: Value = serde_json::from_str(&message.body).unwrap();
        assert_eq!(event["data"]["a"], "\u{FFFE}\u{FFFF}");
    }

    #[test]
    fn ids_are_short_and_differ() {
        assert_eq!(short_id("order:1"), "order:1");
        let (a, b) = (short_id(&"é".repeat(100)), short_id(&"è".repeat(100)));
        assert_eq!(a.len(), 64);
        assert_ne!(a, b);
    }
}
