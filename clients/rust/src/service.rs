//! hyper 0.14: an `Api` answers the requests of its routes, and gives others to `otherwise`.
use crate::*;
use hyper::{body::{Bytes, HttpBody}, header::{HeaderName, HeaderValue}, http::request::Parts, Body, Response, StatusCode};
use serde_json::{Map, Value};
use std::{convert::Infallible, sync::Arc};

/// What a handler gets. It writes by `db`: what goes another way is not rolled back with the rest. `params` are the path's, not decoded.
#[derive(Clone)]
pub struct Call { pub parts: Arc<Parts>, pub params: Map<String, Value>, pub body: Bytes, pub db: Db }

type Handler<Asked> = Arc<dyn Fn(Asked) -> Future<Response<Body>> + Send + Sync>;
enum Work { Once(Handler<Call>), Leased(Job, Box<dyn Fn(&Parts, &[u8]) -> Result<Value> + Send + Sync>) }
type Scope = Arc<dyn Fn(&Parts) -> Option<String> + Send + Sync>;
type Route = Arc<(String, Options, Work)>;

/// Routes are named by their operation, method and template: "POST /orders/{id}/refunds".
#[derive(Clone)]
pub struct Api { pub core: Core, pub max_body: usize, scope: Scope, routes: Vec<Route>, otherwise: Handler<hyper::Request<Body>> }

impl Api {
    /// The scope is the account that was authenticated; without one the answer is a 401.
    pub fn new(pool: &Pool, scope: impl Fn(&Parts) -> Option<String> + Shared) -> Api {
        let (pool, documentation) = (pool.clone(), "https://developer.example.com/idempotency".into());
        let core = Core { pool, documentation, lifetime_header: false, report: Arc::new(|error| eprintln!("{error}")) };
        let api = Api { core, max_body: 8 << 20, scope: Arc::new(scope), routes: Vec::new(), otherwise: Arc::new(|_| unreachable!()) };
        api.otherwise(|_| async { Ok(Answer::new(404, "").into()) })
    }

    /// The handler works in the transaction of the claim, and may be run again after a serialization failure. An error, a panic and a 5xx
    /// undo everything; what is below 500 is recorded. An `Answer` that is returned as the error is sent and not recorded.
    pub fn once<F: Doing<Response<Body>>>(self, operation: &str, options: Options, handler: impl Fn(Call) -> F + Shared) -> Api {
        self.route(operation, options, Work::Once(Arc::new(move |call| Box::pin(handler(call)))))
    }

    /// Work that leaves the database. The state is what it needs, without the request; where it cannot be made the error is answered.
    pub fn leased(self, operation: &str, options: Options, job: &Job, state: impl Fn(&Parts, &[u8]) -> Result<Value> + Shared) -> Api {
        self.route(operation, options, Work::Leased(job.clone(), Box::new(state)))
    }

    fn route(mut self, operation: &str, options: Options, work: Work) -> Api {
        self.routes.push(Arc::new((operation.into(), options, work)));
        self
    }

    /// What answers requests that no route is for.
    pub fn otherwise<F: Doing<Response<Body>>>(self, handler: impl Fn(hyper::Request<Body>) -> F + Shared) -> Api {
        Api { otherwise: Arc::new(move |request| Box::pin(handler(request))), ..self }
    }

    /// For `service_fn`. If the client goes away, what was begun comes to its end.
    pub async fn answer(self, request: hyper::Request<Body>) -> std::result::Result<Response<Body>, Infallible> {
        let asked = format!("{} {}", request.method(), request.uri().path());
        let answered = match self.routes.iter().find_map(|route| Some((route, params(&route.0, &asked)?))) {
            Some((route, params)) => self.answer_by(route, params, request).await.map(Into::into),
            None => (self.otherwise)(request).await,
        };
        Ok(answered.unwrap_or_else(|error| self.core.failed(error).into()))
    }

    async fn answer_by(&self, route: &Route, params: Map<String, Value>, asked: hyper::Request<Body>) -> Result<Answer> {
        let ((parts, mut rest), mut body) = (asked.into_parts(), Vec::new());
        let scope = (self.scope)(&parts).ok_or_else(|| Answer::json(401, &"who is it?".into()))?;
        let lines: Vec<_> = parts.headers.get_all("idempotency-key").iter().map(HeaderValue::as_bytes).collect();
        let key = parse_key(&lines).ok_or_else(|| self.core.problem(if lines.is_empty() { "missing" } else { "malformed" }, 0))?;
        while let Some(part) = rest.data().await {
            body.extend_from_slice(&part?);
            if body.len() > self.max_body { return Err(Answer::new(413, "").into()); }
        }
        let request = if params.is_empty() { Request::Body(body.clone()) } else { Request::With(body.clone(), params.clone().into()) };
        let (id, options) = (Id::new(&scope, &route.0, &key), route.1.clone());
        match &route.2 {
            Work::Leased(job, state) => self.core.leased(id, request, options.state(&state(&parts, &body)?), job).await,
            Work::Once(handler) => {
                let (handler, parts, body) = (handler.clone(), Arc::new(parts), Bytes::from(body));
                let call = move |db| handler(Call { parts: parts.clone(), params: params.clone(), body: body.clone(), db });
                self.core.once(id, request, options, move |db| captured(call(db))).await
            }
        }
    }
}

// The parts of the path that stand where the template has {name}; None where it is another path.
fn params(template: &str, asked: &str) -> Option<Map<String, Value>> {
    let (mut given, mut params) = (asked.split('/'), Map::new());
    for wanted in template.split('/') {
        match (wanted.strip_prefix('{').and_then(|name| name.strip_suffix('}')), given.next()?) {
            (Some(name), given) => { params.insert(name.into(), given.into()); }
            (None, given) if given == wanted => {}
            _ => return None,
        }
    }
    given.next().is_none().then(|| params)
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
        // What is no header, by whatever language it was recorded, is left out.
        let headers = answer.headers.into_iter().filter_map(|(n, v)| Some((HeaderName::try_from(n).ok()?, HeaderValue::try_from(v).ok()?)));
        headers.for_each(|(name, value)| { response.headers_mut().append(name, value); });
        response
    }
}
