
# Clients::Transactions - a client that claims, works and completes in one transaction
#
# At every isolation level, with one key or two, with savepoints that are rolled
# back, requests that use a key for something else, failures, releases, claims that
# are left open, and every end that a transaction can have: committed, rolled back,
# prepared, or not known to the client, which may also vanish.
#
# The end of the transaction in which somebody under a lease completes is the same.

package Clients::Transactions;

use strict;
use warnings;

use Clients::Record;
use Clients::Steps;
use Exporter qw(import);
use Time::HiRes qw(time);

our @EXPORT = qw(in_one_transaction complete_it roll_back end_transaction lose);

my $prepared = 0;

sub in_one_transaction
{
	my ($client) = @_;
	my $level = pick('READ COMMITTED', 'READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE');
	my $transaction = $client->{transaction} = { state => 'open' };
	my @keys = chance(0.15) ? (some_key(), some_key()) : (some_key());

	ask($client, "BEGIN ISOLATION LEVEL $level",
		sub {
			my ($result) = @_;

			return lose($client) if $result->{lost} || $result->code ne '';
			one_key($client, $level, @keys);
		});
	return;
}

# The connection ended outside the commit, or the transaction did not even
# begin. Its claims stood until then; since when they do not, the client cannot
# know.
sub lose
{
	my ($client) = @_;
	my $transaction = $client->{transaction};

	if ($transaction && $transaction->{state} eq 'open')
	{
		$transaction->{state} = 'aborted';
		$transaction->{ended_at} = $client->{hit_at} // $client->{asked_at};
		$transaction->{over_at} = time;
	}
	idle($client);
	return;
}

sub one_key
{
	my ($client, $level, $key, @more) = @_;
	my $transaction = $client->{transaction};

	return end_transaction($client, $level) unless $key;

	my $savepoint = chance(0.3);
	my $wrong = chance(0.1);
	my $ttl = ttl_of($key);
	my $sent_at = time;

	ask($client,
		($savepoint ? 'SAVEPOINT s; ' : '')
		  . claim_sql($key, wrong => $wrong, ttl => $ttl, wait => chance(0.3) ? 0.05 : 0),
		sub {
			my ($result) = @_;
			my $claim = record_claim($key, $sent_at, $result,
				transaction => $transaction, level => $level, wrong => $wrong,
				own => (grep { $_ eq $key->{name} } @{ $transaction->{touched} }) ? 1 : 0);
			my @undo = ($claim);

			return lose($client) if $result->{lost};
			push @{ $transaction->{touched} }, $key->{name} if $claim->{outcome} eq 'claimed';

			my $go_on = sub {
				my ($failed) = @_;

				return roll_back($client, 1) if $failed && !$savepoint;
				return one_key($client, $level, @more) unless $savepoint;
				my $undo = $failed || chance(0.4);

				# Undone is undone, whatever it was. An error undoes at once.
				if ($undo)
				{
					my $since = $failed ? $client->{asked_at} : time;

					$_->{undone_at} = $since foreach @undo;
					@{ $transaction->{touched} } = grep { $_ ne $key->{name} } @{ $transaction->{touched} }
					  if $claim->{outcome} eq 'claimed';
					$transaction->{forgotten}-- if $claim->{forgotten};
				}
				ask($client, $undo ? 'ROLLBACK TO s; RELEASE s' : 'RELEASE s',
					sub {
						my ($done) = @_;

						return lose($client) if $done->{lost};
						return roll_back($client, 1) if $done->code ne '';
						one_key($client, $level, @more);
					});
			};

			return $go_on->(1) if $claim->{code} ne '';
			return $go_on->(0) if $claim->{outcome} ne 'claimed';

			# The wrong request does no work, and a right one may forget to end.
			$transaction->{abort} = 1 if $wrong && !$savepoint;
			return $go_on->($savepoint) if $wrong;
			if (chance(0.05))
			{
				$claim->{forgotten} = 1;
				$transaction->{forgotten}++;
				return $go_on->(0);
			}
			work($client, $level, $key, $ttl, $claim, \@undo, $go_on);
		});
	return;
}

# What the owner of a claim without a lease does.
sub work
{
	my ($client, $level, $key, $ttl, $claim, $undo, $go_on) = @_;
	my $transaction = $client->{transaction};
	my $sent_at = time;

	if (chance(0.15))
	{
		my $kind = pick('fail', 'release');

		ask($client, "SELECT idempotency.$kind('history', 'op', '$key->{name}')",
			sub {
				my ($result) = @_;

				push @$undo, record_ending($kind, $key, $sent_at, $result, transaction => $transaction, level => $level);
				return lose($client) if $result->{lost};
				$go_on->($result->code ne '');
			});
		return;
	}
	if (chance(0.1))
	{
		# Who has the key already gets it a second time no more than others.
		ask($client, claim_sql($key, ttl => $ttl),
			sub {
				my ($result) = @_;

				return lose($client) if $result->{lost};
				push @surprises, 'own claim: ' . $result->row->{outcome}
				  if $result->code eq '' && $result->row->{outcome} ne 'in_progress';
				return $go_on->(1) if $result->code ne '';
				complete_it($client, $level, $key, $ttl, $claim, $undo, $go_on);
			});
		return;
	}
	complete_it($client, $level, $key, $ttl, $claim, $undo, $go_on);
	return;
}

sub complete_it
{
	my ($client, $level, $key, $ttl, $claim, $undo, $go_on) = @_;
	my $transaction = $client->{transaction};
	my $body = new_body();
	my $sent_at = time;

	ask($client, effect_sql($key, $body) . '; ' . completion_sql($key, $body, $claim->{token}),
		sub {
			my ($result) = @_;

			push @$undo,
			  record_ending('complete', $key, $sent_at, $result,
				transaction => $transaction, level => $level, claim => $claim,
				token => $claim->{token}, body => $body, ttl => $ttl,
				expires_at => $result->row->{expires_at});
			return lose($client) if $result->{lost};
			$key->{done} = 1 if $result->code eq '';
			$go_on->($result->code ne '');
		});
	return;
}

# After an error, or because the client wants to. The former has undone
# everything already.
sub roll_back
{
	my ($client, $failed) = @_;

	return end_by($client, 'ROLLBACK', 'aborted', $failed ? $client->{asked_at} : time);
}

sub end_transaction
{
	my ($client, $level) = @_;
	my $transaction = $client->{transaction};

	return roll_back($client) if $transaction->{abort} || chance(0.15);
	if (chance(0.05))
	{
		# The client is gone; the server finds out.
		$transaction->{state} = 'aborted';
		# Its backend may have been ended before, without its noticing.
		$transaction->{over_at} = time;
		$transaction->{ended_at} = $client->{hit_at} // $transaction->{over_at};
		$client->{connection}->close;
		return idle($client);
	}
	return end_by($client, 'COMMIT', 'committed') unless chance(0.1);

	my $name = 'p' . ++$prepared;

	ask($client, "PREPARE TRANSACTION '$name'",
		sub {
			my ($result) = @_;

			if ($result->{lost})
			{
				# It may be prepared or not.
				$transaction->{state} = 'unknown';
				$transaction->{ended_at} = $client->{hit_at} // $client->{asked_at};
				$transaction->{over_at} = time;
				find_again($name);
				return idle($client);
			}
			forgotten($transaction, $result);
			if ($result->code ne '')
			{
				count_answer('prepare', '-', $result->code, $level) unless $result->code eq 'IK004';
				$transaction->{state} = 'aborted';
				$transaction->{ended_at} = $transaction->{over_at} = $client->{asked_at};
				return idle($client);
			}
			return chance(0.7)
			  ? end_by($client, "COMMIT PREPARED '$name'", 'committed')
			  : end_by($client, "ROLLBACK PREPARED '$name'", 'aborted');
		});
	return;
}

# Somebody comes by and ends a prepared transaction whose client did not. It is
# not known to be there.
sub find_again
{
	my ($name) = @_;

	later(0.1 + rand(0.2), sub { $control->query((chance(0.5) ? 'COMMIT' : 'ROLLBACK') . " PREPARED '$name'") });
	return;
}

# A claim that was left open must keep its transaction from committing.
sub forgotten
{
	my ($transaction, $result) = @_;

	$answers{'left open'}{ $result->code }++ if $transaction->{forgotten};
	push @surprises, 'a claim was left open, and the answer to the commit was "' . $result->code . '"'
	  if $transaction->{forgotten} ? $result->code !~ /^(?:IK004|40001|57014)$/ : $result->code eq 'IK004';
	return;
}

sub end_by
{
	my ($client, $sql, $state, $ended_at) = @_;
	my $transaction = $client->{transaction};

	$transaction->{ended_at} = $ended_at // time;
	ask($client, $sql,
		sub {
			my ($result) = @_;

			$transaction->{over_at} = time;
			if ($result->{lost})
			{
				# The backend may have been hit before it was asked.
				$transaction->{state} = $sql eq 'ROLLBACK' ? 'aborted' : 'unknown';
				$transaction->{ended_at} = $client->{hit_at} if $client->{hit_at};
				find_again($1) if $sql =~ /PREPARED '(.*)'/;
				return idle($client);
			}
			forgotten($transaction, $result) if $sql eq 'COMMIT';
			if ($result->code ne '')
			{
				count_answer('commit', '-', $result->code, '') unless $result->code eq 'IK004';
				# A prepared transaction whose end was cancelled is still there.
				$state = $sql =~ /PREPARED/ ? 'unknown' : 'aborted';
				find_again($1) if $sql =~ /PREPARED '(.*)'/;
			}
			$transaction->{state} = $state;
			idle($client);
		});
	return;
}

1;
