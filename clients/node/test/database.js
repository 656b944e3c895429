// What the tests share: pools on the database that PG* names, and a look at what its connections wait for.

import { setTimeout as sleep } from 'node:timers/promises';
import { randomUUID } from 'node:crypto';
import pg from 'pg';

export const newPool = (options) => new pg.Pool(options).on('error', () => {});

/** A key that no other test has. */
export const newId = (operation = 'POST /orders') => ({ scope: 'test_node', operation, key: randomUUID() });

/** Waits until fn() resolves to something true, and resolves to that. */
export async function until(fn, what) {
  for (let i = 0; i < 1200; i++) {
    const value = await fn();
    if (value) return value;
    await sleep(50);
  }
  throw new Error(`never happened: ${what}`);
}

export async function prepare(pool) {
  await pool.query('CREATE EXTENSION IF NOT EXISTS idempotency');
  await pool.query(`SELECT idempotency.forget_scope('test_node', force => true)`);
  await pool.query(`DROP SCHEMA IF EXISTS test_node CASCADE; CREATE SCHEMA test_node;
    CREATE TABLE test_node.orders (id int GENERATED ALWAYS AS IDENTITY, item int)`);
}

export const count = async (pool, item) =>
  (await pool.query('SELECT count(*)::int AS n FROM test_node.orders WHERE item = $1', [item])).rows[0].n;

/** Backends of this application name that wait inside a claim. */
export const waitingClaims = async (pool, name) => (await pool.query(`SELECT count(*)::int AS n FROM pg_stat_activity
  WHERE application_name = $1 AND state = 'active' AND query LIKE '%idempotency.claim(%' AND wait_event IS NOT NULL`, [name])).rows[0].n;
