
# On a hot standby looking works and deciding does not. After promotion work
# goes on where it was: responses, leases and tokens.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $primary = new_server('primary', init => { allows_streaming => 1 },
	conf => "max_prepared_transactions = 5\n");
my $p = Connection->connect($primary);

$primary->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->start;

$p->ok(q{
	BEGIN;
	SELECT FROM idempotency.claim('standby', 'op', 'done', request => '1');
	SELECT idempotency.complete('standby', 'op', 'done', 201, '{"a":1.10}', '{"X": "y"}');
	COMMIT;
	SELECT FROM idempotency.claim('standby', 'op', 'passing', ttl => '10 ms', lease => '1 microsecond');
	BEGIN;
	SELECT FROM idempotency.claim('standby', 'op', 'prepared');
	SELECT idempotency.complete('standby', 'op', 'prepared', 200, 'kept');
	PREPARE TRANSACTION 'p'});
my $token = $p->ok("SELECT token FROM idempotency.claim('standby', 'op', 'running', lease => '1 hour')")->value;
my $lapsed = $p->ok("SELECT token FROM idempotency.claim('standby', 'op', 'lapsed', lease => '1 microsecond')")->value;
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));

my $s = Connection->connect($standby);

is_deeply(
	$s->ok("SELECT response_status, response_headers, response_body FROM idempotency.replay('standby', 'op', 'done')")->rows,
	[ [ 201, '{"X": "y"}', '{"a":1.10}' ] ], 'replay answers');
is(status_of($s, 'standby', 'op', 'running'), 'in_progress', 'lookup answers');
is($s->ok("SELECT abandoned FROM idempotency.lookup('standby', 'op', 'lapsed')")->value, 't', 'lookup: a lapsed lease');
ok(wait_until(sub { status_of($s, 'standby', 'op', 'passing') eq 'absent' }),
	'an expired key counts as absent, though nobody can delete it here');
is(replay_of($s, 'standby', 'op', 'prepared'), undef, 'replay: nothing of a prepared transaction');
is(replay_of($s, 'standby', 'op', 'running'), undef, 'replay: nothing of a key in progress');

foreach my $call (
	"claim('standby', 'op', 'new')",
	"claim('standby', 'op', 'done')",
	"claim('standby', 'op', 'new', lease => '1 hour')",
	"complete('standby', 'op', 'running', 200, token => $token)",
	"fail('standby', 'op', 'running', token => $token)",
	"release('standby', 'op', 'running', token => $token)",
	"extend('standby', 'op', 'running', token => $token)",
	"forget('standby', 'op', 'done')",
	"forget_scope('standby')",
	'cleanup()')
{
	my $result = $s->query("SELECT FROM idempotency.$call");
	my ($name) = $call =~ /^(\w+)/;

	is($result->code, '25006', "$name is refused");
	like($result->hint, qr/standby.*primary.*replay\(\) and lookup\(\)/, "$name: the hint says where to go");
}
is(key_locks($s), 0, 'no key lock is taken here');

# The primary is lost; the standby becomes it.
$primary->stop('immediate');
$standby->promote;
$s = Connection->connect($standby);
ok(wait_until(sub { $s->ok('SELECT NOT pg_is_in_recovery()')->value eq 't' }), 'promoted');

is($s->ok("SELECT outcome FROM idempotency.claim('standby', 'op', 'done', request => '1')")->value, 'replay', 'a repeat replays');
is($s->ok("SELECT outcome FROM idempotency.claim('standby', 'op', 'done', request => '2')")->value, 'mismatch', 'another request does not');
is($s->ok("SELECT outcome FROM idempotency.claim('standby', 'op', 'running')")->value, 'in_progress', 'the lease is respected');
is($s->ok("BEGIN; SELECT outcome FROM idempotency.claim('standby', 'op', 'prepared')")->value,
	'in_progress', 'so is the prepared transaction');
$s->ok('ROLLBACK');
$s->ok("COMMIT PREPARED 'p'");
is(replay_of($s, 'standby', 'op', 'prepared'), 'kept', 'which completes its key when it commits');
my $taken = $s->ok("SELECT token FROM idempotency.claim('standby', 'op', 'lapsed', lease => '1 hour')")->value;
cmp_ok($taken, '>', $lapsed, 'a takeover gets a larger token');
cmp_ok($taken, '>', $token, 'larger than any that was given before');
is($s->query("SELECT idempotency.complete('standby', 'op', 'lapsed', 200, token => $lapsed)")->code, 'IK001', 'the late owner is refused');
is($s->ok("SELECT count(idempotency.complete('standby', 'op', 'running', 200, 'new home', token => $token))")->value,
	1, 'the owner of a claim completes it here');
is(replay_of($s, 'standby', 'op', 'running'), 'new home', 'and it is replayed');
is($s->ok('SELECT idempotency.cleanup()')->value, 1, 'clean-up works');
is(key_locks($s), 0, 'no key lock is left');

$standby->stop;
done_testing();
