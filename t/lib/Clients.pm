
# Clients - twenty clients that do everything at once that clients do, and what
# happens to them
#
# Executions in one transaction and under leases, at every isolation level, with
# savepoints, failures, releases, prepared transactions, two keys in one
# transaction, waits, heartbeats, owners that vanish or come late, requests that
# use a key for something else. Meanwhile backends are terminated and statements
# cancelled, clean-up runs without pause, and keys are forgotten.
#
# run() records all of it as a History; judge() looks for contradictions.
#
# How long it lasts is counted in claims, and so is when something happens to a
# client: on a slow machine it takes longer and meets the same.
#
# The random choices come from IDEMPOTENCY_SEED, or from a seed that is printed.
# What the server makes of them depends on its timing.
#
# What a client does in one transaction is in Clients/Transactions.pm, under a lease
# in Clients/Leases.pm; who else is there, in Clients/Others.pm. Clients/Steps.pm is
# what they share, Clients/Record.pm writes down what they are told, and
# Clients/Judgement.pm judges it.

package Clients;

use strict;
use warnings;

use Clients::Judgement;
use Clients::Leases;
use Clients::Others;
use Clients::Record;
use Clients::Steps;
use Clients::Transactions;
use Connection;
use Test::More;
use Time::HiRes qw(time);

# What the servers need.
our $conf = <<'EOC';
max_connections = 60
max_prepared_transactions = 30
deadlock_timeout = 10ms
shared_buffers = 64MB
EOC

# What it has to have met, lest it shows nothing: answers, by SQLSTATE.
sub met_enough
{
	my ($enough) = @_;

	foreach my $what (keys %$enough)
	{
		my ($code, $times) = @{ $enough->{$what} };

		return 0 if ($answers{$what}{$code} // 0) < $times;
	}
	return 1;
}

# The server of the last run.
my $node;

# Runs them until so many claims have been answered, and whatever else is to be
# met often enough has been: "enough" names what, and for each an SQLSTATE and a
# number. What does not come for ten minutes never comes. no_locks says that the
# library was built without locks.
sub run
{
	($node, my $claims, my $enough, my %option) = @_;
	my $seed = $ENV{IDEMPOTENCY_SEED} // int(rand(2**31));

	srand $seed;
	note("seed $seed");
	begin_record(%option);
	begin_steps(Connection->connect($node));

	# No unique index: it is not the application that keeps effects from
	# doubling.
	$control->ok('CREATE TABLE effects (key text, body text)');

	my @clients = map { { connection => Connection->connect($node), kind => 'client' } } 1 .. 20;
	push @clients, { connection => Connection->connect($node), kind => 'cleaner' };

	my $began = time;
	my $stopping = 0;
	my $answered_at = $began;
	my ($count, $next_hit) = (0, 100);

	while (1)
	{
		my $now = time;

		call_due();
		$stopping ||= $history->claims >= $claims && met_enough($enough) || $now > $began + 600;
		last if $stopping && !grep { $_->{callback} } @clients;
		foreach my $client (@clients)
		{
			next if $client->{callback} || $stopping;
			if ($client->{connection}->lost)
			{
				$client->{connection} = Connection->connect($node);
				delete $client->{hit_at};
			}
			# A client that is asleep between two steps has something in mind.
			$client->{callback} = sub { };
			if ($client->{kind} eq 'cleaner') { clean_up($client); next; }
			my $dice = rand();
			$dice < 0.5 ? in_one_transaction($client)
			  : $dice < 0.85 ? under_a_lease($client)
			  : $dice < 0.98 ? look($client)
			  :                forget($client);
		}
		foreach my $connection (Connection::next_of(0.005, map { $_->{connection} } @clients))
		{
			my ($client) = grep { $_->{connection} == $connection } @clients;

			$client->{callback}->($connection->result);
			$answered_at = $now;
			$count++;
			$control->ok('VACUUM idempotency.idempotency_keys') if $count == 2000;
			next if $count < $next_hit || $stopping;
			disturb(@clients);
			$next_hit += rand(300);
		}
		BAIL_OUT('a client gets no answer') if $now > $answered_at + $Connection::timeout;
	}

	$control->ok("COMMIT PREPARED '$_->[0]'")
	  foreach @{ $control->ok('SELECT gid FROM pg_prepared_xacts')->rows };
	$_->{connection}->close(terminate => 1) foreach @clients;

	note("$count answers");
	foreach my $what (sort keys %$enough)
	{
		my ($code, $times) = @{ $enough->{$what} };

		cmp_ok($answers{$what}{$code} // 0, '>=', $times, "often enough: $what $code");
	}
	return;
}

# Looks for contradictions in what happened. The log is read from the offset on.
sub judge { return judge_run($node, @_); }

1;
