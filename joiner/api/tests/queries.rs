//! Queries over a real socket, from a SQLite file.

#![allow(clippy::unwrap_used)]

mod support;

use api::{Config, Error, Server};
use serde_json::json;
use sinks::SecretReference;
use support::{Fixture, change, lsn, time_ms};

async fn filled() -> Fixture {
    let mut fixture = Fixture::start().await;
    let mut changes: Vec<_> = (1..=120)
        .map(|n| {
            let (status, city) = (if n % 2 == 0 { "OPEN" } else { "DONE" }, if n % 3 == 0 { "Bern" } else { "Basel" });
            let document =
                json!({"id": n, "status": status, "total": format!("{n}.50"), "customer": {"city": city}, "items": []});
            change("order", &n.to_string(), 2, Some(&document))
        })
        .collect();
    for key in ["1,a%2Cb", "2,x y", "3,50%25", "4,a%2Fb", "5,any-case"] {
        changes.push(change("line", key, 3, Some(&json!({"name": key}))));
    }
    fixture.step(&changes, 5).await;
    fixture
}

#[tokio::test]
async fn a_document_names_its_version_and_the_frontier() {
    let mut fixture = filled().await;
    let answer = fixture.get("/v1/entities/order/7").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["total"], "7.50");
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(answer.headers["tributary-lsn"], lsn(5).to_string());
    assert_eq!(answer.headers["tributary-version"], lsn(2).to_string());
    let etag = answer.headers["etag"].clone();
    assert_eq!(etag, format!("\"{}\"", lsn(2)));

    let known = fixture.send("GET", "/v1/entities/order/7", &[("If-None-Match", &format!("\"x\", W/{etag}"))]).await;
    assert_eq!((known.status, known.body.as_str()), (304, ""));
    assert_eq!(known.headers["tributary-lsn"], lsn(5).to_string());
    fixture.step(&[change("order", "7", 6, Some(&json!({"id": 7})))], 6).await;
    assert_eq!(fixture.send("GET", "/v1/entities/order/7", &[("If-None-Match", &etag)]).await.status, 200);

    let head = fixture.send("HEAD", "/v1/entities/order/7", &[]).await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    fixture.stop().await;
}

#[tokio::test]
async fn keys_of_any_text_are_found_encoded_and_pasted() {
    let fixture = filled().await;
    for (path, name) in [
        ("1,a%252Cb", "1,a%2Cb"),
        ("1%2Ca%252Cb", "1,a%2Cb"),
        ("1,a%2Cb", "1,a%2Cb"),
        ("2,x%20y", "2,x y"),
        ("3,50%2525", "3,50%25"),
        ("3,50%25", "3,50%25"),
        ("4,a%2Fb", "4,a%2Fb"),
        ("5,ANY-CASE", "5,any-case"),
    ] {
        let answer = fixture.get(&format!("/v1/entities/line/{path}")).await;
        assert_eq!((answer.status, answer.json()["name"].as_str()), (200, Some(name)), "{path}");
    }
    let gone = fixture.get("/v1/entities/line/9,zz").await;
    assert_eq!((gone.status, gone.problem().as_str()), (404, "no-such-key"));
    assert_eq!(gone.headers["tributary-lsn"], lsn(5).to_string(), "an absence, too, is as of an LSN");
    assert_eq!(fixture.get("/v1/entities/line/9").await.problem(), "no-such-key");
    fixture.stop().await;
}

#[tokio::test]
async fn lists_are_filtered_and_paged_to_the_end() {
    let fixture = filled().await;
    let (mut keys, mut path) =
        (Vec::new(), "/v1/entities/order?status=eq.OPEN&customer.city=eq.Bern&total=gt.12&limit=7".to_owned());
    let first = path.clone();
    loop {
        let page = fixture.get(&path).await;
        assert_eq!(page.headers["tributary-lsn"], lsn(5).to_string());
        let page = page.json();
        assert_eq!(page["lsn"], lsn(5).to_string());
        let items = page["items"].as_array().unwrap();
        assert!(
            items.len() <= 7
                && items.iter().all(|item| item["version"] == lsn(2).to_string() && item["document"]["status"] == "OPEN")
        );
        keys.extend(items.iter().map(|item| item["key"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        path = format!("{first}&cursor={next}");
    }
    let mut expected: Vec<String> = (1..=120).filter(|n| n % 6 == 0 && *n > 11).map(|n| n.to_string()).collect();
    expected.sort();
    assert_eq!(keys, expected, "each once, in the order of the keys' text");
    fixture.stop().await;
}

#[tokio::test]
async fn what_is_not_understood_is_refused_and_explained() {
    let fixture = filled().await;
    for (path, status, kind, said) in [
        ("/v1/entities/orders", 404, "unknown-entity", "order, line"),
        ("/v1/entities/order?statsu=eq.OPEN", 400, "bad-parameter", "members are: id, status"),
        ("/v1/entities/order?status=OPEN", 400, "bad-parameter", "operator.value"),
        ("/v1/entities/order?status=like.OPEN", 400, "bad-parameter", "like"),
        ("/v1/entities/order?customer=eq.x", 400, "bad-parameter", "object"),
        ("/v1/entities/order?items.id=eq.1", 400, "bad-parameter", "not an object"),
        ("/v1/entities/order?limit=0", 400, "bad-parameter", "1000"),
        ("/v1/entities/order?limit=many", 400, "bad-parameter", "1000"),
        ("/v1/entities/order?cursor=zz", 400, "bad-parameter", "next"),
        ("/v1/entities/order?status=eq.%FF", 400, "bad-parameter", "UTF-8"),
        ("/v1/entities/order/1?x=1", 400, "bad-parameter", "min_lsn"),
        ("/v1/entities/order/1?min_lsn=12", 400, "bad-parameter", "not an LSN"),
        ("/v1/changes?entity=nothing", 404, "unknown-entity", "order, line"),
        ("/v1/changes?key=1", 400, "bad-parameter", "entity"),
        ("/v1/changes?from=yesterday", 400, "bad-parameter", "resume token"),
        ("/v2/entities", 404, "no-such-path", "/openapi.json"),
    ] {
        let answer = fixture.get(path).await;
        assert_eq!((answer.status, answer.problem().as_str()), (status, kind), "{path}");
        assert!(answer.json()["detail"].as_str().unwrap().contains(said), "{path}: {}", answer.body);
    }
    let other = fixture.get("/v1/entities/order?limit=1").await.json();
    let cursor = other["next"].as_str().unwrap();
    let answer = fixture.get(&format!("/v1/entities/order?status=eq.OPEN&cursor={cursor}")).await;
    assert!(answer.json()["detail"].as_str().unwrap().contains("other filters"), "{}", answer.body);
    let post = fixture.send("POST", "/v1/entities/order/1", &[("Content-Length", "0")]).await;
    assert_eq!((post.status, post.problem().as_str(), post.headers["allow"].as_str()), (405, "method-not-allowed", "GET, HEAD"));
    let rebound = fixture.send("GET", "/v1/entities", &[("Host", "evil.example")]).await;
    assert_eq!((rebound.status, rebound.problem().as_str()), (403, "wrong-host"));
    fixture.stop().await;
}

#[tokio::test]
async fn a_client_reads_its_own_writes() {
    let mut fixture = Fixture::with(Config { wait_limit_ms: 300, ..Config::default() }, true).await;
    fixture.step(&[change("order", "1", 2, Some(&json!({"id": 1, "status": "OPEN"})))], 2).await;
    let late = fixture.get(&format!("/v1/entities/order/1?min_lsn={}", lsn(3))).await;
    assert_eq!((late.status, late.problem().as_str(), late.headers["retry-after"].as_str()), (503, "too-early", "1"));
    assert!(late.json()["detail"].as_str().unwrap().contains(&lsn(2).to_string()), "{}", late.body);
    fixture.stop().await;

    let mut fixture = Fixture::start().await;
    fixture.step(&[change("order", "1", 2, Some(&json!({"id": 1, "status": "OPEN"})))], 2).await;
    let done = [change("order", "1", 3, Some(&json!({"id": 1, "status": "DONE"})))];
    let time = sinks::cloudevent::time(time_ms(3)).unwrap();
    for (path, header) in [
        (format!("/v1/entities/order/1?min_lsn={}", lsn(3)), None),
        ("/v1/entities/order/1".to_owned(), Some(("tributary-min-lsn", lsn(3).to_string()))),
        (format!("/v1/entities/order/1?min_time={time}"), None),
    ] {
        let headers: Vec<(&str, &str)> = header.iter().map(|(name, value)| (*name, value.as_str())).collect();
        // Asked first, written while it waits; later rounds find it there.
        let (answer, ()) = tokio::join!(fixture.send("GET", &path, &headers), async {
            write(sinks::sqlite::SqliteSink::new(fixture.sqlite.clone()), &done).await;
            fixture.feed.step(&done, 3);
        });
        assert_eq!((answer.status, answer.json()["status"].as_str()), (200, Some("DONE")), "{path}");
        assert!(answer.headers["tributary-lsn"] >= lsn(3).to_string());
    }
    fixture.stop().await;
}

/// Two sources, of which one stays where it was.
struct Halves;

impl sinks::Versions for Halves {
    fn sources(&self, version: schemas::Lsn) -> Option<schemas::Vector> {
        Some([("bank".to_owned(), lsn(1)), ("shop".to_owned(), version)].into_iter().collect())
    }
}

#[tokio::test]
async fn of_several_sources_answers_name_the_lsn_of_each() {
    use sinks::Sink;
    let fixture = Fixture::with(Config { wait_limit_ms: 300, ..Config::default() }, true).await;
    let one = fixture.get("/v1/entities/order").await;
    assert!(!one.headers.contains_key("tributary-sources") && one.json().get("sources").is_none(), "{}", one.body);
    let mut sink = sinks::sqlite::SqliteSink::new(fixture.sqlite.clone());
    sink.know(std::sync::Arc::new(Halves));
    sink.prepare(&support::entities()).await.unwrap();
    sink.write(&[change("order", "1", 3, Some(&json!({"id": 1})))], Some(lsn(3))).await.unwrap();
    let sources = format!("bank={};shop={}", lsn(1), lsn(3));
    for path in ["/v1/entities", "/v1/entities/order", "/v1/entities/order/1", "/v1/status", "/readyz"] {
        let answer = fixture.get(path).await;
        assert_eq!((answer.status, &answer.headers["tributary-sources"]), (200, &sources), "{path}");
        assert_eq!(answer.headers["tributary-lsn"], lsn(3).to_string());
    }
    for path in ["/v1/entities", "/v1/entities/order"] {
        assert_eq!(fixture.get(path).await.json()["sources"], json!({"bank": lsn(1), "shop": lsn(3)}), "{path}");
    }
    // What a client has seen of one of them is waited for.
    let of = |source: &str, version: u32| format!("{source}={}", lsn(version));
    for (wanted, status, said) in [
        (of("shop", 3), 200, String::new()),
        (format!("{};{}", of("shop", 2), of("bank", 1)), 200, String::new()),
        (of("bank", 2), 503, of("shop", 3)),
        (of("till", 1), 400, "there are bank, shop".to_owned()),
        ("shop=3".to_owned(), 400, "source=LSN".to_owned()),
    ] {
        let answer = fixture.send("GET", "/v1/entities/order/1", &[("tributary-min-lsn", &wanted)]).await;
        assert!(answer.status == status && answer.body.contains(&said), "{wanted}: {answer:?}");
    }
    fixture.stop().await;
}

async fn write(mut sink: sinks::sqlite::SqliteSink, changes: &[schemas::change::EntityChange]) {
    use sinks::Sink;
    sink.prepare(&support::entities()).await.unwrap();
    sink.write(changes, Some(lsn(3))).await.unwrap();
}

#[tokio::test]
async fn a_server_that_others_can_reach_asks_for_a_token() {
    let open = Config { listen: "0.0.0.0:0".parse().unwrap(), ..Config::default() };
    assert!(matches!(Server::bind(open.clone()).await, Err(Error::TokenMissing { .. })));
    let missing = Config { token: Some(SecretReference::Env("TRIBUTARY_NO_SUCH_TOKEN".to_owned())), ..open.clone() };
    assert!(Server::bind(missing).await.err().unwrap().to_string().contains("TRIBUTARY_NO_SUCH_TOKEN"));

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    std::fs::write(&path, "s3cret\n").unwrap();
    // The rule is about the address; the test stays on loopback.
    let fixture = Fixture::with(Config { token: Some(SecretReference::File(path)), ..Config::default() }, true).await;
    for path in ["/v1/entities", "/v1/entities/order/1", "/v1/changes", "/v1/status", "/metrics", "/openapi.json", "/nothing"] {
        let answer = fixture.get(path).await;
        assert_eq!(
            (answer.status, answer.problem().as_str(), answer.headers["www-authenticate"].as_str()),
            (401, "unauthorized", "Bearer"),
            "{path}"
        );
    }
    assert_eq!(fixture.send("GET", "/v1/entities", &[("Authorization", "Bearer s3cret")]).await.status, 200);
    assert_eq!(fixture.send("GET", "/v1/entities", &[("Authorization", "Bearer s3cres")]).await.status, 401);
    for path in ["/", "/healthz"] {
        assert_eq!(fixture.get(path).await.status, 200, "{path}");
    }
    fixture.stop().await;
}

#[tokio::test]
async fn the_process_tells_how_it_is() {
    let mut fixture = Fixture::start().await;
    assert_eq!(fixture.get("/healthz").await.body, "ok\n");
    let early = fixture.get("/readyz").await;
    assert_eq!((early.status, early.problem().as_str()), (503, "too-early"));
    fixture.step(&[], 1).await;
    assert_eq!(fixture.get("/readyz").await.status, 200);
    assert_eq!(fixture.get("/metrics").await.body, "tributary_up 1\n");
    let status = fixture.get("/v1/status").await;
    assert_eq!(
        (status.json()["source"]["name"].as_str(), status.headers["tributary-lsn"].as_str()),
        (Some("shop"), lsn(1).to_string().as_str())
    );
    let kinds = fixture.get("/v1/entities").await.json();
    assert_eq!(
        kinds["entities"][1]["key"],
        json!([{"name": "order_id", "type": "int"}, {"name": "code", "type": "nvarchar(20)"}])
    );
    let page = fixture.get("/").await;
    assert!(
        page.headers["content-security-policy"].contains("default-src 'none'") && page.body.contains("<title>Tributary</title>")
    );
    assert!(!page.body.contains("innerHTML"), "what comes from outside is put in as text");
    fixture.stop().await;
}

#[tokio::test]
async fn the_openapi_document_describes_every_entity() {
    let fixture = Fixture::start().await;
    let document = fixture.get("/openapi.json").await.json();
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["components"]["schemas"]["order"]["properties"]["total"]["type"], "string");
    let parameters = document["paths"]["/v1/entities/order"]["get"]["parameters"].as_array().unwrap();
    assert!(parameters.iter().any(|parameter| parameter["name"] == "customer.city"));
    // Every reference leads somewhere, and every path that takes no key answers as described; what is only posted to is not to be had.
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(document.pointer(reference).is_some(), "{reference}");
    }
    for (path, item) in document["paths"].as_object().unwrap() {
        if !path.contains('{') && path != "/v1/changes" && path != "/readyz" {
            let gets = item.get("get").is_some();
            assert_eq!(fixture.get(path).await.status, if gets { 200 } else { 405 }, "{path}");
            let described = if gets { &item["get"] } else { &item["post"] };
            assert!(described["responses"]["200"].is_object(), "{path}");
        }
    }
    fixture.stop().await;
}
