
# Rows and tokens travel with pg_dump, and no restore lets a token come back.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('dump');
my $directory = PostgreSQL::Test::Utils::tempdir();
my $source = Connection->connect($node);

# One key of each kind, with everything that a row can hold and text that dumps
# like to get wrong.
$source->ok(q{
	SELECT idempotency.fingerprint('{"a": 1}');
	BEGIN;
	SELECT FROM idempotency.claim('tenant', 'op', 'done', request => '{"a": 1}', note => E'tab\there');
	SELECT idempotency.complete('tenant', 'op', 'done', 201, E'{ "a":1.10,\n "a":"\\\\." }', '[["X", "a"], ["X", "b"]]');
	COMMIT;
	BEGIN;
	SELECT FROM idempotency.claim('tenant', 'op', 'bytes');
	SELECT idempotency.complete('tenant', 'op', 'bytes', 200, response_bytes => '\x00ff275c0a');
	COMMIT;
	BEGIN;
	SELECT FROM idempotency.claim('tenant', 'op', 'empty');
	SELECT idempotency.complete('tenant', 'op', 'empty', 204, '');
	COMMIT;
	SELECT FROM idempotency.claim('tenant', 'op', 'running', lease => '1 hour',
		claim_id => '6f1ed002-ab55-4e8a-a3a6-0f0b7f6e2f3d');
	SELECT FROM idempotency.claim('tenant', 'op', 'abandoned', lease => '1 microsecond');
	SELECT idempotency.fail('tenant', 'op', 'failed', 'no money', '1 hour',
		(SELECT token FROM idempotency.claim('tenant', 'op', 'failed', lease => '1 hour')));
	CREATE ROLE application;
	SELECT idempotency.grant_usage('application');
});
my $everything = 'SELECT k FROM idempotency.idempotency_keys k ORDER BY scope, operation, key';
my $rows = $source->ok($everything)->rows;
my $last_token = $source->ok('SELECT max(token) FROM idempotency.idempotency_keys')->value;

is(scalar @$rows, 6, 'six keys to dump');

# A restored sequence begins anew: tokens of unlike keys are in order from the next
# second on. A quick machine restores within the same.
wait_until(sub { $source->ok('SELECT extract(epoch FROM clock_timestamp())::bigint')->value > ($last_token >> 20) + 1 });

# Any claim with a lease on a key of its own.
sub new_token
{
	my ($connection, $key) = @_;

	return $connection->ok("SELECT token FROM idempotency.claim('tenant', 'op', '$key', lease => '1 hour')")->value;
}

sub check_copy
{
	my ($database, $title) = @_;
	my $copy = Connection->connect($node, database => $database);

	is_deeply($copy->ok($everything)->rows, $rows, "$title: every row as it was");
	is(replay_of($copy, 'tenant', 'op', 'done'), qq({ "a":1.10,\n "a":"\\." }), "$title: a response is replayed byte for byte");
	is($copy->ok("SELECT outcome FROM idempotency.claim('tenant', 'op', 'running')")->value,
		'in_progress', "$title: a live lease is respected");
	cmp_ok(new_token($copy, 'new'), '>', $last_token, "$title: the token goes on where it was");
	cmp_ok(new_token($copy, 'abandoned'), '>', $last_token, "$title: a takeover gets a larger one");
	is( $copy->ok(q{
			SELECT has_function_privilege('application', p.oid, 'EXECUTE')
			FROM pg_proc p WHERE p.pronamespace = 'idempotency'::regnamespace AND p.proname = 'claim'})->value,
		't', "$title: grants are there");
	is( $copy->ok(q{
			SELECT count(*) FROM pg_depend
			WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e' AND classid = 'pg_class'::regclass
				AND objid IN ('idempotency.idempotency_keys'::regclass, 'idempotency.token_seq'::regclass)})->value,
		2, "$title: table and sequence belong to the extension");
	$copy->close(terminate => 1);
	return;
}

# What is not worth a word in a dump should not be said.
my ($out, $err) = run_command([ 'pg_dump', '-h', $node->host, '-p', $node->port, '-f', "$directory/quiet.sql", 'postgres' ]);
is($err, '', 'pg_dump has nothing to complain about');

# The two usual ways.
$node->safe_psql('postgres', "CREATE DATABASE $_") foreach 'plain', 'custom', 'used';
$node->command_ok([ 'pg_dump', '--file', "$directory/plain.sql", '-d', 'postgres' ], 'pg_dump');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', 'plain', '-f', "$directory/plain.sql" ],
	'pg_dump | psql');
check_copy('plain', 'psql');

$node->command_ok([ 'pg_dump', '-Fc', '--file', "$directory/custom", '-d', 'postgres' ], 'pg_dump -Fc');
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', 'custom', "$directory/custom" ], 'pg_restore');
check_copy('custom', 'pg_restore');

# Into a database that has been used: rows are added, and the sequence, which no
# dump carries, goes on where it was.
my $used = Connection->connect($node, database => 'used');
$used->ok('CREATE EXTENSION idempotency');
new_token($used, "used $_") foreach 1 .. 50;
my $late = $used->ok("SELECT token FROM idempotency.claim('tenant', 'op', 'late', lease => '1 microsecond')")->value;
my $again = $used->ok("SELECT token FROM idempotency.claim('tenant', 'op', 'failing', lease => '1 hour')")->value;
$used->ok("SELECT idempotency.fail('tenant', 'op', 'failing', token => $again)");
my $replaced = $used->ok("SELECT token FROM idempotency.claim('tenant', 'op', 'replaced', lease => '1 microsecond')")->value;
my $position = $used->ok('SELECT last_value FROM idempotency.token_seq')->value;
$node->command_ok([ 'pg_restore', '--data-only', '-d', 'used', "$directory/custom" ], 'pg_restore into a used database');

is($used->ok('SELECT last_value FROM idempotency.token_seq')->value, $position, 'used: the sequence stays where it was');
my $taken = $used->ok("SELECT token, attempt, taken_over FROM idempotency.claim('tenant', 'op', 'late', lease => '1 hour')")->row;
is($taken->{taken_over}, 't', 'used: a takeover');
cmp_ok($taken->{token}, '>', $late, 'used: of a token that is still larger than that of the row');
is($used->query("SELECT idempotency.complete('tenant', 'op', 'late', 200, token => $late)")->code,
	'IK001', 'used: the first owner is refused');
cmp_ok(new_token($used, 'failing'), '>', $again, 'used: so is the next attempt of a failed key');

# A claim without a lease over such a row outdates its token, too.
$used->ok(qq{
	SELECT setval('idempotency.token_seq', 1);
	BEGIN;
	SELECT FROM idempotency.claim('tenant', 'op', 'replaced');
	SELECT idempotency.complete('tenant', 'op', 'replaced', 200, 'second');
	COMMIT});
is($used->query("SELECT idempotency.complete('tenant', 'op', 'replaced', 200, 'second', token => $replaced)")->code,
	'IK001', 'used: a late owner is refused, whatever it wants to record');
is($used->ok("SELECT token > $replaced FROM idempotency.lookup('tenant', 'op', 'replaced')")->value,
	't', 'used: because the token has gone on');

$node->stop;
done_testing();
