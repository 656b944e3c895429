import type { Claim, Interval, Json } from './client.js';

/** As much of a PrismaClient as is needed; `Tx` is the transaction's client. */
export interface Prisma<Tx> {
  $queryRawUnsafe(text: string, ...values: any[]): PromiseLike<any>;
  $transaction<T>(fn: (tx: Tx) => Promise<T>, options?: { timeout?: number; maxWait?: number }): Promise<T>;
}
export class NotExecuted extends Error { claim: Claim }
/** Milliseconds, as Prisma has them. */
export function withIdempotency<Tx, T>(prisma: Prisma<Tx>, tenantId: string, operation: string, payload: Json | object,
  fn: (tx: Tx) => Promise<T>, options?: { wait?: number; timeout?: number; maxWait?: number; ttl?: Interval }): Promise<T>;
