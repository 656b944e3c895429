-- POST /charges: somebody else is asked, so the claim is committed first, with a lease that is longer than all time-outs.
-- Variables: account, key, body, claim_id (fresh for each request, and the same when it is repeated because the connection
-- was lost). $NETWORK is the command that asks the card network. Prints outcome, status and answer.
--
-- A script that is stopped anywhere leaves its claim behind. hold_if_abandoned: nobody knows then whether the card was
-- charged, so nobody charges it again by himself.

-- 1. One statement, committed when it returns.
SELECT outcome, outcome = 'claimed' AS claimed, token,
	   CASE outcome WHEN 'replay' THEN response_status WHEN 'mismatch' THEN 422 ELSE 409 END AS status,
	   coalesce(response_body, '') AS answer
  FROM idempotency.claim(:'account', 'POST /charges', :'key', request => :'body', state => :'body', lease => '2 min',
						 claim_id => :'claim_id', hold_if_abandoned => true) \gset
\if :claimed
	-- 2. The outside world, outside of any transaction, by the same key in every attempt.
	SELECT CAST(:'body' AS jsonb)->>'amount' AS amount,
		   idempotency.effect_key(:'account', 'POST /charges', :'key', step => 'charge') AS effect_key \gset
	\set said `"$NETWORK" :'effect_key' :'amount'`
	SELECT :'said' LIKE 'ch~_%' ESCAPE '~' AS charged, :'said' = 'not sent' AS not_sent \gset

	-- 3. What is known of it.
	\if :charged
		-- it happened: the row and the answer, together
		BEGIN;
		INSERT INTO example_sql.payments VALUES (:'account', :'said', :'amount');
		SELECT 201 AS status, :'said' AS answer,
			   idempotency.complete(:'account', 'POST /charges', :'key', 201, :'said', token => :token, refuse_repeat => true) \gset
		COMMIT;
	\elif :not_sent
		-- nothing happened: the next attempt may do it
		SELECT 503 AS status, idempotency.fail(:'account', 'POST /charges', :'key', error => 'not sent', token => :token) \gset
	\else
		-- nobody knows: a person decides
		SELECT 409 AS status, idempotency.hold(:'account', 'POST /charges', :'key', reason => 'no answer', token => :token) \gset
	\endif
\endif
\echo :outcome :status :answer
