// What a consumer of webhooks keeps in a table processed_tickets, on the extension; on Prisma, or on anything else that client.js
// takes as `db`. The provider is the scope, so two providers may use one number. Seven days are a policy:
// SELECT idempotency.set_policy('ticket', ttl => '7 days', failed_ttl => '7 days').

import { kind, lookup, once, recordFailure, rows } from './client.js';

const ticket = (provider, ticketId) => ({ scope: provider, operation: 'ticket', key: ticketId });

/** For a screen. It is no permission to process: only markTicketProcessed() lets one of two pass. */
export const isTicketProcessed = async (db, provider, ticketId) => (await lookup(db, ticket(provider, ticketId)))?.status === 'completed';

/** In the transaction of the work: true the first time, and for one of those who come at the same time. */
export const markTicketProcessed = (db, provider, ticketId) => once(db, ticket(provider, ticketId));

/** After the rollback: the ticket can be processed again, and the failure is counted. */
export const markTicketFailed = (db, provider, ticketId, error) =>
  recordFailure(db, ticket(provider, ticketId), { error: String(error) });

/**
 * work(tx) and the mark in one transaction of Prisma; false if it was done before.
 *
 * With failOpen, work(null) is done without the check when the check itself fails: twice rather than not at all, again with each
 * delivery of an outage. That is for notifications, not for payments, and only where the work lives elsewhere.
 */
export async function processTicket(prisma, provider, ticketId, work, { failOpen = false, timeout = 10000, ...options } = {}) {
  let begun = false;
  try {
    return await prisma.$transaction(async (tx) => {
      if (!await markTicketProcessed(tx, provider, ticketId)) return false;
      begun = true;
      await work(tx);
      return true;
    }, { timeout, ...options });
  } catch (error) {
    if (begun) await markTicketFailed(prisma, provider, ticketId, error).catch(() => {});
    if (begun || !failOpen || !['unavailable', 'wait_timeout'].includes(kind(error))) throw error;
    await work(null);
    return true;
  }
}

/** By an operator, where the server's own worker does not: how many were deleted. */
export const cleanupOldRecords = async (db) =>
  Number((await rows(db, `SELECT idempotency.cleanup(operation => 'ticket') AS deleted`, []))[0].deleted);

/** By a monitor: [{ provider, success, tickets }]. */
export const getProcessingStats = (db) => rows(db, `SELECT scope AS provider, status = 'completed' AS success, sum(keys)::float8 AS tickets
  FROM idempotency.keys_by_scope WHERE operation = 'ticket' GROUP BY 1, 2 ORDER BY 1, 2`, []);

/** For /health: healthy unless something is critical. */
export async function checkIdempotencyHealth(db) {
  const checks = await rows(db, 'SELECT check_name AS name, status, detail FROM idempotency.health()', []);
  return { healthy: checks.every(({ status }) => status !== 'critical'), checks };
}
