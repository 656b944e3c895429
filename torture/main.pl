
# main - the rounds of the torture
#
# scripts/torture prepares what needs root and starts this. A round: clients work while
# faults come; calm; what is prepared is ended, the clock goes on past every lease,
# and every key is driven to its end. Then the history of the round, the tables, the
# logs and the indexes are judged. Between some rounds the server is set to the edge
# of an epoch of transaction numbers.

use strict;
use warnings;

use Cluster;
use Connection;
use Digest::SHA;
use Draw;
use Faults;
use Getopt::Long;
use Judge;
use List::Util qw(max sum0 uniq);
use Log;
use POSIX ();
use Shared;
use Time::HiRes qw(sleep time);

my ($minutes, $seed, $operations, $only, $without, $clients) = (undef, undef, 0, '', '', 16);

GetOptions('minutes=f' => \$minutes, 'seed=i' => \$seed, 'operations=i' => \$operations, 'only=s' => \$only, 'without=s' => \$without, 'clients=i' => \$clients) or exit 2;
$minutes //= $operations ? 600 : 2;
$seed //= unpack('L', Digest::SHA::sha256(join ' ', $$, time, {})) % 1_000_000_000;
$| = 1;

my @known = (all_faults(), 'wraparound', 'clean-up');
my %skipped = map { split /=/, $_, 2 } grep { /=/ } split /\n/, $ENV{TORTURE_SKIPPED} // '';
foreach my $name (split(/,/, $only), split(/,/, $without))
{
	die "There is no fault '$name'; there are @known\n" unless grep { $_ eq $name } @known;
}
my %wanted = map { $_ => 1 } $only eq '' ? @known : split /,/, $only;
delete @wanted{ split /,/, $without };
delete @wanted{ keys %skipped };

my $marker = "zq${seed}x";
my ($passed, $failed) = (0, 0);
my (%counts, %fault_counts, %log_codes, @violations, @numbers);
my $began = time;

sub promise
{
	my ($kept, $words, @why) = @_;

	printf "%-7s %s\n", $kept ? 'ok' : 'FAILED', $words;
	$kept ? $passed++ : $failed++;
	print map { "        $_\n" } @why[ 0 .. ($#why > 19 ? 19 : $#why) ] if !$kept;
	return;
}

# ---- clients -------------------------------------------------------------------------

my %clients;    # process to number

sub start_client
{
	my ($number, $round, $what, @more) = @_;
	my $pid = fork // die "fork: $!";

	if (!$pid)
	{
		open STDOUT, '>>', "$work/history/$round.$number" or POSIX::_exit(1);
		open STDERR, '>>', "$work/client.errors";
		$ENV{TORTURE_CONNINFO} = $number % 2 && $what eq 'work' ? pooled_conninfo() : direct_conninfo();
		exec "$work/client", "$work/shared", $number, $round, $marker, $what, @more or POSIX::_exit(1);
	}
	$clients{$pid} = [ $number, $round, $what, @more ];
	return;
}

# Those that were killed are started anew.
sub look_after_clients
{
	my ($again) = @_;

	foreach my $pid (keys %clients)
	{
		next if waitpid($pid, POSIX::WNOHANG()) == 0;
		my $status = $?;
		my $of = delete $clients{$pid};

		next if $status == 0;
		if ($status == POSIX::SIGKILL())
		{
			$counts{'clients killed'}++;
		}
		else
		{
			push @violations, "client $of->[0] ended with status $status";
		}
		start_client(@$of) if $again;
	}
	return;
}

# ---- rounds --------------------------------------------------------------------------

sub highest_key
{
	my ($round) = @_;

	return $round * 65536 + (get_shared('block') + 1) * 48;
}

sub calls { return sum0 map { slot($_, 'calls') } 0 .. 63; }

sub end_prepared
{
	my $connection = connect_admin(primary());

	foreach my $row (@{ $connection->ok("SELECT gid FROM pg_prepared_xacts")->rows })
	{
		my $how = $row->[0] =~ /^torture.*[02468]$/ ? 'COMMIT' : 'ROLLBACK';

		$connection->query("$how PREPARED '$row->[0]'");
	}
	return $connection->ok('SELECT count(*) FROM pg_prepared_xacts')->value;
}

# Somebody comes by, all the while, and ends what clients have prepared and left, once it
# is two seconds old by the clock that its name is of.
sub end_left_ones
{
	my $pid = fork // die "fork: $!";

	return $pid if $pid;
	$SIG{$_} = 'DEFAULT' foreach qw(INT TERM);
	while (1)
	{
		sleep 0.5;
		eval {
			my $connection = connect_admin(primary(), 1) or return;

			foreach my $row (@{ $connection->ok(q{SELECT gid FROM pg_prepared_xacts WHERE gid LIKE 'torture%'})->rows })
			{
				my ($number) = $row->[0] =~ /(\d+)$/;

				next if ($number & (1 << 56) - 1) > now_us() - 2_000_000;
				$connection->query(($number % 2 ? 'ROLLBACK' : 'COMMIT') . " PREPARED '$row->[0]'");
			}
		};
	}
	return;
}

# Everything that was stopped goes on; the servers are up; the standby follows.
sub calm_down
{
	kill CONT => $_ foreach grep { $_ } keys %clients, map { processes_of($_) } 'a', 'b';
	kill CONT => pooler_pid() // ();
	start_pooler() if !pooler_pid();
	ensure_up($_) foreach primary(), standby();
	return in_sync(primary());
}

sub table_rows
{
	my ($round) = @_;
	my ($from, $to) = ($round * 65536, ($round + 1) * 65536 - 1);
	my $connection = connect_admin(primary());

	return ($connection->ok("SELECT key, execution FROM effects")->rows,
		$connection->ok(q{
			SELECT substring(key FROM '\d+$')::bigint, status, substring(response_headers::text FROM 'X-Execution", "(\d+)')
			FROM idempotency.idempotency_keys} . " WHERE substring(key FROM '\\d+\$')::bigint BETWEEN $from AND $to")->rows);
}

# All that was completed in earlier rounds, as one number.
my @lasting = map { "op-$_" } grep { Judge::lasts($_) } 0 .. 15;
my $earlier;

sub digest_of_keys
{
	my ($before) = @_;

	return join ' ', @{ connect_admin(primary())->ok(q{
		SELECT count(*), coalesce(sum(hashtextextended(concat_ws('|', key, status, response_status, response_headers, response_body, response_bytes), 0)), 0)
		FROM idempotency.idempotency_keys WHERE operation = ANY('} . '{' . join(',', @lasting) . '}' . qq{') AND substring(key FROM '\\d+\$')::bigint < $before})->rows->[0] };
}

sub check_relations
{
	my $connection = connect_admin(primary());
	my @found;

	foreach my $index (map { $_->[0] } @{ $connection->ok(q{
		SELECT indexrelid::regclass FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indrelid
		WHERE c.relnamespace = 'idempotency'::regnamespace AND i.indisvalid})->rows })
	{
		my $result = $connection->query("SELECT bt_index_check('$index', true), bt_index_parent_check('$index', true, true)");

		push @found, "$index: " . $result->message if $result->code ne '';
	}
	foreach my $table ('idempotency.idempotency_keys', 'idempotency.cleanup_runs', 'effects')
	{
		my $result = $connection->query("SELECT blkno, offnum, msg FROM verify_heapam('$table')");

		push @found, "$table: " . ($result->code ne '' ? $result->message : join ' ', map { $_ // '' } @{ $result->rows->[0] })
		  if $result->code ne '' || @{ $result->rows };
	}
	return @found;
}

sub judge_round
{
	my ($round) = @_;
	my $judge = Judge->new;
	my @keys = ();

	foreach my $file (glob "$work/history/$round.*")
	{
		my ($number) = $file =~ /(\d+)$/;

		$judge->read_history($number, $file);
	}
	$judge->judge;
	$judge->judge_tables(table_rows($round));
	foreach my $kind (keys %{ $judge->{counts} })
	{
		$counts{$kind}{$_} += $judge->{counts}{$kind}{$_} foreach keys %{ $judge->{counts}{$kind} };
	}
	push @numbers, scalar keys %{ $judge->{calls} };
	foreach my $found (@{ $judge->{violations} })
	{
		my ($key, $words) = @$found;

		push @violations, "round $round, key $key: $words";
		print "VIOLATION in round $round, key $key: $words\n";
		print map { "        $_\n" } $judge->lines_of($key) if !grep({ $_ == $key } @keys) && @keys < 5;
		push @keys, $key;
	}
	my @relations = check_relations();
	my @log = read_logs($marker, \%log_codes);
	my $now = digest_of_keys($round * 65536);

	push @relations, "what was completed in earlier rounds is not what it was: $earlier, now $now" if defined $earlier && $earlier ne $now;
	$earlier = digest_of_keys(($round + 1) * 65536);
	foreach my $words (uniq @relations, @log)
	{
		push @violations, "round $round: $words";
		print "VIOLATION in round $round: $words\n";
	}
	connect_admin(primary())->ok('TRUNCATE effects');
	return;
}

# To the edge of 2^31, or of 2^32: a transaction number is 2^31 away from one that is as
# old as can be, so it takes two steps, with everything frozen in between.
my $wraps = 0;

sub wrap_around
{
	my $edge = $wraps++ % 2 ? 4_294_967_296 : 2_147_483_648;
	my $name = primary();
	my $directory = "$work/$name/data/pg";

	stop_server(standby(), 'fast');
	Cluster::synchronous($name, 0);
	foreach my $target ($edge - 1_000_000_000, $edge - 2000)
	{
		my $segment = sprintf '%s/pg_xact/%04X', $directory, $target / 1048576;

		my $connection = connect_admin($name);
		$connection->query('ALTER DATABASE template0 ALLOW_CONNECTIONS true');
		foreach my $database (qw(postgres template1 template0))
		{
			my $c = Connection->connect(undef, host => socket_of($name), port => 5432, user => 'postgres', database => $database);

			$c->ok('VACUUM (FREEZE, DISABLE_PAGE_SKIPPING)');
		}
		$connection->ok('ALTER DATABASE template0 ALLOW_CONNECTIONS false; CHECKPOINT');
		undef $connection;
		stop_server($name, 'fast') or return 0;
		if (!-e $segment)
		{
			open my $file, '>', $segment or die "$segment: $!";
			print $file "\0" x 262144;
			close $file;
		}
		run_command("$ENV{TORTURE_BINDIR}/pg_resetwal", '-x', $target, '-D', $directory) or return 0;
		start_server($name) or return 0;
	}
	note_line('wraparounds', "$edge");
	return make_standby(standby(), $name);
}

# ---- the run -------------------------------------------------------------------------

print "seed $seed\n";
print "not here: $_ ($skipped{$_})\n" foreach sort keys %skipped;
mkdir "$work/history";
begin_shared($seed, 4096 + 64 * 64 + 32 * (1 << 24));
write_file('base', 0);
begin_faults($seed, keys %wanted);
init_primary('a');
{
	my $connection = connect_admin('a');

	$connection->ok($_) foreach 'CREATE EXTENSION idempotency', 'CREATE EXTENSION amcheck', 'CREATE ROLE app LOGIN',
	  q{SELECT idempotency.grant_usage('app'), idempotency.grant_operator('app')},
	  'CREATE TABLE effects (key bigint, execution bigint)', 'CREATE TABLE neighbours (id serial PRIMARY KEY, filling text)',
	  'GRANT ALL ON effects TO app',
	  'CREATE PROCEDURE burn_xids(n int) LANGUAGE plpgsql AS $$ BEGIN FOR i IN 1 .. n LOOP PERFORM txid_current(); COMMIT; END LOOP; END $$';
}
make_standby('b', 'a') or die "no standby\n";
start_pooler() or die "no pooler\n";

my $round = 0;
my $total_keys = 0;
my $deadline = $began + 60 * $minutes;
my $worker_jumped = 0;
my $length = $minutes < 5 ? 22 : 40;

while (time < $deadline - 8 && (!$operations || calls() < $operations) && @violations == 0)
{
	my $before = calls();
	my $started = time;

	$round++;
	set_shared(stop => 0);
	set_shared(block => 0);
	start_client($_, $round, 'work') foreach 1 .. $clients;
	start_client(63, $round, 'clean-up') if $wanted{'clean-up'};
	my $passer_by = end_left_ones();
	my $seconds = max(5, List::Util::min($length, $deadline - time - 8));
	run_faults($round, $seconds, $minutes < 5 ? 0.6 : 1.5, sub {
		look_after_clients(1);
		set_shared(stop => 1) if $operations && calls() >= $operations;
	});
	while (time < $started + $seconds) { look_after_clients(1); sleep 0.05; }
	my $faults_over = time;
	my $synced = calm_down();
	set_shared(stop => 1);
	my $ended = wait_until(sub { look_after_clients(0); return !%clients; });

	kill TERM => $passer_by;
	waitpid $passer_by, 0;
	push @violations, "round $round: clients hang" if !$ended;
	kill KILL => keys %clients if !$ended;
	push @violations, "round $round: the standby does not follow" if !$synced;

	# What the worker saw of the clock, before it goes on.
	$worker_jumped += ask_admin(primary(), q{SELECT count(*) FROM idempotency.cleanup_runs
		WHERE started_by = 'worker' AND (started_at > clock_timestamp() + interval '30 s' OR finished_at < (SELECT max(started_at) FROM idempotency.cleanup_runs AS o WHERE o.id < cleanup_runs.id) - interval '30 s')});
	end_prepared() == 0 or push @violations, "round $round: a prepared transaction is left";
	my $base = clock_offset() + 9 * 3600 * 1_000_000;

	set_clock($base);
	write_file('base', $base);
	set_shared(stop => 0);
	start_client(50 + $_, $round, 'drive', map { $round * 65536 + int((highest_key($round) - $round * 65536) * $_ / 2) } $_, $_ + 1) foreach 0, 1;
	wait_until(sub { look_after_clients(0); return !%clients; }, 300) or push @violations, "round $round: keys were not driven to their end";
	my $left = ask_admin(primary(), q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 18756});

	push @violations, "round $round: $left key locks are left" if $left;
	judge_round($round);
	printf "round %d: %d operations in %.0f s, %d keys, judged in %.0f s; %d s in all\n", $round, calls() - $before, $faults_over - $started, $numbers[-1], time - $faults_over, time - $began;
	if ($wanted{wraparound} && time < $deadline - 15 && ($round <= 2 || $round % 6 == 0))
	{
		wrap_around() or push @violations, "round $round: could not go to the edge of an epoch";
		note_line('faults', "$round wraparound 0 0 done");
	}
}

# ---- what it came to -----------------------------------------------------------------

foreach my $line (read_lines('faults'))
{
	my (undef, $name, undef, undef, $how, @why) = split ' ', $line;

	$fault_counts{$name}{$how}++;
	push @violations, $line if $name eq 'lane' || $line =~ /lane .* died/;
}
print "\noperations by kind and outcome\n";
foreach my $kind (sort grep { ref $counts{$_} } keys %counts)
{
	printf "  %-16s %8d  %s\n", $kind, sum0(values %{ $counts{$kind} }), join ', ', map { "$_ $counts{$kind}{$_}" } sort keys %{ $counts{$kind} };
}
print "faults by kind\n";
foreach my $name (sort keys %fault_counts)
{
	printf "  %-18s %5d%s\n", $name, $fault_counts{$name}{done} // 0, $fault_counts{$name}{not} ? "  (and $fault_counts{$name}{not} that could not be done at that moment)" : '';
}
my %in_log;
$in_log{ (split ' ')[0] } += $log_codes{$_} foreach keys %log_codes;
print "SQLSTATEs in the logs: ", join(', ', map { "$_ $in_log{$_}" } sort keys %in_log), "\n";
my @codes = uniq sort map { grep { /^(?:\w{5}|lost|unsure|rolled)$/ && /^(?:[0-9A-Z]{5}|lost|unsure|rolled)$/ } keys %{ $counts{$_} } } grep { ref $counts{$_} } keys %counts;
my @strange = grep { !explained($_) } @codes;
print "what clients were told:\n", map { sprintf "  %-7s %s\n", $_, explained($_) // 'NOT EXPLAINED' } @codes;

my $restarts = () = read_lines('restarts');
my $promotions = () = read_lines('promotions');
my $runs = ask_admin(primary(), q{SELECT coalesce(max(id), 0) FROM idempotency.cleanup_runs});
my $deleted = ask_admin(primary(), q{SELECT coalesce(sum(deleted), 0) FROM idempotency.cleanup_runs WHERE started_by = 'worker'});
my $xid = ask_admin(primary(), 'SELECT pg_current_xact_id()');
my $calls = calls();

printf "%-50s %s\n", @$_ foreach (
	[ 'seed', $seed ], [ 'operations', $calls ], [ 'rounds', $round ], [ 'keys', sum0(@numbers) ],
	[ 'faults', sum0 map { $_->{done} // 0 } values %fault_counts ],
	[ 'restarts by faults; promotions', "$restarts; $promotions" ], [ 'clients killed', $counts{'clients killed'} // 0 ],
	[ 'steps of the clock', scalar(my @steps = read_lines('steps')) ], [ 'clean-ups of the worker that saw a clock that jumped', $worker_jumped ],
	[ 'clean-ups on record; deleted by the last thousand', "$runs; $deleted" ], [ 'transaction number now', $xid ],
	[ 'violations', scalar @violations ], [ 'minutes', sprintf '%.1f', (time - $began) / 60 ]);

sub none { my ($words, $pattern) = @_; my @of = grep { $_ =~ $pattern } @violations; promise(!@of, $words, @of); return; }

none('I1: tokens of a key grow, and none is given twice', qr/I1:/);
none('I2: one valid owner at a time', qr/I2:/);
none('I3: a late owner is refused', qr/I3:/);
none('I4: nothing is executed twice', qr/I4:/);
none('I5: a replay is the first response, byte for byte', qr/I5:/);
none('I6: no acknowledged completion is lost', qr/I6:|earlier rounds/);
none('I7: only what was committed is replayed', qr/I7:/);
none('I8: business rows and keys agree', qr/I8:/);
none('I9: another request is never taken for the right one', qr/I9:/);
none('I10: every key comes to its end', qr/I10:|hang|driven/);
none('no other violation, no key in the logs, no crash, indexes and tables are sound', qr/^(?!.*(?:I\d+:|earlier rounds|hang|driven)).*/);
promise(!@strange, 'every SQLSTATE that clients were told is explained', @strange);
promise($worker_jumped > 0, 'the clock jumped in the clean-up worker, too') if $wanted{'clock-ahead'} && $round >= 2;
my @never = grep { $wanted{$_} && $_ ne 'clean-up' && !($fault_counts{$_}{done}) } @known;
print "not done in this run: @never\n" if @never;
promise($calls > 100, 'there was work');

foreach my $name (standby(), primary()) { stop_server($name, 'immediate'); }
stop_pooler();
print "torture: $passed passed, $failed failed\n$passed passed, $failed failed\n";
exit($failed ? 1 : 0);
