
# What a role with grant_usage can use up: each row of the table in
# docs/privileges.md is tried as such a role, meets the setting that the page names,
# and ends with the SQLSTATE that it names. The others go on meanwhile.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# A thousand databases, one after the other, take a quarter of an hour.
my $many = $ENV{IDEMPOTENCY_MANY_DATABASES} // 0;

my $node = new_server('exhaustion', conf => <<'EOC');
shared_preload_libraries = 'idempotency'
idempotency.cleanup_interval = 1d
idempotency.max_wait = 300ms
idempotency.max_waiters = 3
idempotency.max_waiters_per_key = 2
idempotency.max_response_size = 64kB
autovacuum = off
EOC
my $control = Connection->connect($node);
$control->ok(q{CREATE ROLE app LOGIN; CREATE ROLE other LOGIN; SELECT idempotency.grant_usage('app'), idempotency.grant_usage('other')});
my $app = Connection->connect($node, user => 'app');
my $other = Connection->connect($node, user => 'other');

# ---- the page -----------------------------------------------------------------------

my ($section) = slurp_file("$FindBin::RealBin/../docs/privileges.md") =~ /^## What a role can use up\n(.*?)(?=^## |\z)/ms;
my %row;
foreach my $line ($section =~ /^\|(.*)\|$/mg)
{
	my ($what, $bound, $setting, $code) = map { s/^\s+|\s+$//gr } split /\|/, $line;

	next if $what =~ /^(?:-|what$)/;
	$row{$what} = { bound => $bound, setting => [ $setting =~ /`(\w+)`/g ], code => $code =~ /`(\w{5})`/ ? $1 : '' };
}
my %tried;

my $events = 0;

# The row of the page, and what was met. Other connections are no worse off.
sub meets
{
	my ($what, $code, $text) = @_;

	$tried{$what} = 1;
	is($code, $row{$what} ? $row{$what}{code} : 'not on the page', $text // $what);
	return;
}

sub goes_on
{
	my ($what) = @_;

	is($other->query("SELECT idempotency.once('other', 'op', '" . ++$events . "')")->value, 't', "$what: others go on");
	return;
}

# The page's settings are settings, with the defaults that it names, and not for
# those whom they bind.
foreach my $what (sort keys %row)
{
	foreach my $setting (@{ $row{$what}{setting} })
	{
		my $found = $control->execute(q{SELECT context, CASE WHEN unit = 'ms' THEN boot_val::int / 1000 || ' s' WHEN unit = 's' THEN boot_val::int / 86400 || ' d'
			WHEN unit = 'kB' THEN boot_val::int / 1024 || ' MB' WHEN unit = 'B' THEN boot_val || ' bytes' ELSE boot_val END AS value FROM pg_settings WHERE name = $1}, "idempotency.$setting")->row;

		is($found->{context}, 'superuser', "$what: $setting is for superusers");
		like($row{$what}{bound}, qr/\b\Q$found->{value}\E\b/, "$what: and its default on the page");
	}
}

# ---- locks ------------------------------------------------------------------------------

# Every key that is claimed takes a place in the server's lock table until the end.
meets('keys claimed in one transaction', $app->query(q{SELECT idempotency.claim('app', 'lock', g::text, lease => '1 min') FROM generate_series(1, 1001) g})->code);
is(key_locks($control), 0, 'and all locks are gone');
goes_on('too many keys');
$app->ok('BEGIN');
$app->ok(q{SELECT idempotency.claim('app', 'lock', g::text, lease => '1 min') FROM generate_series(1, 1000) g});
cmp_ok(key_locks($control), '<=', 1000, 'no more locks than that');
goes_on('as many keys as are allowed');
$app->ok('ROLLBACK');
# Calls of another kind, many more of them.
$app->ok(q{SELECT idempotency.once_batch('app', 'event', ARRAY(SELECT g::text FROM generate_series(1, 3000) g))});
$app->ok('BEGIN');
$app->ok(q{SELECT idempotency.claim('app', 'event', g::text), idempotency.lookup('app', 'event', g::text), idempotency.replay('app', 'event', g::text) FROM generate_series(1, 3000) g});
$app->ok(q{SELECT idempotency.once_batch('app', 'event', ARRAY(SELECT g::text FROM generate_series(1, 6000) g))});
cmp_ok(key_locks($control), '<=', 1, 'looking at keys, replays and batches keep no locks');
meets('keys that are only looked at, replayed, or in a batch', '');
$app->ok('ROLLBACK');
# Savepoints give back what they took, however many there are.
is($app->query(q{DO $$ BEGIN FOR g IN 1 .. 3000 LOOP
	BEGIN PERFORM FROM idempotency.claim('app', 'savepoint', g::text); RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN NULL; END;
	END LOOP; END $$})->code, '', 'three thousand claims, each undone by its savepoint');
$app->ok('BEGIN; SELECT idempotency.claim(\'app\', \'deep\', \'k\')');
$app->ok("SAVEPOINT s$_; SELECT idempotency.checkpoint('app', 'deep', 'k', 'step $_')") foreach 1 .. 500;
is($app->ok(q{SELECT idempotency.complete('app', 'deep', 'k', 200) IS NULL; COMMIT})->code, '', 'a claim under five hundred savepoints');
meets('savepoints', '');

# ---- sizes -----------------------------------------------------------------------------

my $long = 'x' x 256;
meets('length of a scope, an operation, a key', $app->query("SELECT idempotency.claim($_)")->code, "too long: $_") foreach
  "'$long', 'op', 'k'" =~ s/x{200}/'x' x 200/er, "'app', '$long', 'k'" =~ s/x{200}/'x' x 200/er, "'app', 'op', '$long'" =~ s/x{200}/'x' x 200/er;
my $token = $app->ok(q{SELECT token FROM idempotency.claim('app', 'size', 'k', lease => '1 min')})->value;
meets('size of a response; of a note, state, step, reason, error', $app->query("SELECT idempotency.$_")->code, "too large: $_") foreach
  "complete('app', 'size', 'k', 200, repeat('x', 65537), token => $token)", "complete('app', 'size', 'k', 200, '', jsonb_build_object('a', repeat('x', 65537)), token => $token)",
  "complete('app', 'size', 'k', 200, response_bytes => decode(repeat('00', 65537), 'hex'), token => $token)",
  "claim('app', 'size', 'n', note => repeat('x', 65537))", "claim('app', 'size', 'n', state => to_jsonb(repeat('x', 65537)), lease => '1 min')",
  "checkpoint('app', 'size', 'k', repeat('x', 65537), token => $token)", "checkpoint('app', 'size', 'k', 'x', to_jsonb(repeat('x', 65537)), token => $token)",
  "hold('app', 'size', 'k', repeat('x', 65537), $token)", "fail('app', 'size', 'k', repeat('x', 65537), token => $token)", "record_failure('app', 'size', 'f', repeat('x', 65537))",
  "run('app', 'size', 'r', \$\$SELECT repeat('x', 65537)\$\$)";
meets('keys of one batch', $app->query(q{SELECT count(*) FROM idempotency.once_batch('app', 'op', array_fill('k'::text, ARRAY[10000001]))})->code);

# A request is digested, not kept, and its depth is the server's matter.
is($app->query(q{SELECT length(idempotency.fingerprint((repeat('[', 3000) || repeat(']', 3000))::jsonb))})->value, 32, 'a request of three thousand levels');
is($app->query(q{SELECT length(idempotency.fingerprint_bytes(convert_to(repeat('[', 1000000), 'UTF8')))})->value, 32, 'bytes that look like a million');
is($app->query(q{SELECT length(idempotency.fingerprint(jsonb_object_agg(g::text, repeat('x', 100)))) FROM generate_series(1, 50000) g})->value, 32, 'a request of megabytes');
meets('size and depth of a request', $app->query(q{SELECT idempotency.fingerprint((repeat('[', 1000000) || repeat(']', 1000000))::jsonb)})->code);

# ---- time ------------------------------------------------------------------------------

meets('lifetime, lease', $app->query("SELECT idempotency.claim('app', 'time', 'k', $_ => '367 days')")->code, "$_ of a year and a day") foreach qw(ttl lease);
$app->ok('SET idempotency.default_ttl = 2147483647; SET idempotency.once_ttl = 2147483647');
$app->ok(q{SELECT idempotency.claim('app', 'time', 'd', lease => '1 min'), idempotency.once('app', 'time', 'o')});
is($control->ok(q{SELECT bool_and(expires_at <= now() + interval '366 days') FROM idempotency.idempotency_keys WHERE operation = 'time'})->value, 't', 'settings of the role go no further');
$app->ok('RESET ALL');

my $rival = Connection->connect($node, user => 'other');
$rival->ok(q{BEGIN; SELECT idempotency.claim('app', 'wait', 'k')});
my $start = time;
is($app->query(q{SELECT outcome FROM idempotency.claim('app', 'wait', 'k', wait => '1 hour')})->value, 'in_progress', 'a wait of an hour');
meets('length of a wait', $app->query(q{SELECT idempotency.once('app', 'wait', 'k', wait => '1 hour')})->code);
cmp_ok(time - $start, '<', 600, 'both are over long before');

# Waiters: t/016_waiters.pl says how a place is given back. Here: one role can take
# all places, and then others do not wait, but are answered.
$control->ok(q{ALTER SYSTEM SET idempotency.max_wait = '1 h'});
$control->ok('SELECT pg_reload_conf()');
ok(wait_until(sub { $app->ok('SHOW idempotency.max_wait')->value eq '1h' }), 'waits may be longer now');
$rival->ok(q{SELECT idempotency.claim('app', 'wait', 'l')});
my @greedy = map { Connection->connect($node, user => 'app') } 1 .. 3;
$greedy[$_]->start("SELECT outcome FROM idempotency.claim('app', 'wait', '" . ($_ < 2 ? 'k' : 'l') . "', wait => '1 h')") foreach 0 .. 2;
ok(wait_until(sub { $control->ok('SELECT count(*) FROM pg_locks WHERE NOT granted')->value == 3 }), 'all places are taken');
is($other->query(q{SELECT outcome FROM idempotency.claim('app', 'wait', 'l', wait => '1 h')})->value, 'in_progress', 'who comes then is answered at once');
meets('connections that wait, on the server and for one key', $other->query(q{SELECT idempotency.once('app', 'wait', 'l', wait => '1 h')})->code);
goes_on('all places to wait are taken');
$rival->ok('ROLLBACK');
$_->finish foreach @greedy;

# ---- shared memory, plans, the binding's patterns ------------------------------------------

my $memory = q{SELECT string_agg(name || ' ' || allocated_size, ', ') FROM pg_shmem_allocations WHERE name ILIKE 'idempotency%'};
my $before = $control->ok($memory)->value;
like($before, qr/\d/, "shared memory of the extension: $before");
$app->ok(q{SELECT count(*) FROM generate_series(1, 2000) g, idempotency.once_batch('scope ' || g, 'op', ARRAY['k'])});
is($control->ok($memory)->value, $before, 'two thousand scopes take none');
meets('shared memory', '');
is($app->query(qq{DO \$\$ BEGIN FOR g IN 1 .. 100 LOOP PERFORM idempotency.run('app', 'plan', g::text, 'SELECT ' || g); END LOOP; END \$\$})->code, '', 'a hundred commands');
$control->ok('GRANT pg_read_all_stats TO app');
cmp_ok($app->ok(q{SELECT count(*) FROM pg_backend_memory_contexts WHERE name = 'CachedPlanSource' AND ident ~ '^SELECT [0-9]+$'})->value, '<=', 32, 'no more than 32 plans are kept');
meets('plans that `run` keeps for a connection', '');
# The longest scope against a pattern that looks everywhere. Who is bound does not
# choose the pattern; the match is done before any lock is taken.
my $pattern = ('%a' x 120) . '%b';
$control->execute(q{SELECT idempotency.bind_role('app', $1), idempotency.bind_role('app', 'app')}, $pattern);
is($app->query("SELECT idempotency.once('" . ('a' x 255) . "', 'op', 'k')")->code, '42501', 'a scope that nearly matches in very many ways');
meets('time for the patterns of a binding', '');
$control->ok(q{SELECT idempotency.unbind_role('app')});

# ---- rows --------------------------------------------------------------------------------------

# There is no limit to keys, and some never expire; health() tells.
$app->ok(qq{SELECT idempotency.hold('app', 'size', 'k', 'why', $token)});
$control->ok(q{UPDATE idempotency.idempotency_keys SET expires_at = now() - interval '1 year' WHERE status = 'held'});
$control->ok('SELECT idempotency.cleanup()');
is($app->ok(q{SELECT status FROM idempotency.lookup('app', 'size', 'k')})->value, 'held', 'a held key stays');
is($control->ok(q{SELECT status FROM idempotency.health() WHERE check_name = 'held_keys'})->value, 'warn', 'health() tells');
is($control->ok(q{SET idempotency.warn_table_size = 1; SELECT status FROM idempotency.health() WHERE check_name = 'table_size'})->value, 'warn', 'as of a table that has grown');
meets('keys, held keys, disk', '');

# ---- places for counters ---------------------------------------------------------------------

SKIP:
{
	$tried{'places for the counters of a database'} = 1;
	skip 'set IDEMPOTENCY_MANY_DATABASES=1100 to make as many databases, one after the other', 4 if !$many;
	$node->safe_psql('postgres', 'ALTER ROLE app CREATEDB; CREATE DATABASE tiny OWNER app');
	$node->safe_psql('tiny', q{CREATE EXTENSION idempotency; SELECT idempotency.grant_usage('app')});
	my $rows = sub { return $control->ok('SELECT count(*) FROM idempotency.stats')->value; };
	my ($answered, $begun) = (0, time);

	# Each is counted, and gone; its place is kept until the worker comes by.
	foreach my $number (1 .. $many)
	{
		$app->ok("CREATE DATABASE d$number TEMPLATE tiny STRATEGY file_copy");
		my $c = Connection->connect($node, database => "d$number", user => 'app');

		$answered++ if $c->ok(q{SELECT idempotency.once('s', 'op', 'k')})->value eq 't';
		$c->close(terminate => 1);
		$control->ok("DROP DATABASE d$number WITH (FORCE)");
	}
	is($answered, $many, sprintf '%d databases were answered, in %.0f s', $many, time - $begun);
	$app->ok('CREATE DATABASE late TEMPLATE tiny');
	my $late = Connection->connect($node, database => 'late', user => 'app');
	is($late->ok(q{SELECT idempotency.once('s', 'op', 'k')})->value, 't', 'so is one more');
	my $shown = $control->ok(q{SELECT count(*) FROM idempotency.stats WHERE database = 'late'})->value;
	is($shown, $many < 1024 ? 1 : 0, 'which is not counted where all places are taken');
	ok(wait_until(sub { $control->ok('SELECT idempotency.request_cleanup()'); Connection->connect($node, database => 'late', user => 'app')->ok(q{SELECT idempotency.once('s', 'op', 'l')});
			$control->ok(q{SELECT count(*) FROM idempotency.stats WHERE database = 'late'})->value == 1 }), 'until the worker has given back those of databases that are gone');
}

is(join(', ', grep { !$tried{$_} } sort keys %row), '', 'every row of the page has been tried');

$node->stop;
done_testing();
