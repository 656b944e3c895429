-- forget_scope_on_delete(): the keys go with the tenant, in one transaction.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS idempotency;
CREATE SCHEMA tenants;
SET search_path = tenants;
DROP ROLE IF EXISTS regress_tenants_admin;
RESET client_min_messages;
-- Three keys for each scope: completed, in progress, held.
CREATE FUNCTION give_keys(scope text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	PERFORM idempotency.once(scope, 'tenants', 'once');
	PERFORM FROM idempotency.claim(scope, 'tenants', 'open', lease => '5 min');
	PERFORM idempotency.hold(scope, 'tenants', 'held', token => c.token) FROM idempotency.claim(scope, 'tenants', 'held', lease => '5 min') AS c;
	RETURN true;
END $$;
CREATE FUNCTION have_keys(like_scope text DEFAULT '%') RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(scope || ' ' || n, ', ' ORDER BY scope) FROM (SELECT scope, count(*) AS n FROM idempotency.idempotency_keys WHERE operation = 'tenants' AND scope LIKE like_scope GROUP BY scope) AS k $$;

-- Row by row, an integer.
CREATE TABLE tenant (id int PRIMARY KEY, name text);
CREATE TRIGGER forget AFTER DELETE ON tenant FOR EACH ROW EXECUTE FUNCTION idempotency.forget_scope_on_delete('id');
INSERT INTO tenant SELECT n, 'n' || n FROM generate_series(1, 12) AS n;
SELECT bool_and(give_keys(id::text)) FROM tenant;
DELETE FROM tenant WHERE id = 1;
SELECT have_keys();
-- Rolled back: tenant and keys are back.
BEGIN;
DELETE FROM tenant;
SELECT have_keys();
ROLLBACK;
SELECT have_keys();
BEGIN;
SAVEPOINT a;
DELETE FROM tenant WHERE id = 2;
ROLLBACK TO a;
DELETE FROM tenant WHERE id = 3;
COMMIT;
SELECT have_keys();
-- Not by an update, and not by a delete that hits nothing.
UPDATE tenant SET id = 100 WHERE id = 4;
DELETE FROM tenant WHERE id = 1000;
SELECT have_keys('4');
-- Statement by statement, for bulk deletes.
DROP TRIGGER forget ON tenant;
CREATE TRIGGER forget AFTER DELETE ON tenant REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION idempotency.forget_scope_on_delete('id');
DELETE FROM tenant WHERE id IN (5, 6, 7);
SELECT have_keys();
DELETE FROM tenant WHERE id = 1000;
BEGIN;
DELETE FROM tenant;
SELECT have_keys();
ROLLBACK;
DELETE FROM tenant;
SELECT have_keys();
SELECT idempotency.forget_scope('4', true);

-- Whatever the type of the column: its text is the scope. NULL has no keys,
-- and neither has the empty string.
CREATE DOMAIN tenant_code AS text CHECK (value <> '');
CREATE TYPE tier AS ENUM ('gold', 'lead');
CREATE TABLE typed (u uuid, b bigint, t text, v varchar(10), d tenant_code, e tier, c "char", j jsonb);
INSERT INTO typed VALUES
	('6ba7b810-9dad-11d1-80b4-00c04fd430c8', 9007199254740993, 'tn text', 'tn vc', 'tn domain', 'gold', 'c', '{"a": 1}'),
	(NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL), (NULL, NULL, '', '', NULL, NULL, NULL, NULL);
CREATE FUNCTION try_column(name text, scope text, form text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE answer text;
BEGIN
	PERFORM give_keys(scope), give_keys(scope || 'x');
	EXECUTE format('CREATE TRIGGER forget AFTER DELETE ON typed %s EXECUTE FUNCTION idempotency.forget_scope_on_delete(%L)', form, name);
	BEGIN
		DELETE FROM typed;
		RAISE EXCEPTION SQLSTATE 'TT000' USING message = have_keys();
	EXCEPTION WHEN SQLSTATE 'TT000' THEN
		answer = sqlerrm;
	END;
	DROP TRIGGER forget ON typed;
	PERFORM idempotency.forget_scope(scope, true), idempotency.forget_scope(scope || 'x', true);
	RETURN answer;
END $$;
CREATE VIEW columns AS SELECT *
FROM (VALUES ('u', '6ba7b810-9dad-11d1-80b4-00c04fd430c8'), ('b', '9007199254740993'), ('t', 'tn text'), ('v', 'tn vc'), ('d', 'tn domain'), ('e', 'gold'), ('c', 'c'), ('j', '{"a": 1}')) AS v(name, scope);
SELECT name, try_column(name, scope, 'FOR EACH ROW') AS left_over FROM columns;
SELECT name, try_column(name, scope, 'REFERENCING OLD TABLE AS gone FOR EACH STATEMENT') AS left_over FROM columns;
-- A column that comes after a dropped one, a partitioned table, a cascade.
ALTER TABLE typed DROP COLUMN u;
SELECT try_column('e', 'gold', 'FOR EACH ROW');
SELECT try_column('e', 'gold', 'REFERENCING OLD TABLE AS gone FOR EACH STATEMENT');
CREATE TABLE part (id text, region text) PARTITION BY LIST (region);
CREATE TABLE part_a (region text, junk int, id text);
ALTER TABLE part_a DROP COLUMN junk;
ALTER TABLE part ATTACH PARTITION part_a FOR VALUES IN ('a');
CREATE TRIGGER forget AFTER DELETE ON part FOR EACH ROW EXECUTE FUNCTION idempotency.forget_scope_on_delete('id');
INSERT INTO part VALUES ('tn part 1', 'a'), ('tn part 2', 'a');
SELECT bool_and(give_keys(id)) FROM part;
DELETE FROM part WHERE id = 'tn part 1';
SELECT have_keys();
DROP TRIGGER forget ON part;
CREATE TRIGGER forget AFTER DELETE ON part REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION idempotency.forget_scope_on_delete('id');
DELETE FROM part;
SELECT have_keys();
CREATE TABLE owner (id int PRIMARY KEY);
CREATE TABLE owned (id text, owner int REFERENCES owner ON DELETE CASCADE);
CREATE TRIGGER forget AFTER DELETE ON owned FOR EACH ROW EXECUTE FUNCTION idempotency.forget_scope_on_delete('id');
INSERT INTO owner VALUES (1);
INSERT INTO owned VALUES ('tn cascade', 1);
SELECT give_keys('tn cascade');
DELETE FROM owner;
SELECT have_keys();

-- Who deletes the tenant needs no privilege on the extension, and gets none.
CREATE ROLE regress_tenants_admin;
GRANT USAGE ON SCHEMA tenants TO regress_tenants_admin;
GRANT SELECT, DELETE ON tenant TO regress_tenants_admin;
INSERT INTO tenant VALUES (1), (2), (3);
SELECT bool_and(give_keys(id::text)) FROM tenant;
SET ROLE regress_tenants_admin;
DELETE FROM tenant WHERE id = 1;
SELECT idempotency.forget_scope('2');
CREATE TEMP TABLE mine (id int);
CREATE TRIGGER forget AFTER DELETE ON mine FOR EACH ROW EXECUTE FUNCTION idempotency.forget_scope_on_delete('id');
RESET ROLE;
DROP TRIGGER forget ON tenant;
CREATE TRIGGER forget AFTER DELETE ON tenant FOR EACH ROW EXECUTE FUNCTION idempotency.forget_scope_on_delete('id');
SET ROLE regress_tenants_admin;
DELETE FROM tenant WHERE id = 2;
RESET ROLE;
SELECT have_keys();
DELETE FROM tenant;
DROP OWNED BY regress_tenants_admin;
DROP ROLE regress_tenants_admin;

-- Not such a trigger.
DROP TRIGGER forget ON tenant;
INSERT INTO tenant VALUES (1);
CREATE TRIGGER forget AFTER DELETE ON tenant FOR EACH ROW EXECUTE FUNCTION idempotency.forget_scope_on_delete('no such column');
DELETE FROM tenant;
DROP TRIGGER forget ON tenant;
CREATE TRIGGER forget AFTER DELETE ON tenant FOR EACH ROW EXECUTE FUNCTION idempotency.forget_scope_on_delete('ctid');
DELETE FROM tenant;
DROP TRIGGER forget ON tenant;
CREATE TRIGGER forget AFTER DELETE ON tenant FOR EACH ROW EXECUTE FUNCTION idempotency.forget_scope_on_delete();
DELETE FROM tenant;
DROP TRIGGER forget ON tenant;
CREATE TRIGGER forget BEFORE DELETE ON tenant FOR EACH ROW EXECUTE FUNCTION idempotency.forget_scope_on_delete('id');
DELETE FROM tenant;
DROP TRIGGER forget ON tenant;
CREATE TRIGGER forget AFTER DELETE ON tenant FOR EACH STATEMENT EXECUTE FUNCTION idempotency.forget_scope_on_delete('id');
DELETE FROM tenant;
DROP TRIGGER forget ON tenant;
CREATE TRIGGER forget AFTER UPDATE ON tenant FOR EACH ROW EXECUTE FUNCTION idempotency.forget_scope_on_delete('id');
UPDATE tenant SET name = 'n';
SELECT idempotency.forget_scope_on_delete();
SELECT count(*) FROM tenant;

SET client_min_messages = warning;
DROP SCHEMA tenants CASCADE;
