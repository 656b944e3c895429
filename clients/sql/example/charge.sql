-- POST /charges: somebody else is asked, so the claim is committed first.
-- Variables: account, key, body, claim_id (fresh for each request, the same when it is repeated because the
-- connection was lost), mood (how the network fares: well, refused, silent)

-- One statement, committed when it returns.
SELECT outcome, outcome = 'claimed' AS claimed, token, coalesce(response_body, '') AS body_out,
	   CASE outcome WHEN 'replay' THEN response_status WHEN 'mismatch' THEN 422 ELSE 409 END AS status,
	   idempotency.effect_key(:'account', 'POST /charges', :'key', 'charge') AS effect_key,
	   :'mood' = 'well' AS well, :'mood' = 'refused' AS refused, CAST(:'body' AS jsonb)->>'amount' AS amount
  FROM idempotency.claim(:'account', 'POST /charges', :'key', request => :'body',
						 lease => '2 min', claim_id => :'claim_id', hold_if_abandoned => true) \gset
\if :claimed
	-- the outside world, outside of any transaction of ours
	INSERT INTO example_sql.network SELECT :'effect_key', :amount WHERE NOT :'refused' ON CONFLICT DO NOTHING;
	\if :well
		-- the row and the answer, together
		BEGIN;
		INSERT INTO example_sql.payments VALUES (:'account', :amount);
		SELECT 201 AS status, 'charged' AS body_out,
			   idempotency.complete(:'account', 'POST /charges', :'key', 201, 'charged', token => :token, refuse_repeat => true) \gset
		COMMIT;
	\elif :refused
		-- we know that nothing happened
		SELECT 503 AS status, idempotency.fail(:'account', 'POST /charges', :'key', error => 'connection refused', token => :token) \gset
	\else
		-- nobody knows what happened
		SELECT 409 AS status, idempotency.hold(:'account', 'POST /charges', :'key', reason => 'no answer', token => :token) \gset
	\endif
\endif
\echo :outcome :status :body_out
