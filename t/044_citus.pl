
# What Citus makes of the table is a shell: its rows are in shards, that is in
# other tables, and what look-ups read stays behind. Every call is refused, from
# the moment it is made, also in sessions that were at work before, and health()
# says so; when the table is local again, everything goes on.
#
# With the real Citus, where it is installed. Otherwise with a stand-in for its
# catalog, which is all that is looked at, and for the trigger that it puts on the
# tables that it manages.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Connection;
use Extension;
use PostgreSQL::Test::Utils;
use StandIn;
use Test::More;

my $config = $ENV{PG_CONFIG} || 'pg_config';
my $real = -e (`"$config" --sharedir` =~ s/\n//r . '/extension/citus.control');
my $node = new_server('citus', conf => $real ? "shared_preload_libraries = 'citus'\ncitus.enable_statistics_collection = off\n" : '');
my $table = 'idempotency.idempotency_keys';

# Of the kinds of tables of Citus: how one is made, and what its catalog says.
my @kinds = (
	[ 'distributed', "SELECT create_distributed_table('$table', 'scope', shard_count => 4)", 'h', 's' ],
	[ 'one shard', "SELECT create_distributed_table('$table', NULL)", 'n', 's' ],
	[ 'reference', "SELECT create_reference_table('$table')", 'n', 't' ]);

my ($make, $unmake);
if ($real)
{
	$node->safe_psql('postgres', 'CREATE EXTENSION citus');
	$node->safe_psql('postgres', sprintf q{
		SELECT citus_set_coordinator_host('%s', %d);
		SELECT citus_set_node_property('%s', %d, 'shouldhaveshards', true)}, ($node->host, $node->port) x 2);
	$make = sub { $node->safe_psql('postgres', $_[0]->[1]) };

	# As docs/operations.md has it.
	$unmake = sub {
		$node->safe_psql('postgres', qq{
			ALTER EXTENSION idempotency DROP TABLE $table;
			ALTER EXTENSION idempotency DROP VIEW idempotency.abandoned;
			ALTER EXTENSION idempotency DROP VIEW idempotency.keys_by_operation;
			ALTER EXTENSION idempotency DROP VIEW idempotency.keys_by_scope;
			ALTER EXTENSION idempotency DROP FUNCTION idempotency.export_scopes;
			ALTER EXTENSION idempotency DROP FUNCTION idempotency.import_key;
			SELECT undistribute_table('$table');
			CREATE TABLE saved_keys AS TABLE $table;
			DROP TABLE $table CASCADE;
			DROP EXTENSION idempotency;
			CREATE EXTENSION idempotency;
			INSERT INTO $table TABLE saved_keys;
			DROP TABLE saved_keys});
	};
}
else
{
	diag('Citus is not installed: a stand-in for its catalog takes its place');
	StandIn::make_catalog($node);
	$node->safe_psql('postgres', q{
		CREATE FUNCTION stand_in() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'});
	$make = sub {
		$node->safe_psql('postgres', qq{
			INSERT INTO pg_dist_partition VALUES ('$table'::regclass, '$_[0]->[2]', NULL, 1, '$_[0]->[3]', false);
			CREATE TRIGGER truncate_trigger AFTER TRUNCATE ON $table FOR EACH STATEMENT EXECUTE FUNCTION stand_in()});
	};
	$unmake = sub { $node->safe_psql('postgres', "DELETE FROM pg_dist_partition; DROP TRIGGER truncate_trigger ON $table") };
}

my %calls = (
	claim => "SELECT outcome FROM idempotency.claim('s', 'op', 'k')",
	replay => "SELECT response_body FROM idempotency.replay('s', 'op', 'k')",
	once => "SELECT idempotency.once('s', 'op', 'k')",
	once_batch => "SELECT first FROM idempotency.once_batch('s', 'op', ARRAY['k'])",
	cleanup => 'SELECT idempotency.cleanup()');
my %answers = (claim => 'replay', replay => 'first', once => 'f', once_batch => 'f', cleanup => '0');

my $wire = Connection->connect($node);

# The server's own message, all of it.
sub health { return $wire->ok("SELECT status, detail FROM idempotency.health() WHERE check_name = 'table'")->rows->[0] }

sub works
{
	my ($when) = @_;

	is($wire->query($calls{$_})->value, $answers{$_}, "$when: $_") foreach sort keys %calls;
	is(health()->[0], 'ok', "$when: health()");
	return;
}

$wire->ok("SELECT idempotency.import_completed('s', 'op', 'k', response_body => 'first')");
# Another table of Citus does not matter.
$node->safe_psql('postgres', 'CREATE TABLE other (scope text)');
$real ? $node->safe_psql('postgres', "SELECT create_distributed_table('other', 'scope')")
  : $node->safe_psql('postgres', "INSERT INTO pg_dist_partition VALUES ('other'::regclass, 'h', NULL, 1, 's', false)");
works('before');

foreach my $kind (@kinds)
{
	my $name = $kind->[0];

	$make->($kind);
	is($node->safe_psql('postgres', "SELECT partmethod, repmodel FROM pg_dist_partition WHERE logicalrelid = '$table'::regclass"),
		"$kind->[2]|$kind->[3]", "$name: what the catalog says");
	foreach my $call (sort keys %calls)
	{
		foreach my $connection ($wire, Connection->connect($node))
		{
			my $answer = $connection->query($calls{$call});

			is($answer->code, '55000', "$name: $call is refused");
			is($answer->message, "table $table is managed by Citus", "$name: and says why");
		}
	}
	is(health()->[0], 'critical', "$name: health()");
	like(health()->[1], qr/managed by Citus\..*undistribute_table/, "$name: says it too");
	$unmake->();
	works("after $name");
}

# Citus goes.
$node->safe_psql('postgres', 'SET allow_system_table_mods = on; DROP TABLE other; ' . ($real ? '' : 'DROP TABLE pg_dist_partition; ') . 'DROP EXTENSION citus');
works('without Citus');

$node->stop;
done_testing;
