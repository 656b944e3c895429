
# What the owner of a database sets, and what the owner of the table plants,
# neither stops clean-up where it need not, nor ever runs with more rights than
# the table's owner has.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Utils;
use Test::More;
use Worker;

my $node = new_preloaded_server('hostile', conf => "idempotency.cleanup_batch_size = 10\nidempotency.cleanup_pause = 0\n");

$node->safe_psql('postgres', 'CREATE ROLE weak LOGIN; CREATE ROLE nobody LOGIN; CREATE ROLE operator LOGIN');

# ---- settings of the database ---------------------------------------------------

my $tame = join ' ', map { "-c $_" } 'default_transaction_read_only=off', 'statement_timeout=0',
  'lock_timeout=0', 'idle_in_transaction_session_timeout=0', 'idle_session_timeout=0', 'default_transaction_isolation=read\ committed', 'default_transaction_deferrable=off', 'role=none';

new_database($node, 'settings', 35);
$node->safe_psql('settings', q{
	CREATE SCHEMA evil;
	CREATE TABLE evil.cleanup_runs (id int8);
	CREATE FUNCTION evil.max(int8) RETURNS int8 LANGUAGE sql AS 'SELECT 1/0::int8';
	CREATE FUNCTION evil.hit(int8, int8) RETURNS bool LANGUAGE sql AS 'SELECT 1/0 = 1';
	CREATE OPERATOR evil.<= (FUNCTION = evil.hit, LEFTARG = int8, RIGHTARG = int8)});
my %hostile = (
	default_transaction_read_only => 'on', default_transaction_isolation => 'serializable',
	default_transaction_deferrable => 'on', statement_timeout => "'1ms'", lock_timeout => "'1ms'",
	idle_in_transaction_session_timeout => "'1ms'", idle_session_timeout => "'1ms'", search_path => 'evil, pg_catalog',
	role => 'nobody', synchronous_commit => 'remote_apply', session_replication_role => 'replica',
	row_security => 'off', default_tablespace => 'pg_global', temp_tablespaces => 'pg_global',
	enable_indexscan => 'off', enable_tidscan => 'off', enable_bitmapscan => 'off', enable_sort => 'off',
	plan_cache_mode => 'force_custom_plan', datestyle => "'German'", intervalstyle => 'sql_standard',
	check_function_bodies => 'off', client_min_messages => 'error', log_min_messages => 'panic',
	default_table_access_method => "''", jit => 'on', jit_above_cost => '0', work_mem => "'64kB'");
foreach my $setting (sort keys %hostile)
{
	# What this server does not let anybody set is no danger.
	Connection->connect($node)->query("ALTER DATABASE settings SET $setting = $hostile{$setting}");
}
my $wire = Connection->connect($node, database => 'settings', options => $tame);
cmp_ok($wire->ok("SELECT cardinality(setconfig) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase WHERE datname = 'settings'")->value,
	'>=', keys(%hostile) - 3, 'hostile settings');
sub cleaned { return $wire->ok('SELECT count(*) = 0 FROM idempotency.idempotency_keys')->value eq 't'; }
request_round($node);
ok(wait_until(\&cleaned), 'a database with hostile settings is cleaned');
is_deeply($wire->ok('SELECT deleted, batches > 1, sqlstate FROM idempotency.cleanup_runs ORDER BY id DESC LIMIT 1')->rows,
	[ [ 35, 't', undef ] ], 'and the run recorded') if ok(wait_until(sub {
		$wire->ok('SELECT count(*) FROM idempotency.cleanup_runs WHERE deleted = 35')->value == 1 }), 'the run ends');
unlike(server_log($node), qr/idempotency clean-up of database .* failed/, 'without a failure');
# All sessions of a role, too.
$node->safe_psql('postgres', 'ALTER ROLE ' . scalar(getpwuid($>)) . ' SET default_transaction_read_only = on');
is($wire->query("INSERT INTO idempotency.idempotency_keys
	(created_at, expires_at, completed_at, attempt, scope, operation, key, status)
	SELECT now() - interval '2 days', now() - interval '1 day', now(), 1, 's', 'op', g, 'completed' FROM generate_series(1, 5) g")->code, '', 'more keys');
request_round($node);
ok(wait_until(\&cleaned), 'as is one where the superuser itself is read-only');
Connection->connect($node, options => $tame)->ok('ALTER ROLE ' . scalar(getpwuid($>)) . ' RESET ALL');

# ---- what an unprivileged owner of the tables plants ------------------------------

sub planted_database
{
	my ($database, $trap) = @_;

	new_database($node, $database, 25);
	$node->safe_psql($database, q{
		ALTER TABLE idempotency.idempotency_keys OWNER TO weak;
		ALTER TABLE idempotency.cleanup_runs OWNER TO weak;
		GRANT CREATE, USAGE ON SCHEMA idempotency, public TO weak;
		SELECT idempotency.grant_operator('operator');
		SET ROLE weak;
		CREATE TABLE public.seen (id serial, place text, who text, attempt text, what text);
		CREATE FUNCTION public.look(place text) RETURNS void LANGUAGE plpgsql AS $$
		DECLARE attempt text;
		BEGIN
			FOREACH attempt IN ARRAY ARRAY['RESET ROLE', 'SET ROLE NONE', 'RESET SESSION AUTHORIZATION',
				'SET SESSION AUTHORIZATION DEFAULT', 'ALTER ROLE weak SUPERUSER', 'CREATE ROLE mine SUPERUSER',
				'SELECT pg_read_file(''PG_VERSION'')', 'COPY public.seen TO PROGRAM ''true''',
				'SET session_replication_role = replica', 'CREATE TEMP TABLE t (a int)',
				'DECLARE c CURSOR WITH HOLD FOR SELECT 1', 'GRANT weak TO nobody WITH ADMIN OPTION']
			LOOP
				BEGIN
					EXECUTE attempt;
					INSERT INTO public.seen (place, who, attempt, what) VALUES (place, current_user, attempt, 'done');
				EXCEPTION WHEN others THEN
					INSERT INTO public.seen (place, who, attempt, what) VALUES (place, current_user, attempt, SQLSTATE);
				END;
			END LOOP;
			PERFORM set_config('search_path', 'planted', false), set_config('lock_timeout', '7ms', false);
		END $$;
		CREATE FUNCTION public.look_trigger() RETURNS trigger LANGUAGE plpgsql AS
			$$ BEGIN PERFORM public.look(TG_ARGV[0]); RETURN COALESCE(OLD, NEW); END $$;
		CREATE FUNCTION public.look_expression(text, place text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS
			$$ BEGIN PERFORM public.look(place); RETURN $1; END $$;
	});
	$node->safe_psql($database, "SET ROLE weak; $trap");
	$node->safe_psql($database, 'TRUNCATE public.seen');
	return;
}

# Whatever was seen, it ran as weak and got nowhere.
sub harmless
{
	my ($database, $what, @places) = @_;

	is($node->safe_psql($database, 'SELECT string_agg(DISTINCT place, \' \' ORDER BY place) FROM public.seen'),
		join(' ', sort @places), "$what: it ran");
	is($node->safe_psql($database, 'SELECT string_agg(DISTINCT who, \' \') FROM public.seen'), 'weak',
		"$what: as the tables' owner");
	is($node->safe_psql($database, "SELECT string_agg(DISTINCT attempt, ', ') FROM public.seen
		WHERE what = 'done' AND attempt NOT LIKE 'GRANT weak%'"), '', "$what: and got nothing");
	is($node->safe_psql('postgres', "SELECT count(*) FROM pg_roles WHERE rolname = 'mine' OR rolname = 'weak' AND rolsuper"), 0,
		"$what: nobody has become a superuser");
	return;
}

my $everywhere = q{
	CREATE TRIGGER a BEFORE DELETE ON idempotency.idempotency_keys FOR EACH STATEMENT EXECUTE FUNCTION public.look_trigger('before');
	CREATE TRIGGER b AFTER DELETE ON idempotency.idempotency_keys FOR EACH STATEMENT EXECUTE FUNCTION public.look_trigger('after');
	CREATE TRIGGER c BEFORE INSERT ON idempotency.cleanup_runs FOR EACH STATEMENT EXECUTE FUNCTION public.look_trigger('runs');
	CREATE INDEX d ON idempotency.cleanup_runs (public.look_expression(started_by, 'index'));
	ALTER TABLE idempotency.cleanup_runs ADD CHECK (public.look_expression(started_by, 'check') IS NOT NULL);
	ALTER TABLE idempotency.cleanup_runs ALTER sqlstate SET DEFAULT public.look_expression('x', 'default');
	CREATE RULE e AS ON INSERT TO idempotency.cleanup_runs DO ALSO SELECT public.look('rule');
	ALTER TABLE idempotency.idempotency_keys ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
	CREATE POLICY f ON idempotency.idempotency_keys USING (false)};

planted_database('planted', $everywhere);
ok(cleaned_again($node, 'planted'), 'the worker comes');
is(keys_left($node, 'planted'), 0, 'triggers, expressions, rules: clean-up does its work');
harmless('planted', 'the worker', qw(before after runs index check rule));

# The same with CALL: by a superuser, and by an operator. Settings of theirs stay.
foreach my $who ('superuser', 'operator')
{
	my $caller = Connection->connect($node, database => 'planted', $who eq 'operator' ? (user => 'operator') : ());

	$node->safe_psql('planted', 'TRUNCATE public.seen');
	fill_with_expired($node, 'planted', 25);
	is($caller->query('CALL idempotency.maintain()')->code, '', "maintain() by $who");
	is(keys_left($node, 'planted'), 0, "maintain() by $who: clean-up does its work");
	harmless('planted', "maintain() by $who", qw(before after runs index check rule));
	is($caller->ok('SHOW search_path')->value, '"$user", public', "maintain() by $who: the session's search_path is untouched");
	is($caller->ok('SHOW lock_timeout')->value, '0', "maintain() by $who: and its lock_timeout");
	is($caller->ok('SELECT current_user')->value, $who eq 'operator' ? 'operator' : scalar(getpwuid($>)), "maintain() by $who: and who it is");
}

# What is put off to the end of the transaction would run as whoever commits.
planted_database('deferred', q{
	CREATE CONSTRAINT TRIGGER z AFTER DELETE ON idempotency.idempotency_keys
		DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.look_trigger('deferred')});
ok(cleaned_again($node, 'deferred'), 'a deferred trigger: the worker comes');
is($node->safe_psql('deferred', 'SELECT count(*) FROM public.seen'), 0, 'a deferred trigger is not run as the worker');
is($node->safe_psql('deferred', 'SELECT sqlstate FROM idempotency.cleanup_runs ORDER BY id DESC LIMIT 1'), '42501',
	'it fails there, once');
is(Connection->connect($node, database => 'deferred')->query('CALL idempotency.maintain()')->code, '42501', 'nor as a superuser who maintains');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_roles WHERE rolname = 'mine' OR rolname = 'weak' AND rolsuper"), 0,
	'nobody has become a superuser');

# An error of the trap's own is the database's own trouble.
planted_database('raising', q{
	CREATE FUNCTION public.raise() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trap'; END $$;
	CREATE TRIGGER a BEFORE DELETE ON idempotency.idempotency_keys FOR EACH STATEMENT EXECUTE FUNCTION public.raise();
	CREATE TRIGGER b BEFORE INSERT ON idempotency.cleanup_runs FOR EACH STATEMENT EXECUTE FUNCTION public.raise()});
fill_with_expired($node, 'planted', 25);
ok(cleaned_again($node, 'planted'), 'where deleting and recording fail, the others are still cleaned');
is(keys_left($node, 'planted'), 0, 'completely');

$node->stop;
done_testing();
