import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { Client, Pool } from './client.js';
import type { Once, Options } from './http.js';

declare module 'fastify' {
  interface FastifyRequest {
    /** The connection of the claim's transaction; the pool where the request is not touched. */
    db: Client;
    rawBody: Buffer;
  }
}
export function idempotent(app: FastifyInstance, pool: Pool, options: Options<FastifyRequest>):
  Once<FastifyRequest, (request: any, reply: FastifyReply) => unknown, (request: any, reply: FastifyReply) => Promise<unknown>>;
