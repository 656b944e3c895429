
# Clean-up while claims go on: no key that is live, held, leased, or held once
# abandoned is ever lost, and everything that has expired goes.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Utils;
use Test::More;
use Worker;

my $node = new_preloaded_server('load', conf => <<'EOC');
idempotency.cleanup_batch_size = 7
idempotency.cleanup_pause = 0
idempotency.cleanup_interval = 1s
idempotency.warn_held = 0
EOC
my $wire = Connection->connect($node);

# What must never go, in the midst of what has expired: all of them have a
# lifetime that is over.
$wire->ok(q{
	CREATE TABLE precious (kind text, key text, token int8);
	WITH k AS MATERIALIZED (
		SELECT g, c.* FROM generate_series(1, 50) AS g, idempotency.claim('precious', 'leased', 'k' || g, ttl => '10 ms', lease => '1 hour') AS c)
		INSERT INTO precious SELECT 'leased', 'k' || g, token FROM k;
	WITH k AS MATERIALIZED (
		SELECT g, c.* FROM generate_series(1, 50) AS g, idempotency.claim('precious', 'abandoned', 'k' || g, ttl => '10 ms', lease => '10 ms', hold_if_abandoned => true) AS c)
		INSERT INTO precious SELECT 'abandoned', 'k' || g, token FROM k;
	WITH k AS MATERIALIZED (
		SELECT g, c.* FROM generate_series(1, 50) AS g, idempotency.claim('precious', 'held', 'k' || g, ttl => '10 ms', lease => '1 hour') AS c)
		INSERT INTO precious SELECT 'held', 'k' || g, token FROM k;
	SELECT idempotency.hold('precious', 'held', key, 'unknown', token => token) FROM precious WHERE kind = 'held'});
fill_with_expired($node, 'postgres', 20_000);

# Each client claims a key over and over, most of which expire at once: so
# clean-up and claims meet on the same rows. What a client was told is written
# down with it, in the same transaction.
$wire->ok(q{CREATE TABLE told (key text, what text, token int8, expires_at timestamptz)});
my $scripts = PostgreSQL::Test::Utils::tempdir('scripts');
append_to_file("$scripts/reclaim.sql", <<'EOS');
\set n random(1, 20000)
BEGIN;
SELECT (outcome = 'claimed')::int AS mine FROM idempotency.claim('expired', 'op', :n::text, ttl => '1 day') \gset
\if :mine
SELECT idempotency.complete('expired', 'op', :n::text, 200, 'kept');
INSERT INTO told VALUES (:n::text, 'completed');
\endif
COMMIT;
EOS
append_to_file("$scripts/takeover.sql", <<'EOS');
\set n random(1, 300)
SELECT (outcome = 'claimed')::int AS mine, COALESCE(token, 0) AS token FROM idempotency.claim('takeover', 'op', :n::text, ttl => '1 ms', lease => '2 ms') \gset
\if :mine
INSERT INTO told VALUES (:n::text, 'taken', :token);
\endif
EOS
append_to_file("$scripts/leased.sql", <<'EOS');
\set n random(1, 20000)
SELECT (outcome = 'claimed')::int AS mine, COALESCE(token, 0) AS token FROM idempotency.claim('expired', 'op', :n::text, ttl => '1 ms', lease => '1 hour') \gset
\if :mine
INSERT INTO told VALUES (:n::text, 'leased', :token);
\endif
EOS

my $runs = last_run($node, 'postgres');
$node->command_ok(
	[ 'pgbench', '-n', '-t', '2000', '-c', '4', '-j', '2', '-M', 'simple',
		'-f', "$scripts/reclaim.sql\@3", '-f', "$scripts/takeover.sql\@3", '-f', "$scripts/leased.sql\@3", 'postgres' ],
	'claims go on while clean-up deletes');
ok(wait_until(sub { last_run($node, 'postgres') > $runs + 1 }), 'clean-up comes to its end');
cleaned_again($node, 'postgres');

is($wire->ok('SELECT string_agg(DISTINCT kind, \' \') FROM precious p WHERE NOT EXISTS (
		SELECT FROM idempotency.idempotency_keys k WHERE k.scope = \'precious\' AND k.operation = p.kind AND k.key = p.key AND k.token = p.token)')->value,
	undef, 'no leased, held, or abandoned key is lost');
is($wire->ok("SELECT count(*) FROM precious p, idempotency.claim('precious', p.kind, p.key) c WHERE c.outcome = CASE p.kind WHEN 'leased' THEN 'in_progress' ELSE 'held' END")->value,
	150, 'and claims answer accordingly');
my ($completed, $leased, $taken) = map { $wire->ok("SELECT count(*) FROM told WHERE what = '$_'")->value } qw(completed leased taken);
note("completed $completed, leased $leased, taken $taken");
cmp_ok($completed, '>', 100, 'keys were completed meanwhile');
cmp_ok($leased, '>', 100, 'and claimed with leases');
cmp_ok($taken, '>', 300, 'and taken over or claimed anew');
is($wire->ok("SELECT count(*) FROM told t WHERE what = 'completed' AND NOT EXISTS (
		SELECT FROM idempotency.idempotency_keys k WHERE k.scope = 'expired' AND k.operation = 'op' AND k.key = t.key
		AND k.status = 'completed' AND k.response_body = 'kept')")->value, 0, 'no completed key is lost');
is($wire->ok("SELECT count(*) FROM told t WHERE what = 'leased' AND NOT EXISTS (
		SELECT FROM idempotency.idempotency_keys k WHERE k.scope = 'expired' AND k.operation = 'op' AND k.key = t.key
		AND k.status = 'in_progress' AND k.token = t.token)")->value, 0, 'no leased key is lost, though its lifetime is over');
is($wire->ok("SELECT count(*) FROM (SELECT key FROM told WHERE what IN ('completed', 'leased') GROUP BY key HAVING count(*) > 1) d")->value, 0,
	'no key was given twice');
is($wire->ok("SELECT count(*) - count(DISTINCT token) FROM told WHERE what IN ('leased', 'taken')")->value, 0, 'no token was given twice');
is($wire->ok("SELECT count(*) FROM idempotency.idempotency_keys WHERE expires_at <= now() AND (status = 'completed' OR status = 'failed'
	OR status = 'in_progress' AND locked_until <= now() AND hold_if_abandoned IS NOT TRUE)")->value, 0, 'what has expired is gone');
is($wire->ok("SELECT count(*) FROM told t, idempotency.replay('expired', 'op', t.key) r WHERE t.what = 'completed' AND r.response_body = 'kept'")->value,
	$completed, 'every completed key is replayed');
is(scalar(troubles($node)), 0, 'nobody saw an error') or diag(troubles($node));

$node->stop;
done_testing();
