// Express 5: `app.post('/orders', once(handler))`; the connection is req.db. The handler is wrapped, not preceded by a middleware,
// because what it throws has to roll back, and because it may have to be run again.

import { httpCore, onNode } from './http.js';

/** For express.json({ verify: keepRawBody }): the bytes as they came, beside the parsed body. */
export const keepRawBody = (req, res, bytes) => { req.rawBody = bytes; };

function bodyOf(req) {
  const bytes = req.rawBody ?? (Buffer.isBuffer(req.body) ? req.body : undefined);
  if (bytes || (!req.headers['transfer-encoding'] && !Number(req.headers['content-length']))) return bytes ?? '';
  throw new TypeError('no bytes of the body: express.json({ verify: keepRawBody }) or express.raw() must come before');
}

const describe = (req) => ({
  source: req, method: req.method, lines: req.headersDistinct['idempotency-key'] ?? [], body: () => bodyOf(req), params: req.params,
  path: `${req.baseUrl}${req.route.path}`,
});

// What the handler writes to the response, instead of sending it.
async function captured(handler, req, res) {
  const { write, end, writeHead, flushHeaders } = res;
  const chunks = [];
  res.flushHeaders = () => {};
  res.writeHead = (status, ...rest) => {
    for (const [name, value] of Object.entries(rest.at(-1) ?? {})) res.setHeader(name, value);
    return res.status(status);
  };
  res.write = (chunk, ...rest) => {
    if (typeof chunk === 'string' || chunk instanceof Uint8Array) chunks.push(Buffer.from(chunk, ...rest.filter((one) => typeof one === 'string')));
    [chunk, ...rest].find((one) => typeof one === 'function')?.();
    return true;
  };
  try {
    await new Promise((resolve, reject) => {
      const running = (async () => handler(req, res, (error) => reject(error ?? new Error('a wrapped handler has to answer'))))();
      running.catch(reject);
      res.end = (...args) => { res.write(...args); resolve(running); return res; };
    });
    return Buffer.concat(chunks);
  } finally {
    Object.assign(res, { write, end, writeHead, flushHeaders });
  }
}

export const idempotent = (pool, options) => httpCore(pool, options, onNode(describe, captured, (res, body) => { res.end(body); }));
