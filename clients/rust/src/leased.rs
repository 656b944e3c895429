//! Work that leaves the database: the claim is committed first, with a lease, and what became of the work is recorded afterwards.
use crate::*;
use std::{future, sync::Arc, time::Duration};

/// What the work gets: `claim.state` is what it was given, or that of the last checkpoint.
#[derive(Clone, Debug)]
pub struct Attempt { pub claim: Record, pub effect_key: String }

/// How work is done that leaves the database. It says by its end what is known: an answer is recorded, a refusal such as 402 as well;
/// `NothingHappened` lets the next attempt do it; any other error, or a panic, means that nobody knows, and the key is held for a person.
#[derive(Clone)]
pub struct Job { step: String, lease: String, work: Arc<dyn Fn(Attempt) -> Future<Answer> + Send + Sync> }

impl Job {
    /// The lease is renewed three times in its length. Work whose claim is somebody else's by now is aborted at its next `await`.
    pub fn new<F: Doing<Answer>>(step: &str, lease: &str, work: impl Fn(Attempt) -> F + Send + Sync + 'static) -> Job {
        Job { step: step.into(), lease: lease.into(), work: Arc::new(move |attempt| Box::pin(work(attempt))) }
    }
}

async fn despite_loss<T, F: future::Future<Output = Result<T>>>(call: impl Fn() -> F) -> Result<T> {
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
        let claims = async { claim_abandoned(&*pool.get().await?, options.clone()).await };
        match claims.await {
            Err(error) => report(error), // such as a database that is down: later, then
            Ok(claims) => {
                let begun: Vec<_> = claims.into_iter().map(|claim| tokio::spawn(finish(pool.clone(), job.clone(), claim))).collect();
                for one in begun { one.await.unwrap_or_else(|panic| Err(panic.into())).map_or_else(&report, drop); }
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn finish(pool: Pool, job: Job, mut claim: Record) -> Result<(Record, Option<Answer>)> {
    let (id, token) = (claim.id.clone(), claim.token);
    let effect_key = despite_loss(|| async { effect_key(&*pool.get().await?, &id, Options::new().step(&*job.step)).await }).await;
    let worked = match effect_key {
        Ok(effect_key) => beating(&pool, &job, Attempt { claim: claim.clone(), effect_key }).await?,
        Err(error) => Err(NothingHappened(error).into()),
    };
    let answer = match worked {
        Ok(answer) => answer,
        Err(why) => return settle(&pool, &mut claim, &why).await.map(|()| (claim, None)),
    };
    let all = Arc::new((id.clone(), answer.clone()));
    let booked = despite_loss(|| {
        let all = all.clone();
        transaction(&pool, move |db| { let all = all.clone(); async move {
            if let Some(book) = &all.1.book { book(db.clone()).await?; }
            complete(&db, &all.0, &all.1, Options::new().token(token).refuse_repeat(true)).await
        } })
    });
    let error = match booked.await {
        Ok(recorded) => return Ok((Record { http_expires: recorded.http_expires, expires_at: recorded.expires_at, ..claim }, Some(answer))),
        Err(error) => error,
    };
    if reason(&error) == Some("completed") { // the answer to COMMIT was lost, or a person was faster: what is recorded is what counts
        let recorded = replay(&*pool.get().await?, &id).await?.ok_or(error)?;
        return Ok((Record { outcome: Outcome::Replay, ..recorded }, None));
    }
    if !matches!(kind(&error), Kind::Unavailable | Kind::StaleClaim) {
        settle(&pool, &mut claim, &error).await?; // done, and cannot be recorded: nobody may do it once more because the lease ends
    }
    Err(error)
}

// What a repeat finds settled was settled by the call whose answer was lost, or is somebody else's by now.
async fn settle(pool: &Pool, claim: &mut Record, why: &Error) -> Result<()> {
    let failed = why.is::<NothingHappened>();
    // A page of HTML would be too large to be recorded, and a NUL cannot be sent.
    let text: String = why.to_string().chars().filter(|one| *one != '\0').take(1000).collect();
    let options = || Options::new().token(claim.token);
    let settled = despite_loss(|| async { match failed {
        true => fail(&*pool.get().await?, &claim.id, options().error(&*text)).await.map(drop),
        false => hold(&*pool.get().await?, &claim.id, options().reason(&*text)).await.map(drop),
    } });
    match settled.await {
        Err(error) if !matches!(kind(&error), Kind::StaleClaim | Kind::NotClaimed | Kind::Held) => return Err(error),
        _ => claim.outcome = if failed { Outcome::Failed } else { Outcome::Held },
    }
    claim.last_error = Some(text);
    Ok(())
}

// Three beats to a lease. Who has lost the claim is stopped, and has nothing to record; who cannot reach the database goes on.
async fn beating(pool: &Pool, job: &Job, attempt: Attempt) -> Result<Result<Answer>> {
    let (id, options) = (attempt.claim.id.clone(), Options::new().token(attempt.claim.token));
    let third = Duration::from_secs_f64(attempt.claim.lease_ms.unwrap_or(60_000.0).max(3.0) / 3000.0);
    let mut work = tokio::spawn((job.work)(attempt));
    loop {
        if let Ok(done) = tokio::time::timeout(third, &mut work).await { return Ok(done.unwrap_or_else(|panic| Err(panic.into()))); }
        let beat = async { extend(&*pool.get().await?, &id, options.clone()).await };
        match beat.await {
            Err(lost) if !matches!(kind(&lost), Kind::Unavailable | Kind::Retry) => { work.abort(); return Err(lost); }
            _ => {}
        }
    }
}
