// The thin client: what is compared, what an outcome and an error are, on pg, postgres.js and Drizzle.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { drizzle } from 'drizzle-orm/node-postgres';
import { sql as drizzleSql } from 'drizzle-orm';
import postgres from 'postgres';
import * as idem from '../lib/client.js';
import { count, newId, newPool, prepare, until, waitingClaims } from './database.js';

const pool = newPool({ application_name: 'test_node client', max: 5 });
const watch = newPool({ max: 1 });
before(() => prepare(pool));
after(() => Promise.all([pool.end(), watch.end()]));

/** A key that is completed for this request. */
async function completed(request, answer = { status: 201, body: { order: 1 } }) {
  const id = newId();
  await idem.transaction(pool, async (db) => {
    assert.equal((await idem.claim(db, id, { request })).outcome, 'claimed');
    await idem.complete(db, id, answer);
  });
  return id;
}

test('a repeat is replayed, byte for byte, and another request is a mismatch', async () => {
  const id = await completed({ item: 7, n: 1 }, { status: 201, headers: [['Link', '</a>'], ['Link', '</b>']], body: '{"order":  1.10}' });
  const replay = await idem.claim(pool, id, { body: Buffer.from('{ "n": 1.0, "item": 7 }') });
  assert.equal(replay.outcome, 'replay');
  assert.equal(replay.responseStatus, 201);
  assert.equal(replay.responseBody, '{"order":  1.10}');
  assert.deepEqual(replay.responseHeaders, [['Link', '</a>'], ['Link', '</b>']]);
  assert.equal(replay.fingerprintChecked, true);
  assert.ok(replay.expiresAt > new Date());
  assert.equal((await idem.claim(pool, id, { request: { item: 8, n: 1 } })).outcome, 'mismatch');
  assert.deepEqual((await idem.replay(pool, id)).responseBody, '{"order":  1.10}');
  assert.equal((await idem.lookup(pool, id)).status, 'completed');
  assert.equal(await idem.lookup(pool, newId()), null);
});

test('an undefined request does not switch the comparison off', async () => {
  const id = newId();
  const undefinedRequest = { item: 7 }.Item;
  for (const options of [{ request: undefinedRequest }, { body: undefinedRequest }, {}, undefined, { request: () => {} }]) {
    await assert.rejects(idem.claim(pool, id, options), /the request is undefined/);
    await assert.rejects(idem.run(pool, id, 'SELECT 1', options), /the request is undefined/);
  }
  assert.equal((await idem.run(pool, id, 'SELECT 1', { compare: false })).outcome, 'claimed');
  assert.equal((await idem.claim(pool, id, { request: null })).fingerprintChecked, false); // null is JSON
});

test('an option that does not exist is an error, and never SQL', async () => {
  await assert.rejects(idem.claim(pool, newId(), { request: 1, laese: '1 min' }), /unknown option laese/);
  await assert.rejects(idem.complete(pool, newId(), { "ttl => NULL); DROP TABLE x; --": 1 }), TypeError);
});

test('JSON text is not made JSON once more', async () => {
  await assert.rejects(idem.claim(pool, newId(), { request: JSON.stringify({ item: 7 }) }), TypeError);
  const id = await completed({ item: 7 });
  assert.equal((await idem.claim(pool, id, { body: '{"item":7}' })).outcome, 'replay');
});

test('postgres.js: the same digest, though it encodes JSON once more', async () => {
  const sql = postgres({ max: 1, onnotice: () => {} });
  try {
    const id = await completed({ item: 7 });
    const byHand = await sql.unsafe('SELECT outcome FROM idempotency.claim($1, $2, $3, request => $4::jsonb)',
      [id.scope, id.operation, id.key, JSON.stringify({ item: 7 })]);
    assert.equal(byHand[0].outcome, 'mismatch', 'what this test is about');
    const replay = await idem.claim(sql, id, { request: { item: 7 } });
    assert.equal(replay.outcome, 'replay');
    assert.deepEqual(replay.responseHeaders, [['Content-Type', 'application/json; charset=utf-8']]);

    const leased = newId();
    const { token, leaseMs } = await idem.claim(sql, leased, { request: {}, lease: '1 min', state: { item: '7' } });
    assert.equal(typeof token, 'bigint');
    assert.ok(leaseMs > 0);
    assert.deepEqual((await idem.lookup(sql, leased)).state, { item: '7' });
    await idem.complete(sql, leased, { body: Buffer.from([0, 255]), token });
    assert.deepEqual((await idem.replay(sql, leased)).responseBytes, Buffer.from([0, 255]));
    await assert.rejects(idem.complete(sql, leased, { body: 'x', token, refuseRepeat: true }), (error) => {
      assert.equal(idem.kind(error), 'stale_claim');
      assert.equal(idem.reason(error), 'completed');
      return true;
    });
  } finally {
    await sql.end();
  }
});

test('JSON that jsonb refuses is compared all the same', async () => {
  for (const body of ['{"text": "\\u0000"}', '{"text": "\\ud800"}', '{"n": 1e999999}']) {
    const id = newId();
    await idem.transaction(pool, async (db) => {
      assert.equal((await idem.claim(db, id, { body })).outcome, 'claimed');
      await idem.complete(db, id, { body: 'done' });
    });
    assert.equal((await idem.claim(pool, id, { body })).outcome, 'replay');
    assert.equal((await idem.claim(pool, id, { body: body.replace('"}', 'x"}').replace('1e9', '2e9') })).outcome, 'mismatch');
  }
});

test('path parameters are part of the request', async () => {
  const id = newId();
  await idem.transaction(pool, async (db) => {
    await idem.claim(db, id, { body: '{}', params: { id: '7' } });
    await idem.complete(db, id, { body: 'done' });
  });
  assert.equal((await idem.claim(pool, id, { body: '{ }', params: { id: '7' } })).outcome, 'replay');
  assert.equal((await idem.claim(pool, id, { body: '{}', params: { id: '8' } })).outcome, 'mismatch');
});

test('a token is a BigInt, whatever the driver makes of int8', async () => {
  const id = newId();
  const { token } = await idem.claim(pool, id, { request: 1, lease: '1 min' });
  assert.equal(typeof token, 'bigint');
  assert.ok(await idem.extend(pool, id, { token }) > new Date());
  assert.ok(await idem.checkpoint(pool, id, 'charged', { state: { charge: 'ch_1' }, token }) > new Date());
  assert.equal(await idem.hold(pool, id, { reason: 'no answer', token }), token);
  assert.equal((await idem.claim(pool, id, { request: 1 })).outcome, 'held');
  await assert.rejects(idem.fail(pool, id, { token }), (error) => idem.kind(error) === 'held');
  const other = newId();
  const claimed = await idem.claim(pool, other, { request: 1, lease: '1 min' });
  assert.equal(await idem.release(pool, other, { token: claimed.token }), true);
  assert.equal(await idem.recordFailure(pool, other, { error: 'full' }), true);
  assert.equal(await idem.once(pool, newId('webhook')), true);
});

test('an outcome that is ignored does not do the work twice', async () => {
  const id = await completed({ item: 71 });
  await assert.rejects(idem.transaction(pool, async (db) => {
    await idem.claim(db, id, { request: { item: 71 } }); // "replay", and nobody looks
    await db.query('INSERT INTO test_node.orders (item) VALUES (71)');
    await idem.complete(db, id, { body: 'again' });
  }), (error) => idem.kind(error) === 'not_claimed');
  assert.equal(await count(pool, 71), 0);
});

test('a claim in autocommit does not pass for one', async () => {
  await assert.rejects(idem.claim(pool, newId(), { request: 1 }), (error) => idem.kind(error) === 'left_open');
});

test('an answer that is too large is too large for good', async () => {
  const id = newId();
  await assert.rejects(idem.transaction(pool, async (db) => {
    await idem.claim(db, id, { request: 1 });
    await db.query('INSERT INTO test_node.orders (item) VALUES (72)');
    await idem.complete(db, id, { body: 'x'.repeat(5 * 1024 * 1024) });
  }), (error) => {
    assert.equal(idem.sqlstate(error), '54000');
    assert.equal(idem.kind(error), 'too_large');
    return true;
  });
  assert.equal(await count(pool, 72), 0);
});

test('serialization failures are repeated, others are not', async () => {
  let runs = 0;
  const raise = (state) => idem.transaction(pool, async (db) => {
    if (++runs < 3) await db.query(`DO $$ BEGIN RAISE SQLSTATE '${state}'; END $$`);
    return runs;
  });
  assert.equal(await raise('40001'), 3);
  runs = 0;
  assert.equal(await raise('40P01'), 3);
  runs = 0;
  await assert.rejects(raise('54000'), { code: '54000' });
  assert.equal(runs, 1);
});

test('a COMMIT that has rolled back is an error', async () => {
  await assert.rejects(idem.transaction(pool, async (db) => {
    await db.query('INSERT INTO test_node.orders (item) VALUES (73)');
    await db.query('SELECT 1/0').catch(() => {});
  }), /rolled back/);
  assert.equal(await count(pool, 73), 0);
});

test('a connection that was lost is not given back', async () => {
  const lost = (db) => db.query('SELECT pg_terminate_backend(pg_backend_pid())');
  await assert.rejects(idem.transaction(pool, lost), (error) => idem.kind(error) === 'unavailable');
  assert.equal(await idem.transaction(pool, async (db) => (await db.query('SELECT 1 AS one')).rows[0].one), 1);
});

test('kinds by SQLSTATE, and what only looks like one', async () => {
  const kindOf = async (state) => idem.kind(await pool.query(`DO $$ BEGIN RAISE SQLSTATE '${state}'; END $$`).catch((error) => error));
  for (const [state, kind] of Object.entries({
    IK003: 'other_completion', IK006: 'redacted', '55P03': 'wait_timeout', '22P02': 'bad_request', 25006: 'unavailable', 53300: 'unavailable',
    '08006': 'unavailable', '57P01': 'unavailable', 57014: 'other', 23505: 'other', P0001: 'other',
  })) assert.equal(await kindOf(state), kind, state);
  const refused = newPool({ host: '127.0.0.1', port: 1 });
  assert.equal(idem.kind(await refused.query('SELECT 1').catch((error) => error)), 'unavailable');
  assert.equal(idem.sqlstate(Object.assign(new Error('broken'), { code: 'EPIPE' })), undefined);
  assert.equal(idem.kind(new TypeError('a fault of the program')), 'other');
  assert.equal(idem.kind(undefined), 'other');
});

test('Drizzle: the SQLSTATE is in the cause', async () => {
  const error = await drizzle(pool).execute(drizzleSql`SELECT idempotency.complete('test_node', 'x', 'never claimed')`).catch((e) => e);
  assert.equal(error.code, undefined, 'what this test is about');
  assert.equal(idem.sqlstate(error), 'IK002');
});

test('waiters do not fill the pool', async () => {
  const id = newId();
  const { token } = await idem.claim(pool, id, { request: 1, lease: '10 min' });
  const duplicates = Array.from({ length: 50 }, () =>
    idem.capped(pool, '1 min', (wait) => idem.claim(pool, id, { request: 1, lease: '10 min', wait })));
  let answered = 0;
  for (const one of duplicates) one.then(() => { answered += 1; });
  await until(async () => await waitingClaims(watch, 'test_node client') === 2, 'two that wait');
  await until(async () => answered === 48, 'the others, who were told at once');
  assert.equal((await pool.query('SELECT 1 AS one')).rows[0].one, 1, 'others get a connection');
  assert.equal(await waitingClaims(watch, 'test_node client'), 2);
  await idem.complete(pool, id, { body: 'done', token });
  const outcomes = (await Promise.all(duplicates)).map(({ outcome }) => outcome);
  assert.equal(outcomes.filter((outcome) => outcome === 'replay').length, 2);
  assert.equal(outcomes.filter((outcome) => outcome === 'in_progress').length, 48);
  // and the places are free again
  assert.equal(await idem.capped(pool, '1 s', async (wait) => wait), '1 s');
});
