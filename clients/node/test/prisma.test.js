// Prisma 7 through its driver adapter: hidden SQLSTATEs, the end of interactive transactions, withIdempotency and processed tickets.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { PrismaPg } from '@prisma/adapter-pg';
import prismaClient from './generated/index.js';
import * as idem from '../lib/client.js';
import { NotExecuted, withIdempotency } from '../lib/prisma.js';
import * as tickets from '../lib/tickets.js';
import { newId, newPool, prepare, until, waitingClaims } from './database.js';

const { PrismaClient } = prismaClient;
const pool = newPool({ max: 5 });
const config = { application_name: 'test_node prisma' };
const prisma = new PrismaClient({ adapter: new PrismaPg(config) });
before(async () => {
  await prepare(pool);
  await pool.query(`DROP TABLE IF EXISTS test_node_invoice; CREATE TABLE test_node_invoice (id serial PRIMARY KEY, amount int NOT NULL);
    SELECT idempotency.set_policy('ticket', ttl => '7 days', failed_ttl => '7 days'), idempotency.forget_scope('zendesk', force => true)`);
});
after(async () => {
  await prisma.$disconnect();
  await pool.query(`DROP TABLE test_node_invoice; SELECT idempotency.forget_scope('zendesk', force => true), idempotency.drop_policy('ticket')`);
  await pool.end();
});
const invoices = (amount) => prisma.invoice.count({ where: { amount } });
const invoice = (amount) => (tx) => tx.invoice.create({ data: { amount } });

test('the SQLSTATE of a query, and of COMMIT', async () => {
  const query = await idem.complete(prisma, newId(), { body: 'x' }).catch((error) => error);
  assert.equal(query.code, 'P2010', 'what this test is about');
  assert.equal(query.meta.driverAdapterError.cause.originalCode, 'IK002');
  assert.equal(idem.sqlstate(query), 'IK002');

  const commit = await prisma.$transaction(async (tx) => { await idem.claim(tx, newId(), { request: 1 }); }).catch((error) => error);
  assert.equal(commit.meta, undefined, 'what this test is about');
  assert.equal(commit.cause.originalCode, 'IK004');
  assert.equal(idem.kind(commit), 'left_open');

  const conflict = await prisma.$executeRawUnsafe(`DO $$ BEGIN RAISE SQLSTATE '40001'; END $$`).catch((error) => error);
  assert.equal(idem.kind(conflict), 'retry');
  const gone = new PrismaClient({ adapter: new PrismaPg({ host: '127.0.0.1', port: 1 }) });
  assert.equal(idem.kind(await gone.$queryRaw`SELECT 1`.catch((error) => error)), 'unavailable');
  await gone.$disconnect();
});

test('types of what a claim returns', async () => {
  const id = newId();
  const { token, leaseMs, lockedUntil } = await idem.claim(prisma, id, { request: { a: 1 }, lease: '1 min', state: { n: 1.5 } });
  assert.deepEqual([typeof token, typeof leaseMs, lockedUntil instanceof Date], ['bigint', 'number', true]);
  const rival = await idem.claim(prisma, id, { request: { a: 1 }, lease: '1 min' });
  assert.deepEqual([rival.outcome, typeof rival.retryAfterMs], ['in_progress', 'number']);
  await idem.complete(prisma, id, { status: 201, headers: { 'X-A': '1' }, body: Buffer.from([0, 255]), token });
  const { responseHeaders, responseBytes, state } = { ...await idem.lookup(prisma, id), ...await idem.replay(prisma, id) };
  assert.deepEqual([responseHeaders, responseBytes, state], [[['X-A', '1']], Buffer.from([0, 255]), { n: 1.5 }]);
});

test('withIdempotency: once for each payload of a tenant, whatever the order of its members', async () => {
  const results = await Promise.all([{ a: 1, b: 2 }, { b: 2, a: 1 }].map((payload) =>
    withIdempotency(prisma, 'test_node', 'invoice', payload, invoice(5), { wait: 30000 })));
  assert.deepEqual(results[0], results[1]);
  assert.equal(await invoices(5), 1);
  await withIdempotency(prisma, 'test_node', 'invoice', { a: 1, b: 3 }, invoice(5));
  await withIdempotency(prisma, 'test_node', 'other', { a: 1, b: 2 }, invoice(5));
  assert.equal(await invoices(5), 3);
  await assert.rejects(withIdempotency(prisma, 'test_node', 'invoice', undefined, invoice(5)), TypeError);
  const odd = { text: '\u0000' }; // which jsonb does not take
  assert.equal(await withIdempotency(prisma, 'test_node', 'invoice', odd, async () => 'done'), 'done');
  assert.equal(await withIdempotency(prisma, 'test_node', 'invoice', odd, assert.fail), 'done');
  assert.equal(await withIdempotency(prisma, 'test_node', 'invoice', 'nothing', async () => undefined), undefined);
  assert.equal(await withIdempotency(prisma, 'test_node', 'invoice', 'nothing', assert.fail), undefined);
});

test('withIdempotency: what throws is rolled back and may be tried again', async () => {
  const failing = async (tx) => { await invoice(6)(tx); throw new Error('printer on fire'); };
  await assert.rejects(withIdempotency(prisma, 'test_node', 'invoice', { a: 6 }, failing), /printer on fire/);
  assert.equal(await invoices(6), 0);
  let runs = 0;
  await withIdempotency(prisma, 'test_node', 'invoice', { a: 6 }, async (tx) => {
    await invoice(6)(tx);
    if (++runs < 3) await tx.$executeRawUnsafe(`DO $$ BEGIN RAISE SQLSTATE '40001'; END $$`);
  });
  assert.deepEqual([runs, await invoices(6)], [3, 1]);
});

test('withIdempotency: who waits longer than Prisma lets a transaction live gets the answer all the same', async () => {
  let go;
  const gate = new Promise((resolve) => { go = resolve; });
  const first = withIdempotency(prisma, 'test_node', 'slow', { a: 1 }, () => gate, { timeout: 60000 });
  await until(async () => (await pool.query(`SELECT FROM pg_locks WHERE locktype = 'advisory'`)).rowCount, 'the first has its claim');
  await assert.rejects(withIdempotency(prisma, 'test_node', 'slow', { a: 1 }, assert.fail), (error) => {
    assert.ok(error instanceof NotExecuted);
    return error.claim.outcome === 'in_progress';
  });

  // By hand, the transaction ends before the wait does.
  const key = (await prisma.$queryRaw`SELECT idempotency.content_key('{"a": 1}') AS key`)[0].key;
  const id = { scope: 'test_node', operation: 'slow', key };
  const byHand = await prisma.$transaction((tx) => idem.claim(tx, id, { request: { a: 1 }, wait: '1 s' }), { timeout: 100 }).catch((error) => error);
  assert.equal(byHand.code, 'P2028', 'what this test is about');
  assert.equal(idem.kind(byHand), 'unavailable');

  const second = withIdempotency(prisma, 'test_node', 'slow', { a: 1 }, assert.fail, { wait: 60000, timeout: 100 });
  const begun = Date.now();
  await until(async () => await waitingClaims(pool, 'test_node prisma') >= 1 && Date.now() - begun > 500, 'the second waits, for longer');
  go('the result');
  assert.deepEqual(await Promise.all([first, second]), ['the result', 'the result']);
});

test('tickets: once, again after a failure, counted by provider', async () => {
  const process = (id, work, options) => tickets.processTicket(prisma, 'zendesk', id, work, options);
  assert.deepEqual(await Promise.all([1, 2, 3].map(() => process('t-1', invoice(7)))).then((all) => all.sort()), [false, false, true]);
  assert.equal(await invoices(7), 1);
  assert.equal(await tickets.isTicketProcessed(prisma, 'zendesk', 't-1'), true);
  assert.equal(await tickets.isTicketProcessed(prisma, 'zendesk', 't-2'), false);
  assert.equal(await tickets.markTicketProcessed(prisma, 'github', 't-1'), true, 'another provider, the same number');

  await assert.rejects(process('t-2', async (tx) => { await invoice(8)(tx); throw new Error('no such repository'); }), /no such repository/);
  assert.equal(await invoices(8), 0);
  assert.equal((await idem.lookup(prisma, { scope: 'zendesk', operation: 'ticket', key: 't-2' })).lastError, 'Error: no such repository');
  const stats = (await tickets.getProcessingStats(prisma)).filter(({ provider }) => provider === 'zendesk');
  assert.deepEqual(stats.map((row) => ({ ...row })), [{ provider: 'zendesk', success: false, tickets: 1 }, { provider: 'zendesk', success: true, tickets: 1 }]);
  assert.equal(await process('t-2', invoice(8)), true);

  const { expires } = (await pool.query(`SELECT expires_at > now() + interval '6 days' AS expires
    FROM idempotency.lookup('zendesk', 'ticket', 't-1')`)).rows[0];
  assert.equal(expires, true);
  await pool.query(`SELECT idempotency.import_completed('zendesk', 'ticket', 'old', created_at => now() - interval '1 h', expires_at => now() + interval '1 ms')`);
  assert.equal(await until(() => tickets.cleanupOldRecords(prisma), 'one expires'), 1);
  const { healthy, checks } = await tickets.checkIdempotencyHealth(prisma);
  assert.equal(healthy, checks.every(({ status }) => status !== 'critical'));
  assert.ok(checks.some(({ name }) => name === 'held_keys'));
  await pool.query(`SELECT idempotency.forget_scope('github', force => true)`);
});

test('tickets: fail closed, or open where that is asked for', async () => {
  const gone = new PrismaClient({ adapter: new PrismaPg({ host: '127.0.0.1', port: 1 }) });
  const seen = [];
  const work = async (tx) => { seen.push(tx); };
  await assert.rejects(tickets.processTicket(gone, 'zendesk', 't-3', work));
  assert.deepEqual(seen, []);
  assert.equal(await tickets.processTicket(gone, 'zendesk', 't-3', work, { failOpen: true }), true);
  assert.deepEqual(seen, [null]);
  await gone.$disconnect();
  // an error of the work is never a failure of the check
  let runs = 0;
  const failing = async () => { runs++; throw Object.assign(new Error('mail server'), { code: 'ECONNREFUSED' }); };
  await assert.rejects(tickets.processTicket(prisma, 'zendesk', 't-4', failing, { failOpen: true }), /mail server/);
  assert.equal(runs, 1);
});
