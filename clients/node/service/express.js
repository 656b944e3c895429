// The conformance service on Express.

import express from 'express';
import { idempotent } from '../lib/express.js';
import * as shop from './shop.js';

const app = express();
const once = idempotent(shop.pool, { scope: (req) => `shop:${req.user}` });

app.get('/health', async (req, res) => { res.sendStatus(await shop.health()); });

app.use(async (req, res, next) => {
  req.user = shop.userOf(req.get('authorization'));
  if (!req.user) return res.status(401).json({ error: 'who is it?' });
  req.rawBody = Buffer.concat(await req.toArray()); // a body that is compressed is not decoded, so no parser reads it
  return req.rawBody.length > shop.limit ? res.sendStatus(413) : next();
});

const order = async (req, res) => {
  const { status, headers, body } = await shop.order(req.db, req.user, req.rawBody, req.get('x-fail'));
  for (const [name, value] of headers) res.append(name, value);
  res.status(status).json(body);
};
app.post('/orders', once(order));
app.post('/waiting-orders', once(order, { wait: process.env.WAIT ?? '5 s' }));

app.post('/orders/:id/refunds', once(async (req, res) => {
  shop.parsed(req.rawBody);
  res.status(201).json({ refund: await shop.insert(req.db, req.user, req.params.id) });
}));

app.post('/blobs', once(async (req, res) => {
  await shop.insert(req.db, req.user, 0);
  for (const name of ['content-type', 'content-encoding']) if (req.get(name)) res.setHeader(name, req.get(name));
  res.status(201).end(req.rawBody);
}));

app.post('/charges', once.leased(shop.charge, { ...shop.chargeRoute, state: (req) => shop.chargeState(req.user, req.rawBody) }));

app.get('/orders', async (req, res) => { res.json({ orders: await shop.countOrders(shop.pool, req.user) }); });
app.get('/visits', once(async (req, res) => { res.json({ visits: await shop.visit(req.db, req.user) }); }));

app.use((error, req, res, next) => {
  res.status(error.status ?? 500).type('application/problem+json').send(JSON.stringify({ title: error.message }));
});

app.listen(shop.port, '127.0.0.1', shop.listening);
