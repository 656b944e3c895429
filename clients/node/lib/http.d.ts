import type { Interval, Json, Pool } from './client.js';
import type { Work } from './leased.js';

/** `Source` is the request of the framework. */
export interface Options<Source> {
  /** Who asks: the account that was authenticated, never anything that the client can choose. */
  scope(source: Source): string;
  /** What is asked; by default method and route template. */
  operation?(source: Source): string;
  /** POST and PATCH by default. */
  methods?: string[];
  /** False: a request without the header is served as if this were not here. */
  required?: boolean;
  /** The page that problems point to. */
  documentation?: string;
  /** Adds Idempotency-Key-Expires to answers that are kept. */
  lifetimeHeader?: boolean;
  /** Duplicates wait so long instead of being told 409; at most half of the pool. */
  wait?: Interval;
  ttl?: Interval;
}
export interface LeasedRoute<Source> extends Partial<Options<Source>> {
  lease: Interval;
  /** What a completer needs to do the work when the client never comes back. */
  state?(source: Source): Json | Promise<Json>;
  step?: string;
  holdIfAbandoned?: boolean;
}
export interface Once<Source, Handler, Wrapped = Handler> {
  (handler: Handler, route?: Partial<Options<Source>>): Wrapped;
  leased(work: Work, route: LeasedRoute<Source>): Wrapped;
}

export function parseKey(lines: string[]): string | undefined;
export function httpCore(pool: Pool, options: Options<any>, adapter: (handler: any, answerTo: any, pool: Pool) => any): Once<any, any>;
