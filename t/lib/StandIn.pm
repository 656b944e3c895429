
# StandIn - two databases of one server as two nodes of Citus
#
# A stand-in for the part of Citus's catalog that src/home.c reads, for machines where
# Citus is not installed: what it lists, and that a change in it invalidates the table
# in the relation cache. The lock that Citus takes of a shard is of a class that SQL
# cannot reach, so the library is built with another one; move() takes it as
# citus_move_shard_placement() does. scale/citus does the same with Citus itself.

package StandIn;

use strict;
use warnings;

use Connection;
use Extension;
use Test::More;

our @names = qw(postgres other);

# That there is Citus, and what it lists of its tables; nothing so far.
sub make_catalog
{
	my ($node) = @_;

	$node->safe_psql('postgres', q{
		SET allow_system_table_mods = on;
		INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
			VALUES (pg_nextoid('pg_extension', 'oid', 'pg_extension_oid_index'), 'citus', 10, 'pg_catalog'::regnamespace, false, 'stand-in');
		CREATE TABLE pg_catalog.pg_dist_partition
			(logicalrelid regclass NOT NULL, partmethod "char" NOT NULL, partkey text, colocationid int NOT NULL, repmodel "char" NOT NULL, autoconverted bool NOT NULL);
		CREATE TABLE pg_catalog.pg_dist_shard
			(logicalrelid regclass NOT NULL, shardid bigint NOT NULL, shardstorage "char" NOT NULL DEFAULT 't', shardminvalue text, shardmaxvalue text)});
	return;
}

# Table "tenants" in both databases, with eight shards, the even ones on the first.
sub new
{
	my ($class, $node, $type) = @_;
	my $self = bless { node => $node }, $class;

	diag('a stand-in takes the place of Citus and its catalog');
	use_library($node, build_library('home', '-DHOME_LOCK_CLASS=2'));
	make_catalog($node);
	$node->safe_psql('postgres', qq{
		SET allow_system_table_mods = on;
		CREATE TABLE pg_catalog.pg_dist_placement
			(placementid bigint GENERATED ALWAYS AS IDENTITY, shardid bigint NOT NULL, shardstate int NOT NULL DEFAULT 1, shardlength bigint NOT NULL DEFAULT 0, groupid int NOT NULL);
		CREATE TABLE pg_catalog.pg_dist_local_group (groupid int NOT NULL);
		CREATE FUNCTION pg_catalog.column_to_column_name(regclass, text) RETURNS text LANGUAGE sql STRICT AS 'SELECT \$2';
		CREATE FUNCTION pg_catalog.stand_in_invalidate() RETURNS trigger LANGUAGE plpgsql AS \$\$
			DECLARE
				changed regclass;
			BEGIN
				FOR changed IN SELECT logicalrelid FROM pg_dist_partition LOOP
					EXECUTE format('ALTER TABLE %s SET (fillfactor = 100)', changed);
				END LOOP;
				RETURN NULL;
			END \$\$;
		CREATE TRIGGER invalidate AFTER INSERT OR UPDATE OR DELETE ON pg_catalog.pg_dist_partition FOR EACH STATEMENT EXECUTE FUNCTION pg_catalog.stand_in_invalidate();
		CREATE TRIGGER invalidate AFTER INSERT OR UPDATE OR DELETE ON pg_catalog.pg_dist_shard FOR EACH STATEMENT EXECUTE FUNCTION pg_catalog.stand_in_invalidate();
		CREATE TRIGGER invalidate AFTER INSERT OR UPDATE OR DELETE ON pg_catalog.pg_dist_placement FOR EACH STATEMENT EXECUTE FUNCTION pg_catalog.stand_in_invalidate();
		INSERT INTO pg_dist_local_group VALUES (1)});
	$self->distribute('tenants', 'text', 7);
	$node->safe_psql('postgres', 'CREATE DATABASE other TEMPLATE postgres');
	$node->safe_psql('other', 'SET allow_system_table_mods = on; UPDATE pg_dist_local_group SET groupid = 2');
	return $self;
}

# A table that is distributed by hash, in the first database: eight shards, the even
# ones there.
sub distribute
{
	my ($self, $table, $type, $colocation) = @_;

	$self->{node}->safe_psql('postgres', qq{
		SET allow_system_table_mods = on;
		CREATE TABLE $table (id $type);
		INSERT INTO pg_dist_shard (logicalrelid, shardid, shardminvalue, shardmaxvalue)
			SELECT '$table'::regclass, $colocation * 1000 + i, (-2147483648 + i * 536870912)::text, (-2147483648 + i * 536870912 + 536870911)::text
			FROM generate_series(0::bigint, 7) AS i;
		INSERT INTO pg_dist_placement (shardid, groupid) SELECT $colocation * 1000 + i, 1 + i % 2 FROM generate_series(0, 7) AS i;
		INSERT INTO pg_dist_partition VALUES ('$table'::regclass, 'h', 'id', $colocation, 's', false)});
	return;
}

sub connect
{
	my ($self, $name, %option) = @_;

	return Connection->connect($self->{node}, database => $name, %option);
}

# The shard of "tenants" that has a scope, 0 to 7.
sub shard_of
{
	my ($self, $scope) = @_;

	$self->{hasher} //= $self->connect('postgres');
	return $self->{hasher}->execute('SELECT (hashtext($1)::bigint + 2147483648) / 536870912', $scope)->value;
}

# A scope of a shard.
sub scope_of
{
	my ($self, $shard) = @_;
	my $number = 0;

	$number++ while $self->shard_of("tenant $number") != $shard;
	return "tenant $number";
}

# The bounds of its hashes.
sub bounds
{
	my ($shard) = @_;
	my $minimum = -2147483648 + $shard * 536870912;

	return ($minimum, $minimum + 536870911);
}

# The first half of a move, on one node: the lock is waited for, and what the catalog
# says changes with the commit.
sub move_sql
{
	my ($shard, $to) = @_;

	return "BEGIN; SET LOCAL allow_system_table_mods = on; SELECT pg_advisory_xact_lock($shard, 7);"
	  . " UPDATE pg_dist_placement SET groupid = $to WHERE shardid = 7000 + $shard";
}

1;
