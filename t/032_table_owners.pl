
# What the owner of one of the extension's tables hangs on it runs with that
# owner's rights and no others: whichever call writes the table, whoever calls,
# at once or put off to the end of the transaction, and whoever owns the others.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Utils;
use Test::More;
use Worker;

my $node = new_preloaded_server('owners');

my @tables = qw(idempotency_keys cleanup_runs policies role_bindings);
my %owners = (
	same => { map { $_ => 'weak' } @tables },
	different => { map { $tables[$_] => "weak$_" } 0 .. $#tables });
my @roles = ('weak', map { "weak$_" } 0 .. $#tables);

$node->safe_psql('postgres', "CREATE ROLE $_") foreach @roles, 'bound';
sub superusers
{
	return $node->safe_psql('postgres',
		"SELECT string_agg(rolname, ' ') FROM pg_roles WHERE rolsuper AND rolname <> current_user OR rolname = 'mine'");
}

# ---- the traps -------------------------------------------------------------------

my %timing = (
	immediate => '',
	deferred => 'DEFERRABLE INITIALLY DEFERRED');

sub planted_database
{
	my ($database, $owners, $timing) = @_;

	new_database($node, $database, 0);
	$node->safe_psql($database, qq{
		GRANT USAGE ON SCHEMA idempotency TO PUBLIC;
		GRANT CREATE ON SCHEMA idempotency, public TO PUBLIC;
		ALTER SEQUENCE idempotency.token_seq OWNER TO $owners->{idempotency_keys};
		CREATE TABLE public.seen (place text, timing text, who text);
		GRANT INSERT ON public.seen TO PUBLIC;
		CREATE FUNCTION public.look() RETURNS trigger LANGUAGE plpgsql AS \$\$
		BEGIN
			INSERT INTO public.seen VALUES (TG_TABLE_NAME, TG_WHEN || ' ' || TG_LEVEL, current_user);
			BEGIN
				CREATE ROLE mine SUPERUSER;
			EXCEPTION WHEN insufficient_privilege OR duplicate_object THEN
				NULL;
			END;
			RETURN COALESCE(NEW, OLD);
		END \$\$});
	foreach my $table (@tables)
	{
		$node->safe_psql($database, qq{
			ALTER TABLE idempotency.$table OWNER TO $owners->{$table};
			SET ROLE $owners->{$table};
			CREATE CONSTRAINT TRIGGER look AFTER INSERT OR UPDATE OR DELETE ON idempotency.$table $timing{$timing}
				FOR EACH ROW EXECUTE FUNCTION public.look();
		} . ($timing eq 'deferred' ? '' : qq{
			CREATE TRIGGER look_first BEFORE INSERT OR UPDATE OR DELETE ON idempotency.$table
				FOR EACH ROW EXECUTE FUNCTION public.look();
			CREATE TRIGGER look_around BEFORE INSERT OR UPDATE OR DELETE ON idempotency.$table
				FOR EACH STATEMENT EXECUTE FUNCTION public.look();
		}));
	}
	return;
}

# ---- the calls -------------------------------------------------------------------

# Every call that writes a table: what it needs, made where no trigger fires, and
# the call.
sub id { return "'s', 'op', '$_[0]'"; }
sub token { return "(SELECT token FROM idempotency.idempotency_keys WHERE key = '$_[0]')"; }
sub leased { return 'SELECT idempotency.claim(' . id($_[0]) . ", lease => '1 hour')"; }
sub completed { return "SELECT idempotency.claim(" . id($_[0]) . "); SELECT idempotency.complete(" . id($_[0]) . ", 200, 'body')"; }
sub expired { return "SELECT idempotency.import_completed(" . id($_[0]) . ", 200, 'body', created_at => now() - interval '2 days', completed_at => now() - interval '2 days', expires_at => now() + interval '1 hour');
	UPDATE idempotency.idempotency_keys SET expires_at = now() - interval '1 day' WHERE key = '$_[0]'"; }

my %writes = (
	claim => [ '', leased('claim') ],
	complete => [ '', 'BEGIN; ' . completed('complete') . '; COMMIT' ],
	'complete with a token' => [ leased('token'), 'SELECT idempotency.complete(' . id('token') . ', 200, token => ' . token('token') . ')' ],
	fail => [ leased('fail'), 'SELECT idempotency.fail(' . id('fail') . ', token => ' . token('fail') . ')' ],
	record_failure => [ '', 'SELECT idempotency.record_failure(' . id('failure') . q{, 'no')} ],
	release => [ leased('release'), 'SELECT idempotency.release(' . id('release') . ', token => ' . token('release') . ')' ],
	extend => [ leased('extend'), 'SELECT idempotency.extend(' . id('extend') . ', token => ' . token('extend') . ')' ],
	checkpoint => [ leased('checkpoint'), 'SELECT idempotency.checkpoint(' . id('checkpoint') . q{, 'half', token => } . token('checkpoint') . ')' ],
	hold => [ leased('hold'), 'SELECT idempotency.hold(' . id('hold') . q{, 'why', token => } . token('hold') . ')' ],
	resolve => [ leased('resolve') . '; SELECT idempotency.hold(' . id('resolve') . q{, 'why', token => } . token('resolve') . ')',
		'SELECT idempotency.resolve(' . id('resolve') . q{, 'retry')} ],
	once => [ '', 'SELECT idempotency.once(' . id('once') . ')' ],
	once_batch => [ '', q{SELECT idempotency.once_batch('s', 'op', ARRAY['batch 1', 'batch 2'])} ],
	'once_batch again' => [ expired('again'), q{SELECT idempotency.once_batch('s', 'op', ARRAY['again'])} ],
	run => [ '', 'SELECT idempotency.run(' . id('run') . q{, 'SELECT 1')} ],
	claim_abandoned => [ q{SELECT idempotency.claim('s', 'left', 'k', lease => '1 us')}, q{SELECT idempotency.claim_abandoned('left')} ],
	forget => [ completed('forget'), 'SELECT idempotency.forget(' . id('forget') . ')' ],
	forget_scope => [ q{SELECT idempotency.once('forgotten', 'op', 'k')}, q{SELECT idempotency.forget_scope('forgotten', true)} ],
	forget_scope_on_delete => [ q{CREATE TABLE IF NOT EXISTS public.tenant (id text); INSERT INTO public.tenant VALUES ('tenant');
		DROP TRIGGER IF EXISTS f ON public.tenant;
		CREATE TRIGGER f AFTER DELETE ON public.tenant FOR EACH ROW EXECUTE FUNCTION idempotency.forget_scope_on_delete('id');
		SELECT idempotency.once('tenant', 'op', 'k')}, q{DELETE FROM public.tenant} ],
	redact => [ completed('redact'), 'SELECT idempotency.redact(' . id('redact') . ')' ],
	redact_scope => [ q{SELECT idempotency.run('redacted', 'op', 'k', 'SELECT 1')}, q{SELECT idempotency.redact_scope('redacted')} ],
	import_completed => [ '', 'SELECT idempotency.import_completed(' . id('import') . q{, 200, 'body', created_at => now(), completed_at => now(), expires_at => now() + interval '1 hour')} ],
	import_key => [ q{SELECT idempotency.once('moved', 'op', 'k');
		CREATE TEMP TABLE moved AS SELECT k FROM idempotency.idempotency_keys AS k WHERE scope = 'moved';
		DELETE FROM idempotency.idempotency_keys WHERE scope = 'moved'}, 'SELECT idempotency.import_key(k) FROM moved' ],
	cleanup => [ expired('cleanup'), 'SELECT idempotency.cleanup()' ],
	maintain => [ expired('maintain'), 'CALL idempotency.maintain()' ],
	set_policy => [ '', q{SELECT idempotency.set_policy('some', ttl => '1 hour')} ],
	drop_policy => [ q{SELECT idempotency.set_policy('other', ttl => '1 hour')}, q{SELECT idempotency.drop_policy('other')} ],
	bind_role => [ '', q{SELECT idempotency.bind_role('bound', 'a%')} ],
	unbind_role => [ q{SELECT idempotency.bind_role('bound', 'b%')}, q{SELECT idempotency.unbind_role('bound')} ]);

# Those that write none: a call that is new has to be put here or above. Here
# forget_exported() is refused, since no scope has another home; it deletes by the
# statement of forget_scope().
my %others = map { $_ => 1 } qw(config_changed request_cleanup schedule_cleanup unschedule_cleanup stats_data stats_reset
  health export_scopes forget_exported grant_usage grant_operator grant_monitor revoke_usage revoke_operator revoke_monitor);
is(join(' ', grep { !$writes{$_} && !$others{$_} } split /\n/, $node->safe_psql('postgres',
	q{SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 'idempotency'::regnamespace AND provolatile = 'v'})),
	'', 'every call that could write is known here');

# ---- the matrix ------------------------------------------------------------------

foreach my $layout (sort keys %owners)
{
	foreach my $timing (sort keys %timing)
	{
		my $database = "${layout}_$timing";

		planted_database($database, $owners{$layout}, $timing);
		my $c = Connection->connect($node, database => $database);
		my $strangers = sub {
			my ($what) = @_;
			my @wrong = grep { $_->[1] ne $owners{$layout}{ $_->[0] } } @{ $c->ok('SELECT place, who, timing FROM public.seen')->rows };

			is(join(', ', map { "on $_->[0] $_->[2] as $_->[1]" } @wrong), '', "$what: nothing ran as anybody but the table's owner");
			is(superusers(), '', "$what: nobody has become a superuser");
			return;
		};

		foreach my $name (sort keys %writes)
		{
			my ($setup, $call) = @{ $writes{$name} };
			my $what = "$layout owners, $timing, $name";

			$c->ok("SET session_replication_role = replica; TRUNCATE public.seen; $setup");
			$c->ok('RESET session_replication_role');
			is($c->query($call)->code, $timing eq 'deferred' ? '42501' : '', $what);
			$c->query('ROLLBACK');
			$strangers->($what);
			next if $timing eq 'deferred';
			is($c->ok('SELECT count(DISTINCT timing) FROM public.seen')->value, 3, "$what: all of it ran");
		}

		# The background process, which is a superuser.
		$c->ok('SET session_replication_role = replica; TRUNCATE public.seen; ' . expired('worker'));
		ok($timing eq 'deferred' ? request_round($node, $database) : cleaned_again($node, $database), "$layout owners, $timing: the worker comes");
		wait_until(sub { $node->safe_psql('postgres', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'idempotency cleanup'}) == 0 }, 30);
		$strangers->("$layout owners, $timing, the worker");
		$c->close(terminate => 1);
	}
}

# ---- put off by the caller ---------------------------------------------------------

# A caller who puts off what the owner lets be put off is refused, and told why;
# what is not deferrable is checked at once.
my $c = Connection->connect($node, database => 'different_immediate');
$c->ok('ALTER TABLE idempotency.idempotency_keys DISABLE TRIGGER ALL');
$c->ok('CREATE TABLE public.customer (id text PRIMARY KEY); GRANT REFERENCES, SELECT, UPDATE ON public.customer TO weak0; INSERT INTO public.customer VALUES (\'c\')');
foreach my $deferrable ('', 'DEFERRABLE')
{
	$c->ok("ALTER TABLE idempotency.idempotency_keys DROP CONSTRAINT IF EXISTS customer,
		ADD CONSTRAINT customer FOREIGN KEY (scope) REFERENCES public.customer NOT VALID $deferrable");
	$c->ok('BEGIN; SET CONSTRAINTS ALL DEFERRED');
	my $answer = $c->query(q{SELECT idempotency.once('c', 'op', 'put off}. $deferrable . q{')});
	if ($deferrable)
	{
		is($answer->code, '42501', 'SET CONSTRAINTS ALL DEFERRED: what can be put off is refused');
		like($answer->hint, qr/NOT DEFERRABLE/, 'with a way out');
	}
	else
	{
		is($answer->code, '', 'SET CONSTRAINTS ALL DEFERRED: what cannot is not');
	}
	$c->ok('ROLLBACK');
	is($c->query(q{SELECT idempotency.once('nobody', 'op', 'k')})->code, '23503', "a foreign key is heeded $deferrable");
	is($c->query(q{SELECT idempotency.once('c', 'op', 'k}. $deferrable . q{')})->code, '', "and satisfied $deferrable");
}

$node->stop;
done_testing();
