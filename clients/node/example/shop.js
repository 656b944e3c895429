// Three handlers of a small shop, safe to repeat, on the calls of the client alone: no framework, no middleware.
import pg from 'pg';
import { claim, complete, once, transaction } from 'idempotency-pg';
import { parseKey } from 'idempotency-pg/http';
import { runLeased } from 'idempotency-pg/leased';

/** The card network said no, for good. */
export class Declined extends Error {}

/** A pool that survives the loss of an idle connection: an "error" that nobody listens to ends the process. */
export const openPool = (config) => new pg.Pool(config).on('error', () => {});

const answer = (status, body, headers = {}) => ({ status, headers, body });
const noKey = answer(400, 'Idempotency-Key is missing or malformed');

/** Who asks (from the authentication), what for, and the key, quoted or not; undefined without a key. */
function idOf(account, operation, header) {
  const key = header && parseKey([header]);
  return key && { scope: account, operation, key };
}

/** The answer to an outcome other than "claimed". */
function withoutWork({ outcome, retryAfterMs, responseStatus, responseBody }) {
  switch (outcome) {
    case 'replay': return answer(responseStatus, responseBody, { 'Idempotent-Replayed': 'true' });
    case 'in_progress': return answer(409, 'in progress', { 'Retry-After': String(Math.ceil(retryAfterMs / 1000)) });
    case 'mismatch': return answer(422, 'this key was used for another request');
    case 'held': return answer(409, 'the outcome is being looked into');
    case 'failed': return answer(503, 'try again', { 'Retry-After': '1' });
    default: throw new Error(`unknown outcome ${outcome}`); // never go on with what is not known
  }
}

/** POST /orders: nothing but SQL, so all of it is one transaction, which is run again where the server asks for that. */
export async function postOrder(pool, account, header, body) {
  const id = idOf(account, 'POST /orders', header);
  if (!id) return noKey;
  return transaction(pool, async (db) => {
    const claimed = await claim(db, id, { request: body, wait: '5 s' });
    if (claimed.outcome !== 'claimed') return withoutWork(claimed);
    const { rows: [order] } = await db.query(
      'INSERT INTO example_node.orders (account, item) VALUES ($1, $2) RETURNING id AS order', [account, body.item]);
    const done = answer(201, JSON.stringify(order));
    await complete(db, id, done);
    return done; // and may be sent: after COMMIT
  });
}

/**
 * POST /charges: somebody else is asked, so the claim is committed first, with a lease that is longer than all time-outs.
 *
 * What the network throws decides: NothingHappened lets a repeat try again, every other error means that nobody knows, and a
 * person decides. The runner sends its statements again where their answers were lost; the network is asked once.
 */
export async function postCharge(pool, network, account, header, body) {
  const id = idOf(account, 'POST /charges', header);
  if (!id) return noKey;
  const options = { request: body, state: body, lease: '2 min', step: 'charge', holdIfAbandoned: true };
  const result = await runLeased(pool, id, options, async ({ state: { amount }, effectKey }) => {
    try {
      const charge = await network.charge(effectKey, amount); // the same key in every attempt
      return { ...answer(201, JSON.stringify({ charge })), book: (db) => db.query( // the row and the answer, together
        'INSERT INTO example_node.payments (account, charge, amount) VALUES ($1, $2, $3)', [account, charge, amount]) };
    } catch (error) {
      if (error instanceof Declined) return answer(402, error.message); // an answer like any other
      throw error;
    }
  });
  return result.outcome === 'claimed' ? answer(result.status, result.body) : withoutWork(result);
}

/** A webhook: true the first time, in the transaction that books it. */
export const onEvent = (pool, event) => transaction(pool, async (db) => {
  const first = await once(db, { scope: 'provider', operation: 'webhook', key: event.id });
  if (first) await db.query('INSERT INTO example_node.ledger (event, amount) VALUES ($1, $2)', [event.id, event.amount]);
  return first;
});
