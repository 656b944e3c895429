// Fastify 5: `app.post('/orders', once(async (request, reply) => …))` after `once = idempotent(app, pool, options)`. The connection
// is request.db, and request.rawBody the bytes as they came.

import { Transform } from 'node:stream';
import { httpCore, onNode } from './http.js';

const describe = (request) => ({
  source: request, method: request.method, lines: request.raw.headersDistinct['idempotency-key'] ?? [], body: () => request.rawBody,
  params: request.params, path: request.routeOptions.url,
});

// What the handler returns or sends, made bytes as Fastify would, instead of sending it.
async function captured(handler, request, reply) {
  try {
    let send;
    const sent = new Promise((resolve) => { send = resolve; });
    reply.send = (payload) => { send(payload); return reply; };
    const returned = await handler(request, reply);
    const payload = returned === undefined || returned === reply ? await sent : returned;
    if (payload instanceof Error) throw payload;
    if (payload === undefined || payload === null) return null;
    const [text, bytes] = [typeof payload === 'string', payload instanceof Uint8Array];
    if (!reply.hasHeader('content-type')) {
      reply.type(text ? 'text/plain; charset=utf-8' : bytes ? 'application/octet-stream' : 'application/json; charset=utf-8');
    }
    return text || bytes ? payload : reply.serialize(payload);
  } finally {
    delete reply.send;
  }
}

export function idempotent(app, pool, options) {
  app.decorateRequest('db', null);
  app.decorateRequest('bodyChunks', null);
  app.decorateRequest('rawBody', { getter() { return Buffer.concat(this.bodyChunks ?? []); } });
  // The bytes pass on their way to whatever parser the route has, which also keeps to the limit of the body.
  app.addHook('preParsing', async (request, reply, payload) => {
    const transform = (chunk, encoding, done) => { request.bodyChunks.push(chunk); done(null, chunk); };
    request.bodyChunks = [];
    return payload.pipe(new Transform({ transform }));
  });
  return httpCore(pool, options, onNode(describe, captured, (reply, body) => reply.send(body.length > 0 ? body : undefined)));
}
