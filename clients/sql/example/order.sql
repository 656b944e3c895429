-- POST /orders as a script of psql: nothing but SQL, so all of it is one transaction.
-- Variables: account, key, body. Prints outcome, status and answer.

BEGIN;
SELECT outcome, outcome = 'claimed' AS claimed,
	   CASE outcome WHEN 'replay' THEN response_status WHEN 'mismatch' THEN 422 ELSE 409 END AS status,
	   coalesce(response_body, '') AS answer
  FROM idempotency.claim(:'account', 'POST /orders', :'key', request => :'body', wait => '5 s') \gset
\if :claimed
	INSERT INTO example_sql.orders (account, item) VALUES (:'account', (CAST(:'body' AS jsonb)->>'item')::int)
	RETURNING 201 AS status, json_build_object('order', id) AS answer \gset
	SELECT idempotency.complete(:'account', 'POST /orders', :'key', :status, :'answer') AS remembered_until \gset
\endif
COMMIT;
\echo :outcome :status :answer
