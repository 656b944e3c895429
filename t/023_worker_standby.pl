
# Nothing runs on a standby; after promotion clean-up starts by itself, without
# a restart.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Worker;

my $primary = new_preloaded_server('primary', init => { allows_streaming => 1 },
	conf => "idempotency.cleanup_interval = 1s\n");
$primary->backup('backup');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($primary, 'backup', has_streaming => 1);
$standby->start;
my $runs = last_run($primary, 'postgres');
ok(wait_until(sub { last_run($primary, 'postgres') >= $runs + 3 }), 'rounds on the primary');
$primary->wait_for_catchup($standby, 'replay', $primary->lsn('insert'));

my $s = Connection->connect($standby);
is($s->ok("SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'idempotency%'")->value, 0,
	'nothing runs on the standby');
is($s->ok('SELECT idempotency.request_cleanup()')->value, 'f', 'who asks for clean-up is told that nobody is there');
is(health_of($standby, 'worker')->{status}, 'ok', 'which is as it should be');
like(health_of($standby, 'worker')->{detail}, qr/standby/, 'health() knows why');
is(health_of($standby, 'last_cleanup')->{status}, 'ok', 'the last clean-up is the primary\'s');
is($s->query('CALL idempotency.maintain()')->code, '25006', 'maintain() is refused');
unlike(server_log($standby), qr/idempotency clean-up|idempotency launcher/, 'nothing was tried');

$primary->stop('immediate');
$standby->promote;
ok(launcher_pid($standby), 'promoted, the launcher starts');
$s = Connection->connect($standby);
fill_with_expired($standby, 'postgres', 100);
ok(wait_until(sub { keys_left($standby, 'postgres') == 0 }), 'and cleans up');
is($s->ok('SELECT idempotency.request_cleanup()')->value, 't', 'on request too');
is(health_of($standby, 'worker')->{status}, 'ok', 'health() is content');

$standby->stop;
done_testing();
