// Fastify 5: `app.post('/orders', once(async (request, reply) => …))` after `once = idempotent(app, pool, options)`. The connection
// is request.db, and request.rawBody the bytes as they came.
import { Transform } from 'node:stream';
import { httpCore, onNode } from './http.js';

const describe = (request) => ({ path: request.routeOptions.url, body: () => request.rawBody });

// What the handler returns or sends, made bytes as Fastify would, instead of sending it.
async function captured(handler, request, reply) {
  const sent = new Promise((resolve) => { reply.send = (payload) => { resolve(payload); return reply; }; });
  reply.then = undefined; // who awaits a reply waits until it has left, which is later
  try {
    const returned = await handler(request, reply);
    const given = (returned === undefined || returned === reply ? await sent : returned) ?? '';
    if (given instanceof Error) throw given;
    const payload = typeof given.pipe === 'function' ? Buffer.concat(await given.toArray()) : given;
    const plain = typeof payload === 'string' ? 'text/plain; charset=utf-8' : payload instanceof Uint8Array && 'application/octet-stream';
    if (payload !== '' && !reply.hasHeader('content-type')) reply.type(plain || 'application/json; charset=utf-8');
    return plain ? payload : reply.serialize(payload);
  } finally { for (const own of ['send', 'then']) delete reply[own]; }
}

export function idempotent(app, pool, options) {
  for (const name of ['db', 'chunks']) app.decorateRequest(name, null);
  app.decorateRequest('rawBody', { getter() { return Buffer.concat(this.chunks ?? []); } });
  // The bytes pass on their way to whatever parser the route has, which also keeps to the limit of the body.
  app.addHook('preParsing', async (request, reply, payload) => {
    request.chunks = [];
    return payload.pipe(new Transform({ transform(chunk, _, done) { request.chunks.push(chunk); done(null, chunk); } }));
  });
  return httpCore(pool, options, onNode(describe, captured, (reply, body) => reply.send(body.length > 0 ? body : undefined)));
}
