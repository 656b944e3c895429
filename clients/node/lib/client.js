// The calls of the extension as functions, with typed outcomes and errors told apart by SQLSTATE.
// `db` is whatever runs SQL: a pool or a client of pg, a transaction of Prisma, or postgres.js. `id` is { scope, operation, key }.
import { setTimeout as sleep } from 'node:timers/promises';
import { recorded } from './answer.js';

// Every parameter is cast, so that prepared, unprepared and pooled connections agree on its type. JSON goes by way of text: a driver
// that is told of a jsonb parameter (postgres.js) would encode the text once more, and the digest would be another.
const TYPES = Object.fromEntries(Object.entries({
  text: 'scope operation key command error reason note waitFor recoveryPoint step responseBody', interval: 'ttl lease wait retryIn',
  'text::jsonb': 'state args responseHeaders', bytea: 'responseBytes fingerprint', int: 'responseStatus maxRows', bigint: 'token',
  uuid: 'claimId', boolean: 'holdIfAbandoned refuseRepeat',
}).flatMap(([type, options]) => options.split(' ').map((option) => [option, type])));
// A token is a BigInt: as a number it would be rounded some day, and its owner refused.
const DECODE = { token: BigInt, retry_after_ms: Number, response_bytes: Buffer.from };
const decode = (row) => Object.fromEntries(Object.entries(row).map(([name, value]) =>
  [name.replace(/_(.)/g, (_, letter) => letter.toUpperCase()), value === null || !DECODE[name] ? value : DECODE[name](value)]));

/** The rows of a statement, by any of the drivers. */
export const rows = async (db, text, values = []) => (db.$queryRawUnsafe ? db.$queryRawUnsafe(text, ...values)
  : db.unsafe ? db.unsafe(text, values) : (await db.query(text, values)).rows);

// What is not given is not named, so that the server's defaults and the policies hold.
async function call(db, columns, name, { scope, operation, key }, options = {}, [args, values] = [[], []]) {
  for (const [option, value] of Object.entries({ scope, operation, key, ...options })) {
    if (!Object.hasOwn(TYPES, option)) throw new TypeError(`${name}: unknown option ${option}`);
    if (value === undefined || value === null) continue;
    const [type, argument] = [TYPES[option], option.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)];
    args.push(`${argument} => $${values.push(/jsonb/.test(type) ? JSON.stringify(value) : value)}::${type}`);
  }
  return (await rows(db, `SELECT ${columns} FROM idempotency.${name}(${args.join(', ')}) AS result`, values)).map(decode);
}
const LEASED = '*, extract(epoch FROM locked_until - clock_timestamp())::float8 * 1000 AS lease_ms';
const verb = (name) => async (db, id, options) => (await call(db, 'result', name, id, options))[0].result;

// The request is given to notice a key that is used for another one: `body` is text or bytes as they came, `request` a value that is
// made JSON here, once. Either becomes fingerprint_bytes(), which also takes what jsonb refuses. Path parameters belong to it.
// What is undefined would switch the comparison off without a word; that has to be said: `compare: false`.
const claiming = (name) => async (db, id, { request, body = JSON.stringify(request), params = {}, compare, ...options } = {}) => {
  if (typeof request === 'string') throw new TypeError(`${name}: request is a value; JSON text is given as body`);
  const none = compare === false || options.fingerprint;
  if (!none && body === undefined) throw new TypeError(`${name}: the request is undefined; give request, body or compare: false`);
  const digest = 'idempotency.fingerprint_bytes($1::bytea)';
  const given = none ? undefined : Object.keys(params).length === 0 ? [[`fingerprint => ${digest}`], [Buffer.from(body)]]
    : [[`request => jsonb_build_object('params', $2::text::jsonb, 'body', encode(${digest}, 'hex'))`], [Buffer.from(body), JSON.stringify(params)]];
  const [row] = await call(db, LEASED, name, id, options, given);
  if (/^(claimed|replay|in_progress|mismatch|held)$/.test(row.outcome)) return row;
  throw new Error(`unknown outcome ${row.outcome}`); // never go on with it
};

export const claim = claiming('claim');
export const [fail, recordFailure, release, extend, once] = ['fail', 'record_failure', 'release', 'extend', 'once'].map(verb);
export const [lookup, replay] = ['lookup', 'replay'].map((name) => async (db, id) => (await call(db, '*', name, id))[0] ?? null);
export const run = (db, id, command, options) => claiming('run')(db, id, { command, ...options });
export const complete = (db, id, { status, headers, body, ...options } = {}) =>
  verb('complete')(db, id, { ...recorded({ status, headers, body }), ...options });
export const checkpoint = (db, id, recoveryPoint, options) => verb('checkpoint')(db, id, { recoveryPoint, ...options });
export const hold = async (db, id, options) => BigInt(await verb('hold')(db, id, options));
export const effectKey = (db, id, step) => verb('effect_key')(db, id, { step });
export const claimAbandoned = (db, options) => call(db, LEASED, 'claim_abandoned', {}, options);

/** The SQLSTATE, wherever it is. Prisma's own codes (P2010) and the system's (EPIPE) look like one and are none. */
export const sqlstate = (error) => (!error ? undefined
  : [error.originalCode, error.code].find((code) => /^(?!P[1-9]|E[A-Z])[0-9A-Z]{5}$/.test(code))
    ?? sqlstate(error.meta?.driverAdapterError ?? error.cause)); // Prisma for a query; Prisma for COMMIT, and Drizzle

const KINDS = {
  IK001: 'stale_claim', IK002: 'not_claimed', IK003: 'other_completion', IK004: 'left_open', IK005: 'held', IK006: 'redacted',
  40001: 'retry', '40P01': 'retry', '55P03': 'wait_timeout', 54000: 'too_large', 25006: 'unavailable', 53300: 'unavailable',
};
// Codes of the system, postgres.js and Prisma; messages of pg and of Prisma's adapters.
const LOST = new RegExp('^(ECONN|EPIPE|ETIMEDOUT|EHOST|ENOTFOUND|EAI_AGAIN|CONNECT|P10(01|02|08|17)|P2024|P2028|Connection terminated'
  + '|timeout exceeded when trying|Client has encountered a connection error|DatabaseNotReachable|ConnectionClosed|SocketTimeout)');

/** What to do about an error; "other" is a fault of the program. 54000 is permanent: never "try again". */
export function kind(error) {
  const state = sqlstate(error);
  if (state) return KINDS[state] ?? (/^(08|57P0[123])/.test(state) ? 'unavailable' : /^22/.test(state) ? 'bad_request' : 'other');
  return [error, error?.meta?.driverAdapterError].some((e) => LOST.test(e?.code) || LOST.test(e?.message)) ? 'unavailable' : 'other';
}
export const reason = (error) => error?.constraint ?? error?.constraint_name; // of stale_claim: taken_over, completed, forgotten

/** Runs fn, again after an error of one of these kinds, with growing pauses that rivals do not share. */
export async function again(kinds, fn, attempts = 5) {
  for (let attempt = 1; ; attempt++) {
    try { return await fn(); } catch (error) { if (!kinds.includes(kind(error)) || attempt >= attempts) throw error; }
    await sleep(2 ** attempt * 20 * (0.5 + Math.random()));
  }
}

/** BEGIN, fn(client), COMMIT; all of it again where the server asks for that. */
export const transaction = (pool, fn) => again(['retry'], async () => {
  const client = await pool.connect();
  let broken;
  const listener = (error) => { broken = error; }; // the pool listens to idle connections only
  client.on('error', listener);
  try {
    await client.query('BEGIN');
    const result = await fn(client);
    // Where an error was swallowed on the way, COMMIT succeeds and has rolled back.
    if ((await client.query('COMMIT')).command !== 'COMMIT') throw new Error('the transaction had failed and was rolled back');
    return result;
  } catch (error) { await client.query('ROLLBACK').catch(listener); throw error; } finally { client.off('error', listener).release(broken); }
});

/** fn(wait) for at most half of the pool's connections at a time, fn() for the others: those that wait must not fill the pool. */
export async function capped(pool, wait, fn) {
  const waiting = waiters.get(pool) ?? 0;
  if (!wait || waiting >= Math.floor(pool.options.max / 2)) return fn(undefined);
  waiters.set(pool, waiting + 1);
  return fn(wait).finally(() => waiters.set(pool, waiters.get(pool) - 1));
}
const waiters = new WeakMap();
