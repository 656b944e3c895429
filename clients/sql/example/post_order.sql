-- POST /orders as one function: whatever calls it has one statement to send, and no transaction to keep open.
-- An error of the work rolls back the claim with it, so the key is free again.
CREATE FUNCTION example_sql.post_order(account text, key text, body jsonb, OUT status int, OUT answer text)
LANGUAGE plpgsql AS $$
DECLARE
	claimed record;
BEGIN
	SELECT * INTO claimed FROM idempotency.claim(account, 'POST /orders', key, request => body, wait => '5 s');
	CASE claimed.outcome
		WHEN 'claimed' THEN
			INSERT INTO example_sql.orders (account, item) VALUES (account, (body->>'item')::int)
			RETURNING 201, json_build_object('order', id) INTO status, answer;
			PERFORM idempotency.complete(account, 'POST /orders', key, status, answer);
		WHEN 'replay' THEN
			status := claimed.response_status;
			answer := claimed.response_body;
		WHEN 'mismatch' THEN
			status := 422;  -- the key was used for another request
		WHEN 'in_progress', 'held' THEN
			status := 409;  -- without ELSE: what is not known is an error
	END CASE;
END $$;
