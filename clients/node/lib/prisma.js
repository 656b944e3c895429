// Prisma 7 with a driver adapter: an operation at most once for each payload of a tenant.

import { again, claim, complete, kind, rows } from './client.js';

/** Somebody else is at it, or it waits for a person: `claim` says which. */
export class NotExecuted extends Error {
  constructor(claimed) {
    super(`not executed: ${claimed.outcome}`);
    this.claim = claimed;
  }
}

/**
 * fn(tx) at most once for this tenant, operation and payload; a repeat gets the result of the first.
 *
 * Prisma ends an interactive transaction after 5 s. What is waited (in ms) is therefore added to the `timeout` of the work.
 */
export async function withIdempotency(prisma, tenantId, operation, payload, fn, { wait = 0, timeout = 5000, ttl, ...options } = {}) {
  const json = JSON.stringify(payload);
  if (json === undefined) throw new TypeError('withIdempotency: the payload is undefined');
  const [{ key }] = await rows(prisma, 'SELECT idempotency.content_key($1::text::jsonb) AS key', [json]).catch((error) => {
    if (kind(error) !== 'bad_request') throw error; // such as \u0000, which jsonb does not take
    return rows(prisma, `SELECT encode(idempotency.fingerprint_bytes($1::bytea), 'hex') AS key`, [Buffer.from(json)]);
  });
  const id = { scope: tenantId, operation, key };
  return again(['retry'], () => prisma.$transaction(async (tx) => {
    const claimed = await claim(tx, id, { body: json, ttl, wait: wait ? `${wait} ms` : undefined });
    if (claimed.outcome === 'replay') return claimed.responseBody === null ? undefined : JSON.parse(claimed.responseBody);
    if (claimed.outcome !== 'claimed') throw new NotExecuted(claimed);
    const result = await fn(tx);
    await complete(tx, id, { headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(result) });
    return result;
  }, { timeout: wait + timeout, ...options }));
}
