-- A webhook: once, in the transaction that books it.
-- Variables: event, amount
BEGIN;
SELECT idempotency.once('provider', 'webhook', :'event') AS first \gset
\if :first
	INSERT INTO example_sql.ledger VALUES (:'event', :amount);
\endif
COMMIT;
\echo :first
