
# Over a thousand rounds the launcher's memory stays what it is, and
# cleanup_runs remembers the last thousand.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Utils;
use Test::More;
use Worker;

my $node = new_preloaded_server('memory');
my $wire = Connection->connect($node);

# Also what goes wrong every time must not add up.
$node->safe_psql('postgres', 'CREATE DATABASE broken');
$node->safe_psql('broken', 'CREATE EXTENSION idempotency; ALTER TABLE idempotency.idempotency_keys RENAME TO renamed');

$wire->ok(q{CREATE PROCEDURE rounds(n int) LANGUAGE plpgsql AS $$
	DECLARE target int8 := n + (SELECT max(id) FROM idempotency.cleanup_runs);
	BEGIN
		WHILE (SELECT max(id) FROM idempotency.cleanup_runs) < target LOOP
			PERFORM idempotency.request_cleanup();
			COMMIT;
			PERFORM pg_sleep(0.003);
		END LOOP;
	END $$});

# Anonymous memory of a process, in kB.
sub memory
{
	my ($pid) = @_;
	my ($rss) = slurp_file("/proc/$pid/status") =~ /^RssAnon:\s+(\d+) kB/m;

	return $rss;
}

SKIP: {
	skip 'needs /proc', 1 unless -r "/proc/$$/status" && memory($$);
	cleaned_again($node, 'postgres');
	$wire->ok('CALL rounds(50)') foreach 1 .. 2;
	my $launcher = launcher_pid($node);
	my $before = memory($launcher);
	# In pieces: no answer may be waited for without an end.
	$wire->ok('CALL rounds(50)') foreach 1 .. 20;
	my $after = memory($launcher);

	is(launcher_pid($node), $launcher, 'it is the same launcher');
	cmp_ok($after - $before, '<', 256, 'a thousand rounds cost it no memory');
	note("launcher: $before kB before, $after kB after");
	is($wire->ok('SELECT count(*) FROM idempotency.cleanup_runs')->value, 1000, 'cleanup_runs remembers a thousand runs');
	is(scalar(() = server_log($node) =~ /clean-up of database "broken" failed/g), 1, 'and a broken database was reported once');
}

$node->stop;
done_testing();
