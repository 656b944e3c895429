// What the conformance service (../../conformance/spec.md) does, whatever the framework: SQL, the card network, the completer.

import { setTimeout as sleep } from 'node:timers/promises';
import { randomUUID } from 'node:crypto';
import pg from 'pg';
import { completer, NothingHappened } from '../lib/leased.js';

const { env } = process;
export const port = Number(env.PORT);
export const limit = 8 * 1024 * 1024;

export const pool = new pg.Pool({ max: Number(env.POOL_SIZE ?? 5), connectionTimeoutMillis: 10000 });

export const userOf = (authorization) => /^Bearer (\S+)$/.exec(authorization ?? '')?.[1];

/** A request that is no such object is the client's fault, found before any work. */
export class BadRequest extends Error {
  statusCode = 400;
  status = 400;
}

/** The body as a JSON object with this member as a whole number. */
export function parsed(bytes, member) {
  let body;
  try {
    body = JSON.parse(Buffer.from(bytes).toString());
  } catch {
    throw new BadRequest('the body is no JSON');
  }
  if (typeof body !== 'object' || body === null || Array.isArray(body)) throw new BadRequest('the body is no object');
  if (member && !Number.isInteger(body[member])) throw new BadRequest(`${member} is missing`);
  return body;
}

/** POST /orders: { status, headers, body } of the answer. */
export async function order(db, user, bytes, fault) {
  const { item, pause_ms: pause = 0 } = parsed(bytes, 'item');
  if (fault === 'refuse') return { status: 402, headers: [], body: { refused: true } };
  const { id } = (await db.query('INSERT INTO shop.orders (account, item) VALUES ($1, $2) RETURNING id', [user, item])).rows[0];
  await sleep(pause);
  if (fault === 'throw') throw new Error('the handler was asked to throw');
  if (fault === '503') return { status: 503, headers: [], body: { error: 'the handler was asked to answer so' } };
  return {
    status: 201,
    headers: [['Location', `/orders/${id}`], ['Link', '</a>; rel=a'], ['Link', '</b>; rel=b'],
      ['Set-Cookie', `session=${randomUUID()}`], ['X-Request', randomUUID()]],
    body: { order: id },
  };
}

export const insert = async (db, user, item) =>
  (await db.query('INSERT INTO shop.orders (account, item) VALUES ($1, $2::int) RETURNING id', [user, item])).rows[0].id;

export const countOrders = async (db, user) =>
  (await db.query('SELECT count(*)::int AS n FROM shop.orders WHERE account = $1', [user])).rows[0].n;

export async function visit(db, user) {
  await db.query('INSERT INTO shop.visits (account) VALUES ($1)', [user]);
  return (await db.query('SELECT count(*)::int AS n FROM shop.visits WHERE account = $1', [user])).rows[0].n;
}

/** For a load balancer: 200 or 503. */
export const health = () => pool.query(`SELECT FROM idempotency.health() WHERE status = 'critical'`)
  .then(({ rowCount }) => (rowCount === 0 ? 200 : 503), () => 503);

const network = env.NETWORK_URL;
const timeout = Number(env.NETWORK_TIMEOUT ?? 2) * 1000;
const notReached = (error) => error.cause?.code === 'ECONNREFUSED';

/** What a request leaves for whoever does its work, the completer included. */
export const chargeState = (user, bytes) => ({ account: user, amount: parsed(bytes, 'amount').amount });
export const chargeRoute = { lease: env.LEASE ?? '3 s', step: 'charge' };

// As AbortSignal.any([signal, AbortSignal.timeout(ms)]), which Node.js may collect before it fires: then nothing ends the call
// (https://github.com/nodejs/node/pull/57867).
async function within(ms, signal, work) {
  const both = new AbortController();
  const timer = setTimeout(() => both.abort(new Error(`no answer in ${ms} ms`)), ms);
  signal.addEventListener('abort', () => both.abort(signal.reason), { once: true });
  return work(both.signal).finally(() => clearTimeout(timer));
}

/** POST /charges: asks the card network with the effect key. */
export async function charge({ state: { account, amount }, effectKey, signal }) {
  const ask = (path, options) => fetch(`${network}${path}`, options).catch((error) => {
    throw notReached(error) ? new NothingHappened('the network cannot be reached') : error;
  });
  await ask(`/before?key=${effectKey}`, { signal });
  const [status, page] = await within(timeout, signal, async (limit) => {
    const answer = await ask('/charges', {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({ key: effectKey, amount }),
      signal: limit,
    });
    return [answer.status, await answer.text()];
  });
  if (status === 402) return { status: 402, body: { declined: true } };
  if (status !== 200) throw new Error(`the network answered ${status}: ${page}`);
  const { charge: id } = JSON.parse(page);
  await fetch(`${network}/after?key=${effectKey}`, { signal }).catch(() => {});
  return {
    status: 201,
    body: { charge: id },
    book: (db) => db.query('INSERT INTO shop.payments (account, charge, amount) VALUES ($1, $2, $3)', [account, id, amount]),
  };
}

export function listening() {
  completer(pool, 'POST /charges', { ...chargeRoute, maxRows: 2, pause: 500 }, charge);
  console.log('listening');
}
