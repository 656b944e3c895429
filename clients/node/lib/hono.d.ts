import type { Context, Handler } from 'hono';
import type { Client, Pool } from './client.js';
import type { Once, Options } from './http.js';

declare module 'hono' {
  interface ContextVariableMap {
    /** The connection of the claim's transaction; the pool where the request is not touched. */
    db: Client;
  }
}
export function idempotent(pool: Pool, options: Options<Context>): Once<Context, (c: Context) => Response | Promise<Response>, Handler>;
