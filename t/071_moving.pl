
# Moving over from the four systems of docs/home-grown.md: first every race between
# an old and a new instance by itself, with the bridge and with a part of it taken
# away; then a table with traffic on both sides, whose mover is killed on the way.
# Nothing is executed twice, nothing is lost, nothing of the bridge stays.
#
# One system is moved with 200,000 rows, the others with 20,000; MOVING_ROWS gives
# all of them another number.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use HomeGrown;
use PostgreSQL::Test::Utils;
use Test::More;

my $mover = "$FindBin::RealBin/../moving/move";
my $node = new_server('moving', conf => "max_connections = 30\n");
my $said = '';

$node->safe_psql('postgres', q{CREATE ROLE app LOGIN});
$ENV{PGHOST} = $node->host;
$ENV{PGPORT} = $node->port;

# A database with a system and rows of it; what its instances are is an application's
# role, which knows nothing of the bridge.
sub database
{
	my ($system, $name, $rows) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $name");
	$node->safe_psql($name, 'CREATE EXTENSION idempotency; ' . $system->schema . $system->rows(1, $rows) . q{
		SELECT idempotency.grant_usage('app');
		GRANT ALL ON ALL TABLES IN SCHEMA public TO app;
		GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO app;
		ANALYZE});
	$ENV{PGDATABASE} = $name;
	return;
}

sub instance { return Connection->connect($node, database => $ENV{PGDATABASE}, user => 'app'); }
sub operator { return Connection->connect($node, database => $ENV{PGDATABASE}); }

# What the mover says, and its exit code.
sub mover
{
	my ($system, $command) = @_;
	my $output = `'$mover' @{[$system->name]}.sql $command 2>&1`;

	$said .= $output;
	note($output =~ s/^(.*\n.*\n)(?:.*\n)+(.*\n.*\n)$/$1...\n$2/r);
	return ($? >> 8, $output);
}

sub mover_ok
{
	my ($system, $command, $title) = @_;
	my ($status, $output) = mover($system, $command);

	is($status, 0, $title) or diag($output);
	return $output;
}

# How new instances call the extension; once() has no answer to give.
sub ways { return ('transaction', 'lease', $_[0]->has_answers ? () : 'once'); }

sub executed { return operator()->execute('SELECT count(*) FROM work WHERE n = $1', $_[0])->value; }

# All that is in the catalog, as far as a dump shows it, and who may what.
sub schema_dump
{
	my ($dump) = run_command([ 'pg_dump', '-s', $ENV{PGDATABASE} ]);

	return $dump =~ s/^\\(?:un)?restrict .*$//gmr;
}

# ---- one race at a time --------------------------------------------------------------

foreach my $name (@HomeGrown::systems)
{
	my $system = HomeGrown->new($name);
	my $refused = $name eq 'booking' ? qr/^(?:busy|refused 23505)$/ : qr/^refused 40001$/;
	my $title = "$name: ";
	my @ways = ways($system);

	database($system, "races_$name", 100);
	my $before = schema_dump();
	my ($old, $new, $admin) = (instance(), instance(), operator());
	my $n = 1000;

	# Where nobody should have to wait, who waits is a failure and not a hang.
	$_->ok("SET lock_timeout = '20 s'") foreach $old, $new;

	# Without a bridge, this is what happens.
	is($system->old($old, ++$n), 'executed', $title . 'no bridge: an old instance executes');
	is($system->new_one($new, $n), 'executed', $title . 'and a new one does, too');
	is(executed($n), 2, $title . 'twice');
	$admin->ok("SELECT idempotency.forget_scope(scope) FROM idempotency.idempotency_keys");

	my $output = mover_ok($system, 'dry-run', $title . 'dry run');
	like($output, qr/^\d+ to be moved$/m, $title . 'says what would be moved');
	like($output, qr/^10 not needed: expired$/m, $title . 'and what not, and why');
	is($admin->ok('SELECT count(*) FROM idempotency.idempotency_keys')->value, 0, $title . 'moves nothing');
	is(schema_dump(), $before, $title . 'and leaves nothing');
	isnt((mover($system, 'move'))[0], 0, $title . 'no move without a bridge');
	mover_ok($system, 'install-bridge', $title . 'install');
	mover_ok($system, 'install-bridge', $title . 'install once more');

	# What was done before the bridge, and was not moved yet.
	foreach my $way (@ways)
	{
		is($system->new_one($new, 13, way => $way), 'refused 40001', $title . "$way: what is not moved yet is refused");
	}
	is(executed(13), 1, $title . 'and not executed');
	is($system->new_one($new, 13, bring => 1), 'answered', $title . 'the bridge brings its answer');
	is($system->old($old, 13), 'answered', $title . 'and the old one stands');
	is($system->new_one($new, 20, bring => 1), 'executed', $title . 'what has expired is executed');
	is($system->old($old, 20), 'answered', $title . 'and answered by the other side');

	# One after the other.
	is($system->old($old, ++$n), 'executed', $title . 'an old instance executes');
	is($system->new_one($new, $n), 'answered', $title . 'a new one answers');
	foreach my $way (@ways)
	{
		is($system->new_one($new, ++$n, way => $way), 'executed', $title . "$way: a new instance executes");
		is($system->old($old, $n), 'answered', $title . "$way: an old one answers");
		is($system->old($old, ++$n, pause => sub {
			my $outcome = $system->new_one($new, $n, way => $way);

			like($outcome, $way eq 'once' ? qr/^refused 55P03$/ : qr/^busy$/, $title . "$way: while an old one is at it, no new one gets it");
		}), 'executed', $title . "$way: the old one ends it");
		is($system->new_one($new, $n, way => $way), 'answered', $title . "$way: and the new one answers");

		# The old one has looked, and found nothing.
		is($system->new_one($new, ++$n, way => $way, pause => sub {
			my $late = instance();

			# That of the old table's unique key waits for the end of who is there.
			$late->ok("SET lock_timeout = '100 ms'");
			is($system->old($late, $n), 'refused 55P03', $title . "$way: while a new one is at its end, no old one gets through");
		}), 'executed', $title . "$way: the new one ends it");
		is($system->old($old, $n), 'answered', $title . "$way: and the old one answers");
	}

	# A new one has claimed, and its work is still to come; an old one does all of its own.
	foreach my $lease ('', q{, lease => '1 hour'})
	{
		$new->ok('BEGIN') unless $lease;
		my $claim = $new->execute("SELECT outcome, token FROM idempotency.claim(\$1, \$2, \$3$lease)", $system->identity(++$n))->rows->[0];

		is($claim->[0], 'claimed', $title . "a new one claims$lease");
		like($system->old($old, $n), $refused, $title . 'an old one is refused at once');
		$lease ? $new->execute('SELECT idempotency.release($1, $2, $3, token => $4)', $system->identity($n), $claim->[1]) : $new->ok('ROLLBACK');
		is(executed($n), 0, $title . 'with its work');
		is($system->old($old, $n), 'executed', $title . 'and executes when that claim is gone');
	}

	# An answer is as it was, whoever gave it.
	is($admin->ok('SELECT count(*) FROM seen AS s WHERE NOT EXISTS (SELECT FROM work AS w WHERE w.n = s.n AND w.answer = s.answer)')->value,
		0, $title . 'each saw the recorded answers');

	# Failures and clearing.
	if ($name =~ /processed_tickets|booking/)
	{
		is($system->old($old, ++$n, fails => 1), 'failed', $title . 'an old one fails');
		is($system->new_one($new, $n, way => 'lease', fails => 1), 'failed', $title . 'a new one tries, and fails');
		is($system->old($old, $n), 'executed', $title . 'an old one tries, and does it');
		is($system->new_one($new, $n), 'answered', $title . 'the new one knows');
	}
	is($system->old($old, ++$n), 'executed', $title . 'executed once');
	is($admin->execute('SELECT idempotency.forget($1, $2, $3)', $system->identity($n))->value, 't', $title . 'a person forgets it');
	is($system->old($old, $n), 'executed', $title . 'an old one executes it anew');
	is($admin->execute("DELETE FROM " . $system->old_table . " AS o USING moving_$name.rows_of(\$1, \$2, \$3) AS r WHERE o IS NOT DISTINCT FROM r RETURNING 1",
		$system->identity($n))->value, 1, $title . 'an old instance clears it');
	is($system->new_one($new, $n), 'executed', $title . 'a new one executes it anew');
	$admin->execute('DELETE FROM work WHERE n = $1', $n);
	is($admin->ok('SELECT count(*) FROM (SELECT FROM work WHERE n <> 1001 GROUP BY n HAVING count(*) > 1) AS twice')->value, 0,
		$title . 'nothing was executed twice');

	# Two that began in the same microsecond, where no answer tells them apart: the second
	# writes the row as it is. A row that is written for another reason is no execution.
	if ($name eq 'processed_tickets')
	{
		my $mark = sub {
			my ($to) = @_;

			$old->ok('BEGIN');
			$system->execute($old, $n, 'old');
			my $code = $old->execute("UPDATE processed_tickets SET $to WHERE \"ticketId\" = \$1", "ticket $n")->code;
			$old->ok($code eq '' ? 'COMMIT' : 'ROLLBACK');
			return $code;
		};
		is($system->old($old, ++$n), 'executed', $title . 'an old one executes');
		is($mark->('"processedAt" = "processedAt", success = true'), '40001', $title . 'one that began at the same moment is refused');
		is(executed($n), 1, $title . 'with its work');
		is($admin->ok("UPDATE processed_tickets SET id = gen_random_uuid() WHERE \"ticketId\" = 'ticket $n' RETURNING 1")->value, 1,
			$title . 'a column that says nothing of the request may be written');
	}

	# What an old instance is at, and dies.
	if ($name eq 'booking')
	{
		is($system->new_one($new, 12, bring => 1), 'busy', $title . 'an old instance is at it, since before the bridge');
		my ($scope, $operation, $key) = $system->identity(12);
		$admin->ok("SELECT idempotency.fail('$scope', '$operation', '$key', token => l.token) FROM idempotency.lookup('$scope', '$operation', '$key') AS l");
		is($system->old($old, 12), 'executed', $title . 'a person decides, and the old ones learn it');
	}

	# Moved, and compared; and it is seen if something is missing.
	mover_ok($system, 'move', $title . 'move');
	my ($scope, $operation, $key) = $system->identity(15);
	$admin->ok("SET moving.side = 'bridge'; DELETE FROM idempotency.idempotency_keys WHERE scope = '$scope' AND operation = '$operation' AND key = '$key'; RESET moving.side");
	my ($status, $compared) = mover($system, 'compare');
	is($status, 1, $title . 'what is missing makes the comparison fail');
	mover_ok($system, 'move', $title . 'and moving again puts it right');
	mover_ok($system, 'compare', $title . 'the two sides agree');

	# Each half of the bridge is needed: without it, something is executed twice.
	my $old_table = $system->old_table;
	my $keys = 'idempotency.idempotency_keys';

	$admin->ok("SET moving.side = 'bridge'; " . $system->rows(203, 203) . " RESET moving.side");
	is(executed(203), 1, $title . 'one that is done, and not moved');
	$admin->ok("ALTER TABLE $keys DISABLE TRIGGER moving_$name");
	is($system->new_one($new, 203), 'executed', $title . 'without the trigger on the keys, a new instance executes it');
	is(executed(203), 2, $title . 'twice');
	$admin->ok("ALTER TABLE $keys ENABLE TRIGGER moving_$name") unless $name eq 'booking';
	$admin->ok("ALTER TABLE $old_table DISABLE TRIGGER moving_$name");
	# Where the old table itself says who is at it, its key is another guard.
	if ($name eq 'booking')
	{
		is($system->old($old, ++$n), 'executed', $title . 'without the trigger on the old table, what an old instance executes');
		is($system->new_one($new, $n), 'executed', $title . 'a new one executes, too');
	}
	else
	{
		is($system->new_one($new, ++$n, way => 'lease', at_it => sub {
			is($system->old($old, $n), 'executed', $title . 'without the trigger on the old table, what a new instance is at an old one executes');
		}), 'executed', $title . 'and the new one, too');
	}
	is(executed($n), 2, $title . 'twice');
	$admin->ok("DROP TRIGGER moving_$name ON $keys");

	mover_ok($system, 'remove-bridge', $title . 'remove, though a trigger is gone already');
	mover_ok($system, 'remove-bridge', $title . 'remove once more');
	is(schema_dump(), $before, $title . 'nothing of the bridge is left');
}

# What cannot be moved is said before, and is no success afterwards.
{
	my $system = HomeGrown->new('request_records');

	$ENV{PGDATABASE} = 'races_request_records';
	operator()->ok(q{INSERT INTO idempotency_records VALUES (id(0), 'payment', 'secret', 201, now(), now() + interval '3 years')});
	my ($status, $output) = mover($system, 'dry-run');
	is($status, 1, 'a row that cannot be moved');
	like($output, qr/^1 cannot: expires after idempotency.max_ttl$/m, 'is named by its reason');
	is(system("'$mover' request_records.sql sideways >/dev/null 2>&1") >> 8, 2, 'a wrong call');
}

# ---- a live table ----------------------------------------------------------------------

# One instance: gets a request that others get at the same time, or one of the old
# table, until it is told to stop. An outcome that is no outcome is written down.
sub traffic
{
	my ($system, $side, $rows, $stop) = @_;

	return in_child(sub {
		my $c = instance();
		my @ways = ways($system);

		srand $$;
		until (-e $stop)
		{
			my $n = rand() < 0.5 ? 1 + int rand $rows : $rows + 1000 + int($c->ok(q{SELECT nextval('fresh') / 6})->value);
			my $outcome = $side eq 'old'
			  ? $system->old($c, $n, fails => rand() < 0.1)
			  : $system->new_one($c, $n, fails => rand() < 0.1, bring => rand() < 0.8, way => $ways[ rand @ways ]);

			next if $outcome =~ /^(?:executed|answered|busy|failed)$/;
			# Lost to a rival; or, of once(), one that has not ended.
			next if $outcome =~ /^refused (?:40001|40P01|55P03|23505)$/;
			$c->execute('INSERT INTO trouble VALUES ($1, $2)', $side, $outcome);
		}
		return 0;
	});
}

foreach my $name (@HomeGrown::systems)
{
	my $system = HomeGrown->new($name);
	my $rows = $ENV{MOVING_ROWS} || ($name eq 'request_records' ? 200_000 : 20_000);
	my $title = "$name, $rows rows: ";
	my $stop = PostgreSQL::Test::Utils::tempdir('moving') . '/stop';

	database($system, "live_$name", $rows);
	my $before = schema_dump();
	my $admin = operator();
	my $count = sub { return $admin->ok("SELECT count(*) FROM $_[0]")->value; };
	# One at first: two old ones may execute a request twice by themselves.
	my @instances = traffic($system, 'old', $rows, $stop);

	ok(wait_until(sub { $count->("work WHERE side = 'old'") > 0 }), $title . 'an old instance is at work');
	mover_ok($system, 'dry-run', $title . 'dry run');
	mover_ok($system, 'install-bridge', $title . 'install');
	push @instances, map { traffic($system, $_, $rows, $stop) } qw(old new new);
	ok(wait_until(sub { $count->("work WHERE side = 'new'") > 0 }), $title . 'new instances, too');

	# The mover gets as far as a row that somebody has locked, and is killed there,
	# with all that it has started.
	my $locker = operator();
	my $walk = $admin->ok(qq{
		SELECT string_agg(format('%I', attname), ', ' ORDER BY attnum) FROM pg_attribute
		WHERE attrelid = 'moving_$name.place'::regclass AND attnum > 0 AND NOT attisdropped})->value;
	$locker->ok("BEGIN; SELECT FROM @{[$system->old_table]} ORDER BY $walk OFFSET $rows / 2 LIMIT 1 FOR UPDATE");
	my $killed = in_child(sub {
		setpgrp;
		open STDOUT, '>', "$stop.out";
		exec $mover, "$name.sql", 'move';
	});
	ok(wait_until(sub { $count->("pg_locks AS l JOIN pg_stat_activity AS a USING (pid) WHERE NOT l.granted AND a.query LIKE '%.batch(%' AND a.datname = current_database()") > 0 }),
		$title . 'the mover is on its way');
	kill 'KILL', -$killed;
	waitpid $killed, 0;
	is($? & 127, 9, $title . 'and is killed');
	$locker->ok('ROLLBACK');
	ok(wait_until(sub { $count->("pg_stat_activity WHERE query LIKE '%.batch(%' AND state = 'active' AND pid <> pg_backend_pid() AND datname = current_database()") == 0 }),
		$title . 'its last statement ends');
	my $so_far = $admin->ok("SELECT sum(rows) FROM moving_$name.progress WHERE what <> ''")->value;
	cmp_ok($so_far, '>', 0, $title . 'some batches are done');
	is($count->("moving_$name.place"), 1, $title . 'and some are not');
	$said .= slurp_file("$stop.out");

	my $output = mover_ok($system, 'move', $title . 'it goes on, and the two sides agree, with traffic on both');
	my ($first) = $output =~ /^(\d+) of about/;
	cmp_ok($first, '>', $so_far, $title . 'from where it was');
	mover_ok($system, 'compare', $title . 'they still do');
	ok(wait_until(sub { $count->("work WHERE side = 'old'") > 100 && $count->("work WHERE side = 'new'") > 100 }),
		$title . 'both sides have executed requests');
	append_to_file($stop, '');
	foreach my $pid (@instances)
	{
		waitpid $pid, 0;
		is($?, 0, $title . 'an instance ends');
	}
	note("$title: " . join ', ', map { "$_->[1] by $_->[0]" } @{ $admin->ok('SELECT side, count(*) FROM work GROUP BY side ORDER BY side')->rows });

	is($admin->ok('SELECT string_agg(side || code, $$, $$) FROM trouble')->value, undef, $title . 'no outcome but those that there are');
	is($count->('(SELECT FROM work GROUP BY n HAVING count(*) > 1) AS twice'), 0, $title . 'nothing was executed twice');
	is($count->('seen AS s WHERE NOT EXISTS (SELECT FROM work AS w WHERE w.n = s.n AND w.answer = s.answer)'), 0,
		$title . 'every answer was that of the one who did the work');
	is($count->("work AS w WHERE w.n <= $rows AND w.n % 10 = 2"), $name eq 'booking' ? 0 : $rows / 10,
		$title . ($name eq 'booking' ? 'nobody did what others had begun' : 'what was done is done'));
	$admin->ok('CREATE TEMP TABLE known (scope text, operation text, key text, answer text)');
	$admin->ok("INSERT INTO known SELECT scope, operation, key, response_body FROM idempotency.idempotency_keys WHERE status = 'completed' AND expires_at > now()");
	is($count->('known'), $count->('work'), $title . 'nothing is lost');
	is($count->('(SELECT FROM known GROUP BY scope, operation, key HAVING count(*) > 1) AS twice'), 0, $title . 'no key is there twice');
	is($count->('known AS k WHERE NOT EXISTS (SELECT FROM work AS w WHERE w.answer = btrim(k.answer, $$"$$))'), 0, $title . 'with the answers of their work')
	  if $system->has_answers;
	mover_ok($system, 'compare', $title . 'the two sides agree');
	mover_ok($system, 'remove-bridge', $title . 'remove');
	is(schema_dump(), $before, $title . 'nothing of the bridge is left');
}

unlike($said, qr/secret/, 'the mover shows no value');
unlike(server_log($node), qr/secret/, 'nor does the log');

$node->stop;
done_testing();
