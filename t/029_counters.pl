
# Counters survive the connection that counted, show every database from any
# connection, and count answers: claims, replays and the rest, with the hit rate.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Utils;
use Test::More;
use Worker;

my $node = new_preloaded_server('counters');
new_database($node, 'one');
new_database($node, 'two');

sub counters
{
	my ($database) = @_;

	return $node->safe_psql('postgres', qq{SELECT claims, replays, conflicts, mismatches, takeovers, completions,
		failures, deleted, hit_rate_percent FROM idempotency.stats WHERE database = '$database'});
}

# Each statement in a connection of its own that ends.
sub in_one { return $node->safe_psql('one', $_[0]); }

my $claim = "SELECT outcome FROM idempotency.claim('s', 'o',";

is(counters('one'), '', 'nothing was counted, no row');
in_one("BEGIN; $claim 'a', request => '1'); SELECT idempotency.complete('s', 'o', 'a', 200); COMMIT");
is(counters('one'), '1|0|0|0|0|1|0|0|0', 'a claim and its completion');
in_one("$claim 'a', request => '1')") foreach 1 .. 3;
is(counters('one'), '1|3|0|0|0|1|0|0|75', 'replays, and the hit rate');
in_one("$claim 'a', request => '2')");
is(counters('one'), '1|3|0|1|0|1|0|0|75', 'a mismatch');
in_one("$claim 'b', lease => '1 hour')");
in_one("$claim 'b')");
is(counters('one'), '2|3|1|1|0|1|0|0|60', 'a conflict');
in_one("$claim 'c', lease => '1 microsecond')");
in_one("$claim 'c', lease => '1 hour')");
is(counters('one'), '4|3|1|1|1|1|0|0|42.86', 'a takeover');
in_one("BEGIN; $claim 'd'); SELECT idempotency.fail('s', 'o', 'd'); COMMIT");
is(counters('one'), '5|3|1|1|1|1|1|0|37.5', 'a failure');
fill_with_expired($node, 'one', 20);
in_one('SELECT idempotency.cleanup(max_rows => 5)');
is(counters('one'), '5|3|1|1|1|1|1|5|37.5', 'deleted by cleanup()');
in_one('CALL idempotency.maintain()');
is(counters('one'), '5|3|1|1|1|1|1|20|37.5', 'by maintain()');
fill_with_expired($node, 'one', 20);
cleaned_again($node, 'one');
is(counters('one'), '5|3|1|1|1|1|1|40|37.5', 'and by the worker');
is(counters('two'), '0|0|0|0|0|0|0|0|', 'nothing of it in the other database');
is($node->safe_psql('two', "SELECT claims FROM idempotency.stats WHERE database = 'one'"), 5, 'from where it can be seen');
in_one("BEGIN; $claim 'rolled back'); ROLLBACK");
is(counters('one'), '6|3|1|1|1|1|1|40|33.33', 'answers are counted, not commits');
in_one("SELECT idempotency.once('s', 'event', 'k')") foreach 1, 2;
is(counters('one'), '7|4|1|1|1|2|1|40|36.36', 'once(): a claim with its completion the first time, then a replay');

# Switched off; only a superuser may.
in_one("SET idempotency.track = off; BEGIN; $claim 'untracked'); ROLLBACK");
is(counters('one'), '7|4|1|1|1|2|1|40|36.36', 'track = off: not counted');
is(Connection->connect($node, database => 'one')->query('SET idempotency.track = on')->code, '', 'a superuser sets track');

# Reset: of this database.
$node->safe_psql('two', "BEGIN; $claim 'a'); SELECT idempotency.complete('s', 'o', 'a', 200); COMMIT");
is(in_one('SELECT idempotency.stats_reset()'), 't', 'reset');
is(counters('one'), '0|0|0|0|0|0|0|0|', 'from zero');
is(counters('two'), '1|0|0|0|0|1|0|0|0', 'only here');
isnt($node->safe_psql('one', "SELECT last_cleanup FROM idempotency.stats WHERE database = 'one'"), '', 'the last clean-up is not forgotten');

# A monitor sees counters and nothing else; somebody else not even those.
$node->safe_psql('two', "CREATE ROLE monitor LOGIN; CREATE ROLE stranger LOGIN; SELECT idempotency.grant_monitor('monitor')");
my $monitor = Connection->connect($node, database => 'two', user => 'monitor');
is($monitor->ok("SELECT claims FROM idempotency.stats WHERE database = 'two'")->value, 1, 'a monitor sees them');
is($monitor->ok('SELECT count(*) FROM idempotency.health()')->value, 10, 'and health()');
is($monitor->query('SELECT idempotency.stats_reset()')->code, '42501', 'but resets nothing');
is($monitor->query('SELECT FROM idempotency.idempotency_keys')->code, '42501', 'and sees no keys');
is(Connection->connect($node, database => 'two', user => 'stranger')->query('SELECT FROM idempotency.stats')->code, '42501', 'a stranger sees nothing');

# A database that is gone leaves no trace; its place is free.
$node->safe_psql('postgres', 'DROP DATABASE one');
is(counters('one'), '', 'a dropped database is not shown');
cleaned_again($node, 'two');
$node->safe_psql('postgres', 'CREATE DATABASE one');
in_one('CREATE EXTENSION idempotency');
is(counters('one'), '', 'and a new one of its name starts from nothing');

# Without preloading the counters are missing, and say so; see 024.

$node->stop;
done_testing();
