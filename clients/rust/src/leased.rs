//! Work that leaves the database: the claim is committed first, with a lease, and what became of the work is recorded afterwards.
use crate::*;
use std::{sync::Arc, time::Duration};
use tokio::time::{sleep, timeout};

/// What the work gets: `claim.state` is what it was given, or that of the last checkpoint.
#[derive(Clone, Debug)]
pub struct Attempt { pub claim: Record, pub effect_key: String }

/// How work is done that leaves the database. It says by its end what is known: an answer is recorded, a refusal such as 402 as well;
/// `NothingHappened` lets the next attempt do it; any other error, or a panic, means that nobody knows, and the key is held for a person.
#[derive(Clone)]
pub struct Job { step: String, lease: String, work: Arc<dyn Fn(Attempt) -> Future<Answer> + Send + Sync> }
impl Job {
    /// The lease is renewed three times in its length. Work whose claim is somebody else's by now is aborted at its next `await`.
    pub fn new<F: Doing<Answer>>(step: &str, lease: &str, work: impl Fn(Attempt) -> F + Shared) -> Job {
        Job { step: step.into(), lease: lease.into(), work: Arc::new(move |attempt| Box::pin(work(attempt))) }
    }
}

async fn despite_loss<T, F: std::future::Future<Output = Result<T>>>(call: impl Fn() -> F) -> Result<T> {
    again(&[Kind::Unavailable, Kind::Retry], 6, call).await
}

/// Claims and does the work, to its end even if nobody waits. There is an answer where the outcome is `Claimed`; it is `Failed` or `Held`
/// by what the work said, or what the claim got. If the answer to the claim is lost, the same claim_id gets the same token.
pub async fn run_leased(pool: &Pool, id: &Id, request: &Request, job: &Job, options: Options) -> Result<(Record, Option<Answer>)> {
    let (pool, id, request, job) = (pool.clone(), id.clone(), request.clone(), job.clone());
    let options = options.lease(&*job.lease).claim_id(&*format!("{:016x}{:016x}", random(), random()));
    apart(async move {
        let claim = despite_loss(|| async { pool.claim(&*pool.get().await?, &id, &request, options.clone()).await }).await?;
        if claim.outcome == Outcome::Claimed { finish(pool, job, claim).await } else { Ok((claim, None)) }
    }).await
}

/// Drives on what others have left behind, until its task is aborted; what it has begun then still comes to its end. Two at a time,
/// because both begin at once.
pub async fn completer(pool: Pool, operation: &str, job: Job, report: impl Fn(Error)) {
    let options = Options::new().operation(operation).lease(&*job.lease).max_rows(2);
    loop {
        let claims = async { claim_abandoned(&*pool.get().await?, options.clone()).await }.await;
        let begin = |claim| tokio::spawn(finish(pool.clone(), job.clone(), claim));
        // An error is such as a database that is down: later, then.
        let begun: Vec<_> = claims.map_err(&report).unwrap_or_default().into_iter().map(begin).collect();
        for one in begun { one.await.unwrap_or_else(|panic| Err(panic.into())).map_or_else(&report, drop); }
        sleep(Duration::from_secs(1)).await;
    }
}

async fn finish(pool: Pool, job: Job, mut claim: Record) -> Result<(Record, Option<Answer>)> {
    let effect_key = despite_loss(|| async { effect_key(&*pool.get().await?, &claim.id, Options::new().step(&*job.step)).await }).await;
    let worked = match effect_key {
        Ok(effect_key) => beating(&pool, &job, Attempt { claim: claim.clone(), effect_key }).await?,
        Err(error) => Err(NothingHappened(error).into()),
    };
    let answer = match worked {
        Ok(answer) => answer,
        Err(why) => return settle(&pool, &mut claim, &why).await.map(|()| (claim, None)),
    };
    let all = Arc::new((claim.id.clone(), answer.clone(), Options::new().token(claim.token).refuse_repeat(true)));
    let book = move |db: Db| { let all = all.clone(); async move {
        // First, so that a repeat of what was committed learns that from it, and not from a unique key of book's.
        let done = complete(&db, &all.0, &all.1, all.2.clone()).await?;
        if let Some(book) = &all.1.book { book(db.clone()).await?; }
        Ok(done)
    } };
    let error = match despite_loss(|| transaction(&pool, book.clone())).await {
        Ok(done) => return Ok((Record { http_expires: done.http_expires, expires_at: done.expires_at, ..claim }, Some(answer))),
        Err(error) => error,
    };
    if reason(&error) == Some("completed") { // the answer to COMMIT was lost, or a person was faster: what is recorded is what counts
        let recorded = replay(&*pool.get().await?, &claim.id).await?.ok_or(error)?;
        return Ok((Record { outcome: Outcome::Replay, ..recorded }, None));
    }
    if !matches!(kind(&error), Kind::Unavailable | Kind::StaleClaim) {
        settle(&pool, &mut claim, &error).await?; // done, and cannot be recorded: nobody may do it once more because the lease ends
    }
    Err(error)
}

// What a repeat finds settled was settled by the call whose answer was lost, or is somebody else's by now.
async fn settle(pool: &Pool, claim: &mut Record, why: &Error) -> Result<()> {
    // A page of HTML would be too large to be recorded, and a NUL cannot be sent.
    let text: String = why.to_string().chars().filter(|one| *one != '\0').take(1000).collect();
    let (id, failed, options) = (&claim.id, why.is::<NothingHappened>(), Options::new().token(claim.token));
    let settled = despite_loss(|| async { match failed {
        true => fail(&*pool.get().await?, id, options.clone().error(&*text)).await.map(drop),
        false => hold(&*pool.get().await?, id, options.clone().reason(&*text)).await.map(drop),
    } }).await;
    claim.outcome = if failed { Outcome::Failed } else { Outcome::Held };
    claim.last_error = Some(text);
    settled.or_else(|error| match kind(&error) { Kind::StaleClaim | Kind::NotClaimed | Kind::Held => Ok(()), _ => Err(error) })
}

// Three beats to a lease. Who has lost the claim is stopped, and has nothing to record; who cannot reach the database goes on.
async fn beating(pool: &Pool, job: &Job, attempt: Attempt) -> Result<Result<Answer>> {
    let (id, options) = (attempt.claim.id.clone(), Options::new().token(attempt.claim.token));
    let third = Duration::from_secs_f64(attempt.claim.lease_ms.unwrap_or(60_000.0).max(3.0) / 3000.0);
    let mut work = tokio::spawn((job.work)(attempt));
    loop {
        if let Ok(done) = timeout(third, &mut work).await { return Ok(done.unwrap_or_else(|panic| Err(panic.into()))); }
        match async { extend(&*pool.get().await?, &id, options.clone()).await }.await {
            Err(lost) if !matches!(kind(&lost), Kind::Unavailable | Kind::Retry) => { work.abort(); return Err(lost); }
            _ => {}
        }
    }
}
