
# The lock is a queue, and the unique index is the judge. So the library is
# built with hashes of 4 bits, where every 16th key shares its lock with any
# other, and once more with no locks at all. The former may cost waiting, the
# latter transactions that fail with 40001; neither may give a wrong answer.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Clients;
use Connection;
use Contention;
use Extension;
use Test::More;

# ---- 4 bits ------------------------------------------------------------------------

my $node = new_server('collisions', conf => $Clients::conf);

use_library($node, build_library('bits', '-DIDEM_LOCK_HASH_BITS=4'));

my ($c, $rival) = (Connection->connect($node), Connection->connect($node));
my $number = 0;

$c->ok("SET lock_timeout = '100s'");
$rival->ok("SET lock_timeout = '100s'");

sub claim
{
	my ($connection, $key, $more) = @_;

	return $connection->execute("SELECT outcome, token FROM idempotency.claim('bits', 'op', \$1" . ($more // '') . ')', $key);
}

sub outcome { return claim(@_)->value; }

# What a look by somebody else says; it takes nothing.
sub rivals_outcome
{
	my ($key) = @_;

	$rival->ok('BEGIN');
	my $outcome = outcome($rival, $key);
	$rival->ok('ROLLBACK');
	return $outcome;
}

# Keys that share one lock: those that a rival does not get while one is claimed.
sub colliding_keys
{
	my ($count) = @_;
	my @keys = ('key ' . ++$number);

	$c->ok('BEGIN');
	is(outcome($c, $keys[0]), 'claimed', 'a key to collide with');
	while (@keys < $count)
	{
		my $key = 'key ' . ++$number;

		push @keys, $key if rivals_outcome($key) eq 'in_progress';
	}
	$c->ok('ROLLBACK');
	is(rivals_outcome($_), 'claimed', "$_ was only in the queue of another key") foreach @keys;
	return @keys;
}

sub complete
{
	my ($connection, $key, $token) = @_;

	return $connection->execute("SELECT idempotency.complete('bits', 'op', \$1, 200, 'response of ' || \$1, token => \$2)", $key, $token);
}

my ($x, $y, $z) = colliding_keys(3);

# Two keys in one transaction, and a look at a third.
is(complete($c, $z, claim($c, $z, ", lease => '1 hour'")->row->{token})->code, '', 'a key that is done');
$c->ok('BEGIN');
is(outcome($c, $x), 'claimed', 'two keys: the first');
is(outcome($c, $y), 'claimed', 'two keys: the second, though its lock is held already');
is(outcome($c, $x), 'in_progress', 'two keys: the first is not given twice');
is(claim($c, $z)->value, 'replay', 'two keys: a look at the third');
is(rivals_outcome($_), 'in_progress', "two keys: a rival gets no $_") foreach $x, $y;
is(rivals_outcome($z), 'replay', 'two keys: a rival sees what is done');
is(outcome($rival, $y, ", wait => '20 ms'"), 'in_progress', 'two keys: nor by waiting');
is(complete($c, $y)->code, '', 'two keys: the second is completed');
is($c->query('COMMIT')->code, 'IK004', 'two keys: the first was forgotten');
is(key_locks($rival), 0, 'two keys: no lock is left');
is(status_of($rival, 'bits', 'op', $y), 'absent', 'two keys: nothing happened');

# A savepoint between the two.
$c->ok('BEGIN');
is(outcome($c, $x), 'claimed', 'savepoint between: the first key');
$c->ok('SAVEPOINT s');
is(outcome($c, $y), 'claimed', 'savepoint between: the second');
is(claim($c, $z)->value, 'replay', 'savepoint between: a look at the third');
$c->ok('ROLLBACK TO s');
is(rivals_outcome($x), 'in_progress', 'savepoint between: the first is still claimed');
is(complete($c, $y)->code, 'IK002', 'savepoint between: the second is not');
$c->ok('ROLLBACK TO s');
is(claim($c, $z)->value, 'replay', 'savepoint between: another look takes no lock away');
is(rivals_outcome($x), 'in_progress', 'savepoint between: the first is still claimed');
is(complete($c, $x)->code, '', 'savepoint between: the first is completed');
$c->ok('COMMIT');
is(key_locks($rival), 0, 'savepoint between: no lock is left');
is(replay_of($rival, 'bits', 'op', $x), "response of $x", 'savepoint between: and replayed');
is(rivals_outcome($y), 'claimed', 'savepoint between: the second is free');

# Both in a savepoint that goes, and a look that was granted by waiting.
($x, $y) = colliding_keys(2);
$c->ok('BEGIN; SAVEPOINT s');
is(outcome($c, $_), 'claimed', "in a savepoint: $_") foreach $x, $y;
$c->ok('ROLLBACK TO s');
is(key_locks($rival), 0, 'in a savepoint: no lock is left');
is(outcome($c, $y), 'claimed', 'in a savepoint: once more');
$rival->start_pipeline([ "SELECT outcome FROM idempotency.claim('bits', 'op', \$1, wait => '60 s', lease => '1 hour')", $x ]);
ok(wait_until(sub { $c->ok('SELECT count(*) FROM pg_locks WHERE NOT granted')->value == 1 }),
	'in a savepoint: a rival waits for the other key');
is(complete($c, $y)->code, '', 'in a savepoint: completed');
$c->ok('COMMIT');
is($rival->finish->value, 'claimed', 'in a savepoint: the rival had waited for nothing, and gets its key');
is(key_locks($c), 0, 'in a savepoint: no lock is left');

# Verbs wait for the lock, and then do their work.
($x, $y) = colliding_keys(2);
my $token = claim($rival, $x, ", lease => '1 hour'")->row->{token};
$c->ok('BEGIN');
is(outcome($c, $y), 'claimed', 'verbs: a colliding key is claimed');
$rival->start("SELECT idempotency.complete('bits', 'op', '$x', 200, 'waited', token => $token)");
ok(wait_until(sub { $c->ok('SELECT count(*) FROM pg_locks WHERE NOT granted')->value == 1 }), 'verbs: complete waits');
complete($c, $y);
$c->ok('COMMIT');
is($rival->finish->code, '', 'verbs: and completes');
is(replay_of($c, 'bits', 'op', $x), 'waited', 'verbs: what it should');
is(join('', grep { !/left open|no open claim/ } troubles($node)), '', 'no warning about locks in the log');

# What all of it looks like at random.
$_->close(terminate => 1) foreach $c, $rival;
Clients::run($node, 4000, { 'claim: claimed' => [ '', 100 ], 'claim: replay' => [ '', 100 ] });
Clients::judge();
$node->stop;

# ---- no locks ----------------------------------------------------------------------

$node = new_server('lockless', conf => $Clients::conf);
use_library($node, build_library('lockless', '-DIDEM_NO_LOCKS'));
($c, $rival) = (Connection->connect($node), Connection->connect($node));

# Two owners in two transactions: the first to commit wins.
$_->ok('BEGIN') foreach $c, $rival;
is(outcome($_, 'both'), 'claimed', 'no locks: both claim') foreach $c, $rival;
is(complete($c, 'both')->code, '', 'no locks: one completes');
$rival->start("SELECT idempotency.complete('bits', 'op', 'both', 200, 'late')");
ok(wait_until(sub { $c->ok('SELECT count(*) FROM pg_locks WHERE NOT granted')->value == 1 }),
	'no locks: the other waits for the index');
$c->ok('COMMIT');
is($rival->finish->code, '40001', 'no locks: and is told to try again');
$rival->ok('ROLLBACK');
is(replay_of($rival, 'bits', 'op', 'both'), 'response of both', 'no locks: the first response stands');
is(outcome($rival, 'both'), 'replay', 'no locks: the second attempt gets the replay');

# The first one rolls back: the other one's work counts.
$_->ok('BEGIN') foreach $c, $rival;
is(outcome($_, 'back'), 'claimed', 'no locks: both claim') foreach $c, $rival;
complete($c, 'back');
$rival->start("SELECT idempotency.complete('bits', 'op', 'back', 200, 'second')");
$c->ok('ROLLBACK');
is($rival->finish->code, '', 'no locks: the first rolled back, the second completes');
$rival->ok('COMMIT');
is(replay_of($c, 'bits', 'op', 'back'), 'second', 'no locks: its response stands');

Contention::prepare($c);
Contention::contend($node, $c, 'same_transaction', 16, 200, retries => 1, title => 'no locks, same transaction');
Contention::contend($node, $c, 'lease', 16, 200, retries => 1, title => 'no locks, lease');
$c->ok('DROP TABLE effects');
$_->close(terminate => 1) foreach $c, $rival;

my $offset = -s $node->logfile;
# Somebody has to lose.
Clients::run($node, 4000, { 'claim: claimed' => [ '', 100 ], 'complete' => [ '40001', 1 ] }, no_locks => 1);
Clients::judge($offset);

my $log = server_log($node);
is(() = $log =~ /duplicate key/g, 0, 'no locks: never a unique violation, whose detail would show the key');
is(() = $log =~ /key was written by a concurrent transaction/g ? 1 : 0, 1, 'no locks: the losers were told to try again');

$node->stop;
done_testing();
