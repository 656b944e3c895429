// Express 5: `app.post('/orders', once(handler))`; the connection is req.db. The handler is wrapped, not preceded by a middleware,
// because what it throws has to roll back, and because it may have to be run again.
import { httpCore, onNode } from './http.js';

/** For express.json({ verify: keepRawBody }): the bytes as they came, beside the parsed body. */
export const keepRawBody = (req, res, bytes) => { req.rawBody = bytes; };

const describe = (req) => ({
  path: req.baseUrl + req.route.path,
  body() {
    const bytes = req.rawBody ?? (Buffer.isBuffer(req.body) ? req.body : undefined);
    if (bytes || (!req.headers['transfer-encoding'] && !Number(req.headers['content-length']))) return bytes ?? '';
    throw new TypeError('no bytes of the body: express.json({ verify: keepRawBody }) or express.raw() must come before');
  },
});

// What the handler writes to the response, instead of sending it.
async function captured(handler, req, res) {
  const [chunks, { write, end, writeHead, flushHeaders }] = [[], res];
  res.flushHeaders = () => {};
  res.writeHead = (status, ...rest) => res.status(status).set(rest.find((one) => typeof one === 'object') ?? {});
  res.write = (...args) => {
    const callback = args.findIndex((one) => typeof one === 'function');
    if (args[0] && callback !== 0) chunks.push(Buffer.from(...args.slice(0, callback < 0 ? undefined : callback)));
    args[callback]?.();
    return true;
  };
  try {
    await new Promise((resolve, reject) => {
      res.end = (...args) => { res.write(...args); resolve(running); return res; };
      const next = (error) => reject(error ?? new Error('a wrapped handler has to answer'));
      const running = Promise.resolve().then(() => handler(req, res, next));
      running.catch(reject);
    });
    return Buffer.concat(chunks);
  } finally { Object.assign(res, { write, end, writeHead, flushHeaders }); }
}

export const idempotent = (pool, options) => httpCore(pool, options, onNode(describe, captured, (res, body) => { res.end(body); }));
