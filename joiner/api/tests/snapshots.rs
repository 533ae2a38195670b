//! Asking for a table to be read again.
#![allow(clippy::unwrap_used)]

mod support;

use api::Config;
use support::Fixture;

const PATH: &str = "/v1/sources/shop/snapshots";
const JSON: (&str, &str) = ("Content-Type", "application/json; charset=utf-8");

#[tokio::test]
async fn a_request_is_taken_once() {
    let fixture = Fixture::start().await;
    let body = r#"{"table": "dbo.orders", "from": [17, "a"], "to": 20}"#;
    let answer = fixture.send_body("POST", PATH, &[JSON], body).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!(answer.json(), serde_json::json!({"source": "shop", "table": "dbo.orders", "generation": 2}));
    let again = fixture.send_body("POST", PATH, &[JSON], body).await;
    assert_eq!((again.status, again.problem().as_str()), (409, "conflict"));
    fixture.stop().await;
}

#[tokio::test]
async fn what_is_wrong_is_told() {
    let fixture = Fixture::start().await;
    for (body, status, problem) in [
        (r#"{"table": "dbo.items"}"#, 404, "unknown-table"),
        (r#"{"table": "orders"}"#, 400, "bad-parameter"),
        (r#"{"table": "dbo.orders", "to": "x"}"#, 400, "bad-parameter"),
        (r#"{"table": "dbo.orders", "from": []}"#, 400, "bad-parameter"),
        (r#"{"table": "dbo.orders", "from": [null]}"#, 400, "bad-parameter"),
        (r#"{"table": "dbo.orders", "until": 7}"#, 400, "bad-parameter"),
        ("{", 400, "bad-parameter"),
    ] {
        let answer = fixture.send_body("POST", PATH, &[JSON], body).await;
        assert_eq!((answer.status, answer.problem().as_str()), (status, problem), "{body}");
    }
    let good = r#"{"table": "dbo.orders"}"#;
    let elsewhere = fixture.send_body("POST", "/v1/sources/mine/snapshots", &[JSON], good).await;
    assert_eq!((elsewhere.status, elsewhere.problem().as_str()), (404, "unknown-source"));
    // What a form on a web page elsewhere could send.
    for kind in ["text/plain", "application/x-www-form-urlencoded"] {
        let form = fixture.send_body("POST", PATH, &[("Content-Type", kind)], good).await;
        assert_eq!((form.status, form.problem().as_str()), (415, "not-json"));
    }
    assert_eq!(fixture.get(PATH).await.status, 405);
    fixture.stop().await;
}

#[tokio::test]
async fn without_an_importer_nobody_is_asked_and_with_a_token_it_is_needed() {
    let fixture = Fixture::with(Config::default(), false).await;
    let answer = fixture.send_body("POST", PATH, &[JSON], r#"{"table": "dbo.orders"}"#).await;
    assert_eq!((answer.status, answer.problem().as_str()), (501, "not-here"));
    fixture.stop().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("token"), "s3cret").unwrap();
    let token = serde_json::json!({"token": {"file": folder.path().join("token")}});
    let fixture = Fixture::with(serde_json::from_value(token).unwrap(), true).await;
    let send =
        async |headers: &[(&str, &str)]| fixture.send_body("POST", PATH, headers, r#"{"table": "dbo.orders"}"#).await.status;
    assert_eq!(send(&[JSON]).await, 401);
    assert_eq!(send(&[JSON, ("Authorization", "Bearer s3cret")]).await, 202);
    fixture.stop().await;
}
