// Work that leaves the database: the claim is committed first, with a lease, and what became of the work is recorded afterwards.
// work({ id, claim, state, effectKey, signal }) says by its end what is known. An answer, { status, headers, body, book }, is recorded
// in one transaction with what book(db) writes; a refusal for good is such an answer. NothingHappened lets the next attempt do it.
// Any other error means that nobody knows, and the key is held for a person.
import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { again, capped, claim, claimAbandoned, complete, effectKey, extend, fail, hold, kind, reason, replay, transaction } from './client.js';

export class NothingHappened extends Error {}
const despiteLoss = (fn) => again(['unavailable'], fn, 6);

/** Resolves to { outcome, … } as claim() does, with the answer where it was claimed; also "failed", after NothingHappened. */
export async function runLeased(pool, id, { wait, step, ...options }, work) {
  const claimId = randomUUID(); // if the answer to the claim is lost, the same id gets the same token
  const claimed = await capped(pool, wait, (most) => despiteLoss(() => claim(pool, id, { ...options, wait: most, claimId })));
  return claimed.outcome === 'claimed' ? finish(pool, id, claimed, step, work) : claimed;
}

/** Drives on, until the signal aborts, what others have left behind: few at a time, because all begin at once. */
export async function completer(pool, operation, { lease, step, maxRows = 4, pause = 1000, signal, onError = () => {} }, work) {
  while (!signal?.aborted) {
    const claims = await claimAbandoned(pool, { operation, lease, maxRows }).catch((error) => { onError(error); return []; });
    await Promise.all(claims.map(({ scope, key, ...rest }) => finish(pool, { scope, operation, key }, rest, step, work).catch(onError)));
    await sleep(pause, undefined, { signal }).catch(() => {});
  }
}

async function finish(pool, id, claimed, step, work) {
  const { token, state, leaseMs } = claimed;
  const lost = new AbortController();
  // Three beats to a lease. Who has lost the claim is stopped; who cannot reach the database goes on and tries at the next beat.
  const heartbeat = setInterval(() => extend(pool, id, { token }).catch((error) => {
    if (!['unavailable', 'retry'].includes(kind(error))) lost.abort(error);
  }), leaseMs / 3);
  // What a repeat finds settled was settled by the call whose answer was lost, or is somebody else's by now.
  // An error may quote a page that it has not understood, and not everything is a text for PostgreSQL.
  const settle = (verb, why, error) => despiteLoss(() => verb(pool, id, { [why]: String(error).slice(0, 1000).replace(/\0/g, '?'), token }))
    .catch((e) => { if (!['stale_claim', 'not_claimed', 'held'].includes(kind(e))) throw e; });
  let answer;
  try {
    const effect = await despiteLoss(() => effectKey(pool, id, step)).catch((error) => { throw new NothingHappened(error.message); });
    answer = await work({ id, claim: claimed, state, effectKey: effect, signal: lost.signal });
  } catch (error) {
    if (lost.signal.aborted) throw lost.signal.reason; // not the owner any more: there is nothing to record
    const failed = error instanceof NothingHappened;
    await (failed ? settle(fail, 'error', error.message) : settle(hold, 'reason', error));
    return { outcome: failed ? 'failed' : 'held', lastError: error.message };
  } finally { clearInterval(heartbeat); }
  try {
    const { book, ...recorded } = answer;
    const expiresAt = await despiteLoss(() => transaction(pool, async (db) => {
      // First, so that a repeat of what was committed learns that from it, and not from a unique key of book's.
      const expires = await complete(db, id, { ...recorded, token, refuseRepeat: true });
      await book?.(db);
      return expires;
    }));
    return { outcome: 'claimed', ...recorded, expiresAt };
  } catch (error) {
    // The answer to COMMIT was lost, or a person was faster: what is recorded is what counts.
    if (reason(error) === 'completed') return { outcome: 'replay', ...await replay(pool, id) };
    // It was done and cannot be recorded. Nobody may do it once more because the lease ends.
    if (!['unavailable', 'stale_claim'].includes(kind(error))) await settle(hold, 'reason', error);
    throw error;
  }
}
