//! What the tests share: pools, keys, and waiting for what can be seen.
use idempotency_pg::{Id, Pool, Request};
use std::{env, future::Future, sync::atomic::{AtomicU32, Ordering}, time::Duration};
use tokio_postgres::Config;

pub fn config() -> Config {
    let setting = |name, default: &str| env::var(name).unwrap_or_else(|_| default.to_owned());
    let mut config = Config::new();
    config.host(&setting("PGHOST", "/var/run/postgresql")).port(setting("PGPORT", "5432").parse().unwrap());
    config.user(&setting("PGUSER", "postgres")).dbname(&setting("PGDATABASE", "postgres"));
    config
}

/// A pool on a database in which the extension and test_rust.orders are.
pub async fn pool(size: usize) -> Pool {
    let pool = Pool::no_tls(config(), size);
    // Tests run at the same time; the lock ends with the statement, which is one transaction.
    pool.get().await.unwrap().batch_execute("SELECT pg_advisory_xact_lock(4712); CREATE EXTENSION IF NOT EXISTS idempotency;
        CREATE SCHEMA IF NOT EXISTS test_rust; CREATE TABLE IF NOT EXISTS test_rust.orders (item int);
        SET LOCAL client_min_messages = warning").await.unwrap();
    pool
}

/// A key that no other test has, nor one of another run.
pub fn id(operation: &str) -> Id {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
    Id::new("test_rust", operation, &format!("{now}-{}", NEXT.fetch_add(1, Ordering::SeqCst)))
}

pub fn body(bytes: impl Into<Vec<u8>>) -> Request { Request::Body(bytes.into()) }

pub async fn number(pool: &Pool, text: &str) -> i64 {
    pool.get().await.unwrap().query_one(text, &[]).await.unwrap().get(0)
}

/// How many orders of this item there are.
pub async fn count(pool: &Pool, item: i32) -> i64 {
    number(pool, &format!("SELECT count(*) FROM test_rust.orders WHERE item = {item}")).await
}

pub async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    for _ in 0..1200 {
        if condition().await { return; }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never happened: {what}");
}
