
# Somebody has put a look-alike of every function, operator, type, relation and
# collation of the server's own and of ours in front of them. Every call answers as
# without, whoever makes it; so do the worker, the views and the trigger, and the
# install script. Policies, event triggers and default privileges change no more.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Utils;
use Test::More;
use Worker;

my $node = new_preloaded_server('hostile', conf => "max_prepared_transactions = 5\nautovacuum = off\n");
my $version = Connection->connect($node)->ok('SHOW server_version_num')->value;
my $tame = "-c search_path=pg_catalog" . ($version >= 170000 ? ' -c event_triggers=off' : '');
my @roles = qw(chief application operator);

$node->safe_psql('postgres', 'CREATE ROLE chief LOGIN SUPERUSER; CREATE ROLE application LOGIN; CREATE ROLE operator LOGIN; CREATE ROLE mallory LOGIN; CREATE ROLE bound');
$node->safe_psql('postgres', "CREATE DATABASE $_") foreach qw(inside events defaults);

sub prepare
{
	my ($database) = @_;

	$node->safe_psql($database, q{
		CREATE EXTENSION IF NOT EXISTS idempotency;
		SELECT idempotency.grant_usage('application'), idempotency.grant_operator('operator');
		CREATE TABLE public.tenant (id text);
		GRANT ALL ON public.tenant TO PUBLIC;
		CREATE TRIGGER forget AFTER DELETE ON public.tenant FOR EACH ROW EXECUTE FUNCTION idempotency.forget_scope_on_delete('id')});
	return;
}

# ---- every call -------------------------------------------------------------------

# What a call answers, without what is another one each time.
sub said
{
	my ($result) = @_;

	return $result->code if $result->code;
	return join '; ', map { join ',', map { !defined ? 'null' : s/^\d{4}-\d\d-\d\d \d\d:.*/time/r =~ s/^\d{12,}$/number/r } @$_ } @{ $result->rows };
}

# All of them, one after the other. The statements name everything in full, so that
# nothing but what the calls do inside can differ.
sub story
{
	my ($c, $scope) = @_;
	my @answers;
	my $ask = sub {
		my ($sql) = @_;
		my $result = $c->query($sql =~ s/SCOPE/$scope/gr);

		push @answers, ($sql =~ s/ *\d{12,}/ TOKEN/r) . ' -- ' . ($sql =~ /health|stats/ ? $result->code : said($result));
		return $result;
	};
	my $token = sub { return $_[0]->row->{token} // 0; };

	$ask->('BEGIN');
	$ask->(q{SELECT outcome, attempt, taken_over, fingerprint_checked FROM idempotency.claim('SCOPE', 'own', 'a', '{"b": [1.0, "x"]}', ttl => '2 days', note => 'n', state => '{"s": 1}')});
	$ask->(q{SELECT idempotency.checkpoint('SCOPE', 'own', 'a', 'half', '{"s": 2}')});
	$ask->(q{SELECT idempotency.complete('SCOPE', 'own', 'a', 201, '{"id": 1}', '[["A", "b"]]')});
	$ask->('COMMIT');
	$ask->(q{SELECT outcome, response_status, response_body, response_headers, fingerprint_checked FROM idempotency.claim('SCOPE', 'own', 'a', '{"b": [1, "x"]}')});
	$ask->(q{SELECT outcome FROM idempotency.claim('SCOPE', 'own', 'a', '{"b": 2}')});
	$ask->(q{SELECT response_status, response_body, expires_at FROM idempotency.replay('SCOPE', 'own', 'a')});
	$ask->(q{SELECT status, attempt, note, fingerprint, state FROM idempotency.lookup('SCOPE', 'own', 'a')});
	my $one = $token->($ask->(q{SELECT token, outcome FROM idempotency.claim('SCOPE', 'lease', 'a', lease => '1 us', claim_id => '11111111-1111-1111-1111-111111111111')}));
	my $two = $token->($ask->(q{SELECT token, outcome, attempt, taken_over FROM idempotency.claim('SCOPE', 'lease', 'a', lease => '1 hour')}));
	$ask->("SELECT idempotency.complete('SCOPE', 'lease', 'a', 200, token => $one)");
	$ask->("SELECT idempotency.extend('SCOPE', 'lease', 'a', '5 min', $two)");
	$ask->("SELECT idempotency.fail('SCOPE', 'lease', 'a', 'why', '1 us', $two)");
	$two = $token->($ask->(q{SELECT token, attempt, last_error FROM idempotency.claim('SCOPE', 'lease', 'a', lease => '1 hour')}));
	$ask->("SELECT idempotency.hold('SCOPE', 'lease', 'a', 'why', $two)");
	$ask->(q{SELECT outcome FROM idempotency.claim('SCOPE', 'lease', 'a')});
	$ask->(q{SELECT status, scope FROM idempotency.abandoned});
	$ask->(q{SELECT idempotency.resolve('SCOPE', 'lease', 'a', 'retry', 'asked')});
	$two = $token->($ask->(q{SELECT token FROM idempotency.claim('SCOPE', 'lease', 'r', lease => '1 hour')}));
	$ask->("SELECT idempotency.release('SCOPE', 'lease', 'r', $two)");
	$ask->(q{SELECT idempotency.record_failure('SCOPE', 'failure', 'a', 'no')});
	$ask->(q{SELECT outcome FROM idempotency.claim('SCOPE', 'left', 'a', lease => '1 us', ttl => '1 us', state => '{}')});
	$ask->(q{SELECT scope, operation, key, attempt, state FROM idempotency.claim_abandoned('left')});
	$ask->(q{SELECT idempotency.once('SCOPE', 'event', 'a')}) foreach 1, 2;
	$ask->(q{SELECT * FROM idempotency.once_batch('SCOPE', 'event', ARRAY['c', 'a', 'b', 'c'])});
	$ask->(q{SELECT outcome, response_body FROM idempotency.run('SCOPE', 'run', 'a', 'SELECT 1')});
	$ask->(q{SELECT idempotency.fingerprint('{"a": 1.0}'), idempotency.fingerprint_bytes('{"a": 1}'), idempotency.content_key('{"a": 1}', '1 day') IS NULL, idempotency.effect_key('SCOPE', 'b', 'c', 'd') IS NULL});
	$ask->(q{SELECT idempotency.import_completed('SCOPE', 'import', 'a', 200, 'body', created_at => '2020-01-01 00:00+00', completed_at => '2020-01-01 00:00+00', expires_at => 'infinity')});
	$ask->(q{SELECT idempotency.import_completed('SCOPE', 'import', 'a', 200, 'body', created_at => pg_catalog.now(), completed_at => pg_catalog.now(), expires_at => pg_catalog.now())});
	$ask->('BEGIN');
	$ask->(q{SELECT (k).key FROM idempotency.export_scopes('{SCOPE}') AS k});
	$ask->('ROLLBACK');
	$ask->(q{SELECT idempotency.import_key(NULL)});
	$ask->(q{SELECT idempotency.forget_exported(NULL)});
	$ask->(q{SELECT idempotency.redact('SCOPE', 'own', 'a'), idempotency.redact_scope('SCOPE')});
	$ask->(q{SELECT response_body FROM idempotency.replay('SCOPE', 'own', 'a')});
	$ask->(q{SELECT idempotency.forget('SCOPE', 'own', 'a')});
	$ask->(q{SELECT idempotency.set_policy('policy', ttl => '1 hour', max_attempts => 3)});
	$ask->(q{SELECT * FROM idempotency.effective_policies});
	$ask->(q{SELECT outcome, expires_at FROM idempotency.claim('SCOPE', 'policy', 'a', lease => '1 min')});
	$ask->(q{SELECT idempotency.drop_policy('policy')});
	$ask->(q{SELECT idempotency.bind_role('bound', 'SCOPE%'), idempotency.unbind_role('bound', 'SCOPE%')});
	$ask->(q{SELECT operation, status, keys, expired FROM idempotency.keys_by_operation});
	$ask->(q{SELECT scope, operation, status, keys FROM idempotency.keys_by_scope});
	$ask->("SELECT idempotency.key_standing('completed', pg_catalog.now(), NULL, NULL, pg_catalog.now())");
	$ask->(q{SELECT * FROM idempotency.health()});
	$ask->(q{SELECT * FROM idempotency.stats});
	$ask->(q{SELECT idempotency.stats_reset()});
	$ask->(q{SELECT idempotency.grant_usage('bound'), idempotency.grant_operator('bound'), idempotency.grant_monitor('bound')});
	$ask->(q{SELECT idempotency.revoke_usage('bound'), idempotency.revoke_operator('bound'), idempotency.revoke_monitor('bound')});
	$ask->(q{SELECT idempotency.schedule_cleanup()});
	$ask->(q{SELECT idempotency.unschedule_cleanup()});
	$ask->(q{SELECT idempotency.request_cleanup() IS NULL});
	$ask->(q{SELECT idempotency.once('tenant-SCOPE', 'op', 'k')});
	$ask->(q{INSERT INTO public.tenant VALUES ('tenant-SCOPE')});
	$ask->(q{DELETE FROM public.tenant});
	$ask->(q{SELECT status FROM idempotency.lookup('tenant-SCOPE', 'op', 'k')});
	$ask->(q{SELECT idempotency.cleanup(scope => 'SCOPE') IS NULL});
	$ask->(q{CALL idempotency.maintain()});
	$ask->(q{SELECT idempotency.default_policy()});
	$ask->(q{SELECT idempotency.forget_scope('SCOPE', true)});
	return @answers;
}

# Each begins and ends with an empty table, so that views show its own rows.
sub told
{
	my ($database, $role, $option, $before) = @_;
	my $c = Connection->connect($node, database => $database, user => $role, options => $option // '');

	$node->safe_psql($database, 'TRUNCATE idempotency.idempotency_keys; TRUNCATE public.tenant');
	$before->($c) if $before;
	my @answers = story($c, 'story');
	$c->close(terminate => 1);
	return join "\n", @answers;
}

prepare($_) foreach 'postgres', 'inside';
my %reference = map { $_ => told('postgres', $_) } @roles;
is(join(' ', grep { $_ ne 'call_support' && $_ ne 'config_changed' && $_ ne 'forget_scope_on_delete' && $_ ne 'stats_data' && $reference{chief} !~ /idempotency\.$_\b/ }
	split /\n/, $node->safe_psql('postgres', q{SELECT proname FROM pg_proc WHERE pronamespace = 'idempotency'::regnamespace})), '', 'every call is in the story');
is(scalar(grep { / -- (?:XX|P0|42883|42601)/ } split /\n/, $reference{chief}), 0, 'which a superuser can tell') or diag($reference{chief});
is(scalar(grep { / -- 42501/ } split /\n/, $reference{chief}), 0, 'to the end');

# ---- look-alikes --------------------------------------------------------------------

my $bewitch = q{
CREATE FUNCTION public.bewitch(place text, functions bool) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
	statement text;
	made int := 0;
BEGIN
	FOR statement IN
		SELECT format('CREATE FUNCTION %I.%I(%s) RETURNS %s LANGUAGE plpgsql AS ''BEGIN RAISE EXCEPTION ''''betrayed''''; END''', place, proname,
				array_to_string(ARRAY(SELECT format_type(t, NULL) FROM unnest(proargtypes) t), ', '), (CASE WHEN proretset THEN 'SETOF ' ELSE '' END) || format_type(prorettype, NULL))
			FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND functions
				AND NOT (ARRAY['internal'::regtype, 'cstring'::regtype, 'trigger'::regtype, 'event_trigger'::regtype]::oid[] && (proargtypes::oid[] || prorettype))
		UNION ALL SELECT format('CREATE OPERATOR %I.%s (FUNCTION = %I.%I%s, RIGHTARG = %s)', place, oprname, place, proname,
				CASE WHEN oprleft <> 0 THEN ', LEFTARG = ' || format_type(oprleft, NULL) ELSE '' END, format_type(oprright, NULL))
			FROM pg_operator JOIN pg_proc p ON p.oid = oprcode WHERE oprnamespace = 'pg_catalog'::regnamespace AND functions
		UNION ALL SELECT format('CREATE DOMAIN %I.%I AS pg_catalog.int4 CHECK (false)', place, typname)
			FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype <> 'c' AND typelem = 0 AND typtype <> 'p'
		UNION ALL SELECT format('CREATE TABLE %I.%I (nothing pg_catalog.int4)', place, relname)
			FROM pg_class WHERE relnamespace IN ('pg_catalog'::regnamespace, 'idempotency'::regnamespace) AND relkind IN ('r', 'v', 'S', 'c')
		UNION ALL SELECT format('CREATE COLLATION %I.%I (LOCALE = ''C'')', place, c) FROM unnest(ARRAY['C', 'POSIX', 'default', 'ucs_basic']) c
	LOOP
		BEGIN
			EXECUTE statement;
			made := made + 1;
		EXCEPTION WHEN OTHERS THEN
			NULL;
		END;
	END LOOP;
	RETURN made;
END $$};
sub bewitch
{
	my ($database) = @_;

	$node->safe_psql($database, $bewitch);
	$node->safe_psql($database, "GRANT CREATE ON DATABASE $database TO mallory");
	my $mallory = Connection->connect($node, database => $database, user => 'mallory');
	$mallory->ok('CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC');
	cmp_ok($mallory->ok(q{SELECT public.bewitch('evil', true)})->value, '>', 2500, "$database: look-alikes of what there is");
	# Casts between the caller's own type and the server's.
	$mallory->ok(q{CREATE TYPE evil.mine AS ENUM ('a'); CREATE CAST (evil.mine AS pg_catalog.text) WITH INOUT AS IMPLICIT; CREATE CAST (pg_catalog.text AS evil.mine) WITH INOUT AS IMPLICIT});
	$mallory->close(terminate => 1);
	return;
}
bewitch($_) foreach 'postgres', 'inside';
# Those that a superuser made, so that old SQL works.
$node->safe_psql('inside', "CREATE CAST (pg_catalog.$_ AS pg_catalog.text) WITH INOUT AS IMPLICIT") foreach qw(int4 int8 timestamptz bytea);

# They are found where they are looked for.
my $evil = '-c search_path=evil,pg_temp,pg_catalog,public';
my $c = Connection->connect($node, user => 'application', options => $evil);
like($c->query('SELECT 1 = 1')->message, qr/betrayed/, 'an operator');
like($c->query('SELECT now()')->message, qr/betrayed/, 'a function');
is($c->query("SELECT '1'::text")->code, '23514', 'a type');
$c->close(terminate => 1);

# The same in the caller's temporary schema, where types and relations are looked
# for first unless the search path says otherwise.
my $temporary = sub { cmp_ok($_[0]->ok(q{SELECT public.bewitch('pg_temp', false)})->value, '>', 150, 'and temporary ones'); };
$node->safe_psql('postgres', 'GRANT TEMP ON DATABASE postgres TO PUBLIC');
foreach my $role (@roles)
{
	is(told('postgres', $role, '-c search_path=pg_catalog,evil,public', sub { $_[0]->ok("SET search_path = pg_catalog"); $temporary->($_[0]); $_[0]->ok('SET search_path = evil, pg_temp, idempotency, public, pg_catalog') }),
		$reference{$role}, "$role: every call answers as without");
	is(told('postgres', $role, '-c search_path=pg_catalog', $temporary), $reference{$role}, "$role: so with temporary objects alone");
	is(told('postgres', $role, '-c search_path=pg_temp,evil'), $reference{$role}, "$role: so where the server's own come last of all");
}

# In our own schema, too, where somebody was granted CREATE, and was not to be.
$node->safe_psql('inside', 'GRANT CREATE, USAGE ON SCHEMA idempotency TO mallory');
cmp_ok(Connection->connect($node, database => 'inside', user => 'mallory')->ok(q{SELECT public.bewitch('idempotency', true)})->value, '>', 2500, 'look-alikes in our schema');
is(told('inside', $_, '-c search_path=idempotency,evil,pg_catalog'), $reference{$_}, "$_: every call answers as without") foreach @roles;
# An overload of ours is another function. Which one is meant cannot be said, so none is granted.
Connection->connect($node, database => 'inside', user => 'mallory')->ok(q{CREATE FUNCTION idempotency.claim(text, text, text, text) RETURNS text LANGUAGE sql AS $$ SELECT 'claimed' $$});
is(Connection->connect($node, database => 'inside')->query(q{SELECT idempotency.grant_usage('bound')})->code, '42725', 'an overload of a call: nothing is granted');
is($node->safe_psql('inside', q{SELECT count(*) FROM pg_proc, aclexplode(proacl) WHERE grantee = 'bound'::regrole}), 0, 'nothing at all');

# ---- the worker -----------------------------------------------------------------------

$node->safe_psql('postgres', "ALTER DATABASE postgres SET search_path = evil, pg_temp, pg_catalog");
my $wire = Connection->connect($node, options => $tame);
$wire->ok(q{INSERT INTO idempotency.idempotency_keys (created_at, expires_at, completed_at, attempt, scope, operation, key, status)
	SELECT now() - interval '2 days', now() - interval '1 day', now(), 1, 's', 'op', g, 'completed' FROM generate_series(1, 20) g});
ok(wait_until(sub { $wire->ok('SELECT idempotency.request_cleanup()'); $wire->ok('SELECT count(*) FROM idempotency.idempotency_keys')->value == 0 }), 'the worker cleans all the same');
is($wire->ok(q{SELECT count(*) FROM idempotency.cleanup_runs WHERE sqlstate IS NOT NULL})->value, 0, 'without an error');
$wire->ok('ALTER DATABASE postgres RESET search_path');
is(scalar(grep { /betrayed/ } grep { !/SELECT 1 = 1|SELECT now/ } troubles($node)), 2, 'no look-alike was called but by the test itself');

# ---- policies -------------------------------------------------------------------------

# What the tables' owner, who is no superuser, lays down about rows concerns readers;
# the calls are not to see less, nor to call what it names.
$wire->ok('GRANT USAGE ON SCHEMA idempotency TO mallory; ALTER SEQUENCE idempotency.token_seq OWNER TO mallory');
foreach my $table (qw(idempotency_keys policies role_bindings cleanup_runs lock_secret))
{
	$wire->ok(qq{ALTER TABLE idempotency.$table OWNER TO mallory;
		ALTER TABLE idempotency.$table ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
		CREATE POLICY evil ON idempotency.$table USING (evil.pg_trigger_depth() = 1) WITH CHECK (false)});
}
is(told('postgres', $_), $reference{$_}, "$_: every call answers as without policies") foreach @roles;

# ---- event triggers ---------------------------------------------------------------------

# They are a superuser's, run as whoever is active, and change the search path.
$node->safe_psql('events', $bewitch =~ s/, 'idempotency'::regnamespace//r);
$node->safe_psql('events', q{
	CREATE SCHEMA evil;
	GRANT USAGE ON SCHEMA evil TO PUBLIC;
	SELECT public.bewitch('evil', true);
	CREATE TABLE public.event (event text, tag text, who text);
	GRANT INSERT ON public.event TO PUBLIC;
	CREATE FUNCTION public.witness() RETURNS event_trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $$
		BEGIN INSERT INTO public.event VALUES (TG_EVENT, TG_TAG, current_user); END $$;
	CREATE FUNCTION public.mislead() RETURNS event_trigger LANGUAGE plpgsql AS $$
		BEGIN PERFORM pg_catalog.set_config('search_path', 'evil, pg_catalog', false); END $$});
$node->safe_psql('events', "CREATE EVENT TRIGGER witness_$_ ON $_ EXECUTE FUNCTION public.witness()") foreach qw(ddl_command_start ddl_command_end sql_drop table_rewrite), $version >= 170000 ? 'login' : ();
$node->safe_psql('events', 'CREATE EVENT TRIGGER a_mislead ON ddl_command_start EXECUTE FUNCTION public.mislead()');
my $events = Connection->connect($node, database => 'events', options => '-c search_path=pg_catalog');
is($events->query('CREATE EXTENSION idempotency')->code, '', 'the extension is created under event triggers');
is($events->query('SELECT 1 = 1')->code, 'P0001', 'which have led names astray');
$events->close(terminate => 1);

my $everything = q{
	SELECT pg_get_viewdef(oid) FROM pg_class WHERE relnamespace = 'idempotency'::regnamespace AND relkind = 'v'
	UNION ALL SELECT concat(attrelid::regclass, attname, atttypid::regtype, attcollation::regcollation, pg_get_expr(adbin, adrelid)) FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
		WHERE attrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'idempotency'::regnamespace)
	UNION ALL SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'idempotency'::regnamespace
	UNION ALL SELECT pg_get_indexdef(indexrelid) FROM pg_index JOIN pg_class c ON c.oid = indrelid WHERE c.relnamespace = 'idempotency'::regnamespace
	UNION ALL SELECT pg_get_functiondef(oid) || coalesce(proacl::text, '') FROM pg_proc WHERE pronamespace = 'idempotency'::regnamespace
	ORDER BY 1};
sub everything { return Connection->connect($node, database => $_[0], options => $tame)->ok($everything)->rows; }
$node->safe_psql('postgres', 'CREATE DATABASE fresh');
$node->safe_psql('fresh', 'CREATE EXTENSION idempotency');
is_deeply(everything('events'), everything('fresh'), 'all objects are those of an ordinary installation');
$events = Connection->connect($node, database => 'events', options => $tame);
$events->ok('DROP EVENT TRIGGER a_mislead');
like($events->ok("SELECT string_agg(DISTINCT tag, ' ') FROM public.event")->value, qr/CREATE EXTENSION/, 'they have seen it');

prepare('events');
$events->ok('TRUNCATE public.event');
is(told('events', $_), $reference{$_}, "$_: every call answers as without event triggers") foreach @roles;
is($events->ok(q{SELECT string_agg(DISTINCT tag || ' by ' || who, ', ') FROM public.event WHERE event <> 'login' AND tag <> 'TRUNCATE TABLE'})->value, 'GRANT by chief, REVOKE by chief',
	'no call is DDL but those that grant and revoke, as who calls');

# One that refuses a GRANT refuses ours, all of it.
$events->ok(q{CREATE FUNCTION public.refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused'; END $$;
	CREATE EVENT TRIGGER refuse ON ddl_command_end WHEN TAG IN ('GRANT') EXECUTE FUNCTION public.refuse()});
is(Connection->connect($node, database => 'events')->query(q{SELECT idempotency.grant_usage('bound')})->code, 'P0001', 'a GRANT that is refused');
is($events->ok(q{SELECT count(*) FROM pg_proc, aclexplode(proacl) WHERE grantee = 'bound'::regrole})->value, 0, 'grants nothing');

# The worker is no login.
SKIP:
{
	skip 'no login event triggers', 2 if $version < 170000;
	$events->ok('CREATE EVENT TRIGGER z_refuse ON login EXECUTE FUNCTION public.refuse()');
	ok(!Connection->connect($node, database => 'events', user => 'application', fail_ok => 1), 'nobody can log in');
	my $before = $events->ok('SELECT clock_timestamp()')->value;
	ok(wait_until(sub { $events->ok('SELECT idempotency.request_cleanup()'); $events->ok("SELECT count(*) FROM idempotency.cleanup_runs WHERE started_at > '$before'")->value > 0 }), 'but the worker');
	$events->ok('DROP EVENT TRIGGER z_refuse');
}
$events->ok('DROP EVENT TRIGGER refuse');
is(Connection->connect($node, database => 'events')->query('DROP EXTENSION idempotency CASCADE')->code, '', 'the extension is dropped under event triggers');
is($events->ok(q{SELECT count(*) FROM pg_namespace WHERE nspname = 'idempotency'})->value, 0, 'and leaves nothing');

# ---- default privileges ------------------------------------------------------------------

# They are the word of whoever creates the extension. Of PUBLIC's nothing is left;
# what was given to a role the query of docs/privileges.md names.
$node->safe_psql('defaults', qq{
	ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC, mallory;
	ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO PUBLIC, mallory;
	ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO PUBLIC, mallory;
	ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO PUBLIC, mallory;
	CREATE EXTENSION idempotency});
my ($query) = slurp_file("$FindBin::RealBin/../docs/privileges.md") =~ /```sql\n(SELECT grantee::regrole.*?)```/s;
prepare('defaults');
my %granted = map { @$_ } @{ Connection->connect($node, database => 'defaults')->ok($query)->rows };
like($granted{mallory}, qr/INSERT.*TRIGGER/, 'the query of the page shows who was given more than a bundle');
is($granted{operator}, 'SELECT', 'whose reader has SELECT alone');
is($node->safe_psql('defaults', q{SELECT count(*) FROM pg_class c, aclexplode(relacl) WHERE relnamespace = 'idempotency'::regnamespace AND grantee = 0}), 0, 'PUBLIC has no table');
is($node->safe_psql('defaults', q{SELECT count(*) FROM pg_proc c, aclexplode(proacl) WHERE pronamespace = 'idempotency'::regnamespace AND grantee = 0}), 0, 'nor function');
is($node->safe_psql('defaults', q{SELECT count(*) FROM pg_namespace c, aclexplode(nspacl) WHERE nspname = 'idempotency' AND grantee = 0}), 0, 'nor the schema');

$node->stop;
done_testing();
