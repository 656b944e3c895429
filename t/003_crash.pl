
# What was acknowledged survives: backends and servers are killed with SIGKILL,
# with synchronous_commit off and on. No claim and no response that a client was
# told about is lost, no token is given twice, and what was not committed frees
# its key.
#
# fsync is on. The process that flushes in the background is kept from doing so:
# only a commit that was flushed by its own backend survives.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use List::Util qw(max);
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('crash', conf => <<'EOC');
fsync = on
full_page_writes = off
restart_after_crash = on
wal_writer_delay = 10s
wal_writer_flush_after = 1GB
bgwriter_delay = 10s
autovacuum = off
max_prepared_transactions = 5
EOC

$node->safe_psql('postgres', 'CREATE TABLE effects (key text, body text); CREATE TABLE load_effects (key text, body text)');

my $tokens = 0;    # the largest that a client has seen
my $keys = 0;

sub key { return 'key ' . ++$keys; }

sub connect_when_up
{
	my $connection;

	# Not only accepting connections, but after crash recovery is complete.
	wait_until(sub { $connection = Connection->connect($node, fail_ok => 1) })
	  or BAIL_OUT('the server did not come back');
	return $connection;
}

# How the server can end. Each gets a backend to kill, if it wants one.
sub kill_backend
{
	my ($pid) = @_;

	kill 'KILL', $pid;
	return;
}

sub pids_of_server
{
	my ($postmaster) = split /\n/, slurp_file($node->data_dir . '/postmaster.pid');

	return ($postmaster, split ' ', `ps -o pid= --ppid $postmaster`);
}

# All of it at once, as if the machine had stopped: a process that outlives the
# others for a moment could still flush.
sub kill_server
{
	my @pids = pids_of_server();

	kill 'KILL', @pids;
	wait_until(sub { !grep { kill(0, $_) && !is_zombie($_) } @pids }) or BAIL_OUT('the server did not die');
	# Nobody may have collected the dead postmaster yet, whose process id would
	# then count as alive.
	unlink $node->data_dir . '/postmaster.pid', $node->host . '/.s.PGSQL.' . $node->port . '.lock';
	$node->{_pid} = undef;
	$node->start;
	return;
}

sub is_zombie
{
	my ($pid) = @_;
	my $status = eval { slurp_file("/proc/$pid/stat") } // '';

	return $status eq '' || $status =~ /\) Z /;
}

sub stop_at_once
{
	$node->stop('immediate');
	$node->start;
	return;
}

my %crash = (
	'kill -9 of a backend' => \&kill_backend,
	'kill -9 of the server' => \&kill_server,
	'immediate stop' => \&stop_at_once);

foreach my $synchronous_commit ('off', 'on')
{
	foreach my $way (sort keys %crash)
	{
		my $title = "synchronous_commit $synchronous_commit, $way";
		my ($leased, $done, $failed, $open, $expired, $prepared) = map { key() } 1 .. 6;
		my $c = connect_when_up();
		my $other = connect_when_up();

		$_->ok("SET synchronous_commit = $synchronous_commit") foreach $c, $other;
		# Everything so far is on disk; what follows is not unless it is flushed.
		$c->ok('CHECKPOINT');

		# Not acknowledged: business rows and completion, but no commit. First,
		# since the flushes of what follows take its WAL along.
		$other->ok(qq{
			BEGIN;
			INSERT INTO effects VALUES ('$open', 'lost');
			SELECT FROM idempotency.claim('crash', 'op', '$open');
			SELECT idempotency.complete('crash', 'op', '$open', 200, 'lost')});

		# Acknowledged: a committed claim, a completion in one transaction, one
		# under a lease, a failure.
		my $token = $c->ok("SELECT token FROM idempotency.claim('crash', 'op', '$leased', lease => '1 hour')")->value;
		cmp_ok($token, '>', $tokens, "$title: the token is new");
		crash($way, $c, $title);

		$c = connect_when_up();
		is($c->ok("SELECT status || ' ' || token FROM idempotency.lookup('crash', 'op', '$leased')")->value,
			"in_progress $token", "$title: the claim is there");
		is($c->ok("SELECT outcome FROM idempotency.claim('crash', 'op', '$leased', lease => '1 hour')")->value,
			'in_progress', "$title: nobody else gets it");
		is(status_of($c, 'crash', 'op', $open), 'absent', "$title: what was not committed is gone");
		is($c->ok("SELECT count(*) FROM effects WHERE key = '$open'")->value, 0,
			"$title: and so are its business rows");
		is($c->ok("BEGIN; SELECT outcome FROM idempotency.claim('crash', 'op', '$open')")->value, 'claimed',
			"$title: its key is free");
		$c->ok('ROLLBACK');

		# The completion of that claim, and one in a single transaction.
		$c->ok("SET synchronous_commit = $synchronous_commit");
		$c->ok('CHECKPOINT');
		my $next = $c->ok("SELECT token FROM idempotency.claim('crash', 'op', '$expired', lease => '1 ms')")->value;
		cmp_ok($next, '>', $token, "$title: the next token is larger");
		$c->ok(qq{
			BEGIN;
			INSERT INTO effects VALUES ('$leased', 'first');
			SELECT idempotency.complete('crash', 'op', '$leased', 200, 'first', token => $token);
			COMMIT});
		crash($way, $c, $title);
		$c = connect_when_up();
		is(replay_of($c, 'crash', 'op', $leased), 'first', "$title: the response is there");
		is($c->ok("SELECT count(*) FROM effects WHERE key = '$leased'")->value, 1, "$title: with its business row");

		$c->ok("SET synchronous_commit = $synchronous_commit");
		$c->ok('CHECKPOINT');
		$c->ok(qq{
			BEGIN;
			INSERT INTO effects VALUES ('$done', 'second');
			SELECT FROM idempotency.claim('crash', 'op', '$done');
			SELECT idempotency.complete('crash', 'op', '$done', 200, 'second');
			COMMIT});
		crash($way, $c, $title);
		$c = connect_when_up();
		is(replay_of($c, 'crash', 'op', $done), 'second', "$title: the response of one transaction is there");
		is($c->ok("SELECT count(*) FROM effects WHERE key = '$done'")->value, 1, "$title: with its business row");

		# A batch, which is written in its own way.
		$c->ok("SET synchronous_commit = $synchronous_commit");
		$c->ok('CHECKPOINT');
		is($c->ok("SELECT first FROM idempotency.once_batch('crash', 'batch', ARRAY['$done'])")->value, 't', "$title: a batch is new");
		crash($way, $c, $title);
		$c = connect_when_up();
		is($c->ok("SELECT first FROM idempotency.once_batch('crash', 'batch', ARRAY['$done'])")->value, 'f', "$title: and known afterwards");

		# A takeover is a claim, too; and it outdates the token before it.
		$c->ok("SET synchronous_commit = $synchronous_commit");
		$c->ok('CHECKPOINT');
		my $taken = $c->ok("SELECT token FROM idempotency.claim('crash', 'op', '$expired', lease => '1 hour')")->value;
		crash($way, $c, $title);
		$c = connect_when_up();
		is($c->ok("SELECT token FROM idempotency.lookup('crash', 'op', '$expired')")->value,
			$taken, "$title: the takeover is there");
		is($c->query("SELECT idempotency.complete('crash', 'op', '$expired', 200, token => $next)")->code,
			'IK001', "$title: the first owner is still refused");

		# A failure, and the deletion of a key.
		$c->ok("SET synchronous_commit = $synchronous_commit");
		$c->ok('CHECKPOINT');
		$c->ok("SELECT idempotency.fail('crash', 'op', '$expired', 'refused', token => $taken)");
		crash($way, $c, $title);
		$c = connect_when_up();
		is(status_of($c, 'crash', 'op', $expired), 'failed', "$title: the failure is there");
		$tokens = max($tokens, $token, $next, $taken);
	}
}

sub crash
{
	my ($way, $connection, $title) = @_;
	my $witness = connect_when_up();

	note("$title: crash");
	$crash{$way}->($connection->pid);

	# Once it has lost a second connection, too, the server knows; before that
	# it might still accept one that it is about to end.
	wait_until(sub { !grep { !$_->query('SELECT 1')->{lost} } $connection, $witness })
	  or BAIL_OUT('the connections survived');
	return;
}

# ---- under load -----------------------------------------------------------------

# Eight clients work, some in one transaction and some under leases; the server
# dies at any moment, which is after some number of answers. What they were told
# must be there.
my (%told, %claimed, $twice, $lost, $mismatched);

foreach my $round (1 .. 4)
{
	my @clients = map { connect_when_up() } 1 .. 8;
	my $left = 60 + int(rand(200));
	my (%step, %key, %token);
	my $start = sub {
		my ($c) = @_;
		my $key = $key{$c} = key();

		if (rand() < 0.5)
		{
			$step{$c} = 'one transaction';
			$c->start(qq{
				BEGIN;
				INSERT INTO load_effects VALUES ('$key', 'body of $key');
				SELECT FROM idempotency.claim('load', 'op', '$key');
				SELECT idempotency.complete('load', 'op', '$key', 200, 'body of $key');
				COMMIT});
		}
		else
		{
			$step{$c} = 'claim';
			$c->start("SELECT token FROM idempotency.claim('load', 'op', '$key', lease => '1 hour')");
		}
	};

	foreach my $c (@clients)
	{
		$c->ok('SET synchronous_commit = ' . (rand() < 0.7 ? 'off' : 'on'));
		$start->($c);
	}
	while ($left > 0)
	{
		foreach my $c (Connection::next_of(0.01, @clients))
		{
			my $result = $c->result;

			$left--;
			BAIL_OUT("$step{$c}: " . $result->code . ' ' . $result->message) if $result->code ne '';
			if ($step{$c} eq 'claim')
			{
				my $token = $result->value;

				$twice++ if $claimed{$token};
				$claimed{$token} = $key{$c};
				$told{ $key{$c} } = "in_progress $token";
				if (rand() < 0.5)
				{
					$step{$c} = 'complete';
					$c->start(qq{
						BEGIN;
						INSERT INTO load_effects VALUES ('$key{$c}', 'body of $key{$c}');
						SELECT idempotency.complete('load', 'op', '$key{$c}', 200, 'body of $key{$c}', token => $token);
						COMMIT});
					next;
				}
			}
			else
			{
				$told{ $key{$c} } = 'completed';
			}
			$start->($c);
		}
	}
	$round % 2 ? kill_server() : kill_backend($clients[ rand @clients ]->pid);
	wait_until(sub { Connection::next_of(0.1, @clients); !grep { $_->busy } @clients }) or BAIL_OUT('a client hangs');

	my $c = connect_when_up();
	my %rows = map { $_->[0] => $_ }
	  @{ $c->ok(q{
		SELECT key, status || coalesce(' ' || token, '') AS standing, response_body
		FROM idempotency.idempotency_keys WHERE scope = 'load'})->rows };
	my %effects = map { $_->[0] => $_->[1] } @{ $c->ok('SELECT key, count(*) FROM load_effects GROUP BY key')->rows };

	foreach my $key (keys %told)
	{
		my $row = $rows{$key};

		$lost++ if !$row;
		# A completion that was under way may have made it.
		$lost++ if $row && $told{$key} eq 'completed' && ($row->[2] // '') ne "body of $key";
		$lost++ if $row && $told{$key} ne 'completed' && $row->[1] ne $told{$key} && $row->[1] !~ /^completed/;
	}
	foreach my $row (values %rows)
	{
		my $done = $row->[1] =~ /^completed/ ? 1 : 0;

		$mismatched++ if $done != ($effects{ $row->[0] } // 0);
	}
	$mismatched += grep { !$rows{$_} } keys %effects;
}
is($lost // 0, 0, 'load: no acknowledged claim or response is lost');
is($twice // 0, 0, 'load: no token was given twice');
is($mismatched // 0, 0, 'load: effects and completions agree');
cmp_ok(scalar(keys %told), '>', 100, 'load: there was some') or diag(scalar keys %told);

# A prepared transaction keeps its key over a crash.
my $c = connect_when_up();
$c->ok(q{
	BEGIN;
	SELECT FROM idempotency.claim('crash', 'op', 'prepared');
	SELECT idempotency.complete('crash', 'op', 'prepared', 200, 'kept');
	PREPARE TRANSACTION 'p'});
kill_server();
$c = connect_when_up();
is($c->ok("BEGIN; SELECT outcome FROM idempotency.claim('crash', 'op', 'prepared')")->value,
	'in_progress', 'prepared: the key is in progress after the crash');
$c->ok('COMMIT');
$c->ok("COMMIT PREPARED 'p'");
is(replay_of($c, 'crash', 'op', 'prepared'), 'kept', 'prepared: and completed by COMMIT PREPARED');
is(key_locks($c), 0, 'no key lock is left');

# Heap and index agree after all this.
SKIP:
{
	skip 'amcheck is not installed', 1
	  if $c->ok("SELECT count(*) FROM pg_available_extensions WHERE name = 'amcheck'")->value == 0;
	$c->ok('CREATE EXTENSION amcheck');
	is($c->query(q{
			SELECT bt_index_parent_check(indexrelid, true, true)
			FROM pg_index WHERE indrelid = 'idempotency.idempotency_keys'::regclass})->code,
		'', 'table and indexes are sound');
}

$node->stop;
done_testing();
