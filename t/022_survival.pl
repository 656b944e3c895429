
# The launcher and the process for a database may be terminated or killed at
# any time: work goes on. A fast shutdown never waits for them, not even where
# a synchronous standby does not answer.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Utils;
use Test::More;
use Worker;

my $node = new_preloaded_server('survival', conf => <<'EOC');
restart_after_crash = on
idempotency.cleanup_batch_size = 10
idempotency.cleanup_pause = 100ms
EOC
new_database($node, 'work', 100_000);

sub launched_anew
{
	my ($than) = @_;
	my $pid;

	wait_until(sub {
		my $wire = Connection->connect($node, fail_ok => 1) or return 0;
		my $result = $wire->query("SELECT pid FROM pg_stat_activity WHERE backend_type = 'idempotency launcher'");

		$pid = $result->value;
		return defined $pid && $pid != $than;
	}) or return 0;
	return $pid;
}

# pg_terminate_backend: of the process for a database.
my $launcher = launcher_pid($node);
my $log = -s $node->logfile;
my $cleaner = slow_run($node, 'work');
my $some = keys_left($node, 'work');
ok(wait_until(sub { keys_left($node, 'work') < $some }), 'a run is under way');
like($node->safe_psql('postgres', "SELECT query FROM pg_stat_activity WHERE pid = $cleaner"),
	qr/^deleting expired idempotency keys/, 'pg_stat_activity says what it does');
is($node->safe_psql('postgres', "SELECT backend_xmin IS NULL AND xact_start IS NULL FROM pg_stat_activity WHERE pid = $launcher"),
	't', 'the launcher keeps neither transaction nor snapshot');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($cleaner, 180000)");
ok(wait_until(sub { server_log($node, $log) =~ /clean-up of database "work" failed/ }),
	'a terminated process is reported');
is(launcher_pid($node), $launcher, 'and the launcher goes on');
isnt(slow_run($node, 'work'), $cleaner, 'a new process takes its place');

# Of the launcher, while a process is at work.
$cleaner = cleaner_pid($node, 'work');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($launcher, 180000)");
my $second = launched_anew($launcher);
ok($second, 'a terminated launcher is started anew');
is($node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'idempotency launcher'"),
	1, 'once');
is(health_of($node, 'worker')->{status}, 'ok', 'and health() sees it');
ok(wait_until(sub { $node->safe_psql('postgres', "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'idempotency cleanup'") <= 1 }),
	'one process at a time is attached to a database');

# kill -9 of either: the server restarts, and so does clean-up.
foreach my $which ('the process for a database', 'the launcher')
{
	my $current = launcher_pid($node);
	my $victim = $which eq 'the launcher' ? $current : slow_run($node, 'work');

	kill 'KILL', $victim;
	ok(launched_anew($current), "kill -9 of $which: started anew");
	my $before = keys_left($node, 'work');
	ok(request_round($node), "kill -9 of $which: it can be asked");
	ok(wait_until(sub { keys_left($node, 'work') < $before }), "kill -9 of $which: work goes on");
}

# Counters outlive neither crash nor restart; nothing else is lost.
is($node->safe_psql('work', "SELECT outcome FROM idempotency.claim('s', 'o', 'k', lease => '1 hour')"),
	'claimed', 'claims go on');

# A fast shutdown during a run.
slow_run($node, 'work');
is_within(100, sub { $node->stop('fast'); 1 }, 'fast shutdown during a run');
$node->start;

# Nobody answers for the synchronous standby. Clean-up does not wait for it.
$node->append_conf('postgresql.conf', "synchronous_standby_names = 'nobody'");
$node->reload;
my $client = Connection->connect($node, database => 'work');
wait_until(sub { $client->ok('SHOW synchronous_standby_names')->value eq 'nobody' });
slow_run($node, 'work');
my $before = $client->ok('SELECT count(*) FROM idempotency.idempotency_keys')->value;
ok(wait_until(sub { $client->ok('SELECT count(*) FROM idempotency.idempotency_keys')->value < $before - 20 }),
	'it works on while a synchronous standby does not answer');
is_within(100, sub { $node->stop('fast'); 1 }, 'fast shutdown with a synchronous standby that does not answer');
unlike(server_log($node), qr/PANIC|TRAP/, 'nothing crashed but what was killed');

done_testing();
