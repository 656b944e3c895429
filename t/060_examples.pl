
# The examples of the clients run, and check what they show, though they lose connections in
# the middle of a charge (lib/LossyProxy.pm). An example whose interpreter or
# driver is not there is skipped.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use Extension;
use LossyProxy;
use PostgreSQL::Test::Utils;
use Test::More;

my $clients = "$FindBin::RealBin/../clients";

# What each needs: a command that succeeds where it can run.
my %needs = (
	java => 'javac -version && test -r ${JDBC_JAR:-/usr/share/java/postgresql.jar}',
	node => "cd '$clients/node/example' && node --input-type=module -e 'import \"pg\"; import \"idempotency-pg/leased\"'",
	python => '${PYTHON:-/usr/bin/python3} -c "import psycopg2"',
	sql => 'psql --version');

is_deeply([ sort map { m{([^/]+)/example/run$} } glob "$clients/*/example/run" ], [ sort keys %needs ], 'every example is known here');

# As an application's role, not as a superuser: the extension and the right to
# make a schema is all that an example needs, and forget() to begin anew.
my $node = new_server('examples');
my $database = $node->safe_psql('postgres', 'SELECT current_database()');

$node->safe_psql('postgres', q{
	CREATE ROLE app LOGIN;
	SELECT idempotency.grant_usage('app'), idempotency.grant_operator('app');
	GRANT CREATE ON DATABASE postgres TO app});

foreach my $language (sort keys %needs)
{
  SKIP:
	{
		skip "$language: its interpreter or its driver is not there", 4
		  if system("( $needs{$language} ) >/dev/null 2>&1") != 0;

		local $ENV{PGPORT} = $node->port;
		local $ENV{PGUSER} = 'app';
		local $ENV{PGDATABASE} = $database;

		foreach my $time ('first', 'second')
		{
			my $proxy = LossyProxy->start($node, PostgreSQL::Test::Utils::tempdir_short());
			local $ENV{PGHOST} = $proxy->host;
			my $output = `'$clients/$language/example/run' 2>&1`;

			ok($? == 0 && $output =~ /^all well$/m, "$language: $time run") or diag($output);
			is($proxy->lost, 'lost-claim lost-booking lost-commit', "$language: $time run, with lost connections");
			$proxy->stop;
		}
	}
}

is($node->safe_psql('postgres', q{SELECT count(*) FROM idempotency.idempotency_keys WHERE status IN ('in_progress', 'held')}),
	'0', 'no example leaves a claim open');

done_testing();
