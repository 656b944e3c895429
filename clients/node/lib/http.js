// The header Idempotency-Key (draft-ietf-httpapi-idempotency-key-header-07) on the calls of the client, for any framework.
// An adapter says what was asked and how its handler is run, and sends the answer that it gets. That is not before COMMIT has
// succeeded, so no client is told what was undone.
import { capped, claim, complete, kind, transaction } from './client.js';
import { runLeased } from './leased.js';
import { normal } from './answer.js';

// The draft has the first three titles. Who gets a Retry-After may send the same request again; nobody else is invited to.
const PROBLEMS = {
  missing: [400, 'Idempotency-Key is missing', 'This operation needs the header Idempotency-Key: one key for each intent.'],
  mismatch: [422, 'Idempotency-Key is already used', 'The key was used for another request, which may have taken effect.'],
  in_progress: [409, 'A request is outstanding for this Idempotency-Key', 'A request with this key is being processed.'],
  malformed: [400, 'Idempotency-Key is malformed', 'The header is one string of 1 to 255 printable ASCII characters: "k" or k.'],
  held: [409, 'The outcome for this Idempotency-Key is unknown', 'Whether the first request took effect is being looked into.'],
  redacted: [410, 'The answer for this Idempotency-Key is gone', 'The request was done, and its answer was removed.'],
  too_large: [500, 'The answer for this Idempotency-Key is too large', 'It cannot be recorded, and a repeat would fail again.'],
  unavailable: [503, 'Idempotency-Key cannot be checked now', 'Send the same request with the same key again later.'],
};
const ALSO = { failed: 'unavailable', retry: 'unavailable', wait_timeout: 'in_progress', stale_claim: 'in_progress' };
// RFC 8941: a string with its escapes, or a token, as many clients send it. Parameters are read over.
const [STRING, TOKEN] = ['"((?:[ !#-[\\]-~]|\\\\["\\\\])*)"', '[!#-+\\--:<-~]+'];
const ITEM = new RegExp(`^(?:${STRING}|(${TOKEN}))(?:; *[a-z*][a-z0-9_.*-]*(?:=(?:${STRING}|${TOKEN}))?)*$`);

/** The key of the header's lines, "k" and k alike. */
export function parseKey(lines) {
  const match = lines.length === 1 && ITEM.exec(lines[0].trim());
  const key = match && (match[1]?.replace(/\\(.)/g, '$1') ?? match[2]);
  return key && key.length <= 255 ? key : undefined;
}

/** once(handler, route), and once.leased(work, route) for work that leaves the database. A route's options go before those of all. */
export function httpCore(pool, options, adapter) {
  const settings = { methods: ['POST', 'PATCH'], required: true, documentation: 'https://developer.example.com/idempotency', ...options };
  // An idle connection that is lost makes the pool emit "error", and one that nobody hears ends the process.
  if (pool.listenerCount('error') === 0) pool.on('error', () => {});
  function problem(outcome, seconds = 1, name = ALSO[outcome] ?? outcome) {
    const [status, title, detail] = PROBLEMS[name];
    const headers = [['Content-Type', 'application/problem+json'], ['Content-Language', 'en']];
    if (status === 400) headers.push(['Link', `<${settings.documentation}>; rel="describedby"; type="text/html"`]);
    if (/in_progress|unavailable/.test(name)) headers.push(['Retry-After', Math.max(1, seconds)]);
    return normal({ status, headers, body: { type: `${settings.documentation}#${name.replace('_', '-')}`, title, status, detail } });
  }
  const kept = (answer, until, ...more) => normal({ ...answer, headers: [...answer.headers, ...more,
    ...(settings.lifetimeHeader && until ? [['Idempotency-Key-Expires', until.toUTCString()]] : [])] });
  function withoutWork({ outcome, retryAfterMs, ...row }) {
    if (outcome !== 'replay') return problem(outcome, Math.ceil((retryAfterMs ?? 0) / 1000));
    return kept(normal({ status: row.responseStatus, headers: row.responseHeaders, body: row.responseBytes ?? row.responseBody }),
      row.expiresAt, ['Idempotent-Replayed', 'true']);
  }

  // asked: { source, method, lines, body(), params, path }. Resolves to nothing where the request is not to be touched.
  async function answerTo({ source, method, lines, body, params, path }, run, route) {
    const { methods, required, wait, ttl, work, step, lease, holdIfAbandoned, ...of } = { ...settings, ...route };
    if (!methods.includes(method) || (!required && lines.length === 0)) return undefined;
    const scope = of.scope(source);
    if (!scope) throw new TypeError('scope() gave nothing: authenticate before');
    const key = parseKey(lines);
    if (!key) return problem(lines.length === 0 ? 'missing' : 'malformed');
    // Other languages write a route's template with braces; a key is the same whoever serves it.
    const id = { scope, operation: of.operation?.(source) ?? `${method} ${path.replace(/:(\w+)/g, '{$1}')}`, key };
    const request = { params, ttl, body: await body() };
    const unrecorded = new Error('rolls back what a repeat should not be told');
    try {
      if (work) {
        const leased = { ...request, wait, step, lease, holdIfAbandoned, state: await of.state?.(source) };
        const result = await runLeased(pool, id, leased, work);
        return result.outcome === 'claimed' ? kept(normal(result), result.expiresAt) : withoutWork(result);
      }
      return await transaction(pool, async (db) => {
        const claimed = await capped(pool, wait, (most) => claim(db, id, { ...request, wait: most }));
        if (claimed.outcome !== 'claimed') return withoutWork(claimed);
        const answer = normal(await run(db));
        if (answer.status >= 500) throw Object.assign(unrecorded, { answer });
        return kept(answer, await complete(db, id, answer));
      });
    } catch (error) {
      if (error === unrecorded) return error.answer;
      if ((ALSO[kind(error)] ?? kind(error)) in PROBLEMS) return problem(kind(error));
      throw error; // the framework's, as if this were not here
    }
  }

  const wrap = (handler, route) => adapter(handler, (asked, run) => answerTo(asked, run, route), pool);
  return Object.assign(wrap, { leased: (work, route) => wrap(undefined, { ...route, work, required: true }) });
}

// The adapter for responses as Node.js has them, which hold headers until they are sent. The handler's answer is captured, and it may be
// run again after a serialization failure, on a response as it was before. What it did not set itself is not recorded.
export const onNode = (describe, captured, send) => (handler, answerTo, pool) => async (req, res, ...rest) => {
  const before = res.getHeaders();
  const put = (headers, status = 200) => {
    for (const name of Object.keys(res.getHeaders())) res.removeHeader(name);
    for (const [name, value] of Object.entries(headers)) (res.setHeader ?? res.header).call(res, name, value);
    res.status(status);
  };
  req.db = pool;
  const { method, params, raw: { headersDistinct: { 'idempotency-key': lines = [] } } = req } = req;
  const answer = await answerTo({ source: req, method, lines, params, ...describe(req) }, async (db) => {
    put(before);
    req.db = db;
    const body = await captured(handler, req, res);
    return { status: res.statusCode, headers: Object.entries(res.getHeaders()).filter(([name, value]) => before[name] !== value), body };
  }).catch((error) => { put(before); throw error; });
  if (!answer) return handler(req, res, ...rest);
  const headers = {};
  for (const [name, value] of answer.headers) headers[name] = name in headers ? [headers[name], value].flat() : value;
  put({ ...before, ...headers }, answer.status);
  return send(res, answer.body);
};
