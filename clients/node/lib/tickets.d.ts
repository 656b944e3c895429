import type { Db } from './client.js';
import type { Prisma } from './prisma.js';

export function isTicketProcessed(db: Db, provider: string, ticketId: string): Promise<boolean>;
export function markTicketProcessed(db: Db, provider: string, ticketId: string): Promise<boolean>;
export function markTicketFailed(db: Db, provider: string, ticketId: string, error: unknown): Promise<boolean>;
/** `work` gets null where `failOpen` lets it run without the check. */
export function processTicket<Tx>(prisma: Prisma<Tx>, provider: string, ticketId: string, work: (tx: Tx | null) => Promise<unknown>,
  options?: { failOpen?: boolean; timeout?: number; maxWait?: number }): Promise<boolean>;
export function cleanupOldRecords(db: Db): Promise<number>;
export function getProcessingStats(db: Db): Promise<{ provider: string; success: boolean; tickets: number }[]>;
export function checkIdempotencyHealth(db: Db): Promise<{ healthy: boolean; checks: { name: string; status: string; detail: string }[] }>;
