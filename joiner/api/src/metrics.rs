//! The API's metrics: every name once, with what it means.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::Response;
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

const REQUESTS: &str = "tributary_api_requests_total";
const REQUEST_SECONDS: &str = "tributary_api_request_seconds";
const SUBSCRIPTIONS: &str = "tributary_api_subscriptions";
const CHANGES_SENT: &str = "tributary_api_changes_sent_total";

/// Describes every metric to the recorder; to be called once it is installed.
pub fn describe() {
    describe_counter!(REQUESTS, Unit::Count, "Requests answered, by route and status");
    describe_histogram!(REQUEST_SECONDS, Unit::Seconds, "Time from a request to the head of its answer, by route");
    describe_gauge!(SUBSCRIPTIONS, Unit::Count, "Subscriptions that are open");
    describe_counter!(CHANGES_SENT, Unit::Count, "Entity changes sent to subscribers");
}

/// Counts every request under its route's pattern, so that keys never become labels.
pub(crate) async fn observe(request: Request, next: Next) -> Response {
    let start = Instant::now();
    let route: Arc<str> = Arc::from(request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str));
    let response = next.run(request).await;
    counter!(REQUESTS, "route" => Arc::clone(&route), "status" => response.status().as_str().to_owned()).increment(1);
    histogram!(REQUEST_SECONDS, "route" => route).record(start.elapsed().as_secs_f64());
    response
}

pub(crate) fn changes_sent(count: u64) {
    counter!(CHANGES_SENT).increment(count);
}

/// An open subscription, until it is dropped.
pub(crate) struct Open(());

impl Open {
    pub(crate) fn count() -> Self {
        gauge!(SUBSCRIPTIONS).increment(1.0);
        Self(())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        gauge!(SUBSCRIPTIONS).decrement(1.0);
    }
}
