import type { Answer, Claim, ClaimOptions, Client, Id, Interval, Json, Pool } from './client.js';

/** Thrown by work that knows that nothing happened outside: the next attempt does it. */
export class NothingHappened extends Error {}

export interface Job {
  id: Id;
  claim: Pick<Claim, 'token' | 'attempt' | 'recoveryPoint' | 'state' | 'lastError' | 'lockedUntil' | 'leaseMs'>;
  state: any;
  /** For the outside party: the same in every attempt. */
  effectKey: string;
  /**
   * Aborted when the claim is lost. Work needs a time-out of its own, since as long as it runs the claim is renewed. By a timer:
   * Node.js may collect the signals of AbortSignal.any([signal, AbortSignal.timeout(ms)]) before they fire.
   */
  signal: AbortSignal;
}
/** `book` writes in the transaction that records the answer. */
export type Work = (job: Job) => Promise<Answer & { book?: (db: Client) => Promise<unknown> }>;

export function runLeased(pool: Pool, id: Id, options: ClaimOptions & { lease: Interval; step?: string }, work: Work):
  Promise<Claim | ({ outcome: 'claimed'; expiresAt: Date } & Answer) | { outcome: 'failed' | 'held'; lastError: string }>;

export function completer(pool: Pool, operation: string, options: {
  lease?: Interval; step?: string; maxRows?: number; pause?: number; signal?: AbortSignal; onError?: (error: unknown) => void;
}, work: Work): Promise<void>;
