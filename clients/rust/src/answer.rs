//! What was answered or is to be, and what of it is recorded.
use crate::*;
use serde_json::{json, Value};
use std::{error, fmt, slice, str, sync::Arc};

/// About the connection, the moment or the session: never replayed.
const PASSING: &str = "set-cookie date content-length connection transfer-encoding keep-alive server idempotent-replayed";

/// As an error it undoes the work, is sent, and is not recorded.
#[derive(Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub(crate) book: Option<Arc<dyn Fn(Db) -> Future<()> + Send + Sync>>,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Answer { Answer { status, body: body.into(), ..Answer::default() } }
    pub fn json(status: u16, body: &Value) -> Answer { Answer::new(status, body.to_string()).header("content-type", "application/json") }
    pub fn header(mut self, name: &str, value: impl ToString) -> Answer { self.headers.push((name.into(), value.to_string())); self }

    /// Of leased work: rows that are written in one transaction with the record of the answer, and so once.
    pub fn book<F: Doing<()>>(self, book: impl Fn(Db) -> F + Shared) -> Answer {
        Answer { book: Some(Arc::new(move |db| Box::pin(book(db)))), ..self }
    }

    /// Text where it is text, so that a person can read the row; bytes otherwise.
    pub(crate) fn recorded(&self, options: Options) -> Options {
        let passes = |name: &str| PASSING.split(' ').any(|one| name.eq_ignore_ascii_case(one));
        let of = |name| self.headers.iter().find(|(one, _)| one.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value);
        let kept: Vec<_> = self.headers.iter().filter(|(name, _)| !passes(name)).collect();
        let options = options.response_status(self.status).response_headers(&json!(kept));
        let (media, plain) = (of("content-type").to_lowercase(), of("content-encoding").is_empty() && !self.body.contains(&0));
        let is_text = plain && (media.starts_with("text/") || ["/json", "+json", "/xml", "+xml"].iter().any(|one| media.contains(one)));
        match str::from_utf8(&self.body) {
            Ok("") => options,
            Ok(text) if is_text => options.response_body(text),
            _ => options.response_bytes(&self.body),
        }
    }
}

impl fmt::Debug for Answer { fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result { fmt::Display::fmt(self, f) } }
impl fmt::Display for Answer { fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result { write!(f, "answered with {}", self.status) } }
impl error::Error for Answer {}

impl Record {
    /// What was recorded, by whatever language: headers as pairs, or as an object whose values may be lists; strings or numbers.
    pub fn answer(&self) -> Answer {
        let body = self.response_bytes.clone().unwrap_or_else(|| self.response_body.clone().unwrap_or_default().into());
        let pairs: Vec<_> = match &self.response_headers {
            Some(Value::Object(object)) => object.iter().map(|(name, value)| (&**name, value)).collect(),
            Some(Value::Array(pairs)) => pairs.iter().filter_map(|pair| Some((pair[0].as_str()?, &pair[1]))).collect(),
            _ => Vec::new(),
        };
        let mut answer = Answer::new(self.response_status.unwrap_or(200), body);
        for (name, value) in pairs {
            for one in value.as_array().map_or(slice::from_ref(value), |all| all) {
                answer = answer.header(name, one.as_str().map_or_else(|| one.to_string(), str::to_owned));
            }
        }
        answer
    }
}
