// The HTTP core: the header, problems, what is recorded, and that no answer leaves before COMMIT. By HTTP, on each framework.

import assert from 'node:assert/strict';
import { once as event } from 'node:events';
import { Readable } from 'node:stream';
import { after, before, test } from 'node:test';
import { randomUUID } from 'node:crypto';
import { serve } from '@hono/node-server';
import express from 'express';
import fastify from 'fastify';
import { Hono } from 'hono';
import { stream } from 'hono/streaming';
import { idempotent as onExpress, keepRawBody } from '../lib/express.js';
import { idempotent as onFastify } from '../lib/fastify.js';
import { idempotent as onHono } from '../lib/hono.js';
import { parseKey } from '../lib/http.js';
import { count, newPool, prepare, until } from './database.js';

const pool = newPool({ max: 5 });
const scope = () => 'test_node';
const order = async (db, item) => (await db.query('INSERT INTO test_node.orders (item) VALUES ($1) RETURNING item', [item])).rows[0];
let runs = 0;

// The same small service on each: orders, and what each framework has of its own ways to answer.
async function expressApp(options) {
  const app = express().use(express.json({ verify: keepRawBody }), (req, res, next) => { res.set('X-Early', 'yes'); next(); });
  const once = onExpress(pool, { scope, ...options });
  app.post('/orders', once(async (req, res) => {
    runs++;
    res.append('X-Run', String(runs));
    res.status(201).json(await order(req.db, req.body.item));
  }));
  app.post('/sync', once((req, res) => { res.writeHead(202, 'Taken', { 'Content-Type': 'text/plain' }); res.write('a'); res.end('b', () => {}); }));
  app.post('/stream', once((req, res) => { Readable.from([Buffer.from([0]), Buffer.from([255])]).pipe(res.type('application/octet-stream')); }));
  app.post('/next', once(async (req, res, next) => { await order(req.db, req.body.item); next(new Error('given to next')); }));
  app.post('/late', once(async (req, res) => { res.json(await order(req.db, req.body.item)); throw new Error('after the answer'); }));
  app.use((error, req, res, next) => { res.status(500).json({ error: error.message }); });
  const server = app.listen(0, '127.0.0.1');
  await event(server, 'listening');
  return { port: server.address().port, close: () => new Promise((resolve) => { server.close(resolve); server.closeAllConnections(); }) };
}

async function fastifyApp(options) {
  const app = fastify();
  const once = onFastify(app, pool, { scope, ...options });
  app.addHook('onRequest', async (request, reply) => { reply.header('X-Early', 'yes'); });
  app.post('/orders', once(async (request, reply) => {
    runs++;
    reply.header('X-Run', [reply.getHeader('X-Run') ?? [], String(runs)].flat()).code(201);
    return order(request.db, request.body.item);
  }));
  app.post('/stream', once(async () => Readable.from([Buffer.from([0]), Buffer.from([255])])));
  app.post('/sync', once((request, reply) => { setImmediate(() => reply.code(202).type('text/plain').send('ab')); }));
  app.post('/next', once(async (request, reply) => { await order(request.db, request.body.item); reply.send(new Error('sent')); }));
  app.post('/late', once(async (request, reply) => { reply.send(await order(request.db, request.body.item)); throw new Error('after'); }));
  await app.listen({ port: 0, host: '127.0.0.1' });
  return { port: app.server.address().port, close: () => app.close() };
}

async function honoApp(options) {
  const app = new Hono();
  const once = onHono(pool, { scope, ...options });
  app.use(async (c, next) => { c.header('X-Early', 'yes'); await next(); });
  app.post('/orders', once(async (c) => {
    runs++;
    c.header('X-Run', String(runs), { append: true });
    return c.json(await order(c.get('db'), (await c.req.json()).item), 201);
  }));
  app.post('/stream', once((c) => stream(c, async (out) => { await out.write(new Uint8Array([0])); await out.write(new Uint8Array([255])); })));
  app.post('/sync', once((c) => c.text('ab', 202, { 'Content-Type': 'text/plain' })));
  app.post('/next', once(async (c) => { await order(c.get('db'), (await c.req.json()).item); throw new Error('thrown'); }));
  app.post('/late', once(async (c) => { await order(c.get('db'), (await c.req.json()).item); return c.json({}, 500); }));
  const server = serve({ fetch: app.fetch, port: 0, hostname: '127.0.0.1' });
  await event(server, 'listening');
  return { port: server.address().port, close: () => new Promise((resolve) => { server.close(resolve); server.closeAllConnections(); }) };
}

const post = async (app, path, key, body, headers = {}) => {
  const answer = await fetch(`http://127.0.0.1:${app.port}${path}`, {
    method: 'POST', body: JSON.stringify(body),
    headers: { 'Content-Type': 'application/json', ...(key !== undefined && { 'Idempotency-Key': key }), ...headers },
  });
  const bytes = Buffer.from(await answer.arrayBuffer());
  return { status: answer.status, headers: answer.headers, bytes, text: bytes.toString() };
};

before(() => prepare(pool));
after(() => pool.end());

test('the header: RFC 8941 strings with escapes and parameters, and tokens', () => {
  for (const [line, key] of Object.entries({
    k: 'k', '"k"': 'k', ' "k" ': 'k', '"k";p=1': 'k', '"k"; a; b="x\\"y;z,"; c=?1': 'k', 'k;p': 'k', '"a\\"b"': 'a"b', '"a\\\\b"': 'a\\b', '"a,b c"': 'a,b c',
    [`"${'x'.repeat(255)}"`]: 'x'.repeat(255), '8e03978e-40d5-43dd-bc93-6894a57f9324': '8e03978e-40d5-43dd-bc93-6894a57f9324', 'YWJj+/=': 'YWJj+/=',
  })) assert.equal(parseKey([line]), key, line);
  for (const line of ['', ' ', '""', '"', '"k', 'k"', '"a\\nb"', '"k" x', 'a, b', '"a", "b"', 'a b', 'ä', '"ä"', '"a\tb"', 'x'.repeat(256), '"k";P=1', '"k"p']) {
    assert.equal(parseKey([line]), undefined, line);
  }
  assert.equal(parseKey([]), undefined);
  assert.equal(parseKey(['k', 'k']), undefined);
});

for (const [name, start] of Object.entries({ express: expressApp, fastify: fastifyApp, hono: honoApp })) {
  test(`${name}: no answer before COMMIT has succeeded`, async () => {
    // COMMIT waits, in a deferred trigger, for a lock that the test has.
    await pool.query(`CREATE OR REPLACE FUNCTION test_node.slow() RETURNS trigger LANGUAGE plpgsql AS
      $$BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END$$;
      CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON test_node.orders DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
      WHEN (NEW.item = 4711) EXECUTE FUNCTION test_node.slow()`);
    const app = await start();
    const holder = await pool.connect();
    try {
      await holder.query('SELECT pg_advisory_lock(4711)');
      let answered = false;
      const request = post(app, '/orders', randomUUID(), { item: 4711 }).finally(() => { answered = true; });
      await until(async () => (await pool.query(`SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted`)).rowCount,
        'COMMIT waits');
      assert.equal(answered, false);
      await holder.query('SELECT pg_advisory_unlock(4711)');
      assert.equal((await request).status, 201);
    } finally {
      holder.release(true);
      await app.close();
      await pool.query('DROP TRIGGER slow ON test_node.orders');
    }
  });

  test(`${name}: a COMMIT that fails for good is a 500, and for serialization another run of the handler`, async () => {
    await pool.query(`CREATE SEQUENCE IF NOT EXISTS test_node.commits;
      CREATE OR REPLACE FUNCTION test_node.refuse() RETURNS trigger LANGUAGE plpgsql AS
      $$BEGIN IF NEW.item = 502 THEN PERFORM 1/0; ELSIF nextval('test_node.commits') % 3 > 0 THEN RAISE SQLSTATE '40001'; END IF; RETURN NULL; END$$;
      CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON test_node.orders DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
      WHEN (NEW.item IN (502, 503)) EXECUTE FUNCTION test_node.refuse()`);
    const app = await start();
    try {
      const refused = await post(app, '/orders', randomUUID(), { item: 502 });
      assert.equal(refused.status, 500);
      assert.equal(refused.headers.get('x-run'), null, 'what the handler had set is gone');
      assert.equal(await count(pool, 502), 0);
      await pool.query(`DELETE FROM test_node.orders WHERE item = 503; ALTER SEQUENCE test_node.commits RESTART`);
      runs = 0;
      const answer = await post(app, '/orders', randomUUID(), { item: 503 });
      assert.deepEqual([answer.status, runs, answer.headers.get('x-run')], [201, 3, '3'], 'of the last run alone');
      assert.equal(await count(pool, 503), 1);
    } finally {
      await app.close();
      await pool.query('DROP TRIGGER refuse ON test_node.orders');
    }
  });

  test(`${name}: ways to answer, and to fail`, async () => {
    const app = await start();
    try {
      for (const replayed of [null, 'true']) {
        const answer = await post(app, '/sync', 'sync', { item: 1 });
        assert.deepEqual([answer.status, answer.text, answer.headers.get('idempotent-replayed')], [202, 'ab', replayed]);
        assert.equal(answer.headers.get('content-type').replace(/ *; *charset=utf-8/i, ''), 'text/plain');
        assert.equal(answer.headers.get('x-early'), 'yes');
        const streamed = await post(app, '/stream', 'stream', { item: 1 });
        assert.deepEqual([streamed.bytes, streamed.headers.get('idempotent-replayed')], [Buffer.from([0, 255]), replayed]);
      }
      for (const path of ['/next', '/late']) {
        assert.equal((await post(app, path, randomUUID(), { item: 90 })).status, 500, path);
        assert.equal(await count(pool, 90), 0, path);
      }
    } finally {
      await app.close();
      await pool.query(`SELECT idempotency.forget('test_node', 'POST /sync', 'sync'), idempotency.forget('test_node', 'POST /stream', 'stream')`);
    }
  });

  test(`${name}: problems, an optional key, and the lifetime`, async () => {
    const app = await start({ required: false, lifetimeHeader: true, documentation: 'https://shop.example.com/keys' });
    const strict = await start();
    try {
      const key = randomUUID();
      const first = await post(app, '/orders', key, { item: 91 });
      assert.equal(first.status, 201);
      assert.ok(Date.parse(first.headers.get('idempotency-key-expires')) > Date.now());
      const replay = await post(app, '/orders', `"${key}"`, { item: 91 });
      assert.equal(replay.headers.get('idempotent-replayed'), 'true');
      assert.equal(replay.headers.get('idempotency-key-expires'), first.headers.get('idempotency-key-expires'));
      assert.equal(replay.headers.get('x-run'), first.headers.get('x-run'));

      const mismatch = await post(app, '/orders', key, { item: 92 });
      assert.equal(mismatch.status, 422);
      assert.equal(mismatch.headers.get('content-type'), 'application/problem+json');
      assert.equal(mismatch.headers.get('retry-after'), null);
      const { type, title, status } = JSON.parse(mismatch.text);
      assert.deepEqual([type, title, status], ['https://shop.example.com/keys#mismatch', 'Idempotency-Key is already used', 422]);

      assert.equal((await post(app, '/orders', undefined, { item: 93 })).status, 201, 'without a key it is an ordinary request');
      assert.equal(await count(pool, 93), 1);
      await pool.query('DELETE FROM test_node.orders WHERE item = 93');
      const missing = await post(strict, '/orders', undefined, { item: 93 });
      assert.equal(missing.status, 400);
      assert.match(missing.headers.get('link'), /^<https:.*>; rel="describedby"; type="text\/html"$/);
      assert.equal(JSON.parse(missing.text).title, 'Idempotency-Key is missing');
      assert.equal(await count(pool, 93), 0);

      await pool.query(`SELECT idempotency.redact('test_node', 'POST /orders', $1)`, [key]);
      assert.equal((await post(app, '/orders', key, { item: 91 })).status, 410);
    } finally {
      await app.close();
      await strict.close();
    }
  });
}

test('express: a body whose bytes nobody kept is not compared as an empty one', async () => {
  const app = express().use(express.json());
  app.post('/orders', onExpress(pool, { scope })(assert.fail));
  app.use((error, req, res, next) => { res.status(500).send(error.message); });
  const server = app.listen(0, '127.0.0.1');
  await event(server, 'listening');
  try {
    const answer = await post({ port: server.address().port }, '/orders', 'k', { item: 1 });
    assert.match(answer.text, /keepRawBody/);
  } finally {
    server.close();
    server.closeAllConnections();
  }
});
