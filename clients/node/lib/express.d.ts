import type { Request, RequestHandler, Response } from 'express';
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Client, Pool } from './client.js';
import type { Once, Options } from './http.js';

declare global {
  namespace Express {
    interface Request {
      /** The connection of the claim's transaction; the pool where the request is not touched. */
      db: Client;
      rawBody?: Buffer;
    }
  }
}
export function keepRawBody(req: IncomingMessage, res: ServerResponse, bytes: Buffer): void;
export function idempotent(pool: Pool, options: Options<Request>): Once<Request, RequestHandler>;
