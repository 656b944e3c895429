//! The calls, what an error is, and transactions.
use crate::world::{body, count, id, number, pool, until};
use idempotency_pg::*;
use serde_json::json;
use std::{sync::atomic::{AtomicU32, Ordering}, sync::Arc};

fn none() -> Options { Options::new() }

async fn completed(pool: &Pool, id: &Id, request: &Request, answer: Answer) {
    let all = Arc::new((id.clone(), request.clone(), answer));
    transaction(pool, move |db| { let all = all.clone(); async move {
        assert_eq!(claim(&db, &all.0, &all.1, none()).await?.outcome, Outcome::Claimed);
        complete(&db, &all.0, &all.2, none()).await
    } }).await.unwrap();
}

/// The kind of an error that was expected.
fn failed<T>(result: Result<T>) -> Kind { kind(&result.err().expect("it succeeded")) }

#[tokio::test]
async fn a_repeat_is_replayed_byte_for_byte() {
    let (pool, id) = (pool(1).await, id("POST /orders"));
    let answer = Answer::new(201, "{\"order\":  1.10}").header("content-type", "application/json").header("link", "</a>").header("link", "</b>");
    completed(&pool, &id, &body("{\"item\": 7, \"n\": 1}"), answer.header("set-cookie", "session=1")).await;
    let db = pool.get().await.unwrap();
    let replayed = claim(&db, &id, &body("{ \"n\": 1.0, \"item\": 7 }"), none()).await.unwrap();
    assert_eq!((replayed.outcome, replayed.fingerprint_checked), (Outcome::Replay, Some(true)));
    assert_eq!(replayed.response_body.as_deref(), Some("{\"order\":  1.10}"));
    let answer = replayed.answer();
    assert_eq!((answer.status, answer.body), (201, b"{\"order\":  1.10}".to_vec()));
    let names: Vec<_> = answer.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    assert_eq!(names, ["content-type: application/json", "link: </a>", "link: </b>"]);
    assert!(replayed.expires_at.unwrap().contains('T') && replayed.http_expires.unwrap().ends_with(" GMT"));
    assert_eq!(claim(&db, &id, &body("{\"item\": 8}"), none()).await.unwrap().outcome, Outcome::Mismatch);
    assert_eq!(claim(&db, &id, &Request::NotCompared, none()).await.unwrap().fingerprint_checked, Some(false));
    assert_eq!(replay(&db, &id).await.unwrap().unwrap().response_status, Some(201));
    assert_eq!(lookup(&db, &id).await.unwrap().unwrap().status.as_deref(), Some("completed"));
    assert!(lookup(&db, &crate::world::id("x")).await.unwrap().is_none());
}

#[tokio::test]
async fn headers_that_another_language_recorded() {
    let record = Record { response_headers: Some(json!({ "Link": ["</a>", "</b>"], "Age": 1000000 })), ..Record::default() };
    let pairs = |answer: Answer| answer.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>();
    assert_eq!(pairs(record.answer()), ["Age: 1000000", "Link: </a>", "Link: </b>"]);
    let record = Record { response_headers: Some(json!([["b", "2"], ["a", 1]])), ..Record::default() };
    assert_eq!(pairs(record.answer()), ["b: 2", "a: 1"]);
}

#[tokio::test]
async fn bytes_come_back() {
    let (pool, id, all) = (pool(1).await, id("POST /blobs"), (0..=255).collect::<Vec<u8>>());
    completed(&pool, &id, &body(all.clone()), Answer::new(200, all.clone())).await;
    let again = claim(&pool.get().await.unwrap(), &id, &body(all.clone()), none()).await.unwrap();
    assert_eq!(again.response_bytes, Some(all.clone()));
    assert_eq!(again.answer().body, all);
}

#[tokio::test]
async fn no_value_is_sql() {
    let pool = pool(1).await;
    let db = pool.get().await.unwrap();
    for mode in ["on", "off"] {
        db.batch_execute(&format!("SET standard_conforming_strings = {mode}; SET escape_string_warning = off")).await.unwrap();
        for nasty in ["'", "\\", "\\'", "'; DROP TABLE test_rust.orders; --", "$1 %s {} \u{1f600} \u{fffd}", "E'\\x41'::bytea", "\\0 \n\r\t"] {
            let mut id = id("POST /'quoted'");
            id.key += nasty;
            let options = none().lease("1 min").note(nasty).state(&json!({ nasty: nasty }));
            let claimed = claim(&db, &id, &Request::With(nasty.into(), json!({ "id": nasty })), options).await.unwrap();
            assert_eq!(claimed.state, Some(json!({ nasty: nasty })));
            let answer = Answer::new(200, nasty).header("content-type", "text/plain").header("x", nasty.replace(['\n', '\r', '\0'], ""));
            complete(&db, &id, &answer, none().token(claimed.token)).await.unwrap();
            let found = lookup(&db, &id).await.unwrap().unwrap();
            assert_eq!((found.response_body.as_deref(), found.note.as_deref()), (Some(nasty), Some(nasty)), "{mode}");
        }
    }
    // A NUL is refused before anything is sent, and is no reason to try again.
    let id = Id::new("test_rust", "x", "a\0b");
    assert_eq!(failed(claim(&db, &id, &body(""), none()).await), Kind::Other);
    assert_eq!(failed(extend(&db, &id, none().lease("one fine day")).await), Kind::Other);
}

#[tokio::test]
async fn json_is_encoded_once_and_what_jsonb_refuses_is_compared() {
    let pool = pool(1).await;
    let of = id("POST /orders");
    completed(&pool, &of, &body(json!({ "item": 7 }).to_string()), Answer::new(200, "")).await;
    let text = "SELECT outcome FROM idempotency.claim($1, $2, $3, request => '{\"item\": 7.0}')";
    let by_hand = pool.get().await.unwrap().query_one(text, &[&of.scope, &of.operation, &of.key]).await.unwrap();
    assert_eq!(by_hand.get::<_, &str>(0), "replay");
    for text in ["{\"text\": \"\\u0000\"}", "{\"text\": \"\\ud800\"}", "{\"n\": 1e999999}", ""] {
        let id = id("POST /orders");
        completed(&pool, &id, &body(text), Answer::new(200, "done")).await;
        let db = pool.get().await.unwrap();
        assert_eq!(claim(&db, &id, &body(text), none()).await.unwrap().outcome, Outcome::Replay, "{text}");
        assert_eq!(claim(&db, &id, &body(format!("{text} ")), none()).await.unwrap().outcome, Outcome::Mismatch, "{text}");
    }
    let id = id("POST /orders/{id}/refunds");
    completed(&pool, &id, &Request::With("{}".into(), json!({ "id": "7" })), Answer::new(200, "done")).await;
    let db = pool.get().await.unwrap();
    let again = |body: &str, of: &str| Request::With(body.into(), json!({ "id": of }));
    assert_eq!(claim(&db, &id, &again("{ }", "7"), none()).await.unwrap().outcome, Outcome::Replay);
    assert_eq!(claim(&db, &id, &again("{}", "8"), none()).await.unwrap().outcome, Outcome::Mismatch);
}

#[tokio::test]
async fn a_token_is_exact_and_opens_every_call() {
    let pool = pool(1).await;
    let db = pool.get().await.unwrap();
    // The next token of a key is larger than the one that it has. Beyond 2^53 a float has no odd numbers.
    let id = id("POST /charges");
    assert!(record_failure(&db, &id, none()).await.unwrap());
    let text = format!("UPDATE idempotency.idempotency_keys SET token = 9007199254740992 WHERE key = '{}'", id.key);
    db.batch_execute(&text).await.unwrap();
    let claimed = loop {
        let claimed = claim(&db, &id, &body("1"), none().lease("1 min")).await.unwrap();
        assert!(claimed.token.unwrap() > 9007199254740992 && claimed.lease_ms.unwrap() > 0.0);
        if claimed.token.unwrap() % 2 == 1 { break claimed; }
        assert!(fail(&db, &id, none().token(claimed.token)).await.unwrap());
    };
    let owned = || none().token(claimed.token);
    assert!(extend(&db, &id, owned()).await.unwrap().contains('T'));
    assert!(checkpoint(&db, &id, owned().recovery_point("charged").state(&json!({ "charge": "ch_1" }))).await.unwrap().is_some());
    assert_eq!(Some(hold(&db, &id, owned().reason("no answer")).await.unwrap()), claimed.token);
    assert_eq!(claim(&db, &id, &body("1"), none()).await.unwrap().outcome, Outcome::Held);
    assert_eq!(failed(fail(&db, &id, owned()).await), Kind::Held);
    let other = crate::world::id("x");
    assert!(record_failure(&db, &other, none().error("full")).await.unwrap());
    let options = none().command("SELECT $1->'n' AS n").args(&json!({ "n": 1 }));
    assert_eq!(run(&db, &other, &body("1"), options).await.unwrap().outcome, Outcome::Claimed);
    assert_eq!(effect_key(&db, &id, none().step("charge")).await.unwrap(), effect_key(&db, &id, none().step("charge")).await.unwrap());
    let event = crate::world::id("event");
    assert_eq!((once(&db, &event, none()).await.unwrap(), once(&db, &event, none()).await.unwrap()), (true, false));
}

#[tokio::test]
async fn what_a_program_does_wrong_is_noticed() {
    let (pool, id) = (pool(1).await, id("POST /orders"));
    assert_eq!(failed(claim(&pool.get().await.unwrap(), &id, &body("1"), none()).await), Kind::LeftOpen);
    completed(&pool, &id, &body("1"), Answer::new(200, "done")).await;
    let of = id.clone();
    let ignored = transaction(&pool, move |db| { let id = of.clone(); async move {
        claim(&db, &id, &body("1"), none()).await?; // a replay, and nobody looks
        db.execute("INSERT INTO test_rust.orders VALUES (71)", &[]).await?;
        complete(&db, &id, &Answer::new(200, "again"), none()).await
    } }).await;
    assert_eq!((failed(ignored), count(&pool, 71).await), (Kind::NotClaimed, 0));
    let of = crate::world::id("x");
    let too_large = transaction(&pool, move |db| { let id = of.clone(); async move {
        claim(&db, &id, &body("1"), none()).await?;
        complete(&db, &id, &Answer::new(200, vec![1; 5 << 20]), none()).await
    } }).await.unwrap_err();
    assert_eq!((sqlstate(&too_large), kind(&too_large)), (Some("54000"), Kind::TooLarge));
}

#[tokio::test]
async fn kinds_by_sqlstate_however_wrapped() {
    let pool = pool(1).await;
    let raised = |state: &'static str| { let pool = pool.clone(); async move {
        Error::from(pool.get().await.unwrap().batch_execute(&format!("DO $$ BEGIN RAISE SQLSTATE '{state}'; END $$")).await.unwrap_err())
    } };
    for (state, expected) in [
        ("IK001", Kind::StaleClaim), ("IK003", Kind::OtherCompletion), ("IK005", Kind::Held), ("IK006", Kind::Redacted), ("40001", Kind::Retry),
        ("40P01", Kind::Retry), ("55P03", Kind::WaitTimeout), ("54000", Kind::TooLarge), ("22P02", Kind::BadRequest), ("08006", Kind::Unavailable),
        ("25006", Kind::Unavailable), ("53300", Kind::Unavailable), ("57P01", Kind::Unavailable), ("57014", Kind::Other), ("23505", Kind::Other),
    ] {
        assert_eq!(kind(&raised(state).await), expected, "{state}");
        assert_eq!(kind(&NothingHappened(raised(state).await).into()), expected, "{state}");
    }
    let nobody = Pool::no_tls({ let mut config = crate::world::config(); config.port(1); config }, 1);
    assert_eq!(failed(nobody.get().await), Kind::Unavailable);
    assert_eq!(kind(&std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()), Kind::Other); // somebody else's connection
    assert_eq!(kind(&"a fault of the program".into()), Kind::Other);
}

#[tokio::test]
async fn serialization_failures_are_repeated_and_others_are_not() {
    let pool = pool(1).await;
    for (state, expected) in [("40001", 3), ("40P01", 3), ("54000", 1)] {
        let runs = Arc::new(AtomicU32::new(0));
        let counted = runs.clone();
        let result = transaction(&pool, move |db| { let run = counted.fetch_add(1, Ordering::SeqCst) + 1; async move {
            if run < 3 { db.batch_execute(&format!("DO $$ BEGIN RAISE SQLSTATE '{state}'; END $$")).await?; }
            Ok(())
        } }).await;
        assert_eq!((runs.load(Ordering::SeqCst), result.is_ok()), (expected, expected == 3), "{state}");
    }
}

#[tokio::test]
async fn a_transaction_is_all_or_nothing() {
    let pool = pool(1).await;
    let insert = "INSERT INTO test_rust.orders VALUES (73)";
    let swallowed = transaction(&pool, move |db| async move {
        db.execute(insert, &[]).await?;
        let _ = db.execute("SELECT 1 / 0", &[]).await;
        Ok(())
    }).await;
    assert_eq!(sqlstate(&swallowed.unwrap_err()), Some("25P02"));
    let panicked: Result<()> = transaction(&pool, move |db| async move {
        db.execute(insert, &[]).await?;
        panic!("it is meant to")
    }).await;
    assert!(panicked.is_err());
    let kept = transaction(&pool, move |db| async move { db.execute(insert, &[]).await?; Ok(db) }).await.map(drop);
    assert!(kept.unwrap_err().to_string().contains("kept"));
    assert_eq!(count(&pool, 73).await, 0);
    // On the one connection that there is, no transaction is open.
    let open = "SELECT count(pg_current_xact_id_if_assigned()::text)";
    assert_eq!(number(&pool, open).await, 0);
}

#[tokio::test]
async fn who_goes_away_leaves_nothing_half_done() {
    let (pool, watch) = (pool(1).await, pool(1).await);
    let began = Arc::new(tokio::sync::Notify::new());
    let (told, waiting) = (began.clone(), began.clone());
    let work = transaction(&pool, move |db| { let told = told.clone(); async move {
        db.execute("INSERT INTO test_rust.orders VALUES (74)", &[]).await?;
        told.notify_one();
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        db.execute("INSERT INTO test_rust.orders VALUES (74)", &[]).await?;
        Ok(())
    } });
    tokio::select! { _ = work => panic!("it was to be left"), _ = waiting.notified() => {} }
    until("the transaction ends", || async { count(&watch, 74).await == 2 }).await;
    pool.get().await.unwrap().batch_execute("DELETE FROM test_rust.orders WHERE item = 74").await.unwrap();
}

#[tokio::test]
async fn a_lost_connection_is_replaced() {
    let pool = pool(1).await;
    let lost = transaction(&pool, |db| async move { Ok(db.batch_execute("SELECT pg_terminate_backend(pg_backend_pid())").await?) });
    assert_eq!(failed(lost.await), Kind::Unavailable);
    until("a connection that works", || async { transaction(&pool, |db| async move { Ok(db.batch_execute("SELECT 1").await?) }).await.is_ok() }).await;
}

/// pgbouncer gives each transaction another server: what one prepares has to be gone at its end.
#[tokio::test]
async fn nothing_prepared_outlives_its_transaction() {
    let pool = pool(1).await;
    let prepared = || async {
        let answer = pool.get().await.unwrap().simple_query("SELECT name FROM pg_prepared_statements").await.unwrap();
        answer.iter().filter(|one| matches!(one, tokio_postgres::SimpleQueryMessage::Row(_))).count()
    };
    transaction(&pool, |db| async move {
        db.query("SELECT $1::int, $2::text, now()", &[&1, &"x"]).await?;
        Ok(())
    }).await.unwrap();
    assert_eq!(prepared().await, 0);
    let failing = transaction(&pool, |db| async move { Ok(db.query("SELECT 1 / $1::int", &[&0]).await?) });
    assert!(failing.await.is_err());
    assert_eq!(prepared().await, 0);
}

#[tokio::test]
async fn waiters_do_not_fill_the_pool() {
    let (pool, watch, id) = (pool(5).await, pool(1).await, id("POST /orders"));
    let owner = claim(&watch.get().await.unwrap(), &id, &body("1"), none().lease("10 min")).await.unwrap();
    let duplicates: Vec<_> = (0..50).map(|_| { let (pool, id) = (pool.clone(), id.clone()); tokio::spawn(async move {
        let db = pool.get().await.unwrap();
        pool.claim(&db, &id, &body("1"), none().lease("10 min").wait("1 min")).await.unwrap().outcome
    }) }).collect();
    let waiting = format!("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()
        AND query LIKE '%idempotency.claim(%{}%' AND wait_event IS NOT NULL", id.key);
    until("two that wait", || async { number(&watch, &waiting).await == 2 }).await;
    assert_eq!(number(&pool, "SELECT 1::bigint").await, 1, "others get a connection");
    complete(&watch.get().await.unwrap(), &id, &Answer::new(200, "done"), none().token(owner.token)).await.unwrap();
    let mut replayed = 0;
    for one in duplicates { replayed += u32::from(one.await.unwrap() == Outcome::Replay); }
    assert!((2..=50).contains(&replayed), "{replayed}");
}
