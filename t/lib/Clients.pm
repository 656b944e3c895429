
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

package Clients;

use strict;
use warnings;

use Extension;
use History;
use List::Util qw(max);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);
use Wire;

# What the servers need.
our $conf = <<'EOC';
max_connections = 60
max_prepared_transactions = 30
deadlock_timeout = 10ms
shared_buffers = 64MB
EOC

# The run.
my ($node, $control, %option);
my ($history, %answers, @surprises);
my ($keys, $executions, $prepared);
my @clients;
my @timers;    # [time, callback], unordered

sub chance { return rand() < $_[0]; }
sub pick { return $_[ rand @_ ]; }

# ---- keys ----------------------------------------------------------------------

# Lasting keys are executed once in this run. A few are in use at a time, and
# one that has been completed makes room for a new one after a while. Passing
# keys live for fractions of a second and are executed again and again; these
# are the ones that clean-up deletes and people forget.
my (@lasting, @passing, @all_lasting);

sub new_lasting_key
{
	my $name = 'lasting ' . ++$keys;

	push @all_lasting, $name;
	return { name => $name, left => 40 };
}

sub some_key
{
	return pick(@passing) if chance(0.35);
	my $i = int(rand(@lasting));

	$lasting[$i] = new_lasting_key() if $lasting[$i]{done} && --$lasting[$i]{left} <= 0;
	return $lasting[$i];
}

# ---- clients -------------------------------------------------------------------

sub later
{
	my ($in, $callback) = @_;

	push @timers, [ time + $in, $callback ];
	return;
}

# Sends something, and has its answer handled. A client that lost its
# connection ends what it was about.
sub ask
{
	my ($client, $sql, $callback) = @_;

	$client->{callback} = $callback;
	$client->{asked_at} = time;
	$client->{connection}->start($sql);
	return;
}

sub count_answer
{
	my ($what, $key, $code, $level) = @_;

	$answers{$what}{$code}++;
	return if $code =~ /^(?:|lost|40001|40P01|57014|IK001|IK002)$/;
	push @surprises, "$what on $key: $code ($level)";
	return;
}

sub code_of
{
	my ($result) = @_;

	# A terminated backend may have done its work before it died.
	return 'lost' if $result->{lost};
	return $result->code;
}

# Statements of their own are transactions, too.
sub own_transaction
{
	my ($code, $sent_at) = @_;

	return {
		state => $code eq '' ? 'committed' : $code eq 'lost' ? 'unknown' : 'aborted',
		ended_at => $sent_at,
		over_at => time };
}

sub claim_sql
{
	my ($key, %option) = @_;
	my $request = $option{wrong} ? '{"another": true}' : qq({"key": "$key->{name}"});
	my $sql =
	  "SELECT outcome, token, response_body FROM idempotency.claim('history', 'op', '$key->{name}', request => '$request'";

	$sql .= sprintf(", ttl => '%.0f ms'", 1000 * $option{ttl}) if $option{ttl};
	$sql .= sprintf(", lease => '%.0f ms'", 1000 * $option{lease}) if $option{lease};
	$sql .= sprintf(", wait => '%.0f ms'", 1000 * $option{wait}) if $option{wait};
	$sql .= ", claim_id => '$option{claim_id}'" if $option{claim_id};
	return "$sql)";
}

sub record_claim
{
	my ($key, $sent_at, $result, %more) = @_;
	my $code = code_of($result);
	my $row = $code eq '' ? $result->row : {};
	my $outcome = $row->{outcome} // 'error';

	count_answer($code eq '' ? "claim: $outcome" : 'claim', $key->{name}, $code, $more{level} // 'read committed');
	push @surprises, "40001 on a key that nobody deletes ($more{level})"
	  if $code eq '40001' && !$key->{passing} && !$option{no_locks} && ($more{level} // 'READ COMMITTED') eq 'READ COMMITTED';
	return $history->claim(
		%more,
		key => $key->{name},
		sent_at => $sent_at,
		answered_at => time,
		code => $code,
		outcome => $outcome,
		token => $row->{token},
		body => $row->{response_body});
}

sub record_ending
{
	my ($kind, $key, $sent_at, $result, %more) = @_;
	my $code = code_of($result);

	count_answer($kind, $key->{name}, $code, $more{level} // 'read committed');
	return $history->ending(
		%more,
		kind => $kind,
		key => $key->{name},
		sent_at => $sent_at,
		answered_at => time,
		code => $code);
}

sub ttl_of { return $_[0]{passing} ? 0.02 + int(rand(200)) / 1000 : 86400; }

# No two executions have the same response. Its spacing is part of it.
sub new_body { return sprintf('{ "execution":%d,  "at":1.10, "é":"%s" }', ++$executions, 'x' x rand(40)); }

sub completion_sql
{
	my ($key, $body, $token) = @_;
	my $with_token = defined $token ? ", token => $token" : '';

	return
	  "SELECT extract(epoch FROM idempotency.complete('history', 'op', '$key->{name}', 200, '$body'$with_token)) AS expires_at";
}

sub effect_sql { return "INSERT INTO effects VALUES ('$_[0]{name}', '$_[1]')"; }

# ---- one transaction -----------------------------------------------------------

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

sub idle
{
	my ($client) = @_;

	$client->{callback} = undef;
	$client->{transaction} = undef;
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

# ---- under a lease -------------------------------------------------------------

sub under_a_lease
{
	my ($client) = @_;
	my $key = some_key();
	my $lease = pick(0.015, 0.04, 0.15);
	my $ttl = ttl_of($key);
	my $id = chance(0.3) ? sprintf('00000000-0000-4000-8000-%012x', rand(2**45)) : undef;
	my %option = (lease => $lease, ttl => $ttl, claim_id => $id, wait => chance(0.2) ? 0.05 : 0);
	my $sent_at = time;

	$client->{transaction} = undef;
	ask($client, claim_sql($key, %option),
		sub {
			my ($result) = @_;
			my $claim = record_claim($key, $sent_at, $result,
				transaction => own_transaction(code_of($result), $sent_at), lease => $lease);

			return idle($client) if $claim->{outcome} ne 'claimed';
			return lease_work($client, $key, $ttl, $claim) unless $id;

			# As if the answer had been lost.
			my $again_at = time;
			ask($client, claim_sql($key, %option),
				sub {
					my ($repeat) = @_;
					my $token = $repeat->code eq '' ? $repeat->row->{token} : undef;
					my $same = defined $token && $token == $claim->{token};

					record_claim($key, $again_at, $repeat,
						transaction => own_transaction(code_of($repeat), $again_at),
						lease => $lease, repeated => $same);
					return idle($client) unless $same;
					lease_work($client, $key, $ttl, $claim);
				});
		});
	return;
}

sub lease_work
{
	my ($client, $key, $ttl, $claim) = @_;
	my $lease = $claim->{lease};

	# Some vanish, some report that nothing came of it, some need longer.
	return idle($client) if chance(0.15);
	if (chance(0.2))
	{
		my $kind = pick('fail', 'release');
		my $sent_at = time;

		ask($client, "SELECT idempotency.$kind('history', 'op', '$key->{name}', token => $claim->{token})",
			sub {
				my ($result) = @_;

				record_ending($kind, $key, $sent_at, $result, token => $claim->{token},
					transaction => own_transaction(code_of($result), $sent_at));
				idle($client);
			});
		return;
	}
	if (chance(0.25))
	{
		my $sent_at = time;

		ask($client,
			sprintf("SELECT idempotency.extend('history', 'op', '%s', '%.0f ms', token => %d)",
				$key->{name}, 1000 * $lease, $claim->{token}),
			sub {
				my ($result) = @_;

				record_ending('extend', $key, $sent_at, $result, token => $claim->{token}, lease => $lease,
					transaction => own_transaction(code_of($result), $sent_at));
				return idle($client) if $result->code ne '';
				finish_lease($client, $key, $ttl, $claim);
			});
		return;
	}
	later(chance(0.5) ? rand(2 * $lease) : 0, sub { finish_lease($client, $key, $ttl, $claim) });
	return;
}

# The business rows and the completion, in a transaction of their own. A late
# owner must not get past the completion.
sub finish_lease
{
	my ($client, $key, $ttl, $claim) = @_;
	my $level = pick('READ COMMITTED', 'READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE');

	return idle($client) if $client->{connection}->lost;
	$client->{transaction} = { state => 'open' };
	ask($client, "BEGIN ISOLATION LEVEL $level",
		sub {
			my ($result) = @_;

			return lose($client) if $result->{lost} || $result->code ne '';
			complete_it($client, $level, $key, $ttl, $claim, [],
				sub { return $_[0] ? roll_back($client, 1) : end_transaction($client, $level); });
		});
	return;
}

# ---- others --------------------------------------------------------------------

sub look
{
	my ($client) = @_;
	my $key = some_key();
	my $sent_at = time;

	ask($client, "SELECT response_body FROM idempotency.replay('history', 'op', '$key->{name}')",
		sub {
			my ($result) = @_;
			my $code = code_of($result);
			my $found = $code eq '' && @{ $result->rows };

			count_answer($found ? 'replay: found' : 'replay', $key->{name}, $code, '');
			$history->claim(
				key => $key->{name}, sent_at => $sent_at, answered_at => time, code => $code,
				outcome => $found ? 'replay' : 'none', body => $result->value,
				transaction => own_transaction($code, $sent_at));
			idle($client);
		});
	return;
}

# Somebody who clears keys out of the way.
sub forget
{
	my ($client) = @_;
	my $key = pick(@passing);
	my $sent_at = time;
	my $force = chance(0.5) ? 'true' : 'false';

	ask($client, "SELECT idempotency.forget('history', 'op', '$key->{name}', $force)",
		sub {
			my ($result) = @_;
			my $code = code_of($result);

			# 55006: in progress, and not forced.
			$history->ending(
				kind => 'forget', key => $key->{name}, sent_at => $sent_at, answered_at => time, code => $code,
				transaction => own_transaction($code, $sent_at));
			count_answer('forget', $key->{name}, $code eq '55006' ? '' : $code, '');
			idle($client);
		});
	return;
}

sub clean_up
{
	my ($client) = @_;

	ask($client, 'SELECT idempotency.cleanup(max_rows => ' . (1 + int rand(4)) . ')',
		sub {
			my ($result) = @_;

			$answers{deleted}{''} += $result->value // 0;
			count_answer('cleanup', '-', code_of($result), '');
			later(0.003, sub { idle($client) });
		});
	return;
}

# ---- the run -------------------------------------------------------------------

# Every backend may be hit at any time.
sub disturb
{
	my $client = pick(@clients);
	my $pid = $client->{connection}->pid;

	return if $client->{connection}->lost;
	if (chance(0.4))
	{
		$client->{hit_at} = time;
		$control->ok("SELECT pg_terminate_backend($pid)");
		$answers{terminated}{''}++;
	}
	else
	{
		$control->ok("SELECT pg_cancel_backend($pid)");
		$answers{cancelled}{''}++;
	}
	return;
}

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

# Runs them until so many claims have been answered, and whatever else is to be
# met often enough has been: "enough" names what, and for each an SQLSTATE and a
# number. What does not come for ten minutes never comes. no_locks says that the
# library was built without locks.
sub run
{
	($node, my $claims, my $enough, %option) = @_;
	my $seed = $ENV{IDEMPOTENCY_SEED} // int(rand(2**31));

	srand $seed;
	note("seed $seed");
	$control = Wire->connect($node);
	$history = History->new(%option);
	$keys = $executions = $prepared = 0;
	%answers = ();
	@surprises = @timers = @all_lasting = ();
	@lasting = map { new_lasting_key() } 1 .. 8;
	@passing = map { { name => "passing $_", passing => 1 } } 1 .. 5;

	# No unique index: it is not the application that keeps effects from
	# doubling.
	$control->ok('CREATE TABLE effects (key text, body text)');

	@clients = map { { connection => Wire->connect($node), kind => 'client' } } 1 .. 20;
	push @clients, { connection => Wire->connect($node), kind => 'cleaner' };

	my $began = time;
	my $stopping = 0;
	my $answered_at = $began;
	my ($count, $next_hit) = (0, 100);

	while (1)
	{
		my $now = time;
		my @due = grep { $_->[0] <= $now } @timers;

		@timers = grep { $_->[0] > $now } @timers;
		$_->[1]->() foreach @due;
		$stopping ||= $history->claims >= $claims && met_enough($enough) || $now > $began + 600;
		last if $stopping && !grep { $_->{callback} } @clients;
		foreach my $client (@clients)
		{
			next if $client->{callback} || $stopping;
			if ($client->{connection}->lost)
			{
				$client->{connection} = Wire->connect($node);
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
		foreach my $connection (Wire::next_of(0.005, map { $_->{connection} } @clients))
		{
			my ($client) = grep { $_->{connection} == $connection } @clients;

			$client->{callback}->($connection->result);
			$answered_at = $now;
			$count++;
			$control->ok('VACUUM idempotency.idempotency_keys') if $count == 2000;
			next if $count < $next_hit || $stopping;
			disturb();
			$next_hit += rand(300);
		}
		BAIL_OUT('a client gets no answer') if $now > $answered_at + $Wire::timeout;
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

# The first violations, and the whole history in a file.
sub explain_failure
{
	my (@violations) = @_;
	my $file = "$PostgreSQL::Test::Utils::log_path/history.$$." . $node->name;

	append_to_file($file, join('', $history->lines));
	diag(join("\n", splice(@violations, 0, 20), "The history is in $file."));
	return;
}

# Looks for contradictions in what happened. The log is read from the offset on.
sub judge
{
	my ($offset) = @_;

	# Faults have stopped: every request comes to its end by asking again. Who
	# waits gets the answer when the last lease lapses, which is no second long,
	# and not when the wait is over.
	my ($worst, $stuck) = (0, 0);
	foreach my $name (@all_lasting)
	{
		my $key = { name => $name };
		my $transaction = { state => 'open' };

		$control->ok('BEGIN');
		my $sent_at = time;
		my $claim = record_claim($key, $sent_at, $control->query(claim_sql($key, ttl => 86400, wait => 60)),
			transaction => $transaction);
		$worst = max($worst, time - $sent_at);
		if ($claim->{outcome} eq 'claimed')
		{
			my $body = new_body();
			my $completed_at = time;

			$control->ok(effect_sql($key, $body));
			record_ending('complete', $key, $completed_at, $control->query(completion_sql($key, $body)),
				transaction => $transaction, claim => $claim, body => $body, ttl => 86400,
				expires_at => $control->result->row->{expires_at});
		}
		$transaction->{ended_at} = time;
		$control->ok('COMMIT');
		@$transaction{qw(state over_at)} = ('committed', time);
		$stuck++ unless $claim->{outcome} =~ /claimed|replay/;
	}
	is($stuck, 0, 'I10: every request came to its end');
	cmp_ok($worst, '<', 30, 'I10: within its lease and a little');

	my @violations = $history->check;
	my %effects = map { $_->[0] => $_->[1] } @{ $control->ok('SELECT body, count(*) FROM effects GROUP BY body')->rows };

	push @violations, $history->check_effects(\%effects);
	is(scalar @violations, 0, 'I1 to I9, I13: what clients were told can be true') or explain_failure(@violations);
	is(scalar @surprises, 0, 'no unexpected answer') or diag(join("\n", splice(@surprises, 0, 20)));

	is( $control->ok(q{
			SELECT count(*) FROM idempotency.idempotency_keys k
			WHERE k.key LIKE 'lasting%' AND (k.status <> 'completed' OR
				(SELECT count(*) FROM effects e WHERE e.key = k.key) <> 1 OR
				(SELECT body FROM effects e WHERE e.key = k.key LIMIT 1) <> k.response_body)})->value,
		0,
		'I8: one effect for each key, with the recorded response');
	is( $control->ok(q{SELECT count(*) FROM idempotency.idempotency_keys WHERE key LIKE 'lasting%'})->value,
		scalar @all_lasting, 'I6: no key is missing');

	ok( wait_until(sub {
			$control->ok(q{SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'})->value == 1
		}), 'all clients are gone');
	is(key_locks($control), 0, 'I15: no key lock is left');
	is($control->ok(q{SELECT count(*) FROM pg_prepared_xacts})->value, 0, 'I15: no prepared transaction is left');
	my $expected = join '|',
	  'FATAL:  terminating connection', 'ERROR:  canceling statement', 'ERROR:  could not serialize access',
	  'ERROR:  deadlock detected', 'ERROR:  prepared transaction .* (?:does not exist|is busy)',
	  'ERROR:  the claim is no longer yours', 'ERROR:  no open claim of yours', 'ERROR:  the key is in progress',
	  'ERROR:  the key was written by a concurrent', 'ERROR:  could not decide the claim in this',
	  'ERROR:  a claim without a lease was left open', 'ERROR:  savepoint "s" does not exist',
	  'WARNING:  PID .* is not a PostgreSQL';
	is(join('', grep { !/$expected/ } troubles($node, $offset)), '', 'nothing else is in the log');

	note(scalar(@all_lasting) . " lasting keys, $executions executions");
	foreach my $what (sort keys %answers)
	{
		note("$what: " . join(', ', map { "$answers{$what}{$_} " . ($_ || 'ok') } sort keys %{ $answers{$what} }));
	}
	return;
}

1;
