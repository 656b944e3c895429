// The conformance service on Fastify.

import fastify from 'fastify';
import { idempotent } from '../lib/fastify.js';
import * as shop from './shop.js';

const app = fastify({ bodyLimit: shop.limit });
const once = idempotent(app, shop.pool, { scope: (request) => `shop:${request.user}` });

// A body that is compressed is not decoded, so no parser reads it.
app.removeAllContentTypeParsers();
app.addContentTypeParser('*', { parseAs: 'buffer' }, (request, body, done) => done(null, body));

app.decorateRequest('user', null);
app.addHook('onRequest', async (request, reply) => {
  request.user = shop.userOf(request.headers.authorization);
  if (!request.user && request.routeOptions.url !== '/health') return reply.code(401).send({ error: 'who is it?' });
});

const order = async (request, reply) => {
  const { status, headers, body } = await shop.order(request.db, request.user, request.rawBody, request.headers['x-fail']);
  for (const [name, value] of headers) reply.header(name, [reply.getHeader(name) ?? [], value].flat());
  return reply.code(status).send(body);
};
app.post('/orders', once(order));
app.post('/waiting-orders', once(order, { wait: process.env.WAIT ?? '5 s' }));

app.post('/orders/:id/refunds', once(async (request, reply) => {
  shop.parsed(request.rawBody);
  reply.code(201);
  return { refund: await shop.insert(request.db, request.user, request.params.id) };
}));

app.post('/blobs', once(async (request, reply) => {
  await shop.insert(request.db, request.user, 0);
  for (const name of ['content-type', 'content-encoding']) if (request.headers[name]) reply.header(name, request.headers[name]);
  return reply.code(201).send(request.rawBody);
}));

app.post('/charges', once.leased(shop.charge, {
  ...shop.chargeRoute, state: (request) => shop.chargeState(request.user, request.rawBody),
}));

app.get('/orders', async (request) => ({ orders: await shop.countOrders(shop.pool, request.user) }));
app.get('/visits', once(async (request) => ({ visits: await shop.visit(request.db, request.user) })));
app.get('/health', async (request, reply) => reply.code(await shop.health()).send());

app.setErrorHandler((error, request, reply) =>
  reply.code(error.statusCode ?? 500).type('application/problem+json').send(JSON.stringify({ title: error.message })));

await app.listen({ port: shop.port, host: '127.0.0.1' });
shop.listening();
