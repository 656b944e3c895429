
# Roles and databases come with settings of their own, and users with objects
# that look like others. The answers do not depend on any of it.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use Test::More;

my $node = new_server('hostile', conf => "max_prepared_transactions = 5\n");
my $control = Connection->connect($node);

$control->ok(q{
	CREATE ROLE application LOGIN;
	SELECT idempotency.grant_usage('application');
	CREATE TABLE effects (key text);
	GRANT ALL ON effects TO application;
	GRANT CREATE ON DATABASE postgres TO application});

# What an application does with a key, and every answer that it gets; times are
# left out.
sub story
{
	my ($c, $scope) = @_;
	my @answers;
	my $ask = sub {
		my ($sql, @values) = @_;
		my $result = $c->execute($sql, $scope, @values);

		push @answers, $result->code || join '|', map { join ',', map { $_ // 'null' } @$_ } @{ $result->rows };
		return $result;
	};
	my $claim = 'SELECT outcome, attempt, taken_over, last_error, response_status, response_headers, response_body, fingerprint_checked'
	  . q{ FROM idempotency.claim($1, 'op', };
	my $token = sub { return $c->result->row->{token}; };

	# In one transaction: done, asked again, asked for something else.
	$c->ok('BEGIN');
	$ask->(qq{$claim 'one', '{"b": [1.0, 2], "a": "x"}')});
	$c->ok("INSERT INTO public.effects VALUES ('$scope')");
	$ask->(q{SELECT idempotency.complete($1, 'op', 'one', 201, '{"a":1.10}', '[["X", "y"]]') > now()});
	$c->ok('COMMIT');
	$ask->(qq{$claim 'one', '{"a": "x", "b": [1, 2.00]}')});
	$ask->(qq{$claim 'one', '{"a": "y", "b": [1, 2.00]}')});
	$ask->(q{SELECT response_body FROM idempotency.replay($1, 'op', 'one')});

	# Under a lease: a rival, a takeover, the late owner, a heartbeat.
	my $first = $ask->(q{SELECT outcome = 'claimed', token > 0 AS ok, token FROM idempotency.claim($1, 'op', 'two', lease => '1 microsecond')})->row->{token};
	pop @answers;
	my $second = $ask->(q{SELECT token FROM idempotency.claim($1, 'op', 'two', lease => '1 hour')})->row->{token};
	pop @answers;
	push @answers, defined $first && defined $second && $second > $first ? 'larger' : 'not larger';
	$ask->(q{SELECT idempotency.complete($1, 'op', 'two', 200, 'late', token => $2)}, $first);
	$ask->("$claim 'two')");
	$ask->(q{SELECT idempotency.extend($1, 'op', 'two', '2 hours', $2) > now() + interval '90 minutes'}, $second);
	$ask->(q{SELECT status, attempt, abandoned FROM idempotency.lookup($1, 'op', 'two')});
	$ask->(q{SELECT idempotency.complete($1, 'op', 'two', response_bytes => '\x00ff', token => $2) > now()}, $second);
	$ask->(q{SELECT encode(response_bytes, 'hex') FROM idempotency.replay($1, 'op', 'two')});

	# Failed, and tried again; released.
	my $third = $c->execute(q{SELECT token FROM idempotency.claim($1, 'op', 'three', lease => '1 hour')}, $scope)->value;
	$ask->(q{SELECT idempotency.fail($1, 'op', 'three', 'no money', token => $2)}, $third);
	$third = $c->execute(q{SELECT token FROM idempotency.claim($1, 'op', 'three', lease => '1 hour')}, $scope)->value;
	$ask->(q{SELECT idempotency.release($1, 'op', 'three', $2)}, $third);
	$ask->(q{SELECT status, attempt, last_error FROM idempotency.lookup($1, 'op', 'three')});

	# Forgotten, by its savepoint or altogether.
	$c->ok('BEGIN; SAVEPOINT s');
	$ask->("$claim 'four')");
	$c->ok('ROLLBACK TO s');
	push @answers, $c->query('COMMIT')->code;
	$ask->("$claim 'four')");
	$ask->(q{SELECT idempotency.fingerprint('{"a": 1}') = idempotency.fingerprint('{"a": 1.0}') AND $1::text IS NOT NULL});
	$ask->(q{SELECT idempotency.effect_key('scope', 'op', 'key') || $1 = idempotency.effect_key('scope', 'op', 'key') || $1});
	return \@answers;
}

my $plain = Connection->connect($node, user => 'application');
my $expected = story($plain, 'plain');

is_deeply(
	$expected,
	[
		'claimed,1,f,null,null,null,null,f', 't',
		'replay,1,f,null,201,[["X", "y"]],{"a":1.10},t', 'mismatch,1,f,null,null,null,null,t',
		'{"a":1.10}',
		'larger', 'IK001', 'in_progress,2,f,null,null,null,null,f', 't', 'in_progress,2,f', 't', '00ff',
		't', 't', 'failed,1,no money',
		'claimed,1,f,null,null,null,null,f', '', 'IK004', 't', 't'
	],
	'without any settings');
$plain->close(terminate => 1);

# ---- settings ------------------------------------------------------------------------

my $version = $control->ok('SHOW server_version_num')->value;
my %settings = (
	'isolation: repeatable read' => { default_transaction_isolation => 'repeatable read' },
	'isolation: serializable' => { default_transaction_isolation => 'serializable', default_transaction_deferrable => 'on' },
	'time-outs' => { lock_timeout => '100s', statement_timeout => '100s', idle_in_transaction_session_timeout => '100s' },
	'no flush at commit' => { synchronous_commit => 'off' },
	'planner: no index' => { enable_indexscan => 'off', enable_indexonlyscan => 'off', enable_bitmapscan => 'off', enable_tidscan => 'off' },
	'planner: custom plans' => { plan_cache_mode => 'force_custom_plan', enable_seqscan => 'off' },
	'planner: parallel' => { ($version >= 160000 ? 'debug_parallel_query' : 'force_parallel_mode') => 'on',
		parallel_setup_cost => '0', parallel_tuple_cost => '0', min_parallel_table_scan_size => '0' },
	'planner: just in time' => { jit => 'on', jit_above_cost => '0' },
	'formats' => { DateStyle => 'SQL, DMY', IntervalStyle => 'sql_standard', TimeZone => 'Asia/Kathmandu',
		bytea_output => 'escape', extra_float_digits => '-15', lc_numeric => 'C' },
	'old habits' => { transform_null_equals => 'on', array_nulls => 'off', quote_all_identifiers => 'on', row_security => 'off' },
	'a search path without anything' => { search_path => '' },
	'messages' => { client_min_messages => 'error', check_function_bodies => 'off' });

foreach my $title (sort keys %settings)
{
	$control->ok('ALTER ROLE application RESET ALL');
	foreach my $name (sort keys %{ $settings{$title} })
	{
		my $value = $settings{$title}{$name};
		my $literal = $value =~ /,/ ? join(', ', map { "'$_'" } split /, */, $value) : "'$value'";

		$control->ok("ALTER ROLE application SET $name TO $literal");
	}
	my $c = Connection->connect($node, user => 'application');

	is_deeply(story($c, $title), $expected, $title);
	is(key_locks($control), 0, "$title: no key lock is left");
	$c->close(terminate => 1);
}
$control->ok('ALTER ROLE application RESET ALL');

# Read-only by default: refused, with a way out, and looking works.
$control->ok('ALTER DATABASE postgres SET default_transaction_read_only = on');
my $c = Connection->connect($node, user => 'application');
my $result = $c->query("SELECT outcome FROM idempotency.claim('plain', 'op', 'five')");
is($result->code, '25006', 'read-only by default: claim is refused');
like($result->hint, qr/read-write transaction/, 'read-only by default: the hint says what to do');
is(replay_of($c, 'plain', 'op', 'one'), '{"a":1.10}', 'read-only by default: replay answers');
$c->ok('BEGIN READ WRITE');
is($c->ok("SELECT outcome FROM idempotency.claim('plain', 'op', 'five')")->value, 'claimed', 'read-only by default: a read-write transaction may');
$c->ok("SELECT idempotency.complete('plain', 'op', 'five', 200); COMMIT");
$control->ok('ALTER DATABASE postgres RESET default_transaction_read_only');
$c->close(terminate => 1);

# A short lock_timeout ends a wait for a rival, and nothing else.
$control->ok("ALTER ROLE application SET lock_timeout = '20ms'");
$c = Connection->connect($node, user => 'application');
my $rival = Connection->connect($node);
$rival->ok("BEGIN; SELECT FROM idempotency.claim('plain', 'op', 'six')");
is($c->ok("SELECT outcome FROM idempotency.claim('plain', 'op', 'six', lease => '1 s')")->value, 'in_progress', 'lock_timeout: no wait, no error');
is($c->query("SELECT FROM idempotency.claim('plain', 'op', 'six', wait => '60 s')")->code, '55P03', 'lock_timeout: shorter than the wait');
is($c->ok("SELECT outcome FROM idempotency.claim('plain', 'op', 'six', wait => '10 ms', lease => '1 s')")->value, 'in_progress', 'lock_timeout: longer than the wait');
is($c->ok('SHOW lock_timeout')->value, '20ms', 'lock_timeout: as it was');
$rival->ok('ROLLBACK');
$c->close(terminate => 1);

# ---- objects ---------------------------------------------------------------------------

# The application's own schema comes first, with types, functions and operators
# that would betray themselves; so do its temporary objects.
$control->ok('ALTER ROLE application RESET ALL');
$c = Connection->connect($node, user => 'application');
$c->ok(q{
	CREATE SCHEMA evil;
	CREATE FUNCTION evil.betray() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'betrayed'; END $$;
	CREATE FUNCTION evil.eq(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT evil.betray()';
	CREATE FUNCTION evil.eq(bigint, bigint) RETURNS boolean LANGUAGE sql AS 'SELECT evil.betray()';
	CREATE FUNCTION evil.eq(timestamptz, timestamptz) RETURNS boolean LANGUAGE sql AS 'SELECT evil.betray()';
	CREATE FUNCTION evil.eq(tid, tid) RETURNS boolean LANGUAGE sql AS 'SELECT evil.betray()';
	CREATE OPERATOR evil.= (FUNCTION = evil.eq, LEFTARG = text, RIGHTARG = text);
	CREATE OPERATOR evil.= (FUNCTION = evil.eq, LEFTARG = bigint, RIGHTARG = bigint);
	CREATE OPERATOR evil.= (FUNCTION = evil.eq, LEFTARG = timestamptz, RIGHTARG = timestamptz);
	CREATE OPERATOR evil.= (FUNCTION = evil.eq, LEFTARG = tid, RIGHTARG = tid);
	CREATE OPERATOR evil.<= (FUNCTION = evil.eq, LEFTARG = timestamptz, RIGHTARG = timestamptz);
	CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT '1999-01-01'::timestamptz $$;
	CREATE FUNCTION evil.nextval(regclass) RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint';
	CREATE TABLE evil.idempotency_keys (LIKE pg_class);
	CREATE TABLE evil.effects (key pg_catalog.text);
	CREATE TYPE evil.claim_result AS (nothing pg_catalog.text);
	CREATE SEQUENCE evil.token_seq;
	CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK (VALUE IS NULL);
	CREATE DOMAIN pg_temp.int8 AS pg_catalog.int8 CHECK (VALUE IS NULL);
	CREATE DOMAIN pg_temp.timestamptz AS pg_catalog.timestamptz CHECK (VALUE IS NULL);
	CREATE DOMAIN pg_temp.bytea AS pg_catalog.bytea CHECK (VALUE IS NULL);
	CREATE DOMAIN pg_temp.jsonb AS pg_catalog.jsonb CHECK (VALUE IS NULL);
	CREATE TEMP TABLE idempotency_keys (i pg_catalog.int4);
	CREATE TEMP SEQUENCE token_seq;
	SET search_path = evil, pg_temp, pg_catalog, public});

# Each call is made for the first time in the session, so that nothing has been
# planned before.
my @calls = (
	[ q{SELECT outcome FROM idempotency.claim('evil', 'op', 'one', '{"a": 1}')}, 'claimed' ],
	[ q{SELECT idempotency.complete('evil', 'op', 'one', 200, 'body') IS NULL}, 'f' ],
	[ q{SELECT outcome FROM idempotency.claim('evil', 'op', 'one', '{"a": 1}')}, 'replay' ],
	[ q{SELECT outcome FROM idempotency.claim('evil', 'op', 'one', '{"a": 2}')}, 'mismatch' ],
	[ q{SELECT response_body FROM idempotency.replay('evil', 'op', 'one')}, 'body' ],
	[ q{SELECT status FROM idempotency.lookup('evil', 'op', 'one')}, 'completed' ],
	[ q{SELECT taken_over FROM idempotency.claim('evil', 'op', 'two', lease => '1 hour')}, 't' ],
	[ q{SELECT idempotency.extend('evil', 'op', 'two') IS NULL}, 'f' ],
	[ q{SELECT idempotency.fail('evil', 'op', 'two', 'error')}, 't' ],
	[ q{SELECT outcome FROM idempotency.claim('evil', 'op', 'two', lease => '1 hour')}, 'claimed' ],
	[ q{SELECT idempotency.release('evil', 'op', 'two')}, 't' ],
	[ q{SELECT pg_catalog.octet_length(idempotency.fingerprint('{}'))}, '32' ],
	[ q{SELECT pg_catalog.length(idempotency.content_key('{}'))}, undef ],
	[ q{SELECT pg_catalog.length(idempotency.effect_key('evil', 'op', 'one'))}, '36' ]);
$control->ok(q{SELECT FROM idempotency.claim('evil', 'op', 'two', lease => '1 microsecond')});
$c->ok('BEGIN');
foreach my $call (@calls)
{
	my $answer = $c->query($call->[0]);

	is($answer->code, '', "look-alikes: $call->[0]") or diag($answer->message);
	is($answer->value, $call->[1], 'look-alikes: and the answer') if defined $call->[1];
}
is($c->query('COMMIT')->code, '', 'look-alikes: committed');
is($control->ok("SELECT count(*) FROM idempotency.idempotency_keys WHERE scope = 'evil'")->value, 2, 'look-alikes: the rows are in the real table');
is(scalar(grep { /betrayed/ } troubles($node)), 0, 'look-alikes: none of them was called');

$node->stop;
done_testing();
