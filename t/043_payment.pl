
# A payment in three steps, with the client killed at every possible point, or
# stopped there and let go on much later. At the end each was charged once, and
# each effect in the database exists once.
#
# The steps: reserve the goods; charge the card, and note the charge; send the
# receipt, and book. Only the first has no part outside. There are two card
# networks. One honours an idempotency key: its payments are driven to their end
# by a completer, which is killed at various points, too. The other one charges
# each time it is asked: its payments are held if they are abandoned, and a
# person asks the network what happened.
#
# No table has a unique constraint: nothing but the extension keeps an effect
# from happening twice.
#
# Nobody is held to a time. Leases are long, and end when the test says so, once
# all have died or stopped where they should.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use CardNetwork;
use Connection;
use Extension;
use POSIX ();
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('payment', conf => "shared_preload_libraries = 'idempotency'\n");
my $control = Connection->connect($node);
my $network = CardNetwork->start(PostgreSQL::Test::Utils::tempdir_short() . '/network');

$control->ok(q{
	CREATE TABLE reserved (payment text);
	CREATE TABLE charged (payment text, charge text);
	CREATE TABLE booked (payment text, receipt text)});

# ---- the client ------------------------------------------------------------------

# Where the process that runs this is to die or to stop, and where it is.
my ($die_at, $stop_at, $here) = (0, 0, 0);
my $c;

sub point
{
	$here++;
	POSIX::_exit(9) if $here == $die_at;
	kill 'STOP', $$ if $here == $stop_at;
	return;
}

# Dies before the statement, and after it was sent but not answered.
sub sql
{
	my ($sql) = @_;

	point();
	$c->start($sql);
	point();
	my $result = $c->finish;

	die $result->code . ' ' . $result->message . "\n" if $result->code ne '';
	return $result;
}

sub ask
{
	my ($verb, $operation, $payment) = @_;
	my $key = $operation eq 'keyed'
	  ? $c->ok("SELECT idempotency.effect_key('shop', '$operation', '$payment', '$verb')")->value
	  : '-';

	point();
	return $network->ask($verb, $key, $payment, \&point);
}

# The work, from the last recovery point on.
sub drive
{
	my ($operation, $payment, $token, $passed, $charge) = @_;
	my $id = "'shop', '$operation', '$payment'";

	if ($passed eq '')
	{
		sql('BEGIN');
		sql("INSERT INTO reserved VALUES ('$payment')");
		sql("SELECT idempotency.checkpoint($id, 'reserved', token => $token, lease => '1 hour')");
		sql('COMMIT');
		$passed = 'reserved';
	}
	if ($passed eq 'reserved')
	{
		$charge = ask('charge', $operation, $payment);
		sql('BEGIN');
		sql("INSERT INTO charged VALUES ('$payment', '$charge')");
		sql("SELECT idempotency.checkpoint($id, 'charged', '\"$charge\"', lease => '1 hour', token => $token)");
		sql('COMMIT');
	}
	my $receipt = ask('receipt', $operation, $payment);

	sql('BEGIN');
	sql("INSERT INTO booked VALUES ('$payment', '$receipt')");
	sql("SELECT idempotency.complete($id, 201, 'paid by $charge', token => $token)");
	sql('COMMIT');
	return;
}

# What the application does with a request. Returns what it answers.
sub pay
{
	my ($operation, $payment) = @_;
	my $hold = $operation eq 'keyed' ? 'false' : 'true';
	my $claim = sql("SELECT outcome, token, coalesce(recovery_point, '') AS passed, state #>> '{}' AS charge, response_body
		FROM idempotency.claim('shop', '$operation', '$payment', '{\"pay\": \"$payment\"}', lease => '1 hour', hold_if_abandoned => $hold)")->row;

	drive($operation, $payment, @$claim{qw(token passed charge)}) if $claim->{outcome} eq 'claimed';
	return $claim->{outcome} . ' ' . ($claim->{response_body} // '');
}

# What the completer does.
sub complete_abandoned
{
	my ($operation) = @_;
	my $claims = sql("SELECT key, token, coalesce(recovery_point, ''), state #>> '{}' FROM idempotency.claim_abandoned('$operation', '1 hour', 1)")->rows;

	drive($operation, @$_) foreach @$claims;
	return scalar @$claims;
}

# Runs it in a process that dies at a point; with a connection of its own. The
# server is left to find out that its client is gone.
my (@children, @stopped);

sub in_process
{
	my ($work) = @_;

	return in_child(
		sub {
			my $done = eval {
				$c = Connection->connect($node);
				$here = 0;
				$work->();
				1;
			};

			return 0 if $done;
			# 2: told that the claim is no longer its own.
			return 2 if $@ =~ /^IK00[125] /;
			die $@;
		});
}

# A test that fails leaves no process stopped for ever.
END { kill 'KILL', @stopped, @children if @stopped || @children; }

sub run_until
{
	my ($point, $work) = @_;

	push @children, in_process(sub { $die_at = $point; $work->() });
	# A few at a time.
	reap(6);
	return;
}

# The same, stopped at the point.
sub stop_at
{
	my ($point, $work) = @_;
	my $pid = in_process(sub { $stop_at = $point; $work->() });

	waitpid $pid, POSIX::WUNTRACED;
	push @stopped, $pid;
	return;
}

my %ends;

sub reap
{
	my ($left) = @_;

	while (@children > $left)
	{
		waitpid shift @children, 0;
		$ends{ $? >> 8 }++;
	}
	return;
}

# All leases are over: the server has found out about the clients that are dead,
# and did what the stopped ones had sent; then time goes on. But for those that
# a stopped client has locked, which nobody can take over either.
sub let_lapse
{
	my $others = q{FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()};

	wait_until(sub { $control->ok("SELECT count(*) $others")->value == @stopped && $control->ok("SELECT count(*) $others AND state = 'active'")->value == 0 })
	  or return 0;
	$control->ok(q{
		UPDATE idempotency.idempotency_keys SET locked_until = clock_timestamp()
		WHERE ctid IN (SELECT ctid FROM idempotency.idempotency_keys WHERE status = 'in_progress' FOR UPDATE SKIP LOCKED)});
	return 1;
}

# ---- how many points there are -----------------------------------------------------

my %last;

foreach my $operation ('keyed', 'unkeyed')
{
	$c = $control;
	$here = 0;
	is(pay($operation, "$operation-0"), 'claimed ', "$operation: a payment without a crash");
	$last{$operation} = $here;
	is(pay($operation, "$operation-0"), 'replay paid by ' . ($network->done('charge', "$operation-0"))[0], "$operation: again");
}
is($last{keyed}, $last{unkeyed}, 'both have the same points to die at');
cmp_ok($last{keyed}, '>=', 30, 'which are many') or BAIL_OUT('the points are lost');
my @points = 1 .. $last{keyed};

sub payments { my ($operation) = @_; return map { "$operation-$_" } @points; }

# ---- clients that die ---------------------------------------------------------------

foreach my $point (@points)
{
	foreach my $operation ('keyed', 'unkeyed')
	{
		run_until($point, sub { pay($operation, "$operation-$point") });
		stop_at($point, sub { pay($operation, "$operation-stopped-$point") });
	}
}
reap(0);
is_deeply(\%ends, { 9 => 2 * @points }, 'a client died at every point');
ok(let_lapse(), 'all their leases have lapsed');

# Whose claim was committed is known to be abandoned; whose was completed is
# done though its client never learnt it; the others left nothing at all.
my %stands = map { $_->[0] => $_->[1] } @{ $control->ok(q{
	SELECT k.key, coalesce(a.status, k.status) FROM idempotency.idempotency_keys AS k LEFT JOIN idempotency.abandoned AS a USING (scope, operation, key)})->rows };
my %abandoned = map { my $o = $_; $o => [ grep { ($stands{$_} // '') =~ /in_progress|held/ } payments($o) ] } 'keyed', 'unkeyed';

is_deeply([ grep { ($stands{$_} // 'absent') ne 'held' } @{ $abandoned{unkeyed} } ], [], 'unkeyed: all that are abandoned are listed as held');
is_deeply([ grep { $stands{$_} ne 'in_progress' } @{ $abandoned{keyed} } ], [], 'keyed: none of them is held');
foreach my $operation ('keyed', 'unkeyed')
{
	cmp_ok(scalar @{ $abandoned{$operation} }, '>=', @points - 6, "$operation: most are abandoned");
	is(join(' ', sort { $a cmp $b } keys %{ { map { ($stands{$_} // 'absent') => 1 } payments($operation) } }),
		'absent completed ' . ($operation eq 'keyed' ? 'in_progress' : 'held'), "$operation: and some never began or were done");
}

# ---- keyed: the completer -------------------------------------------------------------

# Completers die, too, each at another point; two more finish what is left.
run_until($_, sub { complete_abandoned('keyed') }) foreach @points;
reap(0);
ok(let_lapse(), 'keyed: the completers are dead, too');
sub finish_abandoned
{
	for (1 .. 2)
	{
		# Until nothing is left, or the other one has it.
		run_until(0, sub { 1 while complete_abandoned('keyed') });
	}
	reap(0);
	return;
}

finish_abandoned();
is(join(' ', grep { !/stopped/ } map { $_->[0] } @{ $control->ok(q{SELECT key FROM idempotency.abandoned WHERE operation = 'keyed'})->rows }), '', 'keyed: the completers leave nothing behind');
is(exists $ends{1} ? $ends{1} : 0, 0, 'no client met an error');

# Those that were stopped go on. They have been given up meanwhile, and finished
# by a completer, or are held, unless they were in a transaction all the time.
sub go_on
{
	%ends = ();
	kill 'CONT', @stopped;
	@children = splice @stopped;
	reap(0);
	return;
}

go_on();
cmp_ok($ends{2} // 0, '>=', @points, 'most of the stopped clients are told that the claim is not theirs');
is($ends{2} + ($ends{0} // 0), 2 * @points, 'the others got to their end');
finish_abandoned();
is($control->ok(q{SELECT count(*) FROM idempotency.abandoned WHERE operation = 'keyed'})->value, 0, 'keyed: at last nothing is left behind');

# ---- unkeyed: a person ------------------------------------------------------------------

# Nobody gets one of them before that.
$c = $control;
is(complete_abandoned('unkeyed'), 0, 'unkeyed: no completer gets a held payment');
is_deeply([ map { pay('unkeyed', $_) } @{ $abandoned{unkeyed} } ], [ ('held ') x @{ $abandoned{unkeyed} } ], 'unkeyed: nobody gets a held payment');
my %decisions;

foreach my $held (@{ $control->ok(q{SELECT key, token, coalesce(recovery_point, ''), state #>> '{}' FROM idempotency.abandoned WHERE operation = 'unkeyed' AND status = 'held' ORDER BY key})->rows })
{
	my ($payment, $token, $passed) = @$held;
	my ($charge) = $network->done('charge', $payment);

	if (!defined $charge)
	{
		# The network knows nothing of it: it may be tried again.
		$control->ok("SELECT idempotency.resolve('shop', 'unkeyed', '$payment', 'retry', 'the network has no charge')");
		$decisions{retry}++;
		next;
	}
	# Charged: what is missing is done by hand, and the key completed with it.
	my ($receipt) = $network->done('receipt', $payment);

	$receipt //= $network->ask('receipt', '-', $payment);
	$control->ok('BEGIN');
	$control->ok("INSERT INTO charged VALUES ('$payment', '$charge')") if $passed ne 'charged';
	$control->ok("INSERT INTO booked VALUES ('$payment', '$receipt')");
	$control->ok("SELECT idempotency.complete('shop', 'unkeyed', '$payment', 201, 'paid by $charge', token => $token)");
	$control->ok('COMMIT');
	$decisions{complete}++;
}
cmp_ok($decisions{retry} // 0, '>', 5, 'unkeyed: some are tried again');
cmp_ok($decisions{complete} // 0, '>', 5, 'unkeyed: some are completed by hand');
is($control->ok(q{SELECT count(*) FROM idempotency.abandoned})->value, 0, 'unkeyed: nothing is left to decide');

# ---- the users come back ------------------------------------------------------------------

foreach my $operation ('keyed', 'unkeyed')
{
	my (@wrong, %first);

	foreach my $payment ("$operation-0", payments($operation), map { "$operation-stopped-$_" } @points)
	{
		my $answer = pay($operation, $payment);

		$first{$answer}++ if $answer =~ /^claimed/;
		my $again = pay($operation, $payment);
		my @charges = $network->done('charge', $payment);
		my @receipts = $network->done('receipt', $payment);
		my $rows = $control->ok(qq{
			SELECT (SELECT count(*) FROM reserved WHERE payment = '$payment') || ' ' ||
				(SELECT string_agg(charge, ' ') FROM charged WHERE payment = '$payment') || ' ' ||
				(SELECT string_agg(receipt, ' ') FROM booked WHERE payment = '$payment')})->value // 'missing';

		push @wrong, "$payment: charged @charges, receipts @receipts, rows $rows, answer $again"
		  if @charges != 1 || @receipts != 1 || $rows ne "1 $charges[0] $receipts[0]" || $again ne "replay paid by $charges[0]";
	}
	is(join("\n", @wrong), '', "$operation: every payment was charged once, with every effect once, and is replayed so");
	# Those that died before anything was committed, and those that a person
	# wanted to be tried again.
	is($first{'claimed '} // 0, (grep { !defined $stands{$_} } payments($operation)) + ($operation eq 'unkeyed' ? $decisions{retry} : 0), "$operation: nothing but those was left to do");
}

$network->stop;
$node->stop;
done_testing();
