//! hyper 0.14: an `Api` answers the requests of its routes, and gives others to `otherwise`.
use crate::*;
use hyper::{body::{Bytes, HttpBody}, header::{HeaderName, HeaderValue}, http::request::Parts, Body, Response, StatusCode};
use serde_json::{Map, Value};
use std::{convert::Infallible, sync::Arc};

/// What a handler gets. It writes by `db`; what goes another way is not rolled back with the rest. `params` are those of the path, as there.
#[derive(Clone)]
pub struct Call { pub parts: Arc<Parts>, pub params: Map<String, Value>, pub body: Bytes, pub db: Db }

enum Work {
    Once(Arc<dyn Fn(Call) -> Future<Response<Body>> + Send + Sync>),
    Leased(Job, Box<dyn Fn(&Parts, &[u8]) -> Result<Value> + Send + Sync>),
}

/// Routes are named by their operation, method and template: "POST /orders/{id}/refunds".
#[derive(Clone)]
pub struct Api {
    pub core: Core,
    pub max_body: usize,
    scope: Arc<dyn Fn(&Parts) -> Option<String> + Send + Sync>,
    routes: Vec<Arc<(String, Options, Work)>>,
    otherwise: Arc<dyn Fn(hyper::Request<Body>) -> Future<Response<Body>> + Send + Sync>,
}

impl Api {
    /// The scope is the account that was authenticated; without one the answer is a 401.
    pub fn new(pool: &Pool, scope: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Api {
        let (pool, documentation) = (pool.clone(), "https://developer.example.com/idempotency".to_owned());
        let core = Core { pool, documentation, lifetime_header: false, report: Arc::new(|error| eprintln!("{error}")) };
        let otherwise = Arc::new(|_| Box::pin(async { Ok(Answer::new(404, "").into()) }) as Future<_>);
        Api { core, max_body: 8 << 20, scope: Arc::new(scope), routes: Vec::new(), otherwise }
    }

    /// The handler works in the transaction of the claim, and may be run again after a serialization failure. An error, a panic and a 5xx
    /// undo everything; what is below 500 is recorded. An `Answer` that is returned as the error is sent and not recorded.
    pub fn once<F>(self, operation: &str, options: Options, handler: impl Fn(Call) -> F + Send + Sync + 'static) -> Api
    where F: Doing<Response<Body>> {
        self.route(operation, options, Work::Once(Arc::new(move |call| Box::pin(handler(call)))))
    }

    /// Work that leaves the database. The state is what it needs, without the request; where it cannot be made the error is answered.
    pub fn leased<S>(self, operation: &str, options: Options, job: &Job, state: S) -> Api
    where S: Fn(&Parts, &[u8]) -> Result<Value> + Send + Sync + 'static {
        self.route(operation, options, Work::Leased(job.clone(), Box::new(state)))
    }

    fn route(mut self, operation: &str, options: Options, work: Work) -> Api {
        self.routes.push(Arc::new((operation.to_owned(), options, work)));
        self
    }

    /// What answers requests that no route is for.
    pub fn otherwise<F: Doing<Response<Body>>>(self, handler: impl Fn(hyper::Request<Body>) -> F + Send + Sync + 'static) -> Api {
        Api { otherwise: Arc::new(move |request| Box::pin(handler(request))), ..self }
    }

    /// For `service_fn`. If the client goes away, what was begun comes to its end.
    pub async fn answer(self, request: hyper::Request<Body>) -> std::result::Result<Response<Body>, Infallible> {
        let asked = format!("{} {}", request.method(), request.uri().path());
        let answered = match self.routes.iter().find_map(|route| Some((route, params(&route.0, &asked)?))) {
            Some((route, params)) => self.answer_by(&route.0, &route.1, &route.2, params, request).await.map(Into::into),
            None => (self.otherwise)(request).await,
        };
        Ok(answered.unwrap_or_else(|error| self.core.failed(error).into()))
    }

    async fn answer_by(&self, operation: &str, options: &Options, work: &Work, params: Map<String, Value>, request: hyper::Request<Body>)
        -> Result<Answer> {
        let (parts, body) = request.into_parts();
        let scope = (self.scope)(&parts).ok_or_else(|| Answer::json(401, &"who is it?".into()))?;
        let lines: Vec<_> = parts.headers.get_all("idempotency-key").iter().map(HeaderValue::as_bytes).collect();
        let key = parse_key(&lines).ok_or_else(|| self.core.problem(if lines.is_empty() { "missing" } else { "malformed" }, 0))?;
        let body = self.read(body).await?;
        let compared = Request::body(&*body).with(if params.is_empty() { Value::Null } else { params.clone().into() });
        let (id, options) = (Id::new(scope, operation, key), options.clone());
        match work {
            Work::Leased(job, state) => self.core.leased(id, compared, options.state(&state(&parts, &body)?), job).await,
            Work::Once(handler) => {
                let (handler, parts) = (handler.clone(), Arc::new(parts));
                let call = move |db| handler(Call { parts: parts.clone(), params: params.clone(), body: body.clone(), db });
                self.core.once(id, compared, options, move |db| captured(call(db))).await
            }
        }
    }

    async fn read(&self, mut body: Body) -> Result<Bytes> {
        let mut bytes = Vec::new();
        while let Some(part) = body.data().await {
            bytes.extend_from_slice(&part?);
            if bytes.len() > self.max_body { return Err(Answer::new(413, "").into()); }
        }
        Ok(bytes.into())
    }
}

// The parts of the path that stand where the template has {name}; None where it is another path.
fn params(template: &str, asked: &str) -> Option<Map<String, Value>> {
    let (mut wanted, mut given, mut params) = (template.split('/'), asked.split('/'), Map::new());
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return Some(params),
            (Some(wanted), Some(given)) if wanted == given => {}
            (Some(wanted), Some(given)) => { params.insert(wanted.strip_prefix('{')?.strip_suffix('}')?.to_owned(), given.into()); }
            _ => return None,
        }
    }
}

async fn captured(response: Future<Response<Body>>) -> Result<Answer> {
    let (parts, body) = response.await?.into_parts();
    let answer = Answer::new(parts.status.as_u16(), &*hyper::body::to_bytes(body).await?);
    Ok(parts.headers.iter().fold(answer, |answer, (name, value)| answer.header(name.as_str(), String::from_utf8_lossy(value.as_bytes()))))
}

impl From<Answer> for Response<Body> {
    fn from(answer: Answer) -> Response<Body> {
        let mut response = Response::new(Body::from(answer.body));
        *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        for (name, value) in answer.headers { // what is no header, by whatever language it was recorded, is left out
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) { response.headers_mut().append(name, value); }
        }
        response
    }
}
