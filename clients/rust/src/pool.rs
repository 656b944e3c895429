//! Connections, of this crate's small pool or of whatever gives them, and transactions on them.
use crate::*;
use std::{ops::Deref, pin::Pin, sync::{Arc, Mutex}, time::Duration};
use tokio::{sync::{OwnedSemaphorePermit, Semaphore}, time::timeout};
use tokio_postgres::{Client, Config, NoTls};

pub type Future<T> = Pin<Box<dyn std::future::Future<Output = Result<T>> + Send>>;

/// A connection, or the transaction that is open on it. A clone is the same one; when the last is dropped it goes back.
#[derive(Clone)]
pub struct Db(Arc<dyn Deref<Target = Client> + Send + Sync>);
impl Db { pub fn new(connection: impl Deref<Target = Client> + Shared) -> Db { Db(Arc::new(connection)) } }
impl Deref for Db { type Target = Client; fn deref(&self) -> &Client { &self.0 } }

/// Whatever gives connections, such as a pool of deadpool or bb8: nobody else uses one before it is dropped.
pub trait Connections: Shared { fn get(&self) -> Future<Db>; }
impl<F: Doing<Db>, C: Fn() -> F + Shared> Connections for C { fn get(&self) -> Future<Db> { Box::pin(self()) } }

#[derive(Clone)]
pub struct Pool { connections: Arc<dyn Connections>, waiters: Arc<Semaphore> }
impl Pool {
    pub fn of(connections: impl Connections, size: usize) -> Pool {
        Pool { connections: Arc::new(connections), waiters: Arc::new(Semaphore::new(size / 2)) }
    }

    /// This crate's own: a limit, and a list of those that nobody uses. `connect` makes one, by TLS where that is wanted.
    pub fn new<F: Doing<Client>>(connect: impl Fn() -> F + Shared, size: usize) -> Pool {
        let all = (Arc::new(connect), Arc::new(Semaphore::new(size)), Arc::new(Mutex::new(Vec::<Arc<Client>>::new())));
        Pool::of(move || { let (connect, free, idle) = all.clone(); async move {
            let permit = free.acquire_owned().await?;
            idle.lock().unwrap().retain(|one| !one.is_closed());
            let found = idle.lock().unwrap().pop();
            let client = if let Some(client) = found { client } else { Arc::new(connect().await?) };
            Ok(Db::new(Lent(client, idle, permit)))
        } }, size)
    }

    pub fn no_tls(config: Config, size: usize) -> Pool {
        Pool::new(move || { let config = config.clone(); async move {
            let (client, connection) = config.connect(NoTls).await?;
            tokio::spawn(connection);
            Ok(client)
        } }, size)
    }

    pub async fn get(&self) -> Result<Db> {
        let got = timeout(Duration::from_secs(10), self.connections.get()).await;
        got.unwrap_or_else(|late| Err(late.into())).map_err(|error| NoConnection(error).into())
    }

    /// `claim`, but no more than half of the connections may wait: the others are answered at once.
    pub async fn claim(&self, db: &Client, id: &Id, request: &Request, options: Options) -> Result<Record> {
        let place = self.waiters.try_acquire();
        claim(db, id, request, if place.is_ok() { options } else { options.without("wait") }).await
    }
}

struct Lent(Arc<Client>, Arc<Mutex<Vec<Arc<Client>>>>, OwnedSemaphorePermit);
impl Deref for Lent { type Target = Client; fn deref(&self) -> &Client { &self.0 } }
impl Drop for Lent { fn drop(&mut self) { self.1.lock().unwrap().push(self.0.clone()); } }

/// BEGIN, `work` on the connection, COMMIT; all of it again where the server asks for that. It comes to its end even if nobody waits.
pub async fn transaction<T: Send + 'static, F: Doing<T>>(pool: &Pool, work: impl Fn(Db) -> F + Shared) -> Result<T> {
    let pool = pool.clone();
    apart(async move { again(&[Kind::Retry], 5, || attempt(&pool, &work)).await }).await
}

async fn attempt<T: Send + 'static, F: Doing<T>>(pool: &Pool, work: &impl Fn(Db) -> F) -> Result<T> {
    let db = pool.get().await?;
    db.batch_execute("BEGIN").await?;
    let mut result = apart(work(db.clone())).await;
    if result.is_ok() && Arc::strong_count(&db.0) > 1 {
        result = Err("the connection was kept: what is written by it later would be in no transaction".into());
    } else if result.is_ok() {
        // Where an error was swallowed on the way, COMMIT succeeds and has rolled back, but SELECT fails. Both are one round trip.
        let ended = tokio::try_join!(db.batch_execute("SELECT"), db.batch_execute("COMMIT"));
        result = ended.map_err(Error::from).and(result);
    }
    if result.is_err() {
        let _ = db.batch_execute("ROLLBACK").await; // where it fails there is no connection any more
    }
    result
}
