//! The conformance service (../../conformance/spec.md) on hyper.
use hyper::service::{make_service_fn, service_fn};
use hyper::{header, http::request::Parts, Body, Method, Response, Server};
use idempotency_pg::{completer, transaction, Answer, Api, Attempt, Call, Db, Error, Job, NothingHappened, Options, Pool, Result};
use serde_json::{json, Value};
use std::{collections::hash_map::RandomState, convert::Infallible, env, hash::{BuildHasher, Hasher}, time::Duration};
use tokio_postgres::SimpleQueryMessage;

fn setting(name: &str, default: &str) -> String {
    env::var(name).unwrap_or_else(|_| default.to_owned())
}

fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn pool() -> Result<Pool> {
    let mut config = tokio_postgres::Config::new();
    config.host(&setting("PGHOST", "127.0.0.1")).port(setting("PGPORT", "5432").parse()?);
    config.user(&setting("PGUSER", "shop")).dbname(&setting("PGDATABASE", "shop"));
    Ok(Pool::no_tls(config, setting("POOL_SIZE", "5").parse()?))
}

fn user(parts: &Parts) -> Option<String> {
    let name = parts.headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")?;
    (!name.is_empty() && !name.contains(' ')).then(|| name.to_owned())
}

/// The body as a JSON object; with this member as a whole number, where one is named.
fn parsed(body: &[u8], member: &str) -> Result<Value> {
    let refused = |why: String| Answer::json(400, &json!({ "error": why }));
    let value: Value = serde_json::from_slice(body).map_err(|error| refused(error.to_string()))?;
    if !value.is_object() || !(member.is_empty() || value[member].is_i64()) {
        return Err(refused(format!("an object with {member} is wanted")).into());
    }
    Ok(value)
}

async fn insert(db: &Db, user: &str, item: i64) -> Result<i32> {
    let text = "INSERT INTO shop.orders (account, item) VALUES ($1, $2) RETURNING id";
    Ok(db.query_one(text, &[&user, &i32::try_from(item)?]).await?.get(0))
}

async fn order(call: Call) -> Result<Response<Body>> {
    let (user, asked) = (user(&call.parts).unwrap_or_default(), parsed(&call.body, "item")?);
    let fault = call.parts.headers.get("x-fail").map_or("", |value| value.to_str().unwrap_or_default());
    if fault == "refuse" {
        return Ok(Answer::json(402, &json!({ "refused": true })).into());
    }
    let id = insert(&call.db, &user, asked["item"].as_i64().unwrap_or_default()).await?;
    tokio::time::sleep(Duration::from_millis(asked["pause_ms"].as_u64().unwrap_or_default())).await;
    match fault {
        "throw" => panic!("the handler was asked to panic"),
        "503" => return Ok(Answer::json(503, &json!({ "error": "the handler was asked to answer so" })).into()),
        _ => {}
    }
    let answer = Answer::json(201, &json!({ "order": id })).header("location", format!("/orders/{id}"));
    let answer = answer.header("link", "</a>; rel=a").header("link", "</b>; rel=b");
    Ok(answer.header("set-cookie", format!("session={:x}", random())).header("x-request", random()).into())
}

async fn refund(call: Call) -> Result<Response<Body>> {
    parsed(&call.body, "")?;
    let item = call.params["id"].as_str().unwrap_or_default().parse().map_err(|_| Answer::new(404, ""))?;
    let id = insert(&call.db, &user(&call.parts).unwrap_or_default(), item).await?;
    Ok(Answer::json(201, &json!({ "refund": id })).into())
}

async fn blob(call: Call) -> Result<Response<Body>> {
    insert(&call.db, &user(&call.parts).unwrap_or_default(), 0).await?;
    let mut response = Response::builder().status(201);
    for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING] {
        if let Some(value) = call.parts.headers.get(&name) {
            response = response.header(name, value);
        }
    }
    Ok(response.body(call.body.into())?)
}

/// What needs no key.
async fn reading(pool: Pool, request: hyper::Request<Body>) -> Result<Response<Body>> {
    let (parts, _) = request.into_parts();
    if (&parts.method, parts.uri.path()) == (&Method::GET, "/health") {
        let critical = "SELECT 1 FROM idempotency.health() WHERE status = 'critical'";
        let answer = async { Ok::<_, Error>(pool.get().await?.simple_query(critical).await?) }.await;
        let healthy = answer.map_or(false, |messages| !messages.iter().any(|one| matches!(one, SimpleQueryMessage::Row(_))));
        return Ok(Answer::new(if healthy { 200 } else { 503 }, "").into());
    }
    let user = user(&parts).ok_or_else(|| Answer::json(401, &json!({ "error": "who is it?" })))?;
    let (write, read, name) = match (&parts.method, parts.uri.path()) {
        (&Method::GET, "/orders") => (None, "SELECT count(*) FROM shop.orders WHERE account = $1", "orders"),
        (&Method::GET, "/visits") => {
            (Some("INSERT INTO shop.visits (account) VALUES ($1)"), "SELECT count(*) FROM shop.visits WHERE account = $1", "visits")
        }
        _ => return Ok(Answer::new(404, "").into()),
    };
    // In a transaction, though it is one statement: pgbouncer would lose what is prepared outside of one.
    let count = transaction(&pool, move |db| {
        let user = user.clone();
        async move {
            if let Some(write) = write {
                db.execute(write, &[&user]).await?;
            }
            Ok(db.query_one(read, &[&user]).await?.get::<_, i64>(0))
        }
    });
    Ok(Answer::json(200, &json!({ name: count.await? })).into())
}

/// Asks the card network, on a connection of its own, so that none is found closed.
async fn ask(path: String, body: Option<Value>) -> Result<(u16, Vec<u8>)> {
    let method = if body.is_some() { Method::POST } else { Method::GET };
    let body = body.map_or_else(Body::empty, |body| body.to_string().into());
    let url = setting("NETWORK_URL", "") + &path;
    let request = hyper::Request::builder().method(method).uri(url).header("content-type", "application/json").body(body)?;
    let client = hyper::Client::builder().pool_max_idle_per_host(0).build_http();
    let answer = client.request(request).await.map_err(|error| match error.is_connect() {
        true => Error::from(NothingHappened(error.into())),
        false => error.into(),
    })?;
    Ok((answer.status().as_u16(), hyper::body::to_bytes(answer.into_body()).await?.to_vec()))
}

async fn charge(attempt: Attempt) -> Result<Answer> {
    let state = attempt.claim.state.unwrap_or_default();
    let (account, amount) = (state["account"].as_str().unwrap_or_default().to_owned(), state["amount"].as_i64().unwrap_or_default());
    let key = attempt.effect_key;
    ask(format!("/before?key={key}"), None).await?;
    let patience = Duration::from_secs_f64(setting("NETWORK_TIMEOUT", "2").parse()?);
    let (status, body) = tokio::time::timeout(patience, ask("/charges".into(), Some(json!({ "key": key, "amount": amount })))).await??;
    match status {
        200 => {}
        402 => return Ok(Answer::json(402, &json!({ "declined": true }))),
        _ => return Err(format!("the network answered {status}: {}", String::from_utf8_lossy(&body)).into()),
    }
    let charge = serde_json::from_slice::<Value>(&body)?["charge"].as_str().ok_or("no charge")?.to_owned();
    let _ = ask(format!("/after?key={key}"), None).await;
    Ok(Answer::json(201, &json!({ "charge": charge })).book(move |db| {
        let (account, charge) = (account.clone(), charge.clone());
        async move {
            let text = "INSERT INTO shop.payments (account, charge, amount) VALUES ($1, $2, $3)";
            db.execute(text, &[&account, &charge, &i32::try_from(amount)?]).await?;
            Ok(())
        }
    }))
}

#[tokio::main]
async fn main() -> Result<()> {
    let pool = pool()?;
    let job = Job::new("charge", &setting("LEASE", "3 s"), charge);
    let waiting = Options::new().wait(&*setting("WAIT", "5 s"));
    let state = |parts: &Parts, body: &[u8]| Ok(json!({ "account": user(parts), "amount": parsed(body, "amount")?["amount"] }));
    let reader = pool.clone();
    let api = Api::new(&pool, |parts| Some(format!("shop:{}", user(parts)?)))
        .once("POST /orders", Options::new(), order)
        .once("POST /waiting-orders", waiting, order)
        .once("POST /orders/{id}/refunds", Options::new(), refund)
        .once("POST /blobs", Options::new(), blob)
        .leased("POST /charges", Options::new().hold_if_abandoned(false), &job, state)
        .otherwise(move |request| reading(reader.clone(), request));
    let service = make_service_fn(move |_| {
        let api = api.clone();
        async move { Ok::<_, Infallible>(service_fn(move |request| api.clone().answer(request))) }
    });
    let server = Server::bind(&([127, 0, 0, 1], setting("PORT", "8080").parse()?).into()).serve(service);
    tokio::spawn(completer(pool, "POST /charges", job, |error| eprintln!("completer: {error}")));
    println!("listening");
    Ok(server.await?)
}
