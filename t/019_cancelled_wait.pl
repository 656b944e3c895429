
# Where synchronous replication ends: a COMMIT whose wait for the standby is cancelled (by
# statement_timeout, pg_cancel_backend(), a client's own time limit) is committed here and
# nowhere else, and everybody sees it; as after the end of the backend, or a crash. The
# first is acknowledged, with a warning, and a repeat gets its answer, though a failover may
# still take it away. No extension can prevent this; it is shown so that nobody sets a
# statement_timeout on COMMIT and counts on the standby.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Cluster;
use Test::More;

my $primary = new_server('primary', init => { allows_streaming => 1 });
my ($p, $other) = map { Connection->connect($primary) } 1 .. 2;

$primary->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->start;
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));
$p->ok("ALTER SYSTEM SET synchronous_standby_names = '*'");
$p->ok('SELECT pg_reload_conf()');
ok(wait_until(sub { $p->ok('SELECT sync_state FROM pg_stat_replication')->value eq 'sync' }), 'the standby is synchronous');
my $s = Connection->connect($standby);
$s->ok("ALTER SYSTEM SET primary_conninfo = ''");
$s->ok('SELECT pg_reload_conf()');
ok(wait_until(sub { $s->ok('SELECT count(*) FROM pg_stat_wal_receiver')->value == 0 }), 'and cut off');

# Waits in COMMIT, in a connection of its own.
sub commit_waits
{
	my ($key) = @_;
	my $connection = Connection->connect($primary);

	$connection->ok("BEGIN; SELECT FROM idempotency.claim('wait', 'op', '$key')");
	$connection->ok("SELECT idempotency.complete('wait', 'op', '$key', 200, 'answer')");
	$connection->start('COMMIT');
	ok(wait_until(sub { $other->ok("SELECT count(*) FROM pg_stat_activity WHERE pid = " . $connection->pid . " AND wait_event = 'SyncRep'")->value == 1 }),
		"$key: COMMIT waits for the standby");
	is($other->ok("SELECT rival FROM idempotency.claim('wait', 'op', '$key')")->value, 'transaction', "$key: and nobody gets its answer");
	return $connection;
}

my $cancelled = commit_waits('cancelled');
$other->ok('SELECT pg_cancel_backend(' . $cancelled->pid . ')');
my $result = $cancelled->finish;
is($result->code, '', 'cancelled: COMMIT returns without an error');
is($result->{notices}[0]{C}, '01000', 'cancelled: but with a warning');
like($result->{notices}[0]{M}, qr/canceling wait for synchronous replication/, 'cancelled: which says what was given up');
is($other->ok("SELECT outcome FROM idempotency.claim('wait', 'op', 'cancelled')")->value, 'replay', 'cancelled: the answer is replayed from now on');

my $terminated = commit_waits('terminated');
$other->ok('SELECT pg_terminate_backend(' . $terminated->pid . ')');
ok($terminated->finish->{lost}, 'terminated: the client gets no answer');
is($other->ok("SELECT outcome FROM idempotency.claim('wait', 'op', 'terminated')")->value, 'replay', 'terminated: but who asks again gets the recorded one');

my $crashed = commit_waits('crashed');
$primary->stop('immediate');
ok($crashed->finish->{lost}, 'crashed: the client gets no answer');
$primary->start;
$other = Connection->connect($primary);
is($other->ok("SELECT outcome FROM idempotency.claim('wait', 'op', 'crashed')")->value, 'replay', 'crashed: but who asks again after the restart gets the recorded one');

$primary->stop('immediate');
$standby->promote;
$s = Connection->connect($standby);
ok(wait_until(sub { $s->ok('SELECT NOT pg_is_in_recovery()')->value eq 't' }), 'the standby is promoted');
is($s->ok("BEGIN; SELECT outcome FROM idempotency.claim('wait', 'op', '$_')")->value, 'claimed', "$_: there the request is new"),
  $s->ok('ROLLBACK')
  foreach 'cancelled', 'terminated', 'crashed';

$standby->stop;
done_testing();
