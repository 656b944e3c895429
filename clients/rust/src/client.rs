//! The calls. They go by the simple protocol, with every value as an escaped literal: tokio-postgres sends parameters only with a named
//! prepared statement, which pgbouncer before 1.21 loses between two transactions. It is also one round trip instead of two.
use crate::{Answer, Result};
use serde_json::{from_str, from_value, Value};
use tokio_postgres::{Client, SimpleQueryMessage};

/// The identity of a piece of work. The scope is nothing that the client can choose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Id { pub scope: String, pub operation: String, pub key: String }
impl Id {
    pub fn new(scope: &str, operation: &str, key: &str) -> Id { Id { scope: scope.into(), operation: operation.into(), key: key.into() } }
}

/// What a key is compared by: the request as it came, bytes, so that JSON cannot be encoded twice; `With` path parameters, an object.
/// It is an argument and no option, since one that was forgotten would switch the comparison off.
#[derive(Clone, Debug)]
pub enum Request { Body(Vec<u8>), With(Vec<u8>, Value), NotCompared }

/// Of a claim: go on only after `Claimed`. `Failed` is of `run_leased` (nothing happened), `Untold` of the calls that claim nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome { Claimed, Replay, InProgress, Mismatch, Held, Failed, #[default] Untold }

macro_rules! record { ($($name:ident: $type:ty,)*) => {
    /// What a call tells of a key. Times are RFC 3339 text, for a crate such as chrono to parse, or "infinity".
    #[derive(Clone, Debug, Default)]
    pub struct Record { pub id: Id, pub outcome: Outcome, pub response_bytes: Option<Vec<u8>>, $(pub $name: Option<$type>,)* }

    impl Record {
        fn of(id: &Id, mut row: Value) -> Result<Record> {
            let outcome = match row["outcome"].as_str() {
                None => Outcome::Untold, Some("claimed") => Outcome::Claimed, Some("replay") => Outcome::Replay,
                Some("in_progress") => Outcome::InProgress, Some("mismatch") => Outcome::Mismatch, Some("held") => Outcome::Held,
                Some(other) => return Err(format!("unknown outcome {other}").into()), // never go on with it
            };
            let response_bytes = row["response_bytes"].as_str().map(unhex).transpose()?;
            Ok(Record { id: id.clone(), outcome, response_bytes, $($name: from_value(row[stringify!($name)].take())?,)* })
        }
    }
} }
// A token is an integer all the way: a float would be rounded some day, and its owner refused.
record! {
    status: String, token: i64, attempt: i32, taken_over: bool, abandoned: bool, recovery_point: String, state: Value, note: String,
    last_error: String, fingerprint_checked: bool, retry_after_ms: i64, rival: String, lease_ms: f64, created_at: String,
    completed_at: String, expires_at: String, http_expires: String, locked_until: String, redacted_at: String, response_status: u16,
    response_headers: Value, response_body: String,
}

fn unhex(text: &str) -> Result<Vec<u8>> {
    let digits = text.strip_prefix("\\x").ok_or("bytea_output has to be \"hex\"")?;
    (0..digits.len()).step_by(2).map(|i| Ok(u8::from_str_radix(&digits[i..i + 2], 16)?)).collect()
}
fn bytea(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).filter_map(|four| char::from_digit(four.into(), 16));
    format!("E'\\\\x{}'::bytea", digits.collect::<String>())
}
// Right whatever standard_conforming_strings is. The encoding is UTF-8, in which no byte of another character is a quote or backslash.
fn quoted(text: &str) -> String { format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''")) }

/// Named arguments. What is not given is not named, so that the server's defaults and the policies hold. Intervals are PostgreSQL's.
#[derive(Clone, Debug, Default)]
pub struct Options(Vec<(&'static str, String)>);
impl Options {
    pub fn new() -> Options { Options::default() }
    pub fn without(mut self, name: &str) -> Options { self.0.retain(|(one, _)| *one != name); self }
    pub fn response_bytes(self, bytes: &[u8]) -> Options { self.with("response_bytes", bytea(bytes)) }
    fn with(self, name: &'static str, value: String) -> Options { let mut all = self.without(name); all.0.push((name, value)); all }

    // fingerprint_bytes also takes what jsonb refuses, and of what it takes it is the fingerprint of the parsed request.
    fn compared(self, request: &Request) -> Options {
        let digest = |bytes| format!("idempotency.fingerprint_bytes({})", bytea(bytes));
        let both = |params, digest| format!("jsonb_build_object('params', {params}::jsonb, 'body', encode({digest}, 'hex'))");
        match request {
            Request::NotCompared => self,
            Request::Body(bytes) => self.with("fingerprint", digest(bytes)),
            Request::With(bytes, params) => self.with("request", both(quoted(&params.to_string()), digest(bytes))),
        }
    }
}

macro_rules! options { ($($type:ty as $cast:literal: $($name:ident)*;)*) => { impl Options { $($(
    pub fn $name<'a>(self, value: impl Into<Option<$type>>) -> Options {
        let literal = |value: $type| format!("{}::{}", quoted(&value.to_string()), $cast);
        match value.into() { Some(value) => self.with(stringify!($name), literal(value)), None => self }
    }
)*)* } } }
options! {
    &'a str as "text": scope operation key command note error reason wait_for recovery_point step response_body;
    &'a str as "interval": ttl lease wait retry_in;
    &'a str as "uuid": claim_id;
    &'a Value as "jsonb": state args response_headers;
    bool as "boolean": hold_if_abandoned refuse_repeat;
    i64 as "bigint": token;
    i32 as "int": max_rows;
    u16 as "int": response_status;
}

// The rows travel as JSON, so that one way serves every call.
async fn rows(db: &Client, columns: &str, name: &str, options: Options) -> Result<Vec<Value>> {
    let arguments: Vec<_> = options.0.iter().map(|(name, value)| format!("{name} => {value}")).collect();
    let call = format!("idempotency.{name}({}) AS result", arguments.join(", "));
    let answer = db.simple_query(&format!("SELECT to_json(r)::text FROM (SELECT {columns} FROM {call}) AS r")).await?;
    let texts = answer.iter().filter_map(|message| if let SimpleQueryMessage::Row(row) = message { row.get(0) } else { None });
    texts.map(|text| Ok(from_str(text)?)).collect()
}
async fn row(db: &Client, columns: &str, name: &str, id: &Id, options: Options) -> Result<Option<Value>> {
    Ok(rows(db, columns, name, options.scope(&*id.scope).operation(&*id.operation).key(&*id.key)).await?.pop())
}
const LEASE: &str = "extract(epoch FROM locked_until - clock_timestamp())::float8 * 1000 AS lease_ms";
const HTTP_DATE: &str = "AT TIME ZONE 'UTC', 'Dy, DD Mon YYYY HH24:MI:SS \"GMT\"') AS http_expires";

macro_rules! calls {
    (claims: $($claims:ident)*; readers: $($readers:ident)*; verbs: $($verb:ident -> $type:ty,)*) => {
        $(pub async fn $claims(db: &Client, id: &Id, request: &Request, options: Options) -> Result<Record> {
            let columns = format!("*, {LEASE}, to_char(expires_at {HTTP_DATE}");
            let row = row(db, &columns, stringify!($claims), id, options.compared(request)).await?;
            Record::of(id, row.filter(|row| row["outcome"].is_string()).ok_or("a claim without an outcome")?)
        })*
        $(pub async fn $readers(db: &Client, id: &Id) -> Result<Option<Record>> {
            row(db, "*", stringify!($readers), id, Options::new()).await?.map(|row| Record::of(id, row)).transpose()
        })*
        $(pub async fn $verb(db: &Client, id: &Id, options: Options) -> Result<$type> {
            Ok(from_value(row(db, "result", stringify!($verb), id, options).await?.unwrap_or_default()["result"].take())?)
        })*
    };
}
// Of readers None is never a permission to do the work. Of extend and checkpoint the result is the new end of the lease.
calls! {
    claims: claim run;
    readers: replay lookup;
    verbs: fail -> bool, record_failure -> bool, release -> bool, once -> bool, hold -> i64, extend -> String, checkpoint -> Option<String>,
        effect_key -> String,
}

/// Takes over what others have left behind. Each has its token.
pub async fn claim_abandoned(db: &Client, options: Options) -> Result<Vec<Record>> {
    let claims = rows(db, &format!("*, 'claimed' AS outcome, {LEASE}"), "claim_abandoned", options).await?;
    let id = |row: &Value| Some(Id::new(row["scope"].as_str()?, row["operation"].as_str()?, row["key"].as_str()?));
    claims.into_iter().map(|row| Record::of(&id(&row).ok_or("a claim without a key")?, row)).collect()
}

/// The record says until when the answer will be replayed.
pub async fn complete(db: &Client, id: &Id, answer: &Answer, options: Options) -> Result<Record> {
    let columns = format!("result AS expires_at, to_char(result {HTTP_DATE}");
    Record::of(id, row(db, &columns, "complete", id, answer.recorded(options)).await?.unwrap_or_default())
}
