-- The tables of a small shop, made anew.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
DROP SCHEMA IF EXISTS example_sql CASCADE;
CREATE SCHEMA example_sql;
CREATE TABLE example_sql.orders (id int GENERATED ALWAYS AS IDENTITY, account text, item int);
CREATE TABLE example_sql.payments (account text, charge text, amount int);
CREATE TABLE example_sql.ledger (event text, amount int);
DO $$
BEGIN
	PERFORM idempotency.forget_scope('sql', force => true), idempotency.forget('provider', 'webhook', 'evt_sql');
END $$;
