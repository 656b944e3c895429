-- A webhook: once, in the transaction that books it.
-- Variables: event, amount. Prints t the first time, f for a repeat; both are answered by 200.

BEGIN;
SELECT idempotency.once('provider', 'webhook', :'event') AS first \gset
\if :first
	INSERT INTO example_sql.ledger VALUES (:'event', :amount);
\endif
COMMIT;
\echo :first
