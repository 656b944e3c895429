/** A pool or client of pg, a PrismaClient or a transaction of it, or postgres.js. */
export type Db =
  | { query(text: string, values?: any[]): Promise<{ rows: any[] }> }
  | { $queryRawUnsafe(text: string, ...values: any[]): PromiseLike<any> }
  | { unsafe(text: string, values?: any[]): PromiseLike<any[]> };

export interface Client { query(text: string, values?: any[]): Promise<{ rows: any[]; command: string }> }
export interface Pool extends Client {
  connect(): Promise<any>;
  options: { max: number };
  on(event: 'error', listener: (error: Error) => void): unknown;
  listenerCount(event: 'error'): number;
}

export interface Id { scope: string; operation: string; key: string }
/** An interval of PostgreSQL, such as '5 s'. */
export type Interval = string;
export type Json = null | boolean | number | string | Json[] | { [name: string]: Json | undefined };

/** What is compared with the first request: a value, its bytes or text, its digest, or, said explicitly, nothing. */
export type Compared =
  | { request: Exclude<Json, string> | object; body?: undefined }
  | { body: string | Uint8Array | ArrayBuffer; params?: Record<string, unknown>; request?: undefined }
  | { fingerprint: Uint8Array }
  | { compare: false };

export type ClaimOptions = Compared & {
  ttl?: Interval; lease?: Interval; wait?: Interval; waitFor?: 'any' | 'transaction'; claimId?: string;
  holdIfAbandoned?: boolean; note?: string; state?: Json;
};

interface ClaimRow {
  token: bigint | null; attempt: number | null; takenOver: boolean | null; recoveryPoint: string | null; state: Json; lastError: string | null;
  responseStatus: number | null; responseHeaders: Json; responseBody: string | null; responseBytes: Buffer | null;
  fingerprintChecked: boolean | null; retryAfterMs: number | null; createdAt: Date | null; completedAt: Date | null; expiresAt: Date | null;
  lockedUntil: Date | null; rival: 'transaction' | 'lease' | 'retry' | null; leaseMs: number | null;
}
export type Claim =
  | ClaimRow & { outcome: 'claimed' }
  | ClaimRow & { outcome: 'replay' }
  | ClaimRow & { outcome: 'in_progress'; retryAfterMs: number }
  | ClaimRow & { outcome: 'mismatch' }
  | ClaimRow & { outcome: 'held' };

export interface Answer {
  status?: number;
  headers?: [string, string | number][] | Record<string, string | number | (string | number)[]>;
  /** Text and bytes as they are; every other value is made JSON. */
  body?: string | Uint8Array | Json | object;
}
interface Owned { token?: bigint }

export function claim(db: Db, id: Id, options: ClaimOptions): Promise<Claim>;
export function run(db: Db, id: Id, command: string, options: Compared & {
  args?: Json; ttl?: Interval; wait?: Interval; responseStatus?: number; responseHeaders?: Json;
}): Promise<Claim>;
export function complete(db: Db, id: Id, options?: Answer & Owned & { ttl?: Interval; refuseRepeat?: boolean }): Promise<Date>;
export function fail(db: Db, id: Id, options?: Owned & { error?: string; retryIn?: Interval }): Promise<boolean>;
export function recordFailure(db: Db, id: Id, options?: { error?: string; retryIn?: Interval }): Promise<boolean>;
export function release(db: Db, id: Id, options?: Owned): Promise<boolean>;
export function extend(db: Db, id: Id, options?: Owned & { lease?: Interval }): Promise<Date>;
export function checkpoint(db: Db, id: Id, recoveryPoint: string, options?: Owned & { state?: Json; lease?: Interval }): Promise<Date | null>;
export function hold(db: Db, id: Id, options?: Owned & { reason?: string }): Promise<bigint>;
export function once(db: Db, id: Id, options?: { ttl?: Interval; wait?: Interval }): Promise<boolean>;
export function effectKey(db: Db, id: Id, step?: string): Promise<string>;
export function claimAbandoned(db: Db, options?: { operation?: string; lease?: Interval; maxRows?: number }): Promise<(Id & {
  token: bigint; attempt: number; recoveryPoint: string | null; state: Json; note: string | null; lastError: string | null; createdAt: Date;
  lockedUntil: Date; leaseMs: number;
})[]>;
export interface Replay {
  responseStatus: number | null; responseHeaders: Json; responseBody: string | null; responseBytes: Buffer | null;
  createdAt: Date; completedAt: Date; expiresAt: Date;
}
export function replay(db: Db, id: Id): Promise<Replay | null>;
export function lookup(db: Db, id: Id): Promise<(Omit<Replay, 'completedAt'> & {
  status: 'completed' | 'in_progress' | 'failed' | 'held'; token: bigint | null; attempt: number; claimId: string | null; abandoned: boolean;
  holdIfAbandoned: boolean | null; fingerprint: Buffer | null; recoveryPoint: string | null; state: Json; lastError: string | null;
  note: string | null; claimedAt: Date; checkpointedAt: Date | null; lockedUntil: Date | null; completedAt: Date | null;
  responseExpiresAt: Date | null; redactedAt: Date | null;
}) | null>;

export function rows(db: Db, text: string, values?: any[]): Promise<any[]>;
export function sqlstate(error: unknown): string | undefined;
export type Kind = 'stale_claim' | 'not_claimed' | 'other_completion' | 'left_open' | 'held' | 'redacted' | 'retry' | 'wait_timeout'
  | 'too_large' | 'bad_request' | 'unavailable' | 'other';
export function kind(error: unknown): Kind;
export function reason(error: unknown): 'taken_over' | 'completed' | 'forgotten' | undefined;
export function again<T>(kinds: Kind[], fn: () => Promise<T>, attempts?: number): Promise<T>;
export function transaction<T>(pool: Pool, fn: (db: Client) => Promise<T>): Promise<T>;
export function capped<T>(pool: Pool, wait: Interval | undefined, fn: (wait: Interval | undefined) => Promise<T>): Promise<T>;
