
# What clean-up costs: it reads what it deletes a few times at most, however many
# keys expire at one moment and whatever old snapshot is held, and nobody waits
# until its batches are on disk. A completion is on disk before it is answered.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Utils;
use Test::More;
use Worker;

# Nobody flushes but who commits.
my $node = new_preloaded_server('cleanup_cost', conf => <<'EOC');
idempotency.cleanup_batch_size = 10
idempotency.cleanup_pause = 0
wal_writer_delay = 10s
wal_writer_flush_after = 1GB
bgwriter_delay = 10s
autovacuum = off
checkpoint_timeout = 1h
EOC
my $wire = Connection->connect($node);
my $reader = Connection->connect($node);

# The round at the start must not come in between.
cleaned_again($node, 'postgres') or BAIL_OUT('no round');

# ---- reads ---------------------------------------------------------------------

sub reads
{
	my ($index) = @_;

	$wire->ok('SELECT pg_stat_force_next_flush()');
	return $wire->ok("SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelid = 'idempotency.$index'::regclass")->value;
}

# Keys of one moment. What is to expire is brought over live, as from another
# table, and its time passes while everybody waits.
sub bring_over
{
	my ($keys) = @_;

	is($wire->ok(qq{
		SELECT count(*) FILTER (WHERE idempotency.import_completed('import', 'op', g::text, expires_at => t.soon))
		FROM (SELECT clock_timestamp() + interval '3 s' AS soon) AS t, generate_series(1, $keys) AS g})->value,
		$keys, "$keys keys are brought over");
	is($wire->ok('SELECT count(DISTINCT expires_at) FROM idempotency.idempotency_keys')->value, 1, 'which expire at one moment');
	wait_until(sub { $wire->ok('SELECT bool_and(expires_at < clock_timestamp()) FROM idempotency.idempotency_keys')->value eq 't' }, 60);
	return;
}

$reader->ok('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM idempotency.idempotency_keys');
foreach my $by ('maintain', 'worker')
{
	my $keys = 4000;

	bring_over($keys);
	# What is dead since the round before is read again by the first batch of
	# this one, if it has the same moment, and never after.
	my $before = reads('idempotency_keys_expires_at_idx');

	$by eq 'worker' ? cleaned_again($node, 'postgres') : $wire->ok('CALL idempotency.maintain()');
	is(keys_left($node, 'postgres'), 0, "$by: all are deleted, while an old snapshot is held");
	cmp_ok(reads('idempotency_keys_expires_at_idx') - $before, '<', 8 * $keys, "$by: and are read a few times each");
}
my $run = $wire->ok('SELECT deleted, batches FROM idempotency.cleanup_runs ORDER BY id DESC LIMIT 1')->row;
is($run->{deleted}, 4000, 'cleanup_runs counts all of them');
cmp_ok($run->{batches}, '<', 20, 'in batches that have grown');

# Unlike moments: batches do not grow, and nothing is read twice.
$wire->ok(q{SELECT count(*) FROM idempotency.once_batch('batch', 'op', ARRAY(SELECT g::text FROM generate_series(1, 1000) AS g), ttl => '1 ms')});
wait_until(sub { $wire->ok('SELECT bool_and(expires_at < clock_timestamp()) FROM idempotency.idempotency_keys')->value eq 't' }, 60);
my $before = reads('idempotency_keys_expires_at_idx');
$wire->ok('CALL idempotency.maintain()');
is(keys_left($node, 'postgres'), 0, 'a batch of once_batch() is deleted');
cmp_ok($wire->ok('SELECT batches FROM idempotency.cleanup_runs ORDER BY id DESC LIMIT 1')->value, '>=', 100, 'in as many batches as ever');
# The first step begins at the beginning, before all that is dead: 9000 entries.
cmp_ok(reads('idempotency_keys_expires_at_idx') - $before, '<', 9000 + 2500, 'and read about once');

# One round after the other: what is dead is read from the beginning now and then,
# and not by each of them; reading it takes more than a hundredth of an interval.
# A round that is asked for reads it.
my $dead = 300_000;
$wire->ok("SELECT count(*) FROM idempotency.once_batch('dead', 'op', ARRAY(SELECT g::text FROM generate_series(1, $dead) AS g), ttl => '1 ms')");
wait_until(sub { $wire->ok('SELECT bool_and(expires_at < clock_timestamp()) FROM idempotency.idempotency_keys')->value eq 't' }, 60);
is($wire->ok('SELECT idempotency.cleanup()')->value, $dead, "$dead keys are deleted, and their entries stay");
$before = reads('idempotency_keys_expires_at_idx');
cleaned_again($node, 'postgres') or BAIL_OUT('no round');
cmp_ok(reads('idempotency_keys_expires_at_idx') - $before, '>=', $dead, 'a round that is asked for begins at the beginning');
$before = reads('idempotency_keys_expires_at_idx');
$node->safe_psql('postgres', q{ALTER SYSTEM SET idempotency.cleanup_interval = '1s'});
$node->reload;
my $gone = 0;
foreach my $round (1 .. 8)
{
	$wire->ok("SELECT FROM idempotency.once('one', 'op', '$round', ttl => '1 microsecond')");
	$gone += wait_until(sub { keys_left($node, 'postgres') eq '0' });
}
is($gone, 8, 'each round deletes what has expired since the last one');
my $read = reads('idempotency_keys_expires_at_idx') - $before;
fill_with_expired($node, 'postgres', 1);
ok(wait_until(sub { keys_left($node, 'postgres') eq '0' }), 'what expired long ago and was seen late is deleted, too, though nobody asks for it');
$node->safe_psql('postgres', 'ALTER SYSTEM RESET idempotency.cleanup_interval');
$node->reload;
cmp_ok($read, '<', 4.5 * $dead, 'and they do not read all that is dead each time');

# Responses that are due at one moment, of many that are due: by a plan that was
# made for many.
$wire->ok(q{
	INSERT INTO idempotency.idempotency_keys (created_at, expires_at, completed_at, response_expires_at, attempt, scope, operation, key, status, response_body)
	SELECT now() - interval '2 days', now() + interval '1 day', now(), now() - interval '1 day', 1, 'due', 'op', g, 'completed', 'body'
	FROM generate_series(1, 4000) AS g});
$wire->ok('ANALYZE idempotency.idempotency_keys');
$before = reads('idempotency_keys_response_expires_at_idx');
$wire->ok('CALL idempotency.maintain()');
is($wire->ok('SELECT count(response_body) FROM idempotency.idempotency_keys')->value, 0, 'responses of one moment are removed');
cmp_ok(reads('idempotency_keys_response_expires_at_idx') - $before, '<', 8 * 4000, 'and are read a few times each');
$reader->ok('COMMIT');
$wire->ok(q{SELECT idempotency.forget_scope('due')});

# ---- flushes ---------------------------------------------------------------------

# Whether what was written is on disk: the position of the last byte of a flush,
# before and after. The WAL writer flushes, too, every ten seconds or when it is woken,
# so what is not to be flushed has several tries. "prepare" is done before each.
sub flushed { return $wire->ok('SELECT pg_current_wal_flush_lsn()')->value; }

sub is_flushed
{
	my ($wanted, $what, $action, $prepare) = @_;
	my $is_flushed;

	foreach my $try (1 .. ($wanted ? 1 : 5))
	{
		$prepare->() if $prepare;

		my $before = flushed();
		my $written = $wire->ok('SELECT pg_current_wal_insert_lsn()')->value;

		$action->();
		is($wire->ok("SELECT pg_current_wal_insert_lsn() > '$written'")->value, 't', "$what: something was written");
		$is_flushed = $wire->ok("SELECT pg_current_wal_flush_lsn() > '$before'")->value;
		last if $is_flushed eq 'f';
	}
	is($is_flushed, $wanted ? 't' : 'f', $what . ($wanted ? ': and flushed' : ': and not flushed'));
	return;
}

sub deletes
{
	my ($action) = @_;

	return (sub {
			$action->();
			is($wire->ok("SELECT count(*) FROM idempotency.idempotency_keys WHERE scope = 'expired'")->value, 0, 'all are deleted');
		}, sub {
			$wire->ok('SET synchronous_commit = on');
			fill_with_expired($node, 'postgres', 100);
		});
}

is_flushed(0, 'maintain()', deletes(sub { $wire->ok('CALL idempotency.maintain()') }));
is($wire->ok('SHOW synchronous_commit')->value, 'on', 'which leaves the session as it was');
is_flushed(1, 'a completion after it', sub {
	$wire->ok(q{SET synchronous_commit = off; BEGIN; SELECT FROM idempotency.claim('s', 'o', 'k1'); SELECT idempotency.complete('s', 'o', 'k1', 200); COMMIT}) });
is_flushed(0, 'a round of the worker', deletes(sub { cleaned_again($node, 'postgres') }));
is_flushed(1, 'cleanup() of a session that waits', deletes(sub { $wire->ok('SELECT idempotency.cleanup()') }));
is_flushed(0, 'cleanup() of a session that does not', deletes(sub { $wire->ok('SET synchronous_commit = off'); $wire->ok('SELECT idempotency.cleanup()') }));
is_flushed(0, 'cleanup() of a scope in a session that does not',
	deletes(sub { $wire->ok('SET synchronous_commit = off'); $wire->ok(q{SELECT idempotency.cleanup(scope => 'expired')}) }));
is_flushed(1, 'a claim with a lease', sub { $wire->ok(q{SET synchronous_commit = off; SELECT FROM idempotency.claim('s', 'o', 'k2', lease => '1 hour')}) });
is_flushed(1, 'a batch', sub { $wire->ok(q{SELECT FROM idempotency.once_batch('s', 'o', '{k3}')}) });

# What a caller has written before maintain() is not maintain()'s to risk.
$wire->ok('CREATE TABLE audit (what text)');
is_flushed(1, 'maintain() in a transaction in which somebody has written',
	deletes(sub { $wire->ok(q{DO $$ BEGIN INSERT INTO audit VALUES ('mine'); CALL idempotency.maintain(); END $$}) }));
is_flushed(0, 'maintain() in one in which nobody has',
	deletes(sub { $wire->ok(q{DO $$ BEGIN CALL idempotency.maintain(); END $$}) }));

$node->stop;
done_testing();
