
# A key that is claimed and completed in one transaction costs one insert:
# nothing is updated, nothing is left to vacuum, and an answer other than
# "claimed" writes nothing at all.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use Test::More;

my $node = new_server('writes', conf => "autovacuum = off\n");
my $c = Connection->connect($node);
my $keys = 20_000;

# Claims and completes so many keys, a hundred to a transaction; every third
# claim has a request, every fifth a savepoint that is rolled back first.
$c->ok(qq{
	CREATE PROCEDURE work(scope text, keys int) LANGUAGE plpgsql AS \$\$
	DECLARE
		outcome text;
	BEGIN
		FOR i IN 1 .. keys LOOP
			IF i % 5 = 0 THEN
				BEGIN
					PERFORM idempotency.claim(scope, 'op', i::text);
					RAISE 'undo';
				EXCEPTION WHEN raise_exception THEN
				END;
			END IF;
			SELECT c.outcome INTO outcome FROM idempotency.claim(scope, 'op', i::text,
				request => CASE WHEN i % 3 = 0 THEN '{}'::jsonb END) AS c;
			IF outcome = 'claimed' THEN
				PERFORM idempotency.complete(scope, 'op', i::text, 200, 'response ' || i);
			END IF;
			IF i % 100 = 0 THEN
				COMMIT;
			END IF;
		END LOOP;
	END \$\$});

# Of the table, from the shared statistics.
sub writes
{
	$c->ok('SELECT pg_stat_force_next_flush()');
	return $c->ok(q{
		SELECT n_tup_ins, n_tup_upd, n_tup_del, n_dead_tup
		FROM pg_stat_user_tables WHERE relid = 'idempotency.idempotency_keys'::regclass})->row;
}

my $start = $c->ok('SELECT clock_timestamp()')->value;
$c->ok("CALL work('many', $keys)");
my $writes = writes();
is($writes->{n_tup_ins}, $keys, "$keys keys: one insert each");
is($writes->{n_tup_upd}, 0, "$keys keys: nothing is updated");
is($writes->{n_tup_del}, 0, "$keys keys: nothing is deleted");
is($writes->{n_dead_tup}, 0, "$keys keys: no dead row");
is($c->ok("SELECT count(*) || ' ' || count(DISTINCT key) FROM idempotency.idempotency_keys WHERE status = 'completed'")->value,
	"$keys $keys", "$keys keys: one row each");
note('seconds: ' . $c->ok("SELECT extract(epoch FROM clock_timestamp() - '$start')")->value);

# Repeats, rivals and mistakes write nothing; their transactions stay read-only
# and get no number.
my $rival = Connection->connect($node);
$rival->ok("BEGIN; SELECT FROM idempotency.claim('many', 'op', 'rival')");
foreach my $case (
	[ replay => q{claim('many', 'op', '1')} ],
	[ mismatch => q{claim('many', 'op', '3', request => '[]')} ],
	[ in_progress => q{claim('many', 'op', 'rival')} ],
	[ in_progress => q{claim('many', 'op', 'rival', lease => '1 s')} ],
	[ in_progress => q{claim('many', 'op', 'rival', wait => '10 ms')} ])
{
	my ($outcome, $call) = @$case;

	$c->ok('BEGIN');
	is($c->ok("SELECT outcome FROM idempotency.$call")->value, $outcome, "$call: $outcome");
	# A bounded wait is a subtransaction, which has no number of its own either.
	is($c->ok('SELECT pg_current_xact_id_if_assigned()')->value, undef, "$call: no transaction number");
	is($c->ok("SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'")->value, 0, "$call: no key lock is kept");
	$c->ok('COMMIT');
}
$rival->ok('ROLLBACK');
$c->ok(q{BEGIN; SELECT FROM idempotency.claim('many', 'op', 'undone'); ROLLBACK});
$c->ok("CALL work('many', 1000)");
is_deeply(writes(), $writes, 'answers other than "claimed" write nothing');

# Under a lease: one insert and one update.
$c->ok(q{
	CREATE PROCEDURE leased_work(keys int) LANGUAGE plpgsql AS $$
	BEGIN
		FOR i IN 1 .. keys LOOP
			PERFORM idempotency.claim('leased', 'op', i::text, lease => '1 min');
			COMMIT;
			PERFORM idempotency.complete('leased', 'op', i::text, 200, 'response ' || i,
				token => (SELECT token FROM idempotency.lookup('leased', 'op', i::text)));
			COMMIT;
		END LOOP;
	END $$});
$c->ok('CALL leased_work(500)');
my $leased = writes();
is($leased->{n_tup_ins} - $writes->{n_tup_ins}, 500, 'under a lease: one insert each');
is($leased->{n_tup_upd}, 500, 'under a lease: one update each');
$node->stop;
done_testing();
