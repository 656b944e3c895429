
# Tokens under contention, where the sequence is far behind the rows (a dump
# restored over a used database, a promoted subscriber, a failover): 32 clients
# take over 2,000 lapsed leases, and no token is given twice nor falls short of
# the row's. Then two sessions at the same key, each stopped where it hurts.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use Test::More;

my $node = new_server('tokens', conf => "shared_preload_libraries = 'idempotency'\nmax_connections = 60\n");
my $control = Connection->connect($node);

# ---- many at once ------------------------------------------------------------------

my $leases = 2000;
my $clients = 32;

$control->ok('CREATE TABLE taken (key text, token bigint)');
foreach my $round (1 .. 3)
{
	# Rows as an earlier server left them: tokens of the present second, which is
	# the tightest floor, with other lower bits than the sequence will give, and of
	# this server's timeline, the first.
	$control->ok("SELECT idempotency.forget_scope('tokens', true)");
	$control->ok('TRUNCATE taken');
	$control->ok("SELECT setval('idempotency.token_seq', 1)");
	$control->ok("INSERT INTO idempotency.idempotency_keys (created_at, expires_at, attempt, token, locked_until, lease_ms, scope, operation, key, status)
		SELECT now(), now() + interval '1 day', 1, (extract(epoch FROM clock_timestamp())::bigint << 20) + (1 << 18) + 100 + 2 * i, now(), 60000, 'tokens', 'many', i::text, 'in_progress'
		FROM generate_series(1, $leases) i");

	my @workers = map { Connection->connect($node) } 1 .. $clients;
	foreach my $no (0 .. $#workers)
	{
		# Each its own keys and some of its neighbour's.
		$workers[$no]->start("INSERT INTO taken SELECT i::text, c.token FROM generate_series(1, $leases) i, LATERAL idempotency.claim('tokens', 'many', i::text, lease => '5 min') c
			WHERE i % $clients IN ($no, ($no + 1) % $clients) AND c.outcome = 'claimed'");
	}
	ok(!$_->finish->code, "round $round: no error") foreach @workers;
	$_->close foreach @workers;
	is($control->ok('SELECT count(*) FROM taken')->value, $leases, "round $round: every lease was taken over once");
	is($control->ok('SELECT count(*) - count(DISTINCT token) FROM taken')->value, 0, "round $round: no token was given twice");
	is( $control->ok('SELECT count(*) FROM taken t JOIN idempotency.idempotency_keys k ON k.key = t.key AND k.token = t.token WHERE k.attempt = 2')->value,
		$leases, "round $round: each is the row's");
	is( $control->ok("SELECT count(*) FROM taken WHERE token <= (extract(epoch FROM now() - interval '1 day')::bigint << 20) + (1 << 18) + 100 + 2 * key::int")->value,
		0, "round $round: and larger than the one before");
}

# ---- the earlier owner's own token ----------------------------------------------------

# The sequence goes back between two claims, so that it gives the earlier owner's
# number again; who was late with the first is refused.
my ($first, $second) = map { Connection->connect($node) } 1 .. 2;
my $late = $first->ok("SELECT token FROM idempotency.claim('tokens', 'owner', 'k', lease => '1 ms')")->value;
my $number = $control->ok('SELECT last_value FROM idempotency.token_seq')->value;

ok(wait_until(sub { $control->ok("SELECT abandoned FROM idempotency.lookup('tokens', 'owner', 'k')")->value eq 't' }), 'the lease has lapsed');
$control->ok("SELECT setval('idempotency.token_seq', $number, false)");
my $next = $second->ok("SELECT token FROM idempotency.claim('tokens', 'owner', 'k', lease => '5 min')")->value;

is($control->ok('SELECT last_value FROM idempotency.token_seq')->value, $number, 'the sequence gave its number again, and was not corrected');
cmp_ok($next, '>', $late, 'the token is larger all the same');
is($first->query("SELECT idempotency.complete('tokens', 'owner', 'k', 200, token => $late)")->code, 'IK001', 'the late owner is refused');

# The row is lost with the last transactions, and the key is claimed anew: what a
# new primary after an asynchronous failover does, a second later. (In the same
# second: 018_same_second.pl.)
my $lost = $first->ok("SELECT token FROM idempotency.claim('tokens', 'owner', 'lost', lease => '5 min')")->value;
$number = $control->ok('SELECT last_value FROM idempotency.token_seq')->value;
$control->ok("SELECT idempotency.forget('tokens', 'owner', 'lost', true)");
$control->ok("SELECT setval('idempotency.token_seq', $number, false)");
$control->ok('SELECT pg_sleep(1.1)');
my $again = $second->ok("SELECT token FROM idempotency.claim('tokens', 'owner', 'lost', lease => '5 min')")->value;
cmp_ok($again, '>', $lost, 'a lost claim leaves nothing behind, and the next token is larger');
is($first->query("SELECT idempotency.complete('tokens', 'owner', 'lost', 200, token => $lost)")->code, 'IK001', 'its owner is refused');

is(scalar(grep { !/the claim no longer belongs to the caller/ } troubles($node)), 0, 'no other error and no warning in the log');

$node->stop;
done_testing();
