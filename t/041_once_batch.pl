
# Batches of keys: a hundred thousand in one transaction on default settings, and
# many that overlap, in any order, from many connections: none deadlocks, and no
# key is processed twice or not at all.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Utils;
use Test::More;

# The default up to 18.
my $node = new_server('batch', conf => "max_locks_per_transaction = 64\n");
my $c = Connection->connect($node);

# ---- a hundred thousand -----------------------------------------------------------

my $many = q{SELECT count(*) AS keys, count(*) FILTER (WHERE first) AS first
	FROM idempotency.once_batch('batch', 'many', ARRAY(SELECT 'evt_' || n FROM generate_series(1, 100000) AS n ORDER BY md5(n::text)))};
sub whole_scans
{
	# What is flushed is what the statements before have done.
	$c->ok('SELECT pg_stat_force_next_flush()');
	return $c->ok(q{SELECT seq_scan FROM pg_stat_user_tables WHERE relid = 'idempotency.idempotency_keys'::regclass})->value;
}

my $scans = whole_scans();
$c->ok('BEGIN');
is_deeply($c->ok($many)->row, { keys => 100000, first => 100000 }, 'many: all are new');
is($c->ok(q{SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'})->value, 0, 'many: without key locks');
is($c->ok($many)->row->{first}, 0, 'many: and new once');
$c->ok('ROLLBACK');
is(whole_scans(), $scans, 'many: the table is never read as a whole');
is($c->ok('SELECT count(*) FROM idempotency.idempotency_keys')->value, 0, 'many: a rollback undoes all of them');
is($c->ok($many)->row->{first}, 100000, 'many: all are new again');
# The plans were made while the table was empty.
$scans = whole_scans();
is($c->ok($many)->row->{first}, 0, 'many: and old in another transaction');
is(whole_scans(), $scans, 'many: found without comparing every row with every key');
is($c->ok(q{SELECT count(*) FROM idempotency.idempotency_keys WHERE scope = 'batch' AND status = 'completed' AND token IS NULL})->value, 100000, 'many: one row for each');

# ---- many connections ---------------------------------------------------------------

# 4,000 keys. A fifth has failed before, another has expired. Each call takes 300
# in a row, in an order of its own; one in four is rolled back.
$c->ok('CREATE TABLE effects (key text)');
$c->ok(q{DO $$
	DECLARE claimed bigint;
	BEGIN
		FOR n IN 1..4000 BY 5 LOOP
			SELECT token INTO claimed FROM idempotency.claim('batch', 'stress', n::text, lease => '1 min');
			PERFORM idempotency.fail('batch', 'stress', n::text, token => claimed);
			COMMIT;
		END LOOP;
	END $$});
$c->ok(q{SELECT count(*) FROM idempotency.once_batch('batch', 'stress', ARRAY(SELECT n::text FROM generate_series(2, 4000, 5) AS n), ttl => '1 us')});
my $script = PostgreSQL::Test::Utils::tempdir() . '/batch';
append_to_file($script, q{
\set from random(1, 3701)
\set end random(1, 4)
BEGIN;
INSERT INTO effects SELECT key FROM idempotency.once_batch('batch', 'stress',
	ARRAY(SELECT n::text FROM generate_series(:from, :from + 299) AS n ORDER BY random())) WHERE first;
\if :end = 1
ROLLBACK;
\else
COMMIT;
\endif
});
$node->command_ok([ 'pgbench', '-n', '-f', $script, '-c', 8, '-j', 2, '-t', 40, 'postgres' ], 'stress: eight connections, no error');
is_deeply([ troubles($node) ], [], 'stress: no deadlock, nor any other trouble');
is($c->ok('SELECT count(*) - count(DISTINCT key) FROM effects')->value, 0, 'stress: no key was processed twice');
is($c->ok(q{SELECT count(*) FROM effects AS e FULL JOIN (SELECT key FROM idempotency.idempotency_keys WHERE operation = 'stress' AND status = 'completed' AND expires_at > now()) AS k USING (key)
	WHERE e.key IS NULL OR k.key IS NULL})->value, 0, 'stress: what is done is what was processed');
cmp_ok($c->ok('SELECT count(*) FROM effects')->value, '>', 3500, 'stress: which is most of them');

# The rest, in one go; and with that all of them, once.
$c->ok(q{INSERT INTO effects SELECT key FROM idempotency.once_batch('batch', 'stress', ARRAY(SELECT n::text FROM generate_series(1, 4000) AS n)) WHERE first});
is_deeply($c->ok('SELECT count(*) AS all, count(DISTINCT key) AS keys FROM effects')->row, { all => 4000, keys => 4000 }, 'stress: at the end each was processed once');

# once() and once_batch() for the same keys. Who loses begins anew.
$c->ok('TRUNCATE effects');
$script .= ' and once';
append_to_file($script, q{
\set from random(1, 350)
\set key random(1, 400)
BEGIN;
INSERT INTO effects SELECT key FROM idempotency.once_batch('batch', 'mixed',
	ARRAY(SELECT n::text FROM generate_series(:from, :from + 50) AS n ORDER BY random())) WHERE first;
COMMIT;
BEGIN;
INSERT INTO effects SELECT :key::text WHERE idempotency.once('batch', 'mixed', :key::text);
COMMIT;
});
$node->command_ok([ 'pgbench', '-n', '-f', $script, '-c', 8, '-j', 2, '-t', 40, '--max-tries', 1000, 'postgres' ], 'mixed: eight connections');
is_deeply($c->ok('SELECT count(*) - count(DISTINCT key) AS twice, count(*) - (SELECT count(*) FROM idempotency.idempotency_keys WHERE operation = $$mixed$$) AS lost FROM effects')->row,
	{ twice => 0, lost => 0 }, 'mixed: no key was processed twice, none is lost');
is_deeply([ grep { !/concurrent transaction/ } troubles($node) ], [], 'mixed: no other trouble than a lost race');

# ---- plans that were made too early -----------------------------------------------

# Where a table is empty, reading all of it is cheapest. A plan that is kept
# would go on with that.
$c->ok("SELECT idempotency.forget_scope('batch')");
$c->ok('VACUUM idempotency.idempotency_keys');
$c = Connection->connect($node);
$c->ok("SET plan_cache_mode = force_generic_plan");
my $few = q{SELECT count(*) FROM idempotency.once_batch('batch', 'plans', ARRAY(SELECT n::text FROM generate_series(1, %d) AS n))};
$c->ok(sprintf $few, 1) for 1 .. 2;
$scans = whole_scans();
$c->ok(sprintf $few, 300) for 1 .. 2;
is(whole_scans(), $scans, 'plans: made for an empty table, they do not read it as a whole');

$node->stop;
done_testing();
