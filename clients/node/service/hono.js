// The conformance service on Hono, served by @hono/node-server.

import { serve } from '@hono/node-server';
import { Hono } from 'hono';
import { bodyLimit } from 'hono/body-limit';
import { idempotent } from '../lib/hono.js';
import * as shop from './shop.js';

const app = new Hono();
const once = idempotent(shop.pool, { scope: (c) => `shop:${c.get('user')}` });

app.get('/health', async (c) => c.body(null, await shop.health()));

app.use(bodyLimit({ maxSize: shop.limit }), async (c, next) => {
  c.set('user', shop.userOf(c.req.header('authorization')));
  return c.get('user') ? next() : c.json({ error: 'who is it?' }, 401);
});

const bytes = (c) => c.req.arrayBuffer();
const order = async (c) => {
  const { status, headers, body } = await shop.order(c.get('db'), c.get('user'), await bytes(c), c.req.header('x-fail'));
  for (const [name, value] of headers) c.header(name, value, { append: true });
  return c.json(body, status);
};
app.post('/orders', once(order));
app.post('/waiting-orders', once(order, { wait: process.env.WAIT ?? '5 s' }));

app.post('/orders/:id/refunds', once(async (c) => {
  shop.parsed(await bytes(c));
  return c.json({ refund: await shop.insert(c.get('db'), c.get('user'), c.req.param('id')) }, 201);
}));

app.post('/blobs', once(async (c) => {
  await shop.insert(c.get('db'), c.get('user'), 0);
  for (const name of ['content-type', 'content-encoding']) if (c.req.header(name)) c.header(name, c.req.header(name));
  return c.body(await bytes(c), 201);
}));

app.post('/charges', once.leased(shop.charge, {
  ...shop.chargeRoute, state: async (c) => shop.chargeState(c.get('user'), await bytes(c)),
}));

app.get('/orders', async (c) => c.json({ orders: await shop.countOrders(shop.pool, c.get('user')) }));
app.get('/visits', once(async (c) => c.json({ visits: await shop.visit(c.get('db'), c.get('user')) })));

app.onError((error, c) =>
  c.body(JSON.stringify({ title: error.message }), error.status ?? 500, { 'Content-Type': 'application/problem+json' }));

serve({ fetch: app.fetch, port: shop.port, hostname: '127.0.0.1' }, shop.listening);
