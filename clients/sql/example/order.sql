-- POST /orders: nothing but SQL, so all of it is one transaction.
-- Variables: account, key, body
BEGIN;
SELECT outcome, outcome = 'claimed' AS claimed, coalesce(response_body, '') AS body_out,
	   CASE outcome WHEN 'replay' THEN response_status WHEN 'mismatch' THEN 422 ELSE 409 END AS status
  FROM idempotency.claim(:'account', 'POST /orders', :'key', request => :'body', wait => '5 s') \gset
\if :claimed
	INSERT INTO example_sql.orders (account, item) VALUES (:'account', (CAST(:'body' AS jsonb)->>'item')::int)
	RETURNING 201 AS status, json_build_object('order', id) AS body_out \gset
	SELECT idempotency.complete(:'account', 'POST /orders', :'key', :status, :'body_out') \gset
\endif
COMMIT;
\echo :outcome :status :body_out
