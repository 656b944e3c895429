
# Who waits for a committed claim is woken by its end: the answer comes with the
# rival's completion, failure or release, not with the waiter's next look of its
# own, which is up to a second later. No key lock is held meanwhile, the bound
# is kept, and the wait can be cancelled. Without preloading it works by looking.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use Test::More;
use Time::HiRes qw(sleep time);

my $node = new_server('wait', conf => "shared_preload_libraries = 'idempotency'\nidempotency.max_waiters_per_key = 0\n");
my ($owner, $waiter, $watcher) = map { Connection->connect($node) } 1 .. 3;
my $number = 0;
# From 17 on, what is waited for has a name of its own.
my $wait_event = $node->pg_version >= 17 ? 'IdempotencyClaim' : 'Extension';

# What the waiter does right now, in its own words.
sub sleeps
{
	my $pid = $waiter->pid;

	return $watcher->ok("SELECT count(*) FROM pg_stat_activity WHERE pid = $pid AND state = 'active' AND wait_event = '$wait_event'")->value;
}

sub own_locks
{
	my $pid = $waiter->pid;

	return $watcher->ok("SELECT count(*) FROM pg_locks WHERE pid = $pid AND locktype = 'advisory' AND objsubid = $Extension::lock_class")->value;
}

sub claim
{
	my ($connection, $key, $lease) = @_;

	return $connection->ok("SELECT token FROM idempotency.claim('wait', 'op', '$key', lease => '$lease')")->value;
}

sub start_waiting
{
	my ($key, $more) = @_;

	$waiter->start("SELECT outcome, attempt, taken_over, response_body, last_error, clock_timestamp() AS at FROM idempotency.claim('wait', 'op', '$key', $more)");
	ok(wait_until(\&sleeps), "$key: the waiter sleeps") or diag(explain($waiter->result));
	return;
}

# How many milliseconds lie between two server clocks.
sub between
{
	my ($from, $to) = @_;

	return $watcher->ok("SELECT 1000 * extract(epoch FROM '$to'::timestamptz - '$from'::timestamptz)")->value;
}

# ---- woken -----------------------------------------------------------------------

# Several tries each, at various moments shortly after the waiter has looked. By
# itself it would look again when a second is over. Three of them have to show
# that it did not; on a machine that is busy with other things a try may show
# nothing.
my %ends = (
	complete => [ "SELECT idempotency.complete('wait', 'op', '%s', 200, 'the answer', token => %s)", 'replay' ],
	fail => [ "SELECT idempotency.fail('wait', 'op', '%s', 'no', token => %s)", 'claimed' ],
	release => [ "SELECT idempotency.release('wait', 'op', '%s', token => %s)", 'claimed' ],
	hold => [ "SELECT idempotency.hold('wait', 'op', '%s', 'no', token => %s)", 'held' ],
	forget => [ "SELECT idempotency.forget('wait', 'op', '%s', true)", 'claimed' ]);

foreach my $end (sort keys %ends)
{
	my ($sql, $outcome) = @{ $ends{$end} };
	my (@took, %answers);

	for (my $try = 1; $try <= 30 && (grep { $_ < 400 } @took) < 3; $try++)
	{
		my $key = "$end $try";
		my $token = claim($owner, $key, '5 min');

		start_waiting($key, "lease => '5 min', wait => '60 s'");
		is(own_locks(), 0, "$key: no key lock is held") if $try == 1;
		sleep 0.05 * (1 + $try % 5);
		# In a transaction with business rows; it counts from the commit.
		$owner->ok('BEGIN');
		$owner->ok(sprintf $sql, $key, $token);
		$owner->ok('COMMIT');
		my $committed = $owner->ok('SELECT clock_timestamp()')->value;
		my $row = $waiter->finish->row;

		$answers{ $row->{outcome} }++;
		push @took, between($committed, $row->{at});
	}
	is(join(' ', keys %answers), $outcome, "$end: the answer is $outcome");
	is(scalar(grep { $_ < 400 } @took), 3, "$end: the answer comes with its commit")
	  or diag("milliseconds: @took");
	note("$end: after @took ms");
}

# Nothing is decided until the rival commits, and a rollback decides nothing.
my $key = 'rollback';
my $token = claim($owner, $key, '5 min');
start_waiting($key, "lease => '5 min', wait => '60 s'");
$owner->ok("BEGIN; SELECT idempotency.complete('wait', 'op', '$key', 200, 'undone', token => $token)");
ok(!Connection::next_of(1.2, $waiter), 'rollback: no answer while the completion is open');
$owner->ok('ROLLBACK');
ok(!Connection::next_of(0.3, $waiter), 'rollback: nor after it');
$owner->ok("SELECT idempotency.complete('wait', 'op', '$key', 200, 'done', token => $token)");
is($waiter->finish->row->{response_body}, 'done', 'rollback: the completion that counts');

# Several wait for one claim; all are woken, and one of them gets a failed one.
my @crowd = map { Connection->connect($node) } 1 .. 6;
$key = 'crowd';
$token = claim($owner, $key, '5 min');
$_->start("SELECT outcome, clock_timestamp() AS at FROM idempotency.claim('wait', 'op', '$key', lease => '5 min', wait => '60 s')") foreach @crowd;
ok(wait_until(sub { $watcher->ok("SELECT count(*) FROM pg_stat_activity WHERE wait_event = '$wait_event' AND state = 'active'")->value == 6 }), 'crowd: all sleep');
$owner->ok("SELECT idempotency.fail('wait', 'op', '$key', 'no', token => $token)");
my @first;
ok(wait_until(sub { @first = Connection::next_of(0.1, @crowd) }), 'crowd: one of them gets it');
is(join(' ', map { $_->result->row->{outcome} } @first), 'claimed', 'crowd: and only one');
$token = $watcher->ok("SELECT token FROM idempotency.lookup('wait', 'op', '$key')")->value;
$owner->ok("SELECT idempotency.complete('wait', 'op', '$key', 200, 'done', token => $token)");
is(join(' ', sort map { $_->finish->row->{outcome} } @crowd), 'claimed' . ' replay' x 5, 'crowd: the others wait for that one');
$_->close(terminate => 1) foreach @crowd;

# ---- without being woken -----------------------------------------------------------

# The end of the lease, and of retry_in.
my $row;
for (my $try = 1; $try <= 30 && (!$row || $row->{soon} eq 'f'); $try++)
{
	$key = "lapse $try";
	claim($owner, $key, '300 ms');
	$row = $waiter->ok("SELECT outcome, attempt, taken_over, clock_timestamp() - now() < '900 ms' AS soon FROM idempotency.claim('wait', 'op', '$key', lease => '5 min', wait => '60 s')")->row;
	is_deeply([ @$row{qw(outcome attempt taken_over)} ], [ 'claimed', 2, 't' ], "$key: taken over");
}
is($row->{soon}, 't', 'lapse: when the lease ended, not later');
$key = 'retry_in';
$token = claim($owner, $key, '5 min');
$owner->ok("SELECT idempotency.fail('wait', 'op', '$key', 'try later', retry_in => '300 ms', token => $token)");
$row = $waiter->ok("SELECT outcome, attempt, last_error FROM idempotency.claim('wait', 'op', '$key', lease => '5 min', wait => '60 s')")->row;
is_deeply([ @$row{qw(outcome attempt last_error)} ], [ 'claimed', 2, 'try later' ], 'retry_in: claimed when it is over');

# hold_if_abandoned: the end of the lease is no invitation.
$owner->ok("SELECT FROM idempotency.claim('wait', 'op', 'hold', lease => '200 ms', hold_if_abandoned => true)");
is($waiter->ok("SELECT outcome FROM idempotency.claim('wait', 'op', 'hold', lease => '5 min', wait => '60 s')")->value, 'held', 'hold_if_abandoned: held when the lease ends');

# The bound, and the superuser's bound.
$key = 'bound';
claim($owner, $key, '5 min');
my $bound = "SELECT outcome || ' ' || (clock_timestamp() - now() BETWEEN '300 ms' AND '100 s') FROM idempotency.claim('wait', 'op', '$key', lease => '5 min', wait => '%s')";
is($waiter->ok(sprintf $bound, '300 ms')->value, 'in_progress true', 'bound: as long as that, no longer');
$watcher->ok(q{ALTER SYSTEM SET idempotency.max_wait = '400ms'});
$watcher->ok('SELECT pg_reload_conf()');
ok(wait_until(sub { $waiter->ok('SHOW idempotency.max_wait')->value eq '400ms' }), 'bound: max_wait is set');
is($waiter->ok(sprintf $bound, '1 hour')->value, 'in_progress true', 'bound: max_wait bounds it');
$watcher->ok('ALTER SYSTEM RESET idempotency.max_wait');
$watcher->ok('SELECT pg_reload_conf()');
ok(wait_until(sub { $waiter->ok('SHOW idempotency.max_wait')->value eq '1min' }), 'bound: max_wait is reset');

# Cancelled, in a transaction and out of one; the connection goes on.
foreach my $begin ('', 'BEGIN; SAVEPOINT a')
{
	$waiter->ok($begin) if $begin;
	start_waiting($key, "lease => '5 min', wait => '60 s'");
	$watcher->ok('SELECT pg_cancel_backend(' . $waiter->pid . ')');
	is($waiter->finish->code, '57014', 'cancelled');
	$waiter->ok('ROLLBACK TO a; SELECT 1; COMMIT') if $begin;
	is($waiter->ok('SELECT 1')->value, 1, 'cancelled: the connection goes on');
}
$waiter->ok("SET statement_timeout = '500ms'");
is($waiter->query("SELECT FROM idempotency.claim('wait', 'op', '$key', lease => '5 min', wait => '60 s')")->code, '57014', 'statement_timeout ends a wait');
$waiter->ok('RESET statement_timeout');
# A backend that is told to go, goes.
my $other = Connection->connect($node);
$other->start("SELECT FROM idempotency.claim('wait', 'op', '$key', lease => '5 min', wait => '60 s')");
ok(wait_until(sub { $watcher->ok("SELECT count(*) FROM pg_stat_activity WHERE wait_event = '$wait_event' AND pid = " . $other->pid)->value }), 'terminated: it sleeps');
$watcher->ok('SELECT pg_terminate_backend(' . $other->pid . ')');
is($other->finish->code, '57P01', 'terminated');
is(key_locks($watcher), 0, 'no key lock is left');

# Above READ COMMITTED what ends the wait is not in the snapshot.
$key = 'repeatable';
$token = claim($owner, $key, '5 min');
$waiter->ok('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
start_waiting($key, "lease => '5 min', wait => '60 s'");
$owner->ok("SELECT idempotency.complete('wait', 'op', '$key', 200, 'done', token => $token)");
is($waiter->finish->code, '40001', 'REPEATABLE READ: to be tried again');
$waiter->ok('ROLLBACK');

# A claim that is not committed yet, then committed, then completed: the wait
# goes from the lock to the wake-up.
$key = 'both';
$owner->ok('BEGIN');
$token = claim($owner, $key, '5 min');
$waiter->start("SELECT outcome, response_body FROM idempotency.claim('wait', 'op', '$key', lease => '5 min', wait => '60 s')");
ok(wait_until(sub { $watcher->ok('SELECT count(*) FROM pg_locks WHERE NOT granted')->value == 1 }), 'both: the waiter waits for the lock');
$owner->ok('COMMIT');
ok(wait_until(\&sleeps), 'both: then it sleeps');
is(own_locks(), 0, 'both: and holds no key lock');
$owner->ok("SELECT idempotency.complete('wait', 'op', '$key', 200, 'done', token => $token)");
is($waiter->finish->row->{response_body}, 'done', 'both: then it is answered');

$node->stop;

# ---- without preloading --------------------------------------------------------------

$node->append_conf('postgresql.conf', "shared_preload_libraries = ''\n");
$node->start;
($owner, $waiter, $watcher) = map { Connection->connect($node) } 1 .. 3;
$token = claim($owner, 'polling', '5 min');
start_waiting('polling', "lease => '5 min', wait => '60 s'");
is(own_locks(), 0, 'polling: no key lock is held');
$owner->ok("SELECT idempotency.complete('wait', 'op', 'polling', 200, 'done', token => $token)");
my $completed = $owner->ok('SELECT clock_timestamp()')->value;
$row = $waiter->finish->row;
is($row->{response_body}, 'done', 'polling: answered');
cmp_ok(between($completed, $row->{at}), '<', 20_000, 'polling: long before the wait is over');
claim($owner, 'polling too long', '5 min');
is($waiter->ok("SELECT outcome FROM idempotency.claim('wait', 'op', 'polling too long', lease => '5 min', wait => '400 ms')")->value,
	'in_progress', 'polling: the bound is kept');
start_waiting('polling too long', "lease => '5 min', wait => '60 s'");
$watcher->ok('SELECT pg_cancel_backend(' . $waiter->pid . ')');
is($waiter->finish->code, '57014', 'polling: cancelled');
$node->stop;

done_testing();
