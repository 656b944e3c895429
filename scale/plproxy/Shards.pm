
# Shards - the shards of scale/plproxy, and a front over them

package Shards;

use strict;
use warnings;

use Exporter qw(import);
use Servers;

our @EXPORT = qw(shards_sql make_front @shards);

# Of the cluster that routes by scope; the fifth comes later.
our @shards = ([ a => 's0' ], [ a => 's1' ], [ b => 's2' ], [ b => 's3' ]);

sub shards_sql { return join ', ', map { "p$_ '" . database_at(@{ $_[$_] }) . "'" } 0 .. $#_; }

# A front, over shards that it makes.
sub make_front
{
	my ($front, $option, @where) = @_;

	foreach my $shard (@where)
	{
		psql($shard->[0], 'postgres', '-c', "CREATE DATABASE $shard->[1]");
		psql(@$shard, '-c', 'CREATE EXTENSION idempotency', '-f', "$ENV{SQL}/shard.sql", '-f', "$ENV{SQL}/example/shard.sql");
	}
	psql('a', 'postgres', '-c', "CREATE DATABASE $front");
	psql('a', $front, '-c', 'CREATE EXTENSION plproxy',
		'-c', "CREATE SERVER idempotency FOREIGN DATA WRAPPER plproxy OPTIONS (modular_mapping '1', " . shards_sql(@where) . ')',
		'-c', "CREATE USER MAPPING FOR postgres SERVER idempotency OPTIONS (user 'postgres')");
	psql('a', $front, @$option, '-f', "$ENV{SQL}/front.sql");
	psql('a', $front, '-f', "$ENV{SQL}/example/front.sql");
	return;
}

1;
