
# A late owner finds out: claim with a lease, it lapses, somebody else takes
# over, and whatever the first one still does in its business transaction is
# rolled back with an error. That holds whatever became of the key meanwhile,
# and even if the late response is the very one that was recorded.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use Test::More;

my $node = new_server('late');
my ($late, $other, $operator) = map { Connection->connect($node) } 1 .. 3;
my $number = 0;

$late->ok('CREATE TABLE effects (key text, owner text)');

# A claim whose lease has lapsed: its key and token.
sub lapsed_claim
{
	my ($more) = @_;
	my $key = 'key ' . ++$number;
	my $token = $late->ok("SELECT token FROM idempotency.claim('late', 'op', '$key', lease => '1 microsecond'" . ($more // '') . ')')->value;

	return ($key, $token);
}

sub execute_as
{
	my ($connection, $owner, $key, $token) = @_;
	my $with_token = defined $token ? ", token => $token" : '';

	return $connection->query(qq{
		INSERT INTO effects VALUES ('$key', '$owner');
		SELECT idempotency.complete('late', 'op', '$key', 200, 'the response'$with_token)});
}

# The first owner's business transaction, after all.
sub is_refused
{
	my ($key, $token, $reason, $title) = @_;

	foreach my $level ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
	{
		$late->ok("BEGIN ISOLATION LEVEL $level");
		my $result = execute_as($late, 'late', $key, $token);

		is($result->code, 'IK001', "$title: refused ($level)");
		is($result->reason, $reason, "$title: because of what ($level)");
		is($late->query('COMMIT')->{tags}[0], 'ROLLBACK', "$title: it cannot commit ($level)");
	}
	is($late->ok("SELECT count(*) FROM effects WHERE key = '$key' AND owner = 'late'")->value, 0, "$title: nothing is booked");
	return;
}

sub booked { return $operator->ok("SELECT string_agg(owner, ' ') FROM effects WHERE key = '$_[0]'")->value; }

# Taken over, and still running.
my ($key, $token) = lapsed_claim();
my $taken = $other->ok("SELECT token FROM idempotency.claim('late', 'op', '$key', lease => '1 hour')")->value;
is_refused($key, $token, 'taken_over', 'taken over');
is($late->query("SELECT idempotency.$_->[0]('late', 'op', '$key'$_->[1], token => $token)")->code, 'IK001', "taken over: $_->[0]")
  foreach [ 'fail', ", 'late'" ], [ 'release', '' ], [ 'extend', ", '1 hour'" ];
is(execute_as($other, 'other', $key, $taken)->code, '', 'taken over: the second owner completes');
is(booked($key), 'other', 'taken over: one effect');

# Taken over and completed, with the same response.
is_refused($key, $token, 'completed', 'completed by the second owner');

# Taken over and failed, released, or lapsed again.
foreach my $end ("fail('late', 'op', '%s', 'no', token => %s)", "release('late', 'op', '%s', token => %s)")
{
	my ($name) = $end =~ /(\w+)/;

	($key, $token) = lapsed_claim();
	$taken = $other->ok("SELECT token FROM idempotency.claim('late', 'op', '$key', lease => '1 hour')")->value;
	$other->ok(sprintf("SELECT idempotency.$end", $key, $taken));
	is_refused($key, $token, 'taken_over', "taken over, then $name");
}
($key, $token) = lapsed_claim();
$other->ok("SELECT FROM idempotency.claim('late', 'op', '$key', lease => '1 microsecond')");
is_refused($key, $token, 'taken_over', 'taken over by one that vanished, too');

# Taken over in one transaction, which gets no token of its own.
($key, $token) = lapsed_claim();
$other->ok("BEGIN; SELECT FROM idempotency.claim('late', 'op', '$key')");
execute_as($other, 'other', $key);
$other->ok('COMMIT');
is(booked($key), 'other', 'taken over in one transaction: one effect');
is_refused($key, $token, 'completed', 'taken over in one transaction');

# The same while that transaction is open: the late owner waits for it.
($key, $token) = lapsed_claim();
$other->ok("BEGIN; SELECT FROM idempotency.claim('late', 'op', '$key')");
$late->ok('BEGIN');
$late->start(qq{
	INSERT INTO effects VALUES ('$key', 'late');
	SELECT idempotency.complete('late', 'op', '$key', 200, 'the response', token => $token)});
ok(wait_until(sub { $operator->ok('SELECT count(*) FROM pg_locks WHERE NOT granted')->value == 1 }), 'open takeover: the late owner waits');
execute_as($other, 'other', $key);
$other->ok('COMMIT');
is($late->finish->code, 'IK001', 'open takeover: and is refused');
$late->ok('ROLLBACK');
is(booked($key), 'other', 'open takeover: one effect');

# If the takeover is rolled back, the claim is still the first one's.
($key, $token) = lapsed_claim();
$other->ok("BEGIN; SELECT FROM idempotency.claim('late', 'op', '$key')");
execute_as($other, 'other', $key);
$late->start(qq{
	BEGIN;
	INSERT INTO effects VALUES ('$key', 'late');
	SELECT idempotency.complete('late', 'op', '$key', 200, 'the response', token => $token);
	COMMIT});
$other->ok('ROLLBACK');
is($late->finish->code, '', 'takeover rolled back: the late owner completes');
is(booked($key), 'late', 'takeover rolled back: one effect');

# Nobody has taken over: late, but in time.
($key, $token) = lapsed_claim();
is(execute_as($late, 'late', $key, $token)->code, '', 'lapsed only: accepted');
is(execute_as($late, 'late', $key, $token + 1)->code, 'IK002', 'lapsed only: a token that nobody has is not');

# Expired and deleted, by clean-up or on purpose; and somebody else's since.
($key, $token) = lapsed_claim(", ttl => '1 microsecond'");
ok($operator->ok('SELECT idempotency.cleanup()')->value >= 1, 'cleaned up');
is_refused($key, $token, 'forgotten', 'cleaned up');
$taken = $other->ok("SELECT token FROM idempotency.claim('late', 'op', '$key', lease => '1 hour')")->value;
is_refused($key, $token, 'taken_over', 'cleaned up and claimed anew');
execute_as($other, 'other', $key, $taken);
is_refused($key, $token, 'completed', 'cleaned up and completed anew');
is(booked($key), 'other', 'cleaned up and completed anew: one effect');
($key, $token) = lapsed_claim();
$operator->ok("SELECT idempotency.forget('late', 'op', '$key', true)");
is_refused($key, $token, 'forgotten', 'forgotten');

# Cleaned up and completed in one transaction, with no lease: the new row must
# not be taken for the late owner's.
($key, $token) = lapsed_claim(", ttl => '1 microsecond'");
$operator->ok('SELECT idempotency.cleanup()');
$other->ok("BEGIN; SELECT FROM idempotency.claim('late', 'op', '$key')");
execute_as($other, 'other', $key);
$other->ok('COMMIT');
is(execute_as($late, 'late', $key, $token)->code =~ /^IK00[12]$/ ? 1 : 0, 1, 'cleaned up and completed in one transaction: refused');
is(booked($key), 'other', 'cleaned up and completed in one transaction: one effect');

# The same with the clean-up between that claim and its completion: it takes
# the row away that the token would have outdated.
($key, $token) = lapsed_claim(", ttl => '1 microsecond'");
$other->ok("BEGIN; SELECT FROM idempotency.claim('late', 'op', '$key')");
ok($operator->ok('SELECT idempotency.cleanup()')->value >= 1, 'cleaned up under a claim');
execute_as($other, 'other', $key);
$other->ok('COMMIT');
is_refused($key, $token, 'completed', 'cleaned up under a claim in one transaction');
is(booked($key), 'other', 'cleaned up under a claim in one transaction: one effect');
cmp_ok($other->ok("SELECT token FROM idempotency.lookup('late', 'op', '$key')")->value, '>', $token,
	'cleaned up under a claim in one transaction: the token has gone on');

# ---- when a lease is over ------------------------------------------------------

# The clock is read when the call decides, not when its transaction began.
$other->ok('BEGIN');
$key = 'key ' . ++$number;
$token = $late->ok("SELECT token FROM idempotency.claim('late', 'op', '$key', lease => '20 ms')")->value;
ok(wait_until(sub { $operator->ok("SELECT abandoned FROM idempotency.lookup('late', 'op', '$key')")->value eq 't' }),
	'old transaction: the lease has lapsed since it began');
is($other->ok("SELECT taken_over FROM idempotency.claim('late', 'op', '$key', lease => '1 hour')")->value, 't',
	'old transaction: takes over all the same');
is( $other->ok("SELECT locked_until - now() > '1 hour' FROM idempotency.lookup('late', 'op', '$key')")->value,
	't', 'old transaction: and has its lease from now on');
$other->ok('ROLLBACK');

# A live lease outlives its ttl: nobody takes over, and clean-up stays away.
$key = 'key ' . ++$number;
$token = $late->ok("SELECT token FROM idempotency.claim('late', 'op', '$key', lease => '1 hour', ttl => '1 microsecond')")->value;
$operator->ok('SELECT idempotency.cleanup()');
is($other->ok("SELECT outcome FROM idempotency.claim('late', 'op', '$key')")->value, 'in_progress', 'a live lease: is not cut short by expiry');
is(execute_as($late, 'late', $key, $token)->code, '', 'a live lease: its owner completes');

# With hold_if_abandoned nobody takes over, expired or not: a person decides.
($key, $token) = lapsed_claim(", ttl => '1 microsecond', hold_if_abandoned => true");
$operator->ok('SELECT idempotency.cleanup()');
is($other->ok("SELECT outcome FROM idempotency.claim('late', 'op', '$key', lease => '1 hour')")->value, 'held', 'held when abandoned: nobody takes over');
is(status_of($operator, 'late', 'op', $key), 'held', 'held when abandoned: and clean-up stays away');
is(execute_as($late, 'late', $key, $token)->code, '', 'held when abandoned: its owner may complete');
is(booked($key), 'late', 'held when abandoned: one effect');

is(key_locks($operator), 0, 'no key lock is left');
$node->stop;
done_testing();
