//! Asking for what was set aside.
#![allow(clippy::unwrap_used)]

mod support;

use api::Config;
use serde_json::json;
use support::Fixture;

const JSON: (&str, &str) = ("Content-Type", "application/json");

#[tokio::test]
async fn letters_are_listed_retried_and_dropped() {
    let fixture = Fixture::start().await;
    let post = async |what: &str, body: &str| fixture.send_body("POST", &format!("/v1/dead-letters/{what}"), &[JSON], body).await;
    assert_eq!(fixture.get("/v1/dead-letters").await.json(), json!({"items": [{"id": "aa"}, {"id": "bb"}]}));
    assert_eq!(fixture.get("/v1/dead-letters?limit=1").await.json(), json!({"items": [{"id": "aa"}]}));
    assert_eq!(fixture.get("/v1/dead-letters?id=bb").await.json(), json!({"items": [{"id": "bb"}]}));
    assert_eq!(post("retry", r#"{"sink": "postgres"}"#).await.json(), json!({"changes": 2}));
    assert_eq!(post("drop", r#"{"id": "aa"}"#).await.json(), json!({"dropped": 1}));
    assert_eq!(post("drop", r#"{"all": true}"#).await.json(), json!({"dropped": 1}));
    fixture.stop().await;
}

#[tokio::test]
async fn what_is_wrong_is_told() {
    let fixture = Fixture::start().await;
    for body in ["{}", r#"{"all": false}"#, r#"{"id": "aa", "sink": "s"}"#, r#"{"key": "1"}"#, "{"] {
        let answer = fixture.send_body("POST", "/v1/dead-letters/drop", &[JSON], body).await;
        assert_eq!((answer.status, answer.problem().as_str()), (400, "bad-parameter"), "{body}");
    }
    let form = fixture.send_body("POST", "/v1/dead-letters/drop", &[("Content-Type", "text/plain")], r#"{"all": true}"#).await;
    assert_eq!((form.status, form.problem().as_str()), (415, "not-json"));
    for query in ["limit=0", "limit=x", "limit=10001", "since=1"] {
        assert_eq!(fixture.get(&format!("/v1/dead-letters?{query}")).await.status, 400, "{query}");
    }
    assert_eq!(fixture.get("/v1/dead-letters").await.json()["items"].as_array().unwrap().len(), 2, "nothing was dropped");
    fixture.stop().await;
    let fixture = Fixture::with(Config::default(), false).await;
    let answer = fixture.get("/v1/dead-letters").await;
    assert_eq!((answer.status, answer.problem().as_str()), (501, "not-here"));
    fixture.stop().await;
}
