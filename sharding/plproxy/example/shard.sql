/*
 * example/shard.sql - an order, taken on the shard: claim, work and complete in one
 * transaction
 *
 *	psql -d SHARD -f sharding/plproxy/example/shard.sql
 *
 * The pattern for all work that is only SQL. The whole of it is one call of the front,
 * so it is one transaction here, and it needs neither lease nor token. The rows carry
 * their scope, so that they can move with it.
 */

\set ON_ERROR_STOP on
BEGIN;

CREATE SCHEMA shop;
COMMENT ON SCHEMA shop IS
	'Example: a shop whose customers are spread over shards';

-- The number is unique over all shards, or rows could not move.
CREATE TABLE shop.orders
(
	id		uuid NOT NULL DEFAULT gen_random_uuid(),
	scope	text COLLATE "C" NOT NULL,
	key		text COLLATE "C" NOT NULL,
	item	int4 NOT NULL,
	CONSTRAINT orders_pkey PRIMARY KEY (id)
);
COMMENT ON TABLE shop.orders IS
	'Orders of the customers of this shard';
CREATE INDEX orders_scope_idx ON shop.orders (scope);

CREATE FUNCTION shop.post_order(scope text, key text, item int4)
RETURNS idempotency.claim_result
LANGUAGE plpgsql
AS $$
#variable_conflict use_variable
DECLARE
	answer idempotency.claim_result;
	id uuid;
BEGIN
	SELECT * INTO answer FROM idempotency.claim(scope, 'POST /orders', key,
		request => jsonb_build_object('item', item), wait => '5 s');
	IF answer.outcome = 'claimed' THEN
		INSERT INTO shop.orders (scope, key, item) VALUES (scope, key, item) RETURNING orders.id INTO id;
		answer.response_status := 201;
		answer.response_body := jsonb_build_object('order', id);
		PERFORM idempotency.complete(scope, 'POST /orders', key, answer.response_status, answer.response_body);
	END IF;
	RETURN answer;
END
$$;
COMMENT ON FUNCTION shop.post_order IS
	'Takes an order once; outcome is claimed the first time, then replay, with the same answer';

-- Where the shard is to give scopes away (sharding/plproxy/shard.sql).
DO $$
BEGIN
	IF to_regprocedure('idempotency_shard.move_along(regclass, name, int4)') IS NOT NULL THEN
		PERFORM idempotency_shard.move_along('shop.orders', 'scope');
	END IF;
END
$$;

REVOKE ALL ON FUNCTION shop.post_order FROM PUBLIC;
COMMIT;
