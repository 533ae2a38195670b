//! Enhanced fan-out: consumers, and what is pushed to them, as a stream of events in Amazon's framing.
//!
//! ```text
//! message  length u32 | length of the headers u32 | CRC-32 of these 8 bytes u32 | headers | payload | CRC-32 of all before u32
//! header   length of the name u8 | name | 7 (text) u8 | length of the value u16 | value
//! ```
//!
//! A subscription takes the place of the consumer's last one to the shard, as with AWS. It sends what there is, waits for more, and says now and then that there is none.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::store::{Failed, Read, Store, sequence, stream_of, text};
use super::{Shared, Stand, broken, lock};

/// Kinesis records in an event.
const EVENT_RECORDS: usize = 10;
/// An event without records comes after so long a silence. (AWS's come every few seconds.)
const SILENCE: Duration = Duration::from_millis(10);

/// The consumers, and who is subscribed.
#[derive(Default)]
pub(super) struct Subscriptions {
    /// By ARN.
    consumers: BTreeSet<String>,
    /// The number of the subscription that stands, by consumer and shard.
    standing: BTreeMap<(String, String), u64>,
    last: u64,
    held: bool,
    changed: watch::Sender<()>,
}

impl Subscriptions {
    fn consumer(&self, request: &Value) -> Result<(String, bool), Failed> {
        let arn = format!("{}/consumer/{}:1", text(request, "StreamARN")?, text(request, "ConsumerName")?);
        let known = self.consumers.contains(&arn);
        Ok((arn, known))
    }

    pub(super) fn register(&mut self, request: &Value) -> Result<Value, Failed> {
        let (arn, known) = self.consumer(request)?;
        if known {
            return Err(Failed::new("ResourceInUseException", format!("Consumer {arn} exists")));
        }
        self.consumers.insert(arn.clone());
        Ok(json!({"Consumer": described(request, &arn, "CREATING")}))
    }

    pub(super) fn describe(&mut self, request: &Value) -> Result<Value, Failed> {
        match self.consumer(request)? {
            (arn, true) => Ok(json!({"ConsumerDescription": described(request, &arn, "ACTIVE")})),
            (arn, false) => Err(Failed::new("ResourceNotFoundException", format!("Consumer {arn} not found"))),
        }
    }

    pub(super) fn subscribe(&mut self, store: &mut Store, request: &Value) -> Result<Subscription, Failed> {
        let (consumer, shard) = (text(request, "ConsumerARN")?.to_owned(), text(request, "ShardId")?.to_owned());
        if !self.consumers.contains(&consumer) {
            return Err(Failed::new("ResourceNotFoundException", format!("Consumer {consumer} not found")));
        }
        let (stream, position) = (stream_of(&consumer).to_owned(), &request["StartingPosition"]);
        let kind = text(position, "Type")?;
        let next = store.start(&stream, &shard, kind, &position["SequenceNumber"], &position["Timestamp"])?;
        self.last += 1;
        self.standing.insert((consumer.clone(), shard.clone()), self.last);
        let since_open = !store.is_closed(&stream, &shard);
        let number = self.last;
        Ok(Subscription { number, consumer, stream, shard, next, sent: 0, since_open, silent: false, life: Life::New })
    }

    pub(super) fn hold(&mut self, hold: bool) {
        self.held = hold;
        self.wake();
    }

    pub(super) fn remove_consumers(&mut self) {
        self.consumers.clear();
        self.standing.clear();
        self.wake();
    }

    /// Something may have come.
    pub(super) fn wake(&self) {
        self.changed.send_replace(());
    }
}

fn described(request: &Value, arn: &str, status: &str) -> Value {
    json!({
        "ConsumerName": request["ConsumerName"], "ConsumerARN": arn, "ConsumerStatus": status,
        "ConsumerCreationTimestamp": 0, "StreamARN": request["StreamARN"],
    })
}

pub(super) fn too_young() -> Failed {
    Failed::new("ResourceInUseException", "Another active subscription exists for this consumer, by order of the test")
}

/// One call of SubscribeToShard.
pub(super) struct Subscription {
    number: u64,
    consumer: String,
    stream: String,
    shard: String,
    /// Where to read on.
    next: u64,
    /// Events so far.
    sent: u64,
    /// The shard was open when this began, and nothing stale has been sent since it was closed.
    since_open: bool,
    /// Nothing has come for a while.
    silent: bool,
    life: Life,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    New,
    Live,
    /// The connection is to break.
    Breaking,
    Over,
}

/// What a subscription does next.
enum Step {
    Send(Vec<u8>),
    Wait,
    /// The connection breaks.
    Break,
    End,
}

impl Subscription {
    pub(super) fn response(self, stand: Shared) -> Response {
        let changes = lock(&stand).subscriptions.changed.subscribe();
        let events = futures_util::stream::unfold((self, stand, changes), async |(mut this, stand, mut changes)| {
            loop {
                // Before looking: what comes after the look wakes the wait.
                changes.mark_unchanged();
                let step = this.step(&mut lock(&stand));
                let sent: io::Result<Bytes> = match step {
                    Step::Send(bytes) => Ok(bytes.into()),
                    Step::Break => Err(broken()),
                    Step::End => return None,
                    Step::Wait => {
                        // The sender lives as long as the stand, which is in this stream's state.
                        this.silent = tokio::time::timeout(SILENCE, changes.changed()).await.is_err();
                        continue;
                    }
                };
                return Some((sent, (this, stand, changes)));
            }
        });
        let kind = [(header::CONTENT_TYPE, "application/vnd.amazon.eventstream")];
        (StatusCode::OK, kind, Body::from_stream(events)).into_response()
    }

    fn step(&mut self, stand: &mut Stand) -> Step {
        let silent = std::mem::take(&mut self.silent);
        match self.life {
            Life::New => {
                self.life = Life::Live;
                return Step::Send(event("initial-response", "{}"));
            }
            Life::Live => {}
            Life::Breaking => {
                self.life = Life::Over;
                return Step::Break;
            }
            Life::Over => return Step::End,
        }
        let place = (self.consumer.clone(), self.shard.clone());
        if stand.subscriptions.standing.get(&place) != Some(&self.number) {
            self.life = Life::Over;
            return Step::Send(exception("ResourceInUseException"));
        }
        if let Some(refusal) = stand.faults.subscription_refused {
            self.life = Life::Over;
            return Step::Send(exception(refusal));
        }
        if stand.subscriptions.held {
            return Step::Wait;
        }
        let Ok(read) = stand.store.read(&self.stream, &self.shard, self.next, EVENT_RECORDS) else {
            self.life = Life::Over;
            return Step::Send(exception("ResourceNotFoundException"));
        };
        let ends = stand.faults.subscription_events > 0 && self.sent == stand.faults.subscription_events;
        let told = read.children.is_some() && !stand.faults.children_untold;
        if read.answered == 0 && !silent && !told && !ends {
            return Step::Wait;
        }
        if ends {
            return self.end(stand, &read);
        }
        self.sent += 1;
        if read.answered > 0 && stand.faults.stale_idle && self.since_open && stand.store.is_closed(&self.stream, &self.shard) {
            self.since_open = false;
            let stale = Read { records: String::new(), answered: 0, next: self.next, behind_ms: 0, children: None };
            return Step::Send(self.event(&stale, false));
        }
        self.next = read.next;
        if told {
            self.life = Life::Over;
        }
        Step::Send(self.event(&read, told))
    }

    fn event(&self, read: &Read, told: bool) -> Vec<u8> {
        let children = match (&read.children, told) {
            (Some(children), true) => format!(r#","ChildShards":{children}"#),
            _ => String::new(),
        };
        let continuation = sequence(read.next.saturating_sub(1));
        let (records, behind) = (&read.records, read.behind_ms);
        let payload = format!(
            r#"{{"Records":[{records}],"ContinuationSequenceNumber":"{continuation}","MillisBehindLatest":{behind}{children}}}"#
        );
        event("SubscribeToShardEvent", &payload)
    }

    /// Ends in one of the ways in which subscriptions do, by turns.
    fn end(&mut self, stand: &mut Stand, read: &Read) -> Step {
        stand.calls.ended += 1;
        let way = stand.calls.ended % 5;
        self.life = if way == 0 { Life::Breaking } else { Life::Over };
        match way {
            1 => Step::End,
            2 => Step::Send(exception("ResourceInUseException")),
            3 => Step::Send(exception("InternalFailureException")),
            _ => {
                let mut frame = self.event(read, false);
                frame.truncate(frame.len() / 2);
                Step::Send(frame)
            }
        }
    }
}

fn event(kind: &str, payload: &str) -> Vec<u8> {
    frame(&[(":message-type", "event"), (":event-type", kind), (":content-type", "application/json")], payload.as_bytes())
}

fn exception(kind: &str) -> Vec<u8> {
    let payload = json!({"message": "by order of the test"}).to_string();
    let headers = [(":message-type", "exception"), (":exception-type", kind), (":content-type", "application/json")];
    frame(&headers, payload.as_bytes())
}

fn frame(headers: &[(&str, &str)], payload: &[u8]) -> Vec<u8> {
    const TEXT: u8 = 7;
    let mut head = Vec::new();
    for (name, value) in headers {
        head.push(name.len() as u8);
        head.extend_from_slice(name.as_bytes());
        head.push(TEXT);
        head.extend_from_slice(&(value.len() as u16).to_be_bytes());
        head.extend_from_slice(value.as_bytes());
    }
    let length = 12 + head.len() + payload.len() + 4;
    let mut out = Vec::with_capacity(length);
    out.extend_from_slice(&(length as u32).to_be_bytes());
    out.extend_from_slice(&(head.len() as u32).to_be_bytes());
    out.extend_from_slice(&crc32fast::hash(&out).to_be_bytes());
    out.extend_from_slice(&head);
    out.extend_from_slice(payload);
    out.extend_from_slice(&crc32fast::hash(&out).to_be_bytes());
    out
}
