package Database;

# What the tests share: connections to the database that PG* names, a table, and a way to wait for what can be seen.

use v5.26;
use warnings;
use experimental 'signatures';
use DBI;
use Exporter 'import';
use File::Temp 'tempdir';
use Idempotency::Pg;

our @EXPORT = qw(connected count new_id new_pg outside until_it insert);

sub connected ($dsn = 'dbi:Pg:', %options) {
	return DBI->connect($dsn, '', '', { RaiseError => 1, PrintError => 0, %options });
}
sub new_pg (%options) { Idempotency::Pg->new(sub { connected('dbi:Pg:', %options) }, lock_dir => tempdir(CLEANUP => 1), workers => 5) }

# CPAN's testers have no server; unit-tests insists on one.
if (!defined $ENV{PGDATABASE}) { print "1..0 # SKIP PGDATABASE names no database\n"; exit }

# A connection of nobody else's, to look and to interfere.
my $outside = connected('dbi:Pg:', AutoInactiveDestroy => 1);
sub outside ($sql, @values) { ($outside->selectrow_array($sql, undef, @values))[0] }

$outside->do(q{SET client_min_messages = 'warning'});
$outside->do('CREATE EXTENSION IF NOT EXISTS idempotency');
outside(q{SELECT idempotency.forget_scope('test_perl', force => true)});
$outside->do('DROP TABLE IF EXISTS test_perl_orders');
$outside->do('CREATE TABLE test_perl_orders (item text)');

# A key that no other test has.
sub new_id ($operation = 'POST /orders') { ['test_perl', $operation, outside('SELECT gen_random_uuid()')] }

sub insert ($dbh, $item) { $dbh->do('INSERT INTO test_perl_orders VALUES (?)', undef, $item) }
sub count ($item) { outside('SELECT count(*) FROM test_perl_orders WHERE item = ?', $item) }

# Waits until it is so.
sub until_it ($what, $look) {
	for (1 .. 1200) {
		my $seen = $look->();
		return $seen if $seen;
		select undef, undef, undef, 0.05;
	}
	die "never happened: $what";
}

1;
