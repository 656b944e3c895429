// Runs shop.js against the database that the PG* variables name.
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { claim, complete, effectKey, kind, lookup } from 'idempotency-pg';
import { NothingHappened } from 'idempotency-pg/leased';
import * as shop from './shop.js';

/** A card network that honours the key that it is given. */
class Network {
  charges = new Map();
  mood = 'well';

  async charge(key) {
    if (this.mood === 'refused') throw new NothingHappened('connection refused');
    if (this.mood === 'declined') throw new shop.Declined('card declined');
    if (this.mood === 'fatal') await this.terminateBackends();
    if (!this.charges.has(key)) this.charges.set(key, `ch_${this.charges.size + 1}`);
    if (this.mood === 'silent') throw new Error('no answer');
    return this.charges.get(key);
  }
}

function check(what, got, expected) {
  assert.deepEqual(got, expected, `FAILED ${what}: got ${JSON.stringify(got)}`);
  console.log(`ok  ${what}`);
}

/** Whether the process hears that its idle connections were ended. */
async function connectionsEnded(pool) {
  while (pool.totalCount > 0) await sleep(10);
}

async function main(pool) {
  const one = async (text, values) => Object.values((await pool.query(text, values)).rows[0])[0];

  await pool.query(`
    SET client_min_messages = warning;
    CREATE EXTENSION IF NOT EXISTS idempotency;
    DROP SCHEMA IF EXISTS example_node CASCADE;
    CREATE SCHEMA example_node;
    CREATE TABLE example_node.orders (id int GENERATED ALWAYS AS IDENTITY, account text, item int);
    CREATE TABLE example_node.payments (account text, charge text, amount int);
    CREATE TABLE example_node.ledger (event text, amount int);
    SELECT idempotency.forget_scope('node', force => true), idempotency.forget('provider', 'webhook', 'evt_node')`);

  // 1. the HTTP handler
  const key = '"8e03978e-40d5-43dd-bc93-6894a57f9324"';
  check('first request', await shop.postOrder(pool, 'node', key, { item: 7 }), { status: 201, headers: {}, body: '{"order":1}' });
  check('repeat, without quotes', await shop.postOrder(pool, 'node', key.replaceAll('"', ''), { item: 7 }),
    { status: 201, headers: { 'Idempotent-Replayed': 'true' }, body: '{"order":1}' });
  check('another request', (await shop.postOrder(pool, 'node', key, { item: 8 })).status, 422);
  check('no key', (await shop.postOrder(pool, 'node', undefined, { item: 8 })).status, 400);

  const answers = await Promise.all([1, 2, 3, 4].map(() => shop.postOrder(pool, 'node', 'at-once', { item: 9 })));
  check('four at the same time, one answer', [...new Set(answers.map((a) => a.status + a.body))], ['201{"order":2}']);
  check('one of them did the work', answers.filter((a) => !('Idempotent-Replayed' in a.headers)).length, 1);
  check('two orders in all', await one('SELECT count(*) FROM example_node.orders'), '2');

  // 2. the charge
  const network = new Network();
  const charge = (name, amount) => shop.postCharge(pool, network, 'node', name, { amount });
  check('charge', await charge('c-1', 5), { status: 201, headers: {}, body: '{"charge":"ch_1"}' });
  check('repeat', (await charge('c-1', 5)).headers, { 'Idempotent-Replayed': 'true' });
  network.mood = 'refused';
  check('nothing sent', (await charge('c-2', 6)).status, 503);
  network.mood = 'well';
  check('so it may be tried again', (await charge('c-2', 6)).status, 201);
  network.mood = 'declined';
  check('declined', (await charge('c-3', 7)).status, 402);
  network.mood = 'well';
  check('declined stays declined', (await charge('c-3', 7)).status, 402);
  network.mood = 'silent';
  check('no answer: held', (await charge('c-4', 8)).status, 409);
  network.mood = 'well';
  check('held stays held', (await charge('c-4', 8)).status, 409);
  check('three charges in all', network.charges.size, 3);

  // The connection is lost: while the network is asked, and (where t/060_examples.pl stands in between) before the
  // answer to the claim, in the middle of the booking, and before the answer to its commit.
  network.terminateBackends = async () => {
    const other = shop.openPool({ application_name: 'example_node check' });
    await other.query(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'example_node'`);
    await other.end();
    await connectionsEnded(pool);
  };
  network.mood = 'fatal';
  check('terminated', (await charge('lost-connection', 1)).status, 201);
  network.mood = 'well';
  for (const lost of ['lost-claim', 'lost-booking', 'lost-commit']) check(lost, (await charge(lost, 1)).status, 201);
  check('each charged once', network.charges.size, 7);
  check('and booked once', await one('SELECT count(*) FROM example_node.payments WHERE amount = 1'), '4');

  // A person asks the network with the same key, hears that it was charged, and records that.
  const held = { scope: 'node', operation: 'POST /charges', key: 'c-4' };
  const found = network.charges.get(await effectKey(pool, held, 'charge'));
  await complete(pool, held, { status: 201, body: found, token: (await lookup(pool, held)).token });
  check('decided', (await charge('c-4', 8)).body, 'ch_3');

  // 3. the webhook
  check('event', await shop.onEvent(pool, { id: 'evt_node', amount: 3 }), true);
  check('again', await shop.onEvent(pool, { id: 'evt_node', amount: 3 }), false);
  check('booked once', await one('SELECT count(*) FROM example_node.ledger'), '1');

  // 4. autocommit: the claim would end with its own statement
  const autocommit = claim(pool, { scope: 'node', operation: 'POST /orders', key: 'autocommit' }, { compare: false });
  check('a claim in autocommit fails', await autocommit.then(() => 'no error', kind), 'left_open');
  console.log('all well');
}

const pool = shop.openPool({ application_name: 'example_node' });
main(pool).finally(() => pool.end()).catch((error) => {
  console.error(error.message);
  process.exitCode = 1;
});
