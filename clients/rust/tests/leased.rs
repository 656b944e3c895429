//! Work that leaves the database: what is recorded of it, when a claim's answer is lost, when the claim is, and when its owner dies.
use crate::world::{body, config, count, id, pool, until};
use idempotency_pg::*;
use serde_json::json;
use std::{env, sync::atomic::{AtomicU32, Ordering}, sync::{Arc, Mutex}, time::Duration};
use tokio::io::{copy, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};

fn request() -> Request { body("1") }
fn lost() -> Result<Answer> { Err("no answer".into()) }

async fn insert(db: Db, item: i32) -> Result<()> {
    db.execute("INSERT INTO test_rust.orders VALUES ($1)", &[&item]).await?;
    Ok(())
}

async fn status(pool: &Pool, id: &Id) -> Option<String> {
    lookup(&pool.get().await.unwrap(), id).await.unwrap()?.status
}

#[tokio::test]
async fn an_answer_is_recorded_with_what_it_books_once() {
    let (pool, id) = (pool(2).await, id("POST /charges"));
    let keys = Arc::new(Mutex::new(Vec::new()));
    let seen = keys.clone();
    let job = Job::new("charge", "1 min", move |attempt| { let seen = seen.clone(); async move {
        seen.lock().unwrap().push(attempt.effect_key);
        Ok(Answer::json(201, &attempt.claim.state.unwrap()).book(|db| insert(db, 80)))
    } });
    let state = json!({ "amount": 5 });
    let (first, answer) = run_leased(&pool, &id, &request(), &job, Options::new().state(&state)).await.unwrap();
    assert_eq!((first.outcome, first.http_expires.is_some()), (Outcome::Claimed, true));
    assert_eq!(answer.unwrap().body, b"{\"amount\":5}");
    let (second, answer) = run_leased(&pool, &id, &request(), &job, Options::new().state(&state)).await.unwrap();
    assert_eq!((second.outcome, answer.is_none()), (Outcome::Replay, true));
    assert_eq!(second.answer().body, b"{\"amount\":5}");
    assert_eq!(count(&pool, 80).await, 1);
    let key = effect_key(&pool.get().await.unwrap(), &id, Options::new().step("charge")).await.unwrap();
    assert_eq!(*keys.lock().unwrap(), [key]);
    pool.get().await.unwrap().batch_execute("DELETE FROM test_rust.orders WHERE item = 80").await.unwrap();
}

#[tokio::test]
async fn what_the_work_says_decides() {
    let (pool, key) = (pool(2).await, id("POST /charges"));
    let nothing = Job::new("charge", "1 min", |_| async { Err(NothingHappened("connection refused".into()).into()) });
    let (record, _) = run_leased(&pool, &key, &request(), &nothing, Options::new()).await.unwrap();
    assert_eq!((record.outcome, record.last_error.as_deref()), (Outcome::Failed, Some("connection refused")));
    let again = Job::new("charge", "1 min", |attempt: Attempt| async move {
        assert_eq!(attempt.claim.last_error.as_deref(), Some("connection refused"));
        Ok(Answer::json(200, &json!(attempt.claim.attempt)))
    });
    assert_eq!(run_leased(&pool, &key, &request(), &again, Options::new()).await.unwrap().1.unwrap().body, b"2");

    // Nobody knows, whether it is an error, with whatever text, or a panic.
    let text = Job::new("charge", "1 min", |_| async { Err(format!("a\0b {}", "x".repeat(100_000)).into()) });
    let panic = Job::new("charge", "1 min", |_| async { panic!("it is meant to") });
    for job in [Job::new("charge", "1 min", |_| async { lost() }), text, panic] {
        let key = id("POST /charges");
        for _ in 0..2 { assert_eq!(run_leased(&pool, &key, &request(), &job, Options::new()).await.unwrap().0.outcome, Outcome::Held); }
        assert_eq!(status(&pool, &key).await.as_deref(), Some("held"));
    }
}

#[tokio::test]
async fn done_and_not_to_be_recorded_is_held_with_nothing_booked() {
    let pool = pool(2).await;
    let large = Job::new("charge", "1 min", |_| async { Ok(Answer::new(200, vec![1; 5 << 20]).book(|db| insert(db, 81))) });
    let wrong = Job::new("charge", "1 min", |_| async { Ok(Answer::new(200, "").book(|db| async move {
        insert(db.clone(), 81).await?;
        Ok(db.batch_execute("SELECT 1 / 0").await?)
    })) });
    for (job, state) in [(large, "54000"), (wrong, "22012")] {
        let id = id("POST /charges");
        let error = run_leased(&pool, &id, &request(), &job, Options::new()).await.map(drop).unwrap_err();
        assert_eq!(sqlstate(&error), Some(state));
        assert_eq!(status(&pool, &id).await.as_deref(), Some("held"));
    }
    assert_eq!(count(&pool, 81).await, 0);
}

#[tokio::test]
async fn a_heartbeat_keeps_the_lease_and_stops_work_that_has_lost_it() {
    let (pool, id) = (pool(3).await, id("POST /charges"));
    let (inner, stopped) = (pool.clone(), Arc::new(AtomicU32::new(0)));
    struct Dropped(Arc<AtomicU32>);
    impl Drop for Dropped { fn drop(&mut self) { self.0.fetch_add(1, Ordering::SeqCst); } }
    let counted = stopped.clone();
    let job = Job::new("charge", "600 ms", move |attempt: Attempt| { let (pool, dropped) = (inner.clone(), Dropped(counted.clone())); async move {
        let _dropped = dropped;
        let (id, first) = (attempt.claim.id, attempt.claim.locked_until);
        let now = || async { lookup(&pool.get().await.unwrap(), &id).await.unwrap().unwrap().locked_until };
        until("a heartbeat", || async { now().await != first }).await;
        let text = "SELECT idempotency.forget($1, $2, $3, force => true)";
        pool.get().await?.execute(text, &[&id.scope, &id.operation, &id.key]).await?;
        std::future::pending().await
    } });
    let error = run_leased(&pool, &id, &request(), &job, Options::new()).await.map(drop).unwrap_err();
    assert_eq!(kind(&error), Kind::StaleClaim);
    until("the work is stopped", || async { stopped.load(Ordering::SeqCst) == 1 }).await;
    assert_eq!(status(&pool, &id).await, None, "a late owner records nothing");
}

#[tokio::test]
async fn what_a_person_has_recorded_meanwhile_counts() {
    let (pool, id) = (pool(3).await, id("POST /charges"));
    let inner = pool.clone();
    let job = Job::new("charge", "1 min", move |attempt: Attempt| { let pool = inner.clone(); async move {
        let (claim, by_hand) = (attempt.claim, Answer::new(201, "by hand").header("content-type", "text/plain"));
        complete(&*pool.get().await?, &claim.id, &by_hand, Options::new().token(claim.token)).await?;
        Ok(Answer::new(201, "by the machine").book(|db| insert(db, 82)))
    } });
    let (record, answer) = run_leased(&pool, &id, &request(), &job, Options::new()).await.unwrap();
    assert_eq!((record.outcome, record.answer().body, answer.is_none()), (Outcome::Replay, b"by hand".to_vec(), true));
    assert_eq!(count(&pool, 82).await, 0);
}

/// A proxy that lets the server's first "claimed" get no further: the claim is committed, and nobody has heard of it.
async fn deaf_proxy(losses: Arc<AtomicU32>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { loop {
        let ((client, _), losses) = (listener.accept().await.unwrap(), losses.clone());
        let (host, number) = (env::var("PGHOST").unwrap_or("/var/run/postgresql".into()), env::var("PGPORT").unwrap_or("5432".into()));
        tokio::spawn(async move {
            if host.starts_with('/') {
                let (from, to) = UnixStream::connect(format!("{host}/.s.PGSQL.{number}")).await.unwrap().into_split();
                between(client, from, to, losses).await
            } else {
                let (from, to) = TcpStream::connect(format!("{host}:{number}")).await.unwrap().into_split();
                between(client, from, to, losses).await
            }
        });
    } });
    port
}

async fn between(client: TcpStream, mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin, losses: Arc<AtomicU32>) {
    let (mut asks, mut hears) = client.into_split();
    let back = async {
        let mut data = vec![0; 1 << 16];
        while let Ok(length @ 1..) = from.read(&mut data).await {
            let claimed = data[..length].windows(7).any(|one| one == b"claimed");
            if claimed && losses.compare_exchange(0, 1, Ordering::SeqCst, Ordering::SeqCst).is_ok() { return; }
            if hears.write_all(&data[..length]).await.is_err() { return; }
        }
    };
    tokio::select! { _ = copy(&mut asks, &mut to) => {}, _ = back => {} }
}

#[tokio::test]
async fn a_claim_whose_answer_is_lost_is_repeated_with_its_claim_id() {
    let (id, losses, _prepared) = (id("POST /charges"), Arc::new(AtomicU32::new(0)), pool(1).await);
    let mut config = config();
    let port = deaf_proxy(losses.clone()).await;
    let mut through = tokio_postgres::Config::new();
    through.host("127.0.0.1").port(port).user(config.get_user().unwrap()).dbname(config.get_dbname().unwrap());
    config.port(port);
    let pool = Pool::no_tls(through, 2);
    let job = Job::new("charge", "1 min", |attempt: Attempt| async move { Ok(Answer::json(200, &json!(attempt.claim.attempt))) });
    let (record, answer) = run_leased(&pool, &id, &request(), &job, Options::new()).await.unwrap();
    assert_eq!(losses.load(Ordering::SeqCst), 1, "the first answer was lost");
    assert_eq!((record.outcome, answer.unwrap().body), (Outcome::Claimed, b"1".to_vec()));
}

#[tokio::test]
async fn the_completer_drives_on_what_others_left() {
    let pool = pool(3).await;
    let operation = id("POST /abandoned").key; // of this test alone
    let ids: Vec<_> = (0..3).map(|_| id(&operation)).collect();
    for (item, id) in ids.iter().enumerate() {
        let options = Options::new().lease("1 ms").state(&json!({ "item": 83 + item }));
        claim(&pool.get().await.unwrap(), id, &request(), options).await.unwrap();
    }
    let job = Job::new("charge", "1 min", |attempt: Attempt| async move {
        let item = attempt.claim.state.unwrap()["item"].as_i64().unwrap() as i32;
        Ok(Answer::json(201, &json!(item)).book(move |db| insert(db, item)))
    });
    let driven = pool.clone();
    let task = tokio::spawn(async move { completer(driven, &operation, job, |error| panic!("{error}")).await });
    for (item, id) in ids.iter().enumerate() {
        until("it is completed", || async { status(&pool, id).await.as_deref() == Some("completed") }).await;
        assert_eq!(count(&pool, 83 + item as i32).await, 1);
    }
    assert!(!task.is_finished());
    task.abort();
    pool.get().await.unwrap().batch_execute("DELETE FROM test_rust.orders WHERE item BETWEEN 83 AND 85").await.unwrap();
}

#[tokio::test]
async fn the_completer_survives_the_loss_of_its_database() {
    let mut config = config();
    config.port(1);
    let errors = Arc::new(Mutex::new(Vec::new()));
    let heard = errors.clone();
    let job = Job::new("charge", "1 min", |_| async { lost() });
    let report = move |error: Error| heard.lock().unwrap().push(kind(&error));
    let task = tokio::spawn(async move { completer(Pool::no_tls(config, 1), "x", job, report).await });
    until("two attempts", || async { errors.lock().unwrap().len() >= 2 }).await;
    task.abort();
    assert!(errors.lock().unwrap().iter().all(|one| *one == Kind::Unavailable));
    tokio::time::sleep(Duration::ZERO).await;
}
