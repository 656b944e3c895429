// The header Idempotency-Key (draft-ietf-httpapi-idempotency-key-header-07) on the calls of the client, for any framework.
//
// An adapter says what was asked and how its handler is run on a connection, and sends the answer that it gets. That is not before
// COMMIT has succeeded, so no client is told what was undone.

import { capped, claim, complete, kind, transaction } from './client.js';
import { runLeased } from './leased.js';
import { normal, recorded, replayed } from './answer.js';

// The draft has the first three titles. Who gets a Retry-After may send the same request again; nobody else is invited to.
const PROBLEMS = {
  missing: [400, 'Idempotency-Key is missing', 'This operation needs the header Idempotency-Key: one key for each intent.'],
  mismatch: [422, 'Idempotency-Key is already used', 'The key was used for another request, which may have taken effect.'],
  'in-progress': [409, 'A request is outstanding for this Idempotency-Key', 'A request with this key is being processed.'],
  malformed: [400, 'Idempotency-Key is malformed', 'The header is one string of 1 to 255 printable ASCII characters: "k" or k.'],
  held: [409, 'The outcome for this Idempotency-Key is unknown', 'Whether the first request took effect is being looked into.'],
  redacted: [410, 'The answer for this Idempotency-Key is gone', 'The request was done, and its answer was removed.'],
  'too-large': [500, 'The answer for this Idempotency-Key is too large', 'It cannot be recorded, and a repeat would fail again.'],
  unavailable: [503, 'Idempotency-Key cannot be checked now', 'Send the same request with the same key again later.'],
};
const OF_KIND = {
  retry: ['unavailable', 1], unavailable: ['unavailable', 1], wait_timeout: ['in-progress', 1], stale_claim: ['in-progress', 1],
  held: ['held'], redacted: ['redacted'], too_large: ['too-large'],
};

// RFC 8941: a string with its escapes, or a token, as many clients send it. Parameters are read over.
const [STRING, TOKEN] = ['"((?:[ !#-[\\]-~]|\\\\["\\\\])*)"', '[!#-+\\--:<-~]+'];
const ITEM = new RegExp(`^(?:${STRING}|(${TOKEN}))(?:; *[a-z*][a-z0-9_.*-]*(?:=(?:${STRING}|${TOKEN}))?)*$`);

/** The key of the header's lines, "k" and k alike, or the name of the problem. */
export function parseKey(lines) {
  if (lines.length === 0) return { problem: 'missing' };
  const match = lines.length === 1 && ITEM.exec(lines[0].trim());
  const key = match && (match[1]?.replace(/\\(.)/g, '$1') ?? match[2]);
  return key && key.length <= 255 ? { key } : { problem: 'malformed' };
}

/** once(handler, route), and once.leased(work, route) for work that leaves the database. A route's options go before those of all. */
export function httpCore(pool, options, adapter) {
  const settings = { methods: ['POST', 'PATCH'], required: true, documentation: 'https://developer.example.com/idempotency', ...options };
  // An idle connection that is lost makes the pool emit "error", and one that nobody hears ends the process.
  if (pool.listenerCount('error') === 0) pool.on('error', () => {});

  function problem(name, retryAfter) {
    const [status, title, detail] = PROBLEMS[name];
    const headers = [['Content-Type', 'application/problem+json'], ['Content-Language', 'en']];
    if (status === 400) headers.push(['Link', `<${settings.documentation}>; rel="describedby"; type="text/html"`]);
    if (retryAfter !== undefined) headers.push(['Retry-After', String(Math.max(1, retryAfter))]);
    return normal({ status, headers, body: { type: `${settings.documentation}#${name}`, title, status, detail } });
  }
  const expiring = (answer, at) => (!settings.lifetimeHeader || !at ? answer
    : { ...answer, headers: [...answer.headers, ['Idempotency-Key-Expires', at.toUTCString()]] });
  function withoutWork(result) {
    if (result.outcome === 'in_progress') return problem('in-progress', Math.ceil(result.retryAfterMs / 1000));
    if (result.outcome === 'failed') return problem('unavailable', 1);
    if (result.outcome !== 'replay') return problem(result.outcome); // mismatch, held
    const { headers, ...answer } = replayed(result);
    return expiring({ ...answer, headers: [...headers, ['Idempotent-Replayed', 'true']] }, result.expiresAt);
  }

  // asked: { source, method, lines, body(), params, path }. Resolves to nothing where the request is not to be touched.
  async function answerTo({ source, method, lines, body, params, path }, work, route) {
    const { methods, required, wait, ttl, ...its } = { ...settings, ...route };
    if (!methods.includes(method) || (!required && lines.length === 0)) return undefined;
    const scope = its.scope(source);
    if (!scope) throw new TypeError('scope() gave nothing: authenticate before');
    const { key, problem: fault } = parseKey(lines);
    if (fault) return problem(fault);
    // Other languages write a route's template with braces; a key is the same whoever serves it.
    const id = { scope, operation: its.operation?.(source) ?? `${method} ${path.replace(/:(\w+)/g, '{$1}')}`, key };
    const request = { params, ttl, body: await body() };
    try {
      if (its.work) {
        const { lease, holdIfAbandoned, step } = its;
        const state = await its.state?.(source);
        const result = await runLeased(pool, id, { ...request, wait, lease, holdIfAbandoned, step, state }, its.work);
        return result.outcome === 'claimed' ? normal(result) : withoutWork(result);
      }
      return await transaction(pool, async (db) => {
        const claimed = await capped(pool, wait, (most) => claim(db, id, { ...request, wait: most }));
        if (claimed.outcome !== 'claimed') return withoutWork(claimed);
        const answer = normal(await work(db));
        if (answer.status >= 500) throw Object.assign(new Error('not recorded'), { answer }); // rolls back
        return expiring(answer, await complete(db, id, recorded(answer)));
      });
    } catch (error) {
      if (error.answer) return error.answer;
      if (!OF_KIND[kind(error)]) throw error; // the framework's, as if this were not here
      return problem(...OF_KIND[kind(error)]);
    }
  }

  const wrap = (handler, route) => adapter(handler, (asked, work) => answerTo(asked, work, route), pool);
  return Object.assign(wrap, { leased: (work, route) => wrap(undefined, { ...route, work }) });
}

/**
 * The adapter for responses as Node.js has them, which hold headers before they are sent. A handler's answer is captured; it may be run
 * again after a serialization failure, on a response as it was before. What it did not set itself is not recorded.
 */
export const onNode = (describe, captured, send) => (handler, answerTo, pool) => async (req, res, ...rest) => {
  req.db = pool;
  const before = res.getHeaders();
  const put = (headers, status = 200) => {
    for (const name of Object.keys(res.getHeaders())) res.removeHeader(name);
    for (const [name, value] of Object.entries(headers)) (res.setHeader ?? res.header).call(res, name, value);
    res.status(status);
  };
  const run = async (db) => {
    put(before);
    req.db = db;
    const body = await captured(handler, req, res);
    return { status: res.statusCode, headers: Object.entries(res.getHeaders()).filter(([name, value]) => before[name] !== value), body };
  };
  const answer = await answerTo(describe(req), run).catch((error) => { put(before); throw error; });
  if (!answer) return handler(req, res, ...rest);
  const headers = {};
  for (const [name, value] of answer.headers) headers[name] = name in headers ? [headers[name], value].flat() : value;
  put({ ...before, ...headers }, answer.status);
  return send(res, answer.body);
};
