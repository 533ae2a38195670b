//! Asking for a savepoint.
#![allow(clippy::unwrap_used)]

mod support;

use api::Config;
use serde_json::json;
use support::Fixture;

const JSON: (&str, &str) = ("Content-Type", "application/json");

#[tokio::test]
async fn savepoints_are_made_or_refused() {
    let fixture = Fixture::start().await;
    let post = async |body: &str| fixture.send_body("POST", "/v1/savepoints", &[JSON], body).await;
    assert_eq!(post(r#"{"name": "before"}"#).await.json(), json!({"name": "before"}));
    for (body, status, problem) in [
        (r#"{"name": "taken"}"#, 409, "conflict"),
        (r#"{"name": "a/b"}"#, 400, "bad-parameter"),
        ("{}", 400, "bad-parameter"),
        (r#"{"name": "x", "more": 1}"#, 400, "bad-parameter"),
    ] {
        let answer = post(body).await;
        assert_eq!((answer.status, answer.problem().as_str()), (status, problem), "{body}");
    }
    let form = fixture.send_body("POST", "/v1/savepoints", &[("Content-Type", "text/plain")], r#"{"name": "x"}"#).await;
    assert_eq!(form.status, 415);
    fixture.stop().await;
    let fixture = Fixture::with(Config::default(), false).await;
    let answer = fixture.send_body("POST", "/v1/savepoints", &[JSON], r#"{"name": "x"}"#).await;
    assert_eq!((answer.status, answer.problem().as_str()), (501, "not-here"));
    fixture.stop().await;
}
