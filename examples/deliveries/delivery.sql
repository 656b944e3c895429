--
-- delivery.sql - one webhook delivery, as the receiving application handles it
--
-- This is the whole pattern: claim the event, do the work, record the answer,
-- all in one transaction.  Of any number of deliveries of one event, at any
-- time and on any connection, one is told "claimed"; the others get its answer.
--

-- the request comes in: its account, event_id and payload
SELECT * FROM deliveries.arrive(:lane, :round, :'start') \gset

BEGIN;

SELECT outcome, outcome = 'claimed' AS claimed,
	   coalesce(response_status, CASE outcome WHEN 'mismatch' THEN 422 ELSE 409 END) AS status,
	   coalesce(response_body, '') AS body
  FROM idempotency.claim(:'account', 'POST /webhooks/payments', :'event_id',
						 request => :'payload', ttl => '30 days') \gset

\if :claimed

	-- the business: one row in the ledger
	INSERT INTO deliveries.ledger (account, event_id, type, amount, currency)
	SELECT e->>'account', e->>'id', e->>'type', (e->'data'->>'amount')::bigint, e->'data'->>'currency'
	  FROM CAST(:'payload' AS jsonb) AS e
	RETURNING 200 AS status, format('{"event": "%s", "entry": %s}', event_id, entry) AS body \gset

	-- the recording's bad moments: the work takes long, or the process dies
	\if :slow
		SELECT pg_sleep(0.04);
	\endif
	\if :crash
		SELECT pg_terminate_backend(pg_backend_pid());
	\endif

	\if :error
		-- something failed: the ledger row and the claim go together
		ROLLBACK;
		\set status 500
		\set body ''
	\else
		SELECT idempotency.complete(:'account', 'POST /webhooks/payments', :'event_id',
									response_status => :status, response_body => :'body');
		COMMIT;
	\endif

\else
	COMMIT;
\endif

-- the answer goes out
UPDATE deliveries.attempt SET outcome = :'outcome', status = :status, body = :'body'
 WHERE attempt = :attempt;
