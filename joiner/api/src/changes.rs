//! `GET /v1/changes`: entity changes as server-sent events.
//!
//! # Events
//! - `change`: data is a CloudEvent ([`sinks::cloudevent`]).
//! - `progress`: data is `{"lsn", "time"}`, of several sources with `sources`, the LSN of each. Whoever has received this has received every change (that the subscription asks for) at or below `lsn`. The first comes at once when
//!   the subscription starts at the present, so that there is a token to resume from; then whenever the frontier has moved, at most once a second, and at the latest every
//!   `progress_interval_ms`: silence is a fault, never an idle source. While a subscription is still catching up, `lsn` is null.
//! - `trimmed`: the reader fell so far behind that changes it has not seen are gone. The connection ends; resuming is answered 410.
//!
//! Every `change` and `progress` has an `id`, the resume token: `incarnation-sequence`, the position in the outbox up to which the reader has everything.
//!
//! # Why catch-up and live are without gap or repeat
//! There is one cursor, and one way to move it: read after it, send, advance. "Live" is that same read, repeated when the head moves. The head is marked as seen *before* the
//! read, so a change that is committed during the read wakes the next wait instead of being missed. A token names the last change sent, so what follows is what was not.
//!
//! # Why a slow reader holds nobody up
//! Events are made when the connection's buffer has room for them, from a page of at most [`PAGE_CHANGES`] changes. Nothing queues up, the outbox is not pinned, and
//! what falls behind retention is told so (`trimmed`).

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, stream};
use schemas::change::EntityChange;
use serde_json::json;
use sinks::cloudevent::{self, Origin};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::entities::reflecting;
use crate::parameters::Parameters;
use crate::problem::Problem;
use crate::server::Shared;
use crate::{ChangeFeed, Head, Page, keys, metrics};

const PAGE_CHANGES: usize = 256;
/// Progress that follows the frontier comes at most this often.
const PROGRESS_SPACING: Duration = Duration::from_secs(1);

/// Where a subscription starts.
enum Start {
    Token { incarnation: u64, sequence: u64 },
    Oldest,
    Now,
}

/// What a subscription asks for.
#[derive(Default)]
struct Wanted {
    entity: Option<String>,
    key: Option<String>,
}

impl Wanted {
    fn takes(&self, change: &EntityChange) -> bool {
        self.entity.as_deref().is_none_or(|entity| entity == &*change.entity)
            && self.key.as_deref().is_none_or(|key| key == change.key.as_str())
    }
}

pub(crate) async fn subscribe(
    State(shared): State<Arc<Shared>>,
    Parameters(parameters): Parameters,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Some(feed) = shared.parts.feed.clone() else {
        let detail =
            "Changes are served where the joiner runs; this process serves queries only. Ask the joiner's API.".to_owned();
        return Err(Problem::NotHere { detail });
    };
    if let Some(detail) = feed.refuses() {
        return Err(Problem::Unavailable { detail });
    }
    let (start, wanted) = parse(&shared, &parameters, &headers)?;
    let permit = Arc::clone(&shared.subscriptions).try_acquire_owned().map_err(|_| Problem::TooManySubscriptions)?;
    let head = feed.head();
    let now = *head.borrow();
    let cursor = cursor(&*feed, &start, now).await?;
    let mut origin = Origin::default();
    if let Some(versions) = feed.versions() {
        origin.know(versions);
    }
    let sources = now.frontier.and_then(|lsn| origin.sources(lsn)).unwrap_or_default();
    let subscription = Subscription {
        origin,
        head,
        cursor,
        wanted,
        _place: (permit, metrics::Open::count()),
        pending: VecDeque::new(),
        caught_up: None,
        told: None,
        told_at: Instant::now(),
        interval: Duration::from_millis(shared.config.progress_interval_ms.max(1)),
        shutdown: shared.shutdown.clone(),
        ended: false,
        feed,
    };
    let mut response = reflecting(now.frontier, &sources, Sse::new(subscription.into_stream()).into_response());
    // A proxy that buffers would turn live into late.
    response.headers_mut().insert("x-accel-buffering", axum::http::HeaderValue::from_static("no"));
    Ok(response)
}

fn parse(shared: &Shared, parameters: &[(String, String)], headers: &HeaderMap) -> Result<(Start, Wanted), Problem> {
    let (mut start, mut wanted) = (Start::Now, Wanted::default());
    for (name, value) in parameters {
        match (name.as_str(), value.as_str()) {
            ("entity", entity) => wanted.entity = Some(crate::entities::find(shared, entity)?.name.to_string()),
            ("key", key) => wanted.key = Some(key.to_owned()),
            ("from", "now") => start = Start::Now,
            ("from", "oldest") => start = Start::Oldest,
            ("from", token) => start = parse_token("from", token)?,
            _ => return Err(Problem::parameter(name, "is not known here; known are: entity, key, from")),
        }
    }
    if let Some(key) = &wanted.key {
        let Some(entity) = &wanted.entity else { return Err(Problem::parameter("key", "needs entity beside it")) };
        let parts = crate::entities::find(shared, entity)?.key.len();
        let written = keys::from_segment(&keys::encode(&schemas::change::EntityKey::from_text(key)), parts);
        let written = written.and_then(|key| (shared.parts.normalize_key)(entity, &key));
        let key = written
            .ok_or_else(|| Problem::parameter("key", format!("the key of {entity} has {parts} parts, joined by commas")))?;
        wanted.key = Some(key.as_str().to_owned());
    }
    // What a browser sends when it reconnects is newer than what its page once asked for.
    if let Some(value) = headers.get("last-event-id").filter(|value| !value.is_empty()) {
        let text = value.to_str().map_err(|_| Problem::parameter("Last-Event-ID", "is not text"))?;
        start = parse_token("Last-Event-ID", text)?;
    }
    Ok((start, wanted))
}

fn parse_token(name: &str, text: &str) -> Result<Start, Problem> {
    let parsed = text.split_once('-').and_then(|(incarnation, sequence)| {
        Some(Start::Token { incarnation: u64::from_str_radix(incarnation, 16).ok()?, sequence: sequence.parse().ok()? })
    });
    parsed.ok_or_else(|| Problem::parameter(name, "is not a resume token; it is the id of the last event received"))
}

fn token(incarnation: u64, sequence: u64) -> String {
    format!("{incarnation:x}-{sequence}")
}

/// The position to start from; 410 when what follows the token is gone.
async fn cursor(feed: &dyn ChangeFeed, start: &Start, head: Head) -> Result<u64, Problem> {
    let read = |sequence| async move {
        let page = feed.read_after(sequence, 1).await;
        page.map_err(|error| Problem::Unavailable { detail: error.to_string() })
    };
    match *start {
        Start::Now => Ok(head.sequence),
        Start::Oldest => Ok(match read(0).await? {
            Page::Changes { .. } => 0,
            Page::Trimmed { oldest } => oldest.saturating_sub(1),
        }),
        Start::Token { incarnation, sequence } => {
            let gone = |detail: &str| Problem::Trimmed {
                detail: format!("{detail} Read the entities anew, then subscribe with from=now."),
            };
            const NO_MORE: &str = "The token belongs to an outbox that is no more.";
            if incarnation != feed.incarnation() {
                return Err(gone(NO_MORE));
            }
            // The page's head, not the watched one: that may be a moment behind what has been read already.
            match read(sequence).await? {
                Page::Changes { head, .. } if sequence > head.sequence => Err(gone(NO_MORE)),
                Page::Changes { .. } => Ok(sequence),
                Page::Trimmed { .. } => Err(gone("Changes after the token are no longer kept.")),
            }
        }
    }
}

struct Subscription {
    feed: Arc<dyn ChangeFeed>,
    origin: Origin,
    head: watch::Receiver<Head>,
    /// Everything up to here has been sent, or is not asked for.
    cursor: u64,
    wanted: Wanted,
    pending: VecDeque<(u64, EntityChange)>,
    /// The head that `cursor` has reached, once it has.
    caught_up: Option<Head>,
    /// What the last progress event said.
    told: Option<Head>,
    told_at: Instant,
    interval: Duration,
    shutdown: CancellationToken,
    ended: bool,
    /// Given back when the connection ends.
    _place: (OwnedSemaphorePermit, metrics::Open),
}

impl Subscription {
    fn into_stream(self) -> impl Stream<Item = Result<Event, Infallible>> {
        stream::unfold(self, |mut subscription| async move {
            let event = subscription.next().await?;
            Some((Ok(event), subscription))
        })
    }

    /// The next event; `None` ends the connection.
    async fn next(&mut self) -> Option<Event> {
        while !self.ended && !self.shutdown.is_cancelled() {
            if let Some((sequence, change)) = self.pending.pop_front() {
                self.cursor = sequence;
                metrics::changes_sent(1);
                let event = Event::default().event("change").id(token(self.feed.incarnation(), sequence));
                return Some(event.data(single_line(cloudevent::to_json(&change, &self.origin))));
            }
            if let Some(event) = self.progress_if_due() {
                return Some(event);
            }
            if self.caught_up.is_some() && !self.wait().await {
                return None;
            }
            if let Some(event) = self.read().await {
                return Some(event);
            }
        }
        None
    }

    /// Reads the next page. An event is given only when there is nothing to read any more.
    async fn read(&mut self) -> Option<Event> {
        // Marked as seen before the read: see the module's argument.
        let head = *self.head.borrow_and_update();
        match self.feed.read_after(self.cursor, PAGE_CHANGES).await {
            Ok(Page::Changes { changes, head: read }) => {
                // The page's own head was taken with the page: it never promises more than the page holds.
                let reached = if read.sequence >= head.sequence { read } else { head };
                // A page may be cut short by its bytes: only one that comes to the head, or is empty, is the last.
                let last = changes.last().map(|(sequence, _)| *sequence);
                let complete = last.is_none_or(|last| last >= reached.sequence);
                self.pending.extend(changes.into_iter().filter(|(_, change)| self.wanted.takes(change)));
                self.caught_up = complete.then_some(reached);
                if self.pending.is_empty() {
                    let passed = if complete { reached.sequence } else { self.cursor };
                    self.cursor = self.cursor.max(passed).max(last.unwrap_or(0));
                }
                None
            }
            Ok(Page::Trimmed { oldest }) => {
                self.ended = true;
                let data = json!({"detail": "changes that were not sent yet are no longer kept", "oldest": token(self.feed.incarnation(), oldest)});
                Some(Event::default().event("trimmed").data(data.to_string()))
            }
            Err(error) => {
                // The client reconnects with its last token.
                tracing::warn!(%error, "a subscription ends");
                self.ended = true;
                None
            }
        }
    }

    /// Waits for the head to move or for progress to be due. `false`: it is over.
    async fn wait(&mut self) -> bool {
        let due = self.told_at + self.interval;
        let moved = self.caught_up != self.told;
        let due = if moved { due.min(self.told_at + PROGRESS_SPACING) } else { due };
        tokio::select! {
            () = self.shutdown.cancelled() => false,
            () = sleep_until(due) => true,
            changed = self.head.changed() => changed.is_ok(),
        }
    }

    /// Progress once caught up: the first at once, then as the module says.
    fn progress_if_due(&mut self) -> Option<Event> {
        let Some(head) = self.caught_up else {
            if self.told_at.elapsed() < self.interval {
                return None;
            }
            // Of many changes that are passed over, nothing is heard but this.
            self.told_at = Instant::now();
            return Some(self.progress(&Head::default()));
        };
        let since = self.told_at.elapsed();
        let due = self.told.is_none() || since >= self.interval || (since >= PROGRESS_SPACING && self.told != Some(head));
        if !due {
            return None;
        }
        self.cursor = self.cursor.max(head.sequence);
        self.told = Some(head);
        self.told_at = Instant::now();
        Some(self.progress(&head))
    }

    fn progress(&self, head: &Head) -> Event {
        let mut data = json!({"lsn": head.frontier, "time": cloudevent::time(head.commit_time_ms)});
        if let Some(sources) = head.frontier.and_then(|lsn| self.origin.sources(lsn)) {
            data["sources"] = json!(sources);
        }
        Event::default().event("progress").id(token(self.feed.incarnation(), self.cursor)).data(data.to_string())
    }
}

/// Documents may be written over several lines; outside of strings, which cannot hold them raw, line breaks are but spaces. A carriage return would break the event apart.
fn single_line(json: String) -> String {
    if json.contains(['\r', '\n']) { json.replace(['\r', '\n'], " ") } else { json }
}
