
# A wall clock that jumps ahead, and back, while the server runs: the worker
# deletes no key that is live by the clock as it was. A jump that lasts is believed
# after cleanup_interval, and what is set ahead by a little at once.

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

# The server's wall clock is the real one and so many seconds, which a file says.
# Not by libfaketime: what PostgreSQL 15 forks while it sleeps in select(), as it
# does for background processes, has the real time there for good.
my $directory = PostgreSQL::Test::Utils::tempdir('clock');

append_to_file("$directory/clock.c", <<'EOC');
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

int
gettimeofday(struct timeval *restrict tv, void *restrict tz)
{
	static volatile long long *ahead = NULL;
	struct timespec now;

	(void) tz;
	if (ahead == NULL)
		ahead = mmap(NULL, sizeof(*ahead), PROT_READ, MAP_SHARED, open(getenv("CLOCK_AHEAD"), O_RDONLY), 0);
	syscall(SYS_clock_gettime, CLOCK_REALTIME, &now);
	tv->tv_sec = now.tv_sec + *ahead;
	tv->tv_usec = now.tv_nsec / 1000;
	return 0;
}
EOC
system_or_bail('cc', '-shared', '-fPIC', '-o', "$directory/clock.so", "$directory/clock.c");

sub set_clock
{
	my ($ahead) = @_;

	open my $out, -e "$directory/ahead" ? '+<' : '>', "$directory/ahead" or die $!;
	syswrite $out, pack('q', $ahead);
	close $out or die $!;
	return;
}

my $node = PostgreSQL::Test::Cluster->new('clock');

set_clock(0);
$node->init;
$node->append_conf('postgresql.conf', "log_statement = none\nshared_preload_libraries = 'idempotency'\n");
{
	local %ENV = (%ENV, LD_PRELOAD => "$directory/clock.so", CLOCK_AHEAD => "$directory/ahead");

	$node->start;
}
$node->safe_psql('postgres', 'CREATE EXTENSION idempotency');

my $wire = Connection->connect($node);

sub live { return $wire->ok("SELECT count(*) FROM idempotency.idempotency_keys WHERE scope = 'live'")->value; }

# A round of the worker, and what it leaves of keys that expired a day ago.
sub round
{
	my ($expired) = @_;

	fill_with_expired($node, 'postgres', 10, $expired) if $expired;
	cleaned_again($node, 'postgres') or BAIL_OUT('no round');
	return $expired && $wire->ok("SELECT count(*) FROM idempotency.idempotency_keys WHERE scope = '$expired'")->value;
}

my $day = 86400;
my $start = $wire->ok('SELECT extract(epoch FROM clock_timestamp())')->value;

$wire->ok(q{
	SELECT FROM idempotency.once_batch('live', 'completed', ARRAY(SELECT g::text FROM generate_series(1, 10) AS g), ttl => '1 day');
	SELECT FROM idempotency.claim('live', 'leased', 'k', ttl => '1 hour', lease => '1 day')});
is(round('first'), 0, 'what has expired is deleted');
is(live(), 11, 'what lives is not');

# Two days ahead, and back.
set_clock(2 * $day);
cmp_ok($wire->ok('SELECT extract(epoch FROM clock_timestamp())')->value - $start, '>', 1.9 * $day, 'the clock has jumped by two days');
is($wire->ok(q{SELECT count(*) FROM idempotency.lookup('live', 'completed', '1')})->value, 0, 'a key counts as expired');
foreach my $number (1 .. 3)
{
	# What had expired a day ago by the clock as it was.
	$wire->ok(q{
		INSERT INTO idempotency.idempotency_keys (created_at, expires_at, completed_at, attempt, scope, operation, key, status)
		SELECT now() - interval '9 days', now() - interval '3 days', now() - interval '9 days', 1, 'long expired', 'op', g, 'completed'
		FROM generate_series(1, 10) AS g});
	round();
	is(live(), 11, "round $number ahead deletes nothing that lives");
	is($wire->ok("SELECT count(*) FROM idempotency.idempotency_keys WHERE scope = 'long expired'")->value, 0,
		"round $number ahead deletes what had expired before");
}
is(scalar(() = server_log($node) =~ /the clock has jumped ahead by 172[78]\d\d s/g), 1, 'the log tells of the jump, once');

# A launcher that is started anew knows what the one before it knew.
my $run = last_run($node, 'postgres');
my $launcher = launcher_pid($node);
$wire->ok("SELECT pg_terminate_backend($launcher, 10000)");
ok(wait_until(sub { last_run($node, 'postgres') > $run }, 60), 'a new launcher begins with a round');
isnt(launcher_pid($node), $launcher, 'which is another process');
is(live(), 11, 'and does not believe the clock either');

set_clock(0);
is(round('back'), 0, 'back again: what has expired is deleted');
is($wire->ok(q{SELECT count(*) FROM idempotency.lookup('live', 'completed', '1')})->value, 1, 'a key is live again');
is($wire->ok(q{SELECT outcome FROM idempotency.claim('live', 'leased', 'k')})->value, 'in_progress', 'and so is a lease');
is(live(), 11, 'and nothing was lost');

# A little ahead.
$wire->ok(q{SELECT FROM idempotency.once_batch('little', 'op', '{k}', ttl => '20 s')});
set_clock(40);
round();
is($wire->ok("SELECT count(*) FROM idempotency.idempotency_keys WHERE scope = 'little'")->value, 0, 'less than a minute is followed at once');

# Ahead again, for good. A jump that was over does not count for the next one.
set_clock(2 * $day);
round();
is(live(), 11, 'again ahead: nothing that lives is deleted');
$node->append_conf('postgresql.conf', 'idempotency.cleanup_interval = 2s');
$node->reload;
ok(wait_until(sub { live() == 0 }, 60), 'what lasts for an interval is believed');

# Those who call for clean-up themselves believe their clock.
$wire->ok(q{SELECT FROM idempotency.once_batch('live', 'op', '{a,b}', ttl => '10 days')});
$node->append_conf('postgresql.conf', "idempotency.cleanup_interval = 1h\n");
$node->reload;
set_clock(20 * $day);
round();
is(live(), 2, 'the worker does not believe the next jump');
is($wire->ok('SELECT idempotency.cleanup(max_rows => 1)')->value, 1, 'cleanup() does');
$wire->ok('CALL idempotency.maintain()');
is(live(), 0, 'and so does maintain()');

$node->stop;
done_testing();
