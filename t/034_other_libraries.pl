
# Other libraries in the same server: hooks are chains, so one that was loaded before
# this one goes on to see every statement, and gets its shared memory.
#
# pg_stat_statements hooks into all that we do. It knows which statements are nested by
# its hook for the execution, and utility statements by theirs.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Cluster;
use Test::More;

my $libraries = `"$ENV{PG_CONFIG}" --pkglibdir`;
chomp $libraries;
plan skip_all => 'there is no pg_stat_statements here' unless glob "$libraries/pg_stat_statements.*";

my $node = new_server('other_libraries', conf => <<~'EOC');
	shared_preload_libraries = 'pg_stat_statements, idempotency, auto_explain'
	auto_explain.log_min_duration = 0
	EOC
my $c = Connection->connect($node);

# How often a statement was counted that contains such a text.
sub counted
{
	my ($text) = @_;

	return $c->execute('SELECT coalesce(sum(calls), 0) FROM pg_stat_statements WHERE query LIKE $1 AND query !~ $$pg_stat_statements$$', "%$text%")->value;
}

$c->ok('CREATE EXTENSION pg_stat_statements');
$c->ok(q{CREATE FUNCTION nested() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN (SELECT count(*) AS inner_one FROM pg_class); END $$});
$c->ok('SELECT pg_stat_statements_reset()');

is($c->ok("SELECT idempotency.once('s', 'op', 'k')")->value, 't', 'a key is claimed');
is(counted('idempotency.once'), 1, 'the statement is counted');
$c->ok('SELECT nested()');
is(counted('nested()'), 1, 'one that calls a function is counted');
is(counted('inner_one'), 0, 'what is nested in it is known to be nested');
$c->ok('CREATE TABLE seen ()');
is(counted('CREATE TABLE seen'), 1, 'a utility statement is counted');
is($c->query("SELECT outcome FROM idempotency.claim('s', 'op', 'open')")->code, 'IK004', 'a claim that is left open is still noticed');
$c->ok("SELECT idempotency.claim('s', 'op', 'leased', lease => '1 h')");
is($c->ok("SELECT claims FROM idempotency.stats WHERE database = 'postgres'")->value, 3, 'and counted, as all claims are: there is shared memory for both');
ok(wait_until(sub { server_log($node) =~ /Query Text: SELECT nested\(\)/ }), 'a library that comes later sees it, too');
like($c->ok(q{EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) SELECT idempotency.once('s', 'op', 'explained')})->value, qr/Result/, 'EXPLAIN ANALYZE works');

$c->close(terminate => 1);
$node->stop;
done_testing();
