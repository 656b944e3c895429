
# On a million keys health() walks indexes and never the table.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);
use Worker;

my $node = new_preloaded_server('health', conf => "autovacuum = off\nshared_buffers = 256MB\nmax_wal_size = 4GB\n");
my $wire = Connection->connect($node);

sub fill
{
	my ($status, $keys, $expires, $locked) = @_;

	$wire->ok(qq{
		INSERT INTO idempotency.idempotency_keys
			(created_at, expires_at, completed_at, attempt, scope, operation, key, status, token, locked_until)
		SELECT now() - interval '2 days', now() + interval '$expires', CASE WHEN '$status' = 'completed' THEN now() END,
			1, '$status', 'POST /charges', '$status $locked $expires' || g, '$status', CASE WHEN '$status' <> 'completed' THEN 1 END, now() + interval '$locked'
		FROM generate_series(1, $keys) AS g});
	return;
}

fill('completed', 100_000, "$_ days", '0') foreach 1 .. 9;
fill('completed', 100_000, '-1 hour', '0');
fill('in_progress', 30, '1 day', '1 hour');
fill('in_progress', 7, '1 day', '-1 hour');
fill('held', 3, '1 day', '-1 hour');

# What a check reads of the table, in the statistics of this very transaction.
sub is_fast
{
	my ($when) = @_;
	my $scans = $wire->ok(q{BEGIN; SELECT pg_stat_get_xact_numscans('idempotency.idempotency_keys'::regclass)})->value;
	my $start = time;
	my %check = map { $_->[0] => $_ } @{ $wire->ok('SELECT check_name, status, value, threshold FROM idempotency.health()')->rows };
	my $took = 1000 * (time - $start);
	my $after = $wire->ok(q{SELECT pg_stat_get_xact_numscans('idempotency.idempotency_keys'::regclass)})->value;

	$wire->ok('COMMIT');
	is($after - $scans, 0, "$when: the table is never walked");
	is_deeply($check{expired_backlog}, [ 'expired_backlog', 'warn', 100000, 100000 ], "$when: expired_backlog");
	is_deeply($check{abandoned_claims}, [ 'abandoned_claims', 'warn', 7, 1 ], "$when: abandoned_claims");
	is_deeply($check{held_keys}, [ 'held_keys', 'warn', 3, 1 ], "$when: held_keys");
	note(sprintf 'health() on a million keys, %s: %.0f ms', $when, $took);
	return;
}
is_fast('never analyzed');
is_fast('never analyzed, again');
$wire->ok('VACUUM ANALYZE idempotency.idempotency_keys');
is_fast('analyzed');
cmp_ok(health_of($node, 'number_of_keys')->{value}, '>', 990_000, 'number_of_keys, estimated');
is(health_of($node, 'number_of_keys')->{status}, 'ok', 'below the threshold');
cmp_ok(health_of($node, 'table_size')->{value}, '>', 50, 'table_size in MB');
is(health_of($node, 'dead_rows')->{value}, 0, 'dead_rows');

# Thresholds are settings; ten times as much is critical, 0 switches a check off.
foreach my $case ([ 10_000, 'critical' ], [ 10_001, 'warn' ], [ 100_000, 'warn' ], [ 100_001, 'ok' ], [ 0, 'ok' ])
{
	my ($threshold, $status) = @$case;

	is($wire->ok("SET idempotency.warn_expired = $threshold; SELECT status FROM idempotency.health() WHERE check_name = 'expired_backlog'")->value,
		$status, "a threshold of $threshold: $status");
}

$node->stop;
done_testing();
