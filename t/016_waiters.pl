
# Who waits keeps a connection. No more than max_waiters_per_key wait for one key,
# and no more than max_waiters at all; one more is answered at once, so that a pool
# has connections left for the owner. And who waits for undecided rivals alone does
# not wait for a committed claim.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use Test::More;

my $node = new_server('waiters', conf => <<'EOC');
shared_preload_libraries = 'idempotency'
idempotency.max_waiters_per_key = 2
idempotency.max_waiters = 3
EOC
my ($owner, $control, @clients) = map { Connection->connect($node) } 1 .. 8;

sub waits
{
	my $pid = $_[0]->pid;

	return $control->ok("SELECT count(*) FROM pg_stat_activity WHERE pid = $pid AND state = 'active' AND (wait_event = 'Extension' OR wait_event_type = 'Lock' OR wait_event ILIKE 'idempotency%')")->value;
}

sub begin_to_wait
{
	my ($client, $key, $more) = @_;

	$client->start("SELECT outcome, rival FROM idempotency.claim('waiters', 'op', '$key', wait => '60 s', lease => '5 min'" . ($more // '') . ')');
	ok(wait_until(sub { waits($client) }), "one more waits for $key") or diag(explain($client->result));
	return;
}

# Wants to wait, too, and is answered instead.
sub at_once
{
	my ($client, $key, $what) = @_;
	my $answer = $client->query("SELECT outcome, rival FROM idempotency.claim('waiters', 'op', '$key', wait => '60 s', lease => '5 min')");

	is($answer->row->{outcome}, 'in_progress', $what);
	return $answer->row->{rival};
}

sub claim { return $owner->ok("SELECT token FROM idempotency.claim('waiters', 'op', '$_[0]', lease => '5 min')")->value; }

# ---- per key, of both kinds ------------------------------------------------------------------

my $token = claim('leased');
begin_to_wait($clients[$_], 'leased') foreach 0, 1;
is(at_once($clients[2], 'leased', 'the third is answered at once'), 'lease', 'by a committed claim');
# Another key is another matter, up to the limit of the server.
my $other = claim('other');
begin_to_wait($clients[2], 'other');
at_once($clients[3], 'other', 'the fourth of the server is answered at once');
$owner->ok("SELECT idempotency.complete('waiters', 'op', 'leased', 200, token => $token)");
is($clients[$_]->finish->row->{outcome}, 'replay', 'who waits gets the answer') foreach 0, 1;
# Their places are free again.
begin_to_wait($clients[3], 'other');
$owner->ok("SELECT idempotency.complete('waiters', 'op', 'other', 200, token => $other)");
is($clients[$_]->finish->row->{outcome}, 'replay', 'who waits gets the answer') foreach 2, 3;

$owner->ok('BEGIN');
$owner->ok("SELECT FROM idempotency.claim('waiters', 'op', 'open')");
begin_to_wait($clients[$_], 'open') foreach 0, 1;
is(at_once($clients[2], 'open', 'behind an open transaction, too'), 'transaction', 'whose end nobody knows');
is($clients[3]->query("SELECT idempotency.once('waiters', 'op', 'open')")->code, '55P03', 'once() says that it is undecided');
$owner->ok("SELECT idempotency.complete('waiters', 'op', 'open', 200)");
$owner->ok('COMMIT');
is($clients[$_]->finish->row->{outcome}, 'replay', 'who waits gets the answer') foreach 0, 1;

# ---- a place is given back however the wait ends ---------------------------------------------

claim('ends');
foreach my $end ('cancel', 'terminate', 'savepoint', 'time-out')
{
	my ($first, $second) = map { Connection->connect($node) } 1 .. 2;

	begin_to_wait($second, 'ends');
	if ($end eq 'time-out')
	{
		$first->ok("SET statement_timeout = '20ms'");
		is($first->query("SELECT FROM idempotency.claim('waiters', 'op', 'ends', wait => '60 s')")->code, '57014', 'time-out');
	}
	elsif ($end eq 'savepoint')
	{
		$first->ok("DO \$\$BEGIN SET LOCAL statement_timeout = 0; PERFORM FROM idempotency.claim('waiters', 'op', 'ends', wait => '20 ms'); RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN NULL; END\$\$");
	}
	else
	{
		begin_to_wait($first, 'ends');
		$control->ok("SELECT pg_${end}_backend(" . $first->pid . ')');
		$first->finish;
	}
	ok(wait_until(sub { $control->ok("SELECT count(*) FROM pg_stat_activity WHERE pid = " . $first->pid . " AND state = 'active'")->value == 0 }), "$end: its wait is over");
	my $third = Connection->connect($node);
	begin_to_wait($third, 'ends');
	$control->ok('SELECT pg_cancel_backend(' . $_->pid . ')') foreach $second, $third;
	$_->finish foreach $second, $third;
	$_->close foreach $first, $second, $third;
}

# ---- undecided rivals alone ------------------------------------------------------------------

is($clients[0]->query("SELECT rival FROM idempotency.claim('waiters', 'op', 'ends', wait => '60 s', wait_for => 'transaction')")->value,
	'lease', 'who waits for transactions alone does not wait for a committed claim');
$owner->ok('BEGIN');
my $open = $owner->ok("SELECT token FROM idempotency.claim('waiters', 'op', 'undecided', lease => '5 min')")->value;
begin_to_wait($clients[0], 'undecided', ", wait_for => 'transaction'");
$owner->ok('COMMIT');
is($clients[0]->finish->row->{rival}, 'lease', 'it waits until the claim is decided, and no longer');
$owner->ok('BEGIN');
$owner->ok("SELECT FROM idempotency.claim('waiters', 'op', 'rolled back', lease => '5 min')");
begin_to_wait($clients[0], 'rolled back', ", wait_for => 'transaction'");
$owner->ok('ROLLBACK');
is($clients[0]->finish->row->{outcome}, 'claimed', 'and gets the key if its rival rolls back');
is($clients[0]->query("SELECT FROM idempotency.claim('waiters', 'op', 'x', wait_for => 'lease')")->code, '22023', 'anything else is refused');

# ---- no limit ----------------------------------------------------------------------------------

$_->ok('SET idempotency.max_waiters = 0; SET idempotency.max_waiters_per_key = 0') foreach @clients;
begin_to_wait($_, 'ends') foreach @clients;
$control->ok('SELECT pg_cancel_backend(' . $_->pid . ')') foreach @clients;
$_->finish foreach @clients;

$node->stop;
done_testing();
