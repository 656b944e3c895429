// Compiled, not run: the declarations serve real programs, and refuse what goes wrong silently.

import express from 'express';
import fastify from 'fastify';
import { Hono } from 'hono';
import pg from 'pg';
import { PrismaPg } from '@prisma/adapter-pg';
import { PrismaClient } from './generated/index.js';
import { claim, complete, kind, transaction } from '../lib/client.js';
import { completer, NothingHappened, type Work } from '../lib/leased.js';
import { idempotent as onExpress, keepRawBody } from '../lib/express.js';
import { idempotent as onFastify } from '../lib/fastify.js';
import { idempotent as onHono } from '../lib/hono.js';
import { withIdempotency } from '../lib/prisma.js';
import { processTicket } from '../lib/tickets.js';

const pool = new pg.Pool();
const id = { scope: 'shop:ann', operation: 'POST /orders', key: 'k' };

export const answer = transaction(pool, async (db) => {
  const claimed = await claim(db, id, { request: { item: 7 }, wait: '2 s' });
  if (claimed.outcome === 'in_progress') return claimed.retryAfterMs + 1;
  if (claimed.outcome !== 'claimed') return claimed.responseStatus;
  await complete(db, id, { status: 201, headers: { Location: '/orders/1' }, body: { order: 1 } });
  return 201;
});
// @ts-expect-error the comparison is switched off explicitly or not at all
claim(pool, id, { wait: '2 s' });
// @ts-expect-error undefined is no request
claim(pool, id, { request: undefined });
// @ts-expect-error JSON text is a body
claim(pool, id, { request: '{"item": 7}' });
// @ts-expect-error a token is a bigint
complete(pool, id, { body: 'x', token: 5 });
// @ts-expect-error no such outcome
claim(pool, id, { compare: false }).then((claimed) => claimed.outcome === 'done');

const charge: Work = async ({ state, effectKey, signal }) => {
  const network = await fetch(`https://network.example.com/charges?key=${effectKey}`, { method: 'POST', signal });
  if (network.status === 503) throw new NothingHappened('not taken');
  return { status: 201, body: { charge: 1 }, book: (db) => db.query('INSERT INTO payments VALUES ($1)', [state.amount]) };
};
completer(pool, 'POST /charges', { lease: '1 min', onError: (error) => console.error(kind(error)) }, charge);

const once = onExpress(pool, { scope: (req) => `shop:${req.get('x-user')}` });
express().use(express.json({ verify: keepRawBody }))
  .post('/orders', once(async (req, res) => { res.json((await req.db.query('SELECT 1')).rows); }, { wait: '5 s' }))
  .post('/charges', once.leased(charge, { lease: '1 min', state: (req) => req.body }));

const app = fastify();
const twice = onFastify(app, pool, { scope: (request) => `shop:${request.headers['x-user']}` });
app.post('/orders', twice(async (request, reply) => { reply.code(201); return (await request.db.query('SELECT 1')).rows; }));

const thrice = onHono(pool, { scope: (c) => `shop:${c.req.header('x-user')}` });
new Hono().post('/orders', thrice(async (c) => c.json((await c.get('db').query('SELECT 1')).rows)));

const prisma = new PrismaClient({ adapter: new PrismaPg({}) });
export const invoice: Promise<{ id: number; amount: number }> =
  withIdempotency(prisma, 'tenant', 'invoice', { amount: 5 }, (tx) => tx.invoice.create({ data: { amount: 5 } }), { wait: 2000 });
processTicket(prisma, 'zendesk', 't-1', async (tx) => { await tx?.invoice.count(); }, { failOpen: true });
