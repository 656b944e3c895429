//! The header Idempotency-Key (draft-ietf-httpapi-idempotency-key-header-07), for any framework. No answer is given before COMMIT has
//! succeeded, so no client is told what was undone.
use crate::*;
use serde_json::json;
use std::sync::Arc;

/// The key of the header's lines, "k" and k alike. RFC 8941: a string, or a token, as many clients send it. Parameters are read over.
pub fn parse_key(lines: &[&[u8]]) -> Option<String> {
    let mut rest = if let [line] = lines { std::str::from_utf8(line).ok()?.trim_matches(&[' ', '\t'][..]).as_bytes() } else { return None };
    let key = item(&mut rest)?;
    while let [b';', parameter @ ..] = rest {
        rest = parameter;
        take(&mut rest, |c| c == b' ');
        if !matches!(rest.first()?, b'a'..=b'z' | b'*') { return None; }
        take(&mut rest, |c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'*' | b'_' | b'.' | b'-'));
        if let [b'=', value @ ..] = rest { rest = value; item(&mut rest)?; }
    }
    (rest.is_empty() && !key.is_empty() && key.len() <= 255).then(|| key)
}

fn take(rest: &mut &[u8], what: fn(u8) -> bool) -> String {
    let (taken, after) = rest.split_at(rest.iter().take_while(|c| what(**c)).count());
    *rest = after;
    taken.iter().map(|c| char::from(*c)).collect()
}

fn item(rest: &mut &[u8]) -> Option<String> {
    let mut key = take(rest, |c| matches!(c, b'!' | b'#'..=b'+' | b'-'..=b':' | b'<'..=b'~'));
    if !key.is_empty() { return Some(key); }
    *rest = rest.strip_prefix(b"\"")?;
    loop {
        let (c, length) = match **rest {
            [b'"', ..] => { *rest = &rest[1..]; return Some(key); }
            [b'\\', c @ (b'"' | b'\\'), ..] => (c, 2),
            [c @ (b' '..=b'[' | b']'..=b'~'), ..] => (c, 1),
            _ => return None,
        };
        key.push(c.into());
        *rest = &rest[length..];
    }
}

// The draft has the first three titles. Who gets a Retry-After may send the same request again; nobody else is invited to.
const PROBLEMS: &[(&str, u16, &str, &str)] = &[
    ("missing", 400, "Idempotency-Key is missing", "This operation needs the header Idempotency-Key: one key for each intent."),
    ("mismatch", 422, "Idempotency-Key is already used", "The key was used for another request, which may have taken effect."),
    ("in-progress", 409, "A request is outstanding for this Idempotency-Key", "A request with this key is being processed."),
    ("malformed", 400, "Idempotency-Key is malformed", "The header is one string of 1 to 255 printable ASCII characters: \"k\" or k."),
    ("held", 409, "The outcome for this Idempotency-Key is unknown", "Whether the first request took effect is being looked into."),
    ("redacted", 410, "The answer for this Idempotency-Key is gone", "The request was done, and its answer was removed."),
    ("too-large", 500, "The answer for this Idempotency-Key is too large", "It cannot be recorded, and a repeat would fail again."),
    ("unavailable", 503, "Idempotency-Key cannot be checked now", "Send the same request with the same key again later."),
    ("error", 500, "Internal Server Error", "Nothing was recorded."),
];

/// How a request is answered, once its identity is known. `documentation` is a URL, for problems and with 400; `lifetime_header` sends
/// Idempotency-Key-Expires with what is recorded or replayed; `report` hears of errors that become a 500.
#[derive(Clone)]
pub struct Core { pub pool: Pool, pub documentation: String, pub lifetime_header: bool, pub report: Arc<dyn Fn(&Error) + Send + Sync> }

impl Core {
    pub fn problem(&self, name: &str, retry_after_ms: i64) -> Answer {
        let (_, status, title, detail) = PROBLEMS.iter().find(|one| one.0 == name).unwrap_or(&PROBLEMS[PROBLEMS.len() - 1]);
        let body = json!({ "type": format!("{}#{name}", self.documentation), "title": title, "status": status, "detail": detail });
        let answer = Answer::new(*status, body.to_string()).header("content-type", "application/problem+json");
        let answer = answer.header("content-language", "en");
        match name {
            "missing" | "malformed" => answer.header("link", format!("<{}>; rel=\"describedby\"; type=\"text/html\"", self.documentation)),
            "in-progress" | "unavailable" => answer.header("retry-after", ((retry_after_ms + 999) / 1000).max(1)),
            _ => answer,
        }
    }

    /// The answer to an error: the `Answer` that it is, a problem by its kind, or a 500.
    pub fn failed(&self, error: Error) -> Answer {
        let name = match (error.is::<Answer>(), kind(&error)) {
            (true, _) => return error.downcast().map_or_else(|_| Answer::default(), |answer| *answer),
            (_, Kind::Retry | Kind::Unavailable) => "unavailable",
            (_, Kind::WaitTimeout | Kind::StaleClaim) => "in-progress",
            (_, Kind::Held) => "held", (_, Kind::Redacted) => "redacted", (_, Kind::TooLarge) => "too-large",
            _ => { (self.report)(&error); "error" }
        };
        self.problem(name, 0)
    }

    fn without_work(&self, claim: &Record) -> Answer {
        let name = match claim.outcome {
            Outcome::Replay => return self.expiring(claim.answer(), claim).header("idempotent-replayed", true),
            Outcome::Mismatch => "mismatch", Outcome::Held => "held", Outcome::InProgress => "in-progress",
            _ => "unavailable", // failed: the next attempt does it
        };
        self.problem(name, claim.retry_after_ms.unwrap_or(0))
    }

    fn expiring(&self, answer: Answer, record: &Record) -> Answer {
        match &record.http_expires { Some(date) if self.lifetime_header => answer.header("idempotency-key-expires", date), _ => answer }
    }

    /// `work` in the transaction of the claim, again after a serialization failure. An answer below 500 is recorded.
    pub async fn once<F: Doing<Answer>>(&self, id: Id, body: Request, options: Options, work: impl Fn(Db) -> F + Shared) -> Result<Answer> {
        let all = Arc::new((self.clone(), id, body, options, work));
        transaction(&self.pool, move |db| { let all = all.clone(); async move {
            let (core, id, body, options, work) = &*all;
            let claim = core.pool.claim(&db, id, body, options.clone()).await?;
            if claim.outcome != Outcome::Claimed { return Ok(core.without_work(&claim)); }
            let answer = work(db.clone()).await?;
            if answer.status >= 500 { return Err(answer.into()); }
            let recorded = complete(&db, id, &answer, Options::new()).await?;
            Ok(core.expiring(answer, &recorded))
        } }).await
    }

    pub async fn leased(&self, id: Id, request: Request, options: Options, job: &Job) -> Result<Answer> {
        let (record, answer) = run_leased(&self.pool, &id, &request, job, options).await?;
        Ok(answer.map_or_else(|| self.without_work(&record), |answer| self.expiring(answer, &record)))
    }
}
