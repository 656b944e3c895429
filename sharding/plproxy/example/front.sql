/*
 * example/front.sql - the same order, on the front: it goes to the shard of its scope
 *
 *	psql -d FRONT -f sharding/plproxy/example/front.sql
 */

\set ON_ERROR_STOP on
BEGIN;

CREATE SCHEMA shop;
COMMENT ON SCHEMA shop IS
	'Example: a shop whose customers are spread over shards';

-- As all of PL/Proxy's, its errors have words of its own before them, and a connection
-- that was lost is an internal error. So the one that is called gives them their form.
CREATE FUNCTION shop.send_order(scope text, key text, item int4)
RETURNS idempotency.claim_result
LANGUAGE plproxy
AS $$
	CLUSTER 'idempotency';
	RUN ON idempotency_front.shard_of(scope, 'POST /orders', key);
	TARGET shop.post_order;
$$;
COMMENT ON FUNCTION shop.send_order IS
	'Sends post_order() to the shard of the scope';

CREATE FUNCTION shop.post_order(scope text, key text, item int4)
RETURNS idempotency.claim_result
LANGUAGE plpgsql
AS $$
DECLARE
	answer idempotency.claim_result;
	error idempotency_front.error;
BEGIN
	SELECT * INTO answer FROM shop.send_order(scope, key, item);
	RETURN answer;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS error.code = RETURNED_SQLSTATE, error.message = MESSAGE_TEXT,
		error.detail = PG_EXCEPTION_DETAIL, error.hint = PG_EXCEPTION_HINT, error.reason = CONSTRAINT_NAME;
	PERFORM idempotency_front.raise_as_shard(error);
END
$$;
COMMENT ON FUNCTION shop.post_order IS
	'Takes an order once, on the shard of the scope';

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA shop FROM PUBLIC;
COMMIT;
