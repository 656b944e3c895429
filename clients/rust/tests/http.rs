//! The header, problems, and that no answer leaves before COMMIT: by HTTP.
use crate::world::{count, id, number, pool, until};
use hyper::service::{make_service_fn, service_fn};
use hyper::{Body, Response, Server};
use idempotency_pg::*;
use serde_json::Value;
use std::{convert::Infallible, sync::atomic::{AtomicU32, Ordering}, sync::Arc};

#[test]
fn the_header_is_a_string_with_escapes_and_parameters_or_a_token() {
    let long = "x".repeat(255);
    for (line, key) in [
        ("k", "k"), ("\"k\"", "k"), (" \"k\"\t", "k"), ("\"k\";p=1", "k"), ("\"k\"; a; b=\"x\\\"y;z,\"; c=?1", "k"), ("k;p", "k"),
        ("\"a\\\"b\"", "a\"b"), ("\"a\\\\b\"", "a\\b"), ("\"a,b c\"", "a,b c"), (&format!("\"{long}\""), &*long), ("YWJj+/=", "YWJj+/="),
        ("8e03978e-40d5-43dd-bc93-6894a57f9324", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
    ] {
        assert_eq!(parse_key(&[line.as_bytes()]).as_deref(), Some(key), "{line}");
    }
    for line in [
        "", " ", "\"\"", "\"", "\"k", "k\"", "\"a\\nb\"", "\"k\" x", "a, b", "\"a\", \"b\"", "a b", "ä", "\"ä\"", "\"a\tb\"", &"x".repeat(256),
        "\"k\";P=1", "\"k\"p", "\"k\";", "\"k\";=1", "\"k\";p=", "k;p=\"", ";p",
    ] {
        assert_eq!(parse_key(&[line.as_bytes()]), None, "{line}");
    }
    assert_eq!((parse_key(&[]), parse_key(&[b"k", b"k"]), parse_key(&[b"\xff"])), (None, None, None));
}

struct Shop { port: u16, pool: Pool, runs: Arc<AtomicU32> }

/// Orders, on a pool of 4. The server ends with the test's runtime.
async fn shop(with: fn(Api) -> Api) -> Shop {
    let (pool, runs) = (pool(4).await, Arc::new(AtomicU32::new(0)));
    let counted = runs.clone();
    let order = move |call: Call| { let run = counted.fetch_add(1, Ordering::SeqCst) + 1; async move {
        let item = serde_json::from_slice::<Value>(&call.body)?["item"].as_i64().ok_or_else(|| Answer::new(422, "no item"))? as i32;
        call.db.execute("INSERT INTO test_rust.orders VALUES ($1)", &[&item]).await?;
        if item == 500 { panic!("it is meant to"); }
        if item == 422 { return Err(Answer::new(422, "not this one").into()); }
        Ok(Response::builder().status(201).header("x-run", run).header("x-id", call.params["id"].as_str().unwrap()).body(call.body.into())?)
    } };
    let api = Api::new(&pool, |parts| parts.headers.get("x-nobody").map_or(Some("test_rust".into()), |_| None));
    let api = with(api.once("POST /orders/{id}", Options::new(), order));
    let service = make_service_fn(move |_| { let api = api.clone(); async move {
        Ok::<_, Infallible>(service_fn(move |request| api.clone().answer(request)))
    } });
    let server = Server::bind(&([127, 0, 0, 1], 0).into()).serve(service);
    let port = server.local_addr().port();
    tokio::spawn(server);
    Shop { port, pool, runs }
}

impl Shop {
    async fn post(&self, key: &str, body: &str) -> Answer { self.post_with(key, body, "x-none").await }

    async fn post_with(&self, key: &str, body: &str, header: &str) -> Answer {
        let url = format!("http://127.0.0.1:{}/orders/7", self.port);
        let request = hyper::Request::post(url).header("idempotency-key", key).header(header, "1").body(Body::from(body.to_owned())).unwrap();
        let (parts, body) = hyper::Client::new().request(request).await.unwrap().into_parts();
        let answer = Answer::new(parts.status.as_u16(), hyper::body::to_bytes(body).await.unwrap().to_vec());
        parts.headers.iter().fold(answer, |answer, (name, value)| answer.header(name.as_str(), value.to_str().unwrap()))
    }

    async fn execute(&self, text: &str) { self.pool.get().await.unwrap().batch_execute(text).await.unwrap(); }
}

fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.headers.iter().find(|(one, _)| one == name).map(|(_, value)| &**value)
}

#[tokio::test]
async fn no_answer_before_commit_has_succeeded() {
    let shop = Arc::new(shop(|api| api).await);
    // COMMIT waits, in a deferred trigger, for a lock that the test has.
    shop.execute("CREATE OR REPLACE FUNCTION test_rust.slow() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END$$;
        CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON test_rust.orders DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
        WHEN (NEW.item = 4711) EXECUTE FUNCTION test_rust.slow()").await;
    let holder = shop.pool.get().await.unwrap();
    holder.batch_execute("SELECT pg_advisory_lock(4711)").await.unwrap();
    let (asked, key) = (shop.clone(), id("").key);
    let request = tokio::spawn(async move { asked.post(&key, "{\"item\": 4711}").await });
    let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted";
    until("COMMIT waits", || async { number(&shop.pool, waiting).await == 1 }).await;
    assert!(!request.is_finished());
    holder.batch_execute("SELECT pg_advisory_unlock(4711)").await.unwrap();
    assert_eq!(request.await.unwrap().status, 201);
    shop.execute("DROP TRIGGER slow ON test_rust.orders; DELETE FROM test_rust.orders WHERE item = 4711").await;
}

#[tokio::test]
async fn a_commit_that_fails_is_a_500_and_for_serialization_another_run() {
    let shop = shop(|api| api).await;
    shop.execute("CREATE SEQUENCE IF NOT EXISTS test_rust.commits;
        CREATE OR REPLACE FUNCTION test_rust.refuse() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
        IF NEW.item = 502 THEN PERFORM 1/0; ELSIF nextval('test_rust.commits') % 3 > 0 THEN RAISE SQLSTATE '40001'; END IF; RETURN NULL; END$$;
        CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON test_rust.orders DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
        WHEN (NEW.item IN (502, 503)) EXECUTE FUNCTION test_rust.refuse(); ALTER SEQUENCE test_rust.commits RESTART").await;
    let refused = shop.post(&id("").key, "{\"item\": 502}").await;
    assert_eq!((refused.status, header(&refused, "x-run"), count(&shop.pool, 502).await), (500, None, 0));
    let answer = shop.post(&id("").key, "{\"item\": 503}").await;
    assert_eq!((answer.status, header(&answer, "x-run"), shop.runs.load(Ordering::SeqCst)), (201, Some("4"), 4));
    assert_eq!(count(&shop.pool, 503).await, 1);
    shop.execute("DROP TRIGGER refuse ON test_rust.orders; DELETE FROM test_rust.orders WHERE item = 503").await;
}

#[tokio::test]
async fn errors_and_panics_undo_the_work() {
    let shop = shop(|mut api| {
        api.max_body = 1000;
        api.core.report = Arc::new(|_| {});
        api
    }).await;
    for (item, status) in [(500, 500), (422, 422)] {
        let key = id("").key;
        for run in 1..=2 { assert_eq!(shop.post(&key, &format!("{{\"item\": {item}}}")).await.status, status, "run {run}"); }
        assert_eq!(count(&shop.pool, item).await, 0);
    }
    assert_eq!(shop.runs.load(Ordering::SeqCst), 4, "nothing of it was recorded");
    assert_eq!(shop.post(&id("").key, &" ".repeat(1001)).await.status, 413);
    assert_eq!(shop.post_with(&id("").key, "{}", "x-nobody").await.status, 401);
    assert_eq!(shop.runs.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn problems_and_the_lifetime() {
    let shop = shop(|mut api| {
        api.core.documentation = "https://shop.example.com/keys".into();
        api.core.lifetime_header = true;
        api
    }).await;
    let key = id("").key;
    let first = shop.post(&key, "{\"item\": 91}").await;
    assert_eq!((first.status, header(&first, "x-id")), (201, Some("7")));
    assert!(header(&first, "idempotency-key-expires").unwrap().ends_with(" GMT"));
    let again = shop.post(&format!("\"{key}\""), "{\"item\": 91}").await;
    assert_eq!((header(&again, "idempotent-replayed"), &again.body), (Some("true"), &first.body));
    for name in ["idempotency-key-expires", "x-run"] { assert_eq!(header(&again, name), header(&first, name)); }
    let mismatch = shop.post(&key, "{\"item\": 92}").await;
    assert_eq!((mismatch.status, header(&mismatch, "content-type")), (422, Some("application/problem+json")));
    assert_eq!(header(&mismatch, "retry-after"), None);
    let problem: Value = serde_json::from_slice(&mismatch.body).unwrap();
    assert_eq!((problem["type"].as_str(), problem["status"].as_u64()), (Some("https://shop.example.com/keys#mismatch"), Some(422)));
    assert_eq!(problem["title"], "Idempotency-Key is already used");
    let malformed = shop.post("\"", "{}").await;
    assert_eq!(header(&malformed, "link"), Some("<https://shop.example.com/keys>; rel=\"describedby\"; type=\"text/html\""));
    shop.execute(&format!("SELECT idempotency.redact('test_rust', 'POST /orders/{{id}}', '{key}')")).await;
    assert_eq!(shop.post(&key, "{\"item\": 91}").await.status, 410);
}
