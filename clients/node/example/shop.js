'use strict';

// Three handlers of a small shop, safe to repeat.

const { randomUUID } = require('crypto');
const { setTimeout: sleep } = require('timers/promises');
const { DatabaseError, Pool } = require('pg');

/** The request to the card network was never sent. */
class NothingSent extends Error {}

/** The card network said no, for good. */
class Declined extends Error {}

/** The key of an Idempotency-Key header: quoted or not, it is the same. */
function keyOf(header) {
  const key = header?.trim().replace(/^"(.*)"$/, '$1');
  return key || null;
}

/** A pool that survives the loss of an idle connection: an "error" that nobody listens to ends the process. */
function openPool(config) {
  return new Pool(config).on('error', () => {});
}

/** The connection is lost, and whether the server did what it was asked for is not known. */
function isLost(error) {
  return !(error instanceof DatabaseError) || /^(08|57P)/.test(error.code);
}

/** Runs work, again if it lost its connection. It has to begin with a claim, which tells what became of the last time. */
async function despiteLostConnections(work, attempts = 5) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await work();
    } catch (error) {
      if (!isLost(error) || attempt === attempts) throw error;
      await sleep(100 * attempt);
    }
  }
}

/** Runs work in a transaction, again where the server asks for that. */
async function transaction(pool, work, attempts = 5) {
  for (let attempt = 1; ; attempt++) {
    const client = await pool.connect();
    // The pool listens to idle connections only. Who uses this one hears of its loss from the next query.
    const listener = () => {};
    client.on('error', listener);
    let broken;
    try {
      await client.query('BEGIN');
      const result = await work(client);
      await client.query('COMMIT');
      return result;
    } catch (error) {
      await client.query('ROLLBACK').catch((e) => { broken = e; });
      if (!['40001', '40P01'].includes(error.code) || attempt === attempts) throw error;
    } finally {
      client.off('error', listener);
      client.release(broken);
    }
  }
}

/** The answer to an outcome other than "claimed". */
function answerWithoutWork(claim) {
  switch (claim.outcome) {
    case 'replay':
      return { status: claim.response_status, headers: { 'Idempotent-Replayed': 'true' }, body: claim.response_body };
    case 'in_progress':
      return { status: 409, headers: { 'Retry-After': String(Math.ceil(claim.retry_after_ms / 1000)) }, body: 'in progress' };
    case 'mismatch':
      return { status: 422, headers: {}, body: 'this key was used for another request' };
    case 'held':
      return { status: 409, headers: {}, body: 'the outcome is being looked into' };
    default: // never go on with what is not known
      throw new Error(`unknown outcome ${claim.outcome}`);
  }
}

/** POST /orders: nothing but SQL, so all of it is one transaction. */
async function postOrder(pool, account, header, body) {
  const key = keyOf(header);
  if (key === null) return { status: 400, headers: {}, body: 'Idempotency-Key is missing' };

  return transaction(pool, async (client) => {
    const claim = (await client.query(
      `SELECT outcome, response_status, response_body, retry_after_ms
         FROM idempotency.claim($1, 'POST /orders', $2, request => $3, wait => '5 s')`,
      [account, key, JSON.stringify(body)])).rows[0];
    if (claim.outcome !== 'claimed') return answerWithoutWork(claim);

    const order = (await client.query(
      'INSERT INTO example_node.orders (account, item) VALUES ($1, $2) RETURNING id', [account, body.item])).rows[0].id;
    const answer = JSON.stringify({ order });
    await client.query(`SELECT idempotency.complete($1, 'POST /orders', $2, 201, $3)`, [account, key, answer]);
    return { status: 201, headers: {}, body: answer };
  });
}

/**
 * POST /charges: somebody else is asked, so the claim is committed first.
 *
 * Whatever the connection was lost at, the same claim id tells: "claimed" again, with the same token, if the claim
 * is still open; "replay" if the answer was recorded.
 */
async function postCharge(pool, network, account, header, body) {
  const key = keyOf(header);
  if (key === null) return { status: 400, headers: {}, body: 'Idempotency-Key is missing' };

  const attempt = { claimId: randomUUID(), asked: null }; // fresh for each request, the same when repeated
  return despiteLostConnections(() => charge(pool, network, account, key, body, attempt));
}

async function charge(pool, network, account, key, body, attempt) {
  // One statement, committed when it returns. The lease is longer than the
  // network's time-out with all retries.
  const claim = (await pool.query(
    `SELECT outcome, response_status, response_body, retry_after_ms, token,
            idempotency.effect_key($1, 'POST /charges', $2, 'charge') AS effect_key
       FROM idempotency.claim($1, 'POST /charges', $2, request => $3,
                              lease => '2 min', claim_id => $4, hold_if_abandoned => true)`,
    [account, key, JSON.stringify(body), attempt.claimId])).rows[0];
  if (claim.outcome !== 'claimed') return answerWithoutWork(claim);

  let charged;
  try {
    attempt.asked ??= network.charge(claim.effect_key, body.amount); // once, whatever it leads to
    charged = await attempt.asked;
  } catch (error) {
    if (error instanceof NothingSent) { // we know that nothing happened
      await pool.query(`SELECT idempotency.fail($1, 'POST /charges', $2, error => $3, token => $4)`,
        [account, key, error.message, claim.token]);
      return { status: 503, headers: { 'Retry-After': '1' }, body: 'try again' };
    }
    if (error instanceof Declined) { // an answer like any other
      await pool.query(`SELECT idempotency.complete($1, 'POST /charges', $2, 402, $3, token => $4)`,
        [account, key, error.message, claim.token]);
      return { status: 402, headers: {}, body: error.message };
    }
    // nobody knows what happened
    await pool.query(`SELECT idempotency.hold($1, 'POST /charges', $2, reason => $3, token => $4)`,
      [account, key, String(error), claim.token]);
    return { status: 409, headers: {}, body: 'the outcome is being looked into' };
  }

  const answer = JSON.stringify({ charge: charged });
  await transaction(pool, async (client) => { // the row and the answer, together
    await client.query('INSERT INTO example_node.payments (account, charge, amount) VALUES ($1, $2, $3)',
      [account, charged, body.amount]);
    await client.query(`SELECT idempotency.complete($1, 'POST /charges', $2, 201, $3, token => $4, refuse_repeat => true)`,
      [account, key, answer, claim.token]);
  });
  return { status: 201, headers: {}, body: answer };
}

/** A webhook: once, in the transaction that books it. */
async function onEvent(pool, event) {
  return transaction(pool, async (client) => {
    const { first } = (await client.query(
      `SELECT idempotency.once('provider', 'webhook', $1) AS first`, [event.id])).rows[0];
    if (first) {
      await client.query('INSERT INTO example_node.ledger (event, amount) VALUES ($1, $2)', [event.id, event.amount]);
    }
    return first;
  });
}

module.exports = { openPool, NothingSent, Declined, postOrder, postCharge, onEvent };
