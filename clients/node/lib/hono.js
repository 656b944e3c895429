// Hono 4: `app.post('/orders', once(async (c) => …))`; the connection is c.get('db').
import { routePath } from 'hono/route';
import { httpCore } from './http.js';
export const idempotent = (pool, options) => httpCore(pool, options, (handler, answerTo) => async (c) => {
  c.set('db', pool);
  const { method, raw } = c.req;
  // Headers of the web's kind join two lines by a comma; Node.js has them apart.
  const lines = c.env?.incoming?.headersDistinct['idempotency-key'] ?? [raw.headers.get('idempotency-key') ?? []].flat();
  const before = [...c.body(null).headers]; // what c.header() has set so far
  const reset = () => {
    for (const name of [...c.body(null).headers.keys()]) c.header(name, undefined);
    for (const [name, value] of before) c.header(name, value, { append: true });
  };
  const asked = { source: c, method, lines, body: () => c.req.arrayBuffer(), params: c.req.param(), path: routePath(c) };
  const answer = await answerTo(asked, async (db) => {
    reset();
    c.set('db', db);
    const response = await handler(c);
    return { status: response.status, headers: [...response.headers], body: new Uint8Array(await response.arrayBuffer()) };
  }).catch((error) => { reset(); throw error; });
  return answer ? new Response(answer.body.length > 0 ? answer.body : null, answer) : handler(c);
});
