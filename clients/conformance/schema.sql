-- What the conformance service (spec.md) works on, made by the host in a database of its own.

CREATE EXTENSION IF NOT EXISTS idempotency;

-- The service's role: that of an application, which the extension binds to its own scopes.
DO $$
BEGIN
	CREATE ROLE shop LOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
	NULL; -- roles are the server's, and another database has made it
END $$;
SELECT idempotency.grant_usage('shop'), idempotency.grant_monitor('shop'), idempotency.bind_role('shop', 'shop:%');

CREATE SCHEMA shop;
GRANT USAGE ON SCHEMA shop TO shop;
CREATE TABLE shop.orders (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account text NOT NULL, item int NOT NULL);
CREATE TABLE shop.payments (account text NOT NULL, charge text PRIMARY KEY, amount int NOT NULL);
CREATE TABLE shop.visits (account text NOT NULL);
GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA shop TO shop;

-- Orders of some items fail with SQLSTATE 40001, as two transactions under SERIALIZABLE would: 40001 every other time,
-- in the INSERT; 40002 every other time, in the COMMIT; 40003 always, in the INSERT. A sequence counts, since it does not roll back.
CREATE SEQUENCE shop.conflicts;
GRANT USAGE ON SEQUENCE shop.conflicts TO shop;
CREATE FUNCTION shop.conflict() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	IF NEW.item = 40003 OR nextval('shop.conflicts') % 2 = 1 THEN
		RAISE serialization_failure USING MESSAGE = 'a conflict, made for the test';
	END IF;
	RETURN NULL;
END $$;
CREATE TRIGGER conflict AFTER INSERT ON shop.orders
	FOR EACH ROW WHEN (NEW.item IN (40001, 40003)) EXECUTE FUNCTION shop.conflict();
CREATE CONSTRAINT TRIGGER conflict_at_commit AFTER INSERT ON shop.orders DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW WHEN (NEW.item = 40002) EXECUTE FUNCTION shop.conflict();
