
# A policy that is changed anywhere holds for the next claim on every
# connection: changed by another, emptied, rolled back, or applied by logical
# replication.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_server('policies', init => { allows_streaming => 'logical' }, conf => "max_prepared_transactions = 2\n");
my $a = Connection->connect($node);
my $b = Connection->connect($node);
my $keys = 0;

# Hours that a key of this operation would live.
sub hours
{
	my ($wire, $operation) = @_;
	my $result = $wire->ok("SELECT date_part('epoch', expires_at - created_at) / 3600
		FROM idempotency.claim('s', '" . ($operation // 'op') . "', 'k" . ++$keys . "', lease => '1 hour')");

	return $result->value;
}

is(hours($_), 24, 'no policy: the setting') foreach $a, $b;
$b->ok("SELECT idempotency.set_policy('op', ttl => '72 hours')");
is(hours($a), 72, 'set by another connection');
is(hours($a, 'other'), 24, 'for that operation only');
$b->ok("BEGIN; SELECT idempotency.set_policy('op', ttl => '1 hour')");
is(hours($a), 72, 'not committed: not seen by others');
is(hours($b), 1, 'but by its own transaction');
$b->ok('ROLLBACK');
is(hours($b), 72, 'rolled back: gone');
is(hours($a), 72, 'for others nothing has changed');
$b->ok("BEGIN; SAVEPOINT s; SELECT idempotency.set_policy('op', ttl => '1 hour')");
is(hours($b), 1, 'in a subtransaction');
$b->ok('ROLLBACK TO s');
is(hours($b), 72, 'rolled back: gone');
$b->ok('COMMIT');
$b->ok("BEGIN; SELECT idempotency.set_policy('op', ttl => '3 hours'); COMMIT");
is(hours($a), 3, 'committed: seen');
$b->ok("BEGIN; SELECT idempotency.set_policy('op', ttl => '4 hours'); PREPARE TRANSACTION 'p'");
is(hours($a), 3, 'prepared: not seen');
is(hours($b), 3, 'not by who prepared it either');
$b->ok("COMMIT PREPARED 'p'");
is(hours($_), 4, 'committed: seen') foreach $a, $b;

# In the midst of a transaction of the other connection.
$a->ok('BEGIN');
is(hours($a), 4, 'a transaction begins');
$b->ok("SELECT idempotency.drop_policy('op')");
is(hours($a), 24, 'dropped by another, seen by its next claim');
$a->ok('ROLLBACK');

# By SQL on the table itself.
$b->ok("INSERT INTO idempotency.policies (operation, ttl) VALUES ('op', '1 month')");
is(hours($a), 720, 'INSERT: seen, a month is 30 days');
$b->ok("UPDATE idempotency.policies SET ttl = '2 days'");
is(hours($a), 48, 'UPDATE: seen');
$b->ok("DELETE FROM idempotency.policies");
is(hours($a), 24, 'DELETE: seen');
$b->ok("SELECT idempotency.set_policy('op', ttl => '6 hours')");
is(hours($a), 6, 'set again');
$b->ok('TRUNCATE idempotency.policies');
is(hours($a), 24, 'TRUNCATE: seen');
$b->ok("SET session_replication_role = replica; INSERT INTO idempotency.policies (operation, ttl) VALUES ('op', '5 hours'); RESET session_replication_role");
is(hours($a), 5, 'in a session that skips ordinary triggers: seen');
$b->ok("COPY (SELECT 'op2', '7 hours') TO '" . $node->data_dir . "/policy'; COPY idempotency.policies (operation, ttl) FROM '" . $node->data_dir . "/policy'");
is(hours($a, 'op2'), 7, 'COPY: seen');

# DROP and CREATE EXTENSION.
$b->ok('DROP EXTENSION idempotency; CREATE EXTENSION idempotency');
is(hours($a), 24, 'the extension made anew: no policy');
$b->ok("SELECT idempotency.set_policy('op', ttl => '8 hours')");
is(hours($a), 8, 'and a new one is seen');

# Logical replication, from another database.
$b->ok('TRUNCATE idempotency.policies');
$node->safe_psql('postgres', 'CREATE DATABASE source');
$node->safe_psql('source', q{CREATE EXTENSION idempotency;
	CREATE PUBLICATION p FOR TABLE idempotency.policies;
	SELECT pg_create_logical_replication_slot('s', 'pgoutput');
	INSERT INTO idempotency.policies (operation, ttl) VALUES ('copied', '9 hours')});
my $source = Connection->connect($node, database => 'source');
my $connection = 'host=' . $node->host . ' port=' . $node->port . ' dbname=source';
is(hours($a, 'copied'), 24, 'before the subscription');
$b->ok("CREATE SUBSCRIPTION s CONNECTION '$connection' PUBLICATION p WITH (create_slot = false, slot_name = s, copy_data = false)");

sub is_seen
{
	my ($hours, $what) = @_;

	# Applied at some time; from then on the next claim knows.
	ok(wait_until(sub { $b->ok("SELECT count(*) FROM idempotency.effective_policies WHERE operation = 'op' AND ttl_seconds = $hours * 3600")->value
		+ ($hours == 24 ? !$b->ok("SELECT count(*) FROM idempotency.policies WHERE operation = 'op'")->value : 0) }), "$what: applied");
	is(hours($a), $hours, "$what: seen");
	return;
}
$source->ok("INSERT INTO idempotency.policies (operation, ttl) VALUES ('op', '10 hours')");
is_seen(10, 'logical replication, INSERT');
$source->ok("UPDATE idempotency.policies SET ttl = '11 hours' WHERE operation = 'op'");
is_seen(11, 'logical replication, UPDATE');
$source->ok("DELETE FROM idempotency.policies WHERE operation = 'op'");
is_seen(24, 'logical replication, DELETE');
$source->ok("INSERT INTO idempotency.policies (operation, ttl) VALUES ('op', '12 hours')");
is_seen(12, 'logical replication, INSERT again');
$source->ok('TRUNCATE idempotency.policies');
is_seen(24, 'logical replication, TRUNCATE');
$b->ok('DROP SUBSCRIPTION s');

$node->stop;
done_testing();
