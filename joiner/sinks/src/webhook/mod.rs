//! An HTTP request for every entity change, signed as [Standard Webhooks](https://www.standardwebhooks.com) has it.
//!
//! The body is a CloudEvent ([`crate::cloudevent`]) in structured JSON, which has the members `type`, `timestamp` and `data` that Standard Webhooks asks for. `webhook-id` is made of the body, so it is the same whenever
//! the same event comes again; `webhook-timestamp` is that of the attempt; `webhook-signature` holds a signature for each secret ([`sign`]).
//!
//! # Delivery
//! At least once. A write posts its events side by side, ends when each has been answered, and holds one change of a key, so events of one key never overtake each other. An endpoint keeps nothing that could be
//! asked for its version: INV-5 is the receiver's to hold, by `sequence`. What was taken of a batch that failed is remembered until the batch is through, so trying again repeats little.
//!
//! # What an answer means
//! | answer | meaning |
//! |---|---|
//! | 2xx | taken |
//! | 410 | the endpoint does not want any more: the sink is disabled |
//! | 413 | the event is too large for it: a dead letter |
//! | 429, 503 with `Retry-After` | later, as it says |
//! | 401, 403, 404, 405, 407, 3xx | something has to be mended, there or here; tried again with the longest pause. Redirects are not followed |
//! | other 4xx | the endpoint does not like the event, or any event: the caller finds out which, by writing fewer at a time |
//! | 408, 5xx, no answer in time, not reached | tried again |
//!
//! An endpoint that has taken nothing for `disable_after_hours` is disabled: nothing is sent to it any more until somebody says so, or its URL is another ([`Sink::recall`]). That, and for how long it has failed, is kept over
//! restarts ([`Sink::note`]); time in which no process tried does not count.
//!
//! # Where it may be
//! At public addresses by TLS, or in the networks that `allow_networks` names ([`crate::http::guard`] says how that is held).

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderName, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use ipnet::IpNet;
use schemas::change::{EntityChange, EntityKey};
use schemas::entity::EntityInfo;
use schemas::{KeyRange, Lsn};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::cloudevent::{self, Detail, Origin};
use crate::http::guard::{Guard, host_of};
use crate::http::{Answer, Http};
use crate::{Checked, Error, Rejected, Retry, SecretReference, Sink, Terms, UrlSource, Versions, check, tls};

mod sign;

use sign::Keys;

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
const AGENT: &str = concat!("tributary/", env!("CARGO_PKG_VERSION"));
/// What is read of an answer, for the reason of a failure.
const ANSWER_BYTES: usize = 64 << 10;
const ID_DIGITS: usize = 32;
/// Most events that are remembered as taken while their batch is not through.
const REMEMBERED: usize = 20_000;

/// The `webhook` sink.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookConfig {
    /// How status, logs and metrics call it. Default: `webhook`.
    #[serde(default = "default_name")]
    pub name: String,
    /// Where events are posted: `https://…`, or a secret that holds it.
    pub url: UrlSource,
    /// What they are signed with, the newest secret first: `whsec_` and the base64 of 24 to 64 bytes. Every one of them signs, so an endpoint can be moved from one to the next.
    pub secrets: Vec<SecretReference>,
    /// The events' `source`. Default: `/tributary`.
    #[serde(default = "cloudevent::default_source")]
    pub source: String,
    /// `full` (default), `thin` or `full_if_it_fits`.
    #[serde(default)]
    pub event: Detail,
    /// The largest event. Default: 262144.
    #[serde(default = "default_max_event_bytes")]
    pub max_event_bytes: usize,
    /// Requests under way at once. Default: 16.
    #[serde(default = "default_in_flight")]
    pub in_flight: usize,
    /// How long one request may take. Default: 20000.
    #[serde(default = "default_request_limit_ms")]
    pub request_limit_ms: u64,
    /// An endpoint that has taken nothing for so long is disabled. Default: 120.
    #[serde(default = "default_disable_after_hours")]
    pub disable_after_hours: u64,
    /// Networks that are no public ones and may be reached all the same, and without TLS: `[10.20.0.0/16]`. Default: none.
    #[serde(default)]
    pub allow_networks: Vec<IpNet>,
    /// A file of PEM certificates of the authorities that are trusted instead of the system's. Default: none.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Whether the documents of a load are posted. Default: false.
    #[serde(default)]
    pub notify_load: bool,
}

fn default_name() -> String {
    "webhook".to_owned()
}

fn default_max_event_bytes() -> usize {
    256 << 10
}

fn default_in_flight() -> usize {
    16
}

fn default_request_limit_ms() -> u64 {
    20_000
}

fn default_disable_after_hours() -> u64 {
    120
}

impl WebhookConfig {
    pub fn new(url: impl Into<String>, secrets: impl IntoIterator<Item = SecretReference>) -> Self {
        Self {
            name: default_name(),
            url: UrlSource::Text(url.into()),
            secrets: secrets.into_iter().collect(),
            source: cloudevent::default_source(),
            event: Detail::default(),
            max_event_bytes: default_max_event_bytes(),
            in_flight: default_in_flight(),
            request_limit_ms: default_request_limit_ms(),
            disable_after_hours: default_disable_after_hours(),
            allow_networks: Vec::new(),
            ca_file: None,
            notify_load: false,
        }
    }
}

/// An endpoint as it is configured now.
struct Endpoint {
    uri: Uri,
    /// The hash of its URL.
    identity: String,
    http: Http,
    keys: Keys,
}

/// How the endpoint has been doing. Kept over restarts as JSON.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Standing {
    /// Which endpoint: the hash of its URL, which may hold a token.
    endpoint: String,
    /// For how long nothing had been taken, though something was sent, when an earlier process noted it.
    failing_ms: u64,
    /// The same of this process: since when.
    #[serde(skip)]
    failing_since: Option<Instant>,
    /// Why nothing is sent any more.
    disabled: Option<String>,
}

pub struct WebhookSink {
    config: WebhookConfig,
    origin: Origin,
    target: String,
    endpoint: Option<Endpoint>,
    standing: Standing,
    /// What was taken of batches that are not through: the versions.
    taken: HashMap<(Arc<str>, EntityKey), Lsn>,
    /// Between `begin_load` and the next frontier.
    loading: bool,
}

/// How one event ended.
enum Outcome {
    Taken,
    /// The endpoint will not have this one.
    Refused(String),
    /// The endpoint will have none any more.
    Gone(String),
    Failed(Error),
}

impl WebhookSink {
    pub fn new(config: WebhookConfig) -> Self {
        let target = format!("webhook {}", config.name);
        let (origin, standing) = (Origin::new(&config.source), Standing::default());
        Self { config, origin, target, endpoint: None, standing, taken: HashMap::new(), loading: false }
    }

    /// Reads URL, secrets and certificates, as they are now.
    fn open(&self) -> Result<Endpoint, Error> {
        let (config, target) = (&self.config, &self.target);
        let url = config.url.resolve(target)?;
        // It may hold a token: an error does not quote it.
        let wrong = |what: &str| Error::misconfigured(target, what, "Write https://host/path");
        let uri: Uri = url.reveal().parse().map_err(|_| wrong("its url is no URL"))?;
        let networks: Arc<[IpNet]> = config.allow_networks.clone().into();
        let guard = match uri.scheme_str() {
            Some("https") => Guard::Public(networks),
            Some("http") => Guard::Only(networks),
            _ => return Err(wrong("its url is neither of https nor of http")),
        };
        if host_of(&uri).is_empty() || uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(wrong("its url names no host, or a user"));
        }
        if config.secrets.is_empty() {
            return Err(Error::misconfigured(target, "it has no secret to sign with", "Name one: secrets: [{env: NAME}]"));
        }
        let secrets: Result<Vec<_>, _> = config.secrets.iter().map(|secret| secret.resolve(target)).collect();
        let keys = Keys::new(target, &secrets?)?;
        let tls = tls::client_config(target, "ca_file", config.ca_file.as_deref())?;
        let http = Http::new(tls, guard, Duration::from_millis(config.request_limit_ms));
        Ok(Endpoint { uri, identity: hash(url.reveal()), http, keys })
    }

    fn is_enabled(&self) -> Result<(), Error> {
        match &self.standing.disabled {
            None => Ok(()),
            Some(reason) => {
                let name = &self.config.name;
                let remedy = format!(
                    "Mend the endpoint, then `tributary dead-letter retry --sink {name}`: what has changed meanwhile is sent then"
                );
                Err(Error::misconfigured(&self.target, format!("disabled: {reason}"), remedy))
            }
        }
    }

    fn event(&self, change: &EntityChange) -> Result<String, String> {
        let limit = self.config.max_event_bytes;
        let event = self.config.event.event(change, &self.origin, 0, limit);
        event.map_err(|bytes| format!("the event takes {bytes} bytes, more than the {limit} of max_event_bytes"))
    }

    /// Posts the events; answers what the endpoint will not have, and what went wrong first.
    async fn post_all(&mut self, events: Vec<(&EntityChange, String)>) -> (Vec<Rejected>, Option<Error>) {
        let Self { config, target, endpoint, standing, taken, .. } = self;
        let Some(endpoint) = endpoint else {
            return (Vec::new(), Some(Error::unavailable(target.as_str(), "it has not been prepared")));
        };
        let (endpoint, target) = (&*endpoint, target.as_str());
        let (mut rejected, mut trouble) = (Vec::new(), None);
        let mut waiting = events.into_iter();
        let mut under_way = FuturesUnordered::new();
        loop {
            // An answer that may be about one event alone does not keep the others back.
            let go_on = matches!(trouble, None | Some(Error::Unexpected { .. })) && standing.disabled.is_none();
            while go_on && under_way.len() < config.in_flight.max(1) {
                let Some((change, event)) = waiting.next() else { break };
                under_way.push(async move { (change, endpoint.post(target, event).await) });
            }
            let Some((change, outcome)) = under_way.next().await else { break };
            match outcome {
                Outcome::Taken => {
                    standing.taken();
                    taken.insert((change.entity.clone(), change.key.clone()), change.version);
                }
                Outcome::Refused(reason) => rejected.push(Rejected { change: change.clone(), reason }),
                Outcome::Gone(reason) => standing.disabled = Some(reason),
                Outcome::Failed(error) => {
                    standing.failed(&error, config.disable_after_hours);
                    let graver = matches!(trouble, Some(Error::Unexpected { .. })) && !matches!(error, Error::Unexpected { .. });
                    if trouble.is_none() || graver {
                        trouble = Some(error);
                    }
                }
            }
        }
        (rejected, trouble)
    }

    /// Events that were taken are not posted once more while their batch is tried again.
    fn was_taken(&self, change: &EntityChange) -> bool {
        !self.taken.is_empty() && self.taken.get(&(change.entity.clone(), change.key.clone())) == Some(&change.version)
    }
}

impl Standing {
    fn failed(&mut self, error: &Error, disable_after_hours: u64) {
        self.failing_since.get_or_insert_with(Instant::now);
        if self.failing() >= Duration::from_secs(disable_after_hours * 3600) {
            self.disabled = Some(format!("nothing was taken for {disable_after_hours} hours; last: {error}"));
        }
    }

    fn taken(&mut self) {
        (self.failing_ms, self.failing_since) = (0, None);
    }

    fn failing(&self) -> Duration {
        Duration::from_millis(self.failing_ms) + self.failing_since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

impl Endpoint {
    async fn post(&self, target: &str, event: String) -> Outcome {
        let id = message_id(&event);
        let now = SystemTime::now();
        let timestamp = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let request = Request::post(self.uri.clone())
            .header(CONTENT_TYPE, "application/cloudevents+json; charset=utf-8")
            .header(USER_AGENT, AGENT)
            .header(&WEBHOOK_SIGNATURE, self.keys.sign(&id, timestamp, &event))
            .header(&WEBHOOK_TIMESTAMP, timestamp)
            .header(&WEBHOOK_ID, id)
            .body(Full::from(event));
        let request = match request {
            Ok(request) => request,
            Err(error) => return Outcome::Failed(Error::unexpected(target, error)),
        };
        match self.http.send(request, ANSWER_BYTES).await {
            Ok(answer) => outcome(target, &answer, now),
            Err(failure) => Outcome::Failed(failure.into_error(target)),
        }
    }
}

fn outcome(target: &str, answer: &Answer, now: SystemTime) -> Outcome {
    let said = format!("the endpoint answered {}", answer.said());
    match answer.status {
        status if status.is_success() => Outcome::Taken,
        StatusCode::GONE => Outcome::Gone(said),
        StatusCode::PAYLOAD_TOO_LARGE => Outcome::Refused(said),
        StatusCode::TOO_MANY_REQUESTS => Outcome::Failed(Error::throttled(target, said, answer.retry_after(now))),
        StatusCode::SERVICE_UNAVAILABLE if answer.retry_after(now).is_some() => {
            Outcome::Failed(Error::throttled(target, said, answer.retry_after(now)))
        }
        StatusCode::UNAUTHORIZED
        | StatusCode::FORBIDDEN
        | StatusCode::NOT_FOUND
        | StatusCode::METHOD_NOT_ALLOWED
        | StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            let remedy = "Check the url and the secrets, here and at the endpoint";
            Outcome::Failed(Error::misconfigured(target, said, remedy))
        }
        status if status.is_redirection() => {
            Outcome::Failed(Error::misconfigured(target, said, "Redirects are not followed: correct the url"))
        }
        StatusCode::REQUEST_TIMEOUT => Outcome::Failed(Error::unavailable(target, said)),
        status if status.is_client_error() => Outcome::Failed(Error::unexpected(target, said)),
        _ => Outcome::Failed(Error::unavailable(target, said)),
    }
}

/// The same event always has the same id, and another document has another, also under the same version. Without full stops, which separate the parts of what is signed.
fn message_id(event: &str) -> String {
    format!("msg_{}", hash(event))
}

fn hash(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(ID_DIGITS / 2).map(|byte| format!("{byte:02x}")).collect()
}

#[async_trait]
impl Sink for WebhookSink {
    fn know(&mut self, versions: Arc<dyn Versions>) {
        self.origin.know(versions);
    }

    /// Makes no request: an endpoint is told of changes and asked for nothing else.
    async fn prepare(&mut self, _entities: &[EntityInfo]) -> Result<(), Error> {
        let endpoint = self.open()?;
        if self.standing.endpoint != endpoint.identity {
            // What is known is of another one.
            self.standing = Standing { endpoint: endpoint.identity.clone(), ..Standing::default() };
        }
        self.is_enabled()?;
        let looked_up = endpoint.http.look_up(&endpoint.uri).await;
        looked_up.map_err(|failure| failure.into_error(&self.target))?;
        self.endpoint = Some(endpoint);
        Ok(())
    }

    async fn begin_load(&mut self) -> Result<(), Error> {
        self.loading = true;
        if !self.config.notify_load {
            tracing::warn!(target_name = self.target, "a load begins, and what it writes is not posted (notify_load: false)");
        }
        Ok(())
    }

    async fn write(&mut self, changes: &[EntityChange], frontier: Option<Lsn>) -> Result<Vec<Rejected>, Error> {
        self.is_enabled()?;
        let silent = self.loading && !self.config.notify_load;
        let (accepted, mut rejected) = check::sort(if silent { &[] } else { changes });
        let mut events = Vec::with_capacity(accepted.len());
        for change in accepted.into_iter().filter(|change| !self.was_taken(change)) {
            match self.event(change) {
                Ok(event) => events.push((change, event)),
                Err(reason) => rejected.push(Rejected { change: change.clone(), reason }),
            }
        }
        let (refused, trouble) = self.post_all(events).await;
        self.is_enabled()?;
        if self.taken.len() > REMEMBERED {
            self.taken.clear();
        }
        if let Some(error) = trouble {
            return Err(error);
        }
        rejected.extend(refused);
        for change in changes {
            self.taken.remove(&(change.entity.clone(), change.key.clone()));
        }
        if frontier.is_some() {
            self.loading = false;
        }
        Ok(rejected)
    }

    /// What vanished between two loads is not known to an endpoint, and not posted.
    // Each instance tells of its own share, and nothing is removed at the end of a load.
    fn own(&mut self, _range: KeyRange) -> bool {
        true
    }

    async fn end_load(&mut self, _entity: &str, _version: Lsn) -> Result<(), Error> {
        Ok(())
    }

    /// An endpoint is somebody else's: it is given time.
    fn terms(&self) -> Terms {
        let (first_pause, longest_pause) = (Duration::from_secs(1), Duration::from_secs(900));
        let retry = Retry { first_pause, longest_pause, budget: Duration::from_secs(3600), ..Retry::default() };
        Terms { retry, ..Terms::default() }
    }

    fn note(&self) -> Option<String> {
        let Standing { endpoint, failing_since, disabled, .. } = &self.standing;
        let failing_ms = u64::try_from(self.standing.failing().as_millis()).unwrap_or(u64::MAX);
        if failing_since.is_none() && disabled.is_none() && failing_ms == 0 {
            return None;
        }
        let (endpoint, disabled, failing_since) = (endpoint.clone(), disabled.clone(), None);
        serde_json::to_string(&Standing { endpoint, failing_ms, failing_since, disabled }).ok()
    }

    fn recall(&mut self, note: Option<&str>) {
        // What cannot be read is of another version: the endpoint is tried.
        self.standing = note.and_then(|note| serde_json::from_str(note).ok()).unwrap_or_default();
    }

    async fn check(&mut self, _entities: &[EntityInfo]) -> Result<Checked, Error> {
        let endpoint = self.open()?;
        endpoint.http.look_up(&endpoint.uri).await.map_err(|failure| failure.into_error(&self.target))?;
        let detail = format!("{} is found where it may be; nothing was posted", host_of(&endpoint.uri));
        Ok(Checked { detail, warnings: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_id_is_made_of_the_event() {
        assert_eq!(message_id("{}"), message_id("{}"));
        assert_ne!(message_id("{}"), message_id("{ }"));
        let id = message_id("{}");
        assert!(id.len() == 36 && !id.contains('.'), "{id}");
    }

    #[tokio::test]
    async fn urls_that_will_not_do_are_refused_without_being_quoted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        std::fs::write(&path, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let sink = |url: &str| WebhookSink::new(WebhookConfig::new(url, [SecretReference::File(path.clone())]));
        for url in [
            "ftp://h/token",
            "not a url token",
            "https://user:token@h/",
            "http://1.1.1.1/token",
            "https://127.0.0.1/token",
            "https://[::1]/token",
        ] {
            let error = sink(url).prepare(&[]).await.unwrap_err();
            assert_eq!(error.class(), schemas::ErrorClass::Misconfigured, "{error}");
            assert!(!error.to_string().contains("token"), "{error}");
        }
        sink("https://1.1.1.1/token").prepare(&[]).await.unwrap();
        let unsigned = WebhookConfig::new("https://1.1.1.1/", []);
        assert!(WebhookSink::new(unsigned).prepare(&[]).await.unwrap_err().to_string().contains("secret"));
    }
}
