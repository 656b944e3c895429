
# Faults::Tables - what an administrator does to the table of keys, and to others,
# while clients work
#
# With a limit on how long he waits, since all claims wait behind him.

package Faults::Tables;

use strict;
use warnings;

use Cluster;
use Shared;

my $keys = 'idempotency.idempotency_keys';
my @indexes = map { "idempotency.idempotency_keys_$_" } qw(pkey expires_at_idx unfinished_idx response_expires_at_idx);

our %faults = (
	'reindex' => sub {
		my ($draw) = @_;
		my $done = eval { run_sql($draw->pick(map { "REINDEX INDEX CONCURRENTLY $_" } @indexes, $indexes[0])) };

		# What one that was cut short has left behind.
		run_sql(map { "DROP INDEX IF EXISTS idempotency.$_" } split ' ',
			value_of(q{SELECT string_agg(relname, ' ') FROM pg_class WHERE relname ~ '_cc(new|old)\d*$' AND relkind = 'i' AND relnamespace = 'idempotency'::regnamespace}) // '');
		return $done;
	},
	'reindex-table' => sub { return run_sql("REINDEX TABLE $keys"); },
	'vacuum-full' => sub { return run_sql("VACUUM FULL $keys"); },
	'cluster' => sub { return run_sql("CLUSTER $keys USING " . $_[0]->pick('idempotency_keys_pkey', 'idempotency_keys_expires_at_idx')); },
	'alter-table' => sub {
		return run_sql("ALTER TABLE $keys SET (fillfactor = " . $_[0]->between(50, 100) . ')',
			"ALTER TABLE $keys ALTER COLUMN note SET STATISTICS " . $_[0]->between(1, 100),
			"CREATE INDEX IF NOT EXISTS of_a_user ON $keys (created_at)", 'DROP INDEX IF EXISTS idempotency.of_a_user');
	},
	'alter-neighbours' => sub {
		return run_sql('ALTER TABLE effects ADD COLUMN IF NOT EXISTS remark text', 'ALTER TABLE effects DROP COLUMN IF EXISTS remark',
			'ALTER TABLE neighbours ALTER COLUMN filling TYPE varchar', 'ALTER TABLE neighbours ALTER COLUMN filling TYPE text',
			'DROP TABLE IF EXISTS passing_by', 'CREATE TABLE passing_by (id int)', 'TRUNCATE neighbours', 'DROP DATABASE IF EXISTS aside',
			'CREATE DATABASE aside', 'DROP DATABASE aside');
	},
	'vacuum' => sub { return run_sql($_[0]->pick("VACUUM (FREEZE) $keys", "VACUUM (ANALYZE, INDEX_CLEANUP ON) $keys", 'VACUUM', 'ANALYZE')); },
	'checkpoint' => sub { return run_sql('CHECKPOINT'); },
	'burn-xids' => sub { return run_sql('CALL burn_xids(' . $_[0]->between(500, 3000) . ')'); });

# One after the other, each in a transaction of its own; true if all went well.
sub run_sql
{
	my (@statements) = @_;
	my $connection = connect_admin(primary(), 1) or return 0;
	my $why = '';

	$connection->query("SET $_") foreach "lock_timeout = '2 s'", "statement_timeout = '8 s'";
	foreach my $sql (@statements)
	{
		return 0 if $connection->lost;
		my $result = eval { $connection->query($sql) } or return 0;

		$why = $result->code if $result->code ne '';
	}
	die "$why\n" if $why ne '';
	return 1;
}

sub value_of
{
	my ($sql) = @_;
	my $connection = connect_admin(primary(), 1) or return;

	return $connection->query($sql)->value;
}

1;
