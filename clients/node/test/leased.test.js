// Work that leaves the database: what is recorded of it, when a claim's answer is lost, when the claim is, and when its owner dies.

import assert from 'node:assert/strict';
import { connect, createServer } from 'node:net';
import { once as event } from 'node:events';
import { after, before, test } from 'node:test';
import * as idem from '../lib/client.js';
import { completer, NothingHappened, runLeased } from '../lib/leased.js';
import { count, newId, newPool, prepare, until } from './database.js';

const pool = newPool({ max: 5 });
before(() => prepare(pool));
after(() => pool.end());

const options = { request: { item: 1 }, lease: '1 min' };
const insert = (item) => (db) => db.query('INSERT INTO test_node.orders (item) VALUES ($1)', [item]);

test('an answer is recorded with what it books, once', async () => {
  const id = newId('POST /charges');
  const keys = [];
  const work = async ({ effectKey, state }) => {
    keys.push(effectKey);
    return { status: 201, body: { charged: state.amount }, book: insert(80) };
  };
  const first = await runLeased(pool, id, { ...options, step: 'charge', state: { amount: 5 } }, work);
  assert.deepEqual([first.outcome, first.status, first.body], ['claimed', 201, { charged: 5 }]);
  assert.ok(first.expiresAt > new Date());
  const second = await runLeased(pool, id, { ...options, step: 'charge', state: { amount: 5 } }, work);
  assert.deepEqual([second.outcome, second.responseStatus, second.responseBody], ['replay', 201, '{"charged":5}']);
  assert.equal(await count(pool, 80), 1);
  assert.deepEqual(keys, [await idem.effectKey(pool, id, 'charge')]);
});

test('nothing happened: the next attempt does it', async () => {
  const id = newId();
  const failed = await runLeased(pool, id, options, async () => { throw new NothingHappened('connection refused'); });
  assert.deepEqual(failed, { outcome: 'failed', lastError: 'connection refused' });
  const again = await runLeased(pool, id, options, async ({ claim }) => ({ body: { attempt: claim.attempt, last: claim.lastError } }));
  assert.deepEqual(again.body, { attempt: 2, last: 'connection refused' });
});

test('nobody knows: held', async () => {
  const id = newId();
  assert.equal((await runLeased(pool, id, options, async () => { throw new Error('no answer'); })).outcome, 'held');
  assert.equal((await runLeased(pool, id, options, assert.fail)).outcome, 'held');
  assert.equal((await idem.lookup(pool, id)).lastError, 'Error: no answer');
});

test('done and not to be recorded: held, and nothing booked', async () => {
  for (const answer of [
    { body: 'x'.repeat(5 * 1024 * 1024), book: insert(81) },
    { body: 'booked', book: async (db) => { await insert(81)(db); await db.query('SELECT 1/0'); } },
  ]) {
    const id = newId();
    await assert.rejects(runLeased(pool, id, options, async () => answer), (error) => /54000|22012/.test(idem.sqlstate(error)));
    assert.equal((await idem.lookup(pool, id)).status, 'held');
  }
  assert.equal(await count(pool, 81), 0);
});

test('a heartbeat keeps the lease, and stops work that has lost its claim', async () => {
  const id = newId();
  const result = await runLeased(pool, id, { ...options, lease: '600 ms' }, async ({ claim, signal }) => {
    await until(async () => (await idem.lookup(pool, id)).lockedUntil > claim.lockedUntil, 'a heartbeat');
    await pool.query('SELECT idempotency.forget($1, $2, $3, force => true)', [id.scope, id.operation, id.key]);
    await new Promise((resolve, reject) => { signal.addEventListener('abort', () => reject(new Error('stopped'))); });
  }).catch((error) => error);
  assert.equal(idem.kind(result), 'stale_claim');
  assert.equal(await idem.lookup(pool, id), null, 'a late owner records nothing');
});

test('an answer that a person has recorded meanwhile is the one that counts', async () => {
  const id = newId();
  const result = await runLeased(pool, id, options, async ({ claim }) => {
    await idem.complete(pool, id, { status: 201, body: 'by hand', token: claim.token });
    return { status: 201, body: 'by the machine', book: insert(82) };
  });
  assert.deepEqual([result.outcome, result.responseBody], ['replay', 'by hand']);
  assert.equal(await count(pool, 82), 0);
});

test('a claim whose answer is lost is repeated with its claim_id', async () => {
  // A proxy that lets the server's first "claimed" get no further: the claim is committed, and nobody has heard of it.
  let lost = 0;
  const proxy = createServer((client) => {
    const host = process.env.PGHOST ?? '/var/run/postgresql';
    const port = Number(process.env.PGPORT ?? 5432);
    const server = connect(host.startsWith('/') ? { path: `${host}/.s.PGSQL.${port}` } : { host, port });
    const close = () => { client.destroy(); server.destroy(); };
    client.on('error', close).on('close', close).pipe(server);
    server.on('error', close).on('close', close).on('data', (data) => {
      if (lost === 0 && data.includes('claimed')) {
        lost++;
        close();
      } else if (!client.destroyed) client.write(data);
    });
  }).listen(0, '127.0.0.1');
  await event(proxy, 'listening');
  const through = newPool({ host: '127.0.0.1', port: proxy.address().port, max: 2 });
  try {
    const id = newId();
    let runs = 0;
    const result = await runLeased(through, id, options, async ({ claim }) => ({ body: { run: ++runs, attempt: claim.attempt } }));
    assert.equal(lost, 1, 'the first answer was lost');
    assert.deepEqual([result.outcome, result.body], ['claimed', { run: 1, attempt: 1 }]);
  } finally {
    await through.end();
    proxy.close();
  }
});

test('the completer drives on what others left, from its state', async () => {
  const operation = 'POST /abandoned';
  const ids = [newId(operation), newId(operation)];
  for (const [i, id] of ids.entries()) await idem.claim(pool, id, { request: i, lease: '1 ms', state: { item: 83 + i } });
  const [stop, errors] = [new AbortController(), []];
  const running = completer(pool, operation, { lease: '1 min', pause: 50, signal: stop.signal, onError: (e) => errors.push(e) },
    async ({ state, claim }) => {
      assert.equal(claim.takenOver ?? true, true);
      return { status: 201, body: { item: state.item }, book: insert(state.item) };
    });
  for (const [i, id] of ids.entries()) {
    await until(async () => (await idem.lookup(pool, id)).status === 'completed', 'completed');
    assert.equal(await count(pool, 83 + i), 1);
  }
  stop.abort();
  await running;
  assert.deepEqual(errors, []);
});

test('the completer survives the loss of its database', async () => {
  const gone = newPool({ host: '127.0.0.1', port: 1 });
  const [stop, errors] = [new AbortController(), []];
  const running = completer(gone, 'x', { pause: 10, signal: stop.signal, onError: (e) => errors.push(idem.kind(e)) }, assert.fail);
  await until(() => errors.length >= 2, 'two attempts');
  stop.abort();
  await running;
  assert.deepEqual(new Set(errors), new Set(['unavailable']));
});
