
# Being the first to be asked at a commit, for as long as a claim is open, adds
# nothing up: not over a hundred thousand transactions, not over the statements
# of one, and what a procedure needs is given back at the end.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use Test::More;

my $node = new_server('open');
my $wire = Connection->connect($node);

$wire->ok(q{
	CREATE PROCEDURE transactions(n int, what text) LANGUAGE plpgsql AS $$
	DECLARE
		answer idempotency.claim_result;
	BEGIN
		FOR i IN 1..n LOOP
			answer := idempotency.claim('open', what, 'key ' || i % 100);
			PERFORM idempotency.release('open', what, 'key ' || i % 100);
			COMMIT;
		END LOOP;
	END $$;
	CREATE FUNCTION statements(n int) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		FOR i IN 1..n LOOP
			PERFORM clock_timestamp();
			EXECUTE 'SELECT 1';
		END LOOP;
	END $$});

# What is kept for the connection, where the callbacks are.
sub kept
{
	return $wire->ok(q{SELECT used_bytes FROM pg_backend_memory_contexts WHERE name = 'TopMemoryContext'})->value;
}

# Does it once, so that everything that is cached is there, and then again.
sub is_flat
{
	my ($title, $once, $more) = @_;

	$once->() foreach 1 .. 2;
	my $before = kept();
	$more->();
	my $growth = kept() - $before;
	cmp_ok($growth, '<', 4096, $title);
	note("$title: $growth bytes");
	return;
}

sub blocks
{
	my ($times, $end) = @_;
	my $block = "BEGIN; SELECT idempotency.claim('open', 'block', 'key'); SELECT 1;"
	  . " SELECT idempotency.release('open', 'block', 'key'); $end;";

	$wire->ok($block x 100) foreach 1 .. $times;
	return;
}

is_flat('transactions that commit', sub { blocks(1, 'COMMIT') }, sub { blocks(150, 'COMMIT') });
is_flat('transactions that roll back', sub { blocks(1, 'ROLLBACK') }, sub { blocks(50, 'ROLLBACK') });
is_flat(
	'transactions of a procedure',
	sub { $wire->ok(q{CALL transactions(100, 'procedure')}) },
	sub { $wire->ok(q{CALL transactions(80000, 'procedure')}) });
is_flat(
	'transactions that fail',
	sub { $wire->query(q{SELECT idempotency.claim('open', 'forgotten', 'key')}) },
	sub { $wire->query(q{SELECT idempotency.claim('open', 'forgotten', 'key')}) foreach 1 .. 500 });

# In one transaction, as simple queries and by the extended protocol.
$wire->ok('BEGIN');
$wire->ok(q{SELECT idempotency.claim('open', 'one', 'key')});
is_flat('statements of a transaction', sub { $wire->ok('SELECT 1;' x 100) }, sub { $wire->ok('SELECT 1;' x 1000) foreach 1 .. 5 });
is_flat(
	'statements of a pipeline',
	sub { $wire->pipeline(map { ['SELECT 1'] } 1 .. 100) },
	sub { $wire->pipeline(map { ['SELECT 1'] } 1 .. 1000) });
is_flat(
	'statements of a function',
	sub { $wire->ok('SELECT statements(100)') },
	sub { $wire->ok('SELECT statements(5000)') });
is_flat(
	'statements of DO, when it has ended',
	sub { $wire->ok('DO $$ BEGIN PERFORM statements(1); END $$') },
	sub { $wire->ok('DO $$ BEGIN FOR i IN 1..5000 LOOP EXECUTE \'SELECT 1\'; END LOOP; END $$') });
$wire->ok('DO $$ BEGIN FOR i IN 1..5000 LOOP EXECUTE \'SELECT 1\'; END LOOP; '
	  . 'CREATE TEMP TABLE during AS SELECT used_bytes FROM pg_backend_memory_contexts WHERE name = \'TopMemoryContext\'; END $$');
my $during = $wire->ok('SELECT used_bytes FROM during')->value - kept();
cmp_ok($during, '>', 1000, 'while it runs, there is something to give back');
cmp_ok($during, '<', 100_000, 'but not without limit');
is($wire->query('COMMIT')->code, 'IK004', 'and the claim was open all the time');

$node->stop;
done_testing();
