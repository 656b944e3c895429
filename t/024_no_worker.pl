
# Where there is no room for background processes, or the library is not
# preloaded, claims work and health() says what is missing.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Utils;
use Test::More;
use Worker;

my $node = new_preloaded_server('no_worker', conf => "max_worker_processes = 0\n");

sub claims_work
{
	my ($key) = @_;

	is($node->safe_psql('postgres', qq{BEGIN; SELECT outcome FROM idempotency.claim('s', 'o', '$key');
		SELECT 'done' WHERE idempotency.complete('s', 'o', '$key', 200) IS NOT NULL; COMMIT}),
		"claimed\ndone", 'claims work');
	fill_with_expired($node, 'postgres', 10);
	$node->safe_psql('postgres', 'CALL idempotency.maintain()');
	is(keys_left($node, 'postgres'), 1, 'so does maintain()');
	$node->safe_psql('postgres', "SELECT idempotency.forget('s', 'o', '$key')");
	return;
}

# Not one process.
my $worker = health_of($node, 'worker');
is($worker->{status}, 'critical', 'max_worker_processes = 0: critical');
like($worker->{detail}, qr/launcher is not running.*max_worker_processes/, 'with the setting to look at');
is($node->safe_psql('postgres', 'SELECT idempotency.request_cleanup()'), 'f', 'nobody takes a request');
claims_work('none');

# One for the launcher, none for the process that it sends.
$node->append_conf('postgresql.conf', "max_worker_processes = 1\nmax_logical_replication_workers = 0\nidempotency.cleanup_interval = 1s");
$node->restart;
ok(launcher_pid($node), 'one slot: the launcher has it');
ok(wait_until(sub { health_of($node, 'worker')->{status} eq 'critical' }), 'no slot for its processes: critical');
like(health_of($node, 'worker')->{detail}, qr/No free slot.*max_worker_processes/, 'with the setting to look at');
# Rounds go on and fail; that is visible in nothing but the clock.
sleep 3;
is(scalar(() = server_log($node) =~ /out of background worker slots for idempotency clean-up/g), 1, 'and it is logged once');
claims_work('one');

$node->append_conf('postgresql.conf', 'max_worker_processes = 2');
$node->restart;
ok(cleaned_again($node, 'postgres'), 'two slots are enough');
is(health_of($node, 'worker')->{status}, 'ok', 'and health() is content');

# Not preloaded.
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;
my $wire = Connection->connect($node);
foreach my $statement ('SELECT * FROM idempotency.stats', 'SELECT idempotency.stats_reset()', 'SELECT idempotency.request_cleanup()')
{
	my $result = $wire->query($statement);

	is($result->code, '55000', "not preloaded: $statement");
	like($result->message, qr/"idempotency" must be loaded via "shared_preload_libraries"/, 'which says why');
	like($result->hint, qr/"idempotency".*"shared_preload_libraries".*restart/, 'and what to do');
}
is(health_of($node, 'worker')->{status}, 'warn', 'not preloaded: health() warns');
like(health_of($node, 'worker')->{detail}, qr/shared_preload_libraries.*schedule_cleanup/, 'and names both ways out');
is($wire->ok("SELECT count(*) FROM idempotency.health() WHERE check_name <> 'worker' AND status IN ('ok', 'warn', 'critical')")->value, 9,
	'the other checks are made');
is(health_of($node, 'last_cleanup')->{status}, 'ok', 'clean-ups are known from the table');
claims_work('not preloaded');

$node->stop;
done_testing();
