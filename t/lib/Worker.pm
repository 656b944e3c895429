
# Worker - what the TAP tests of clean-up in the background share

package Worker;

use strict;
use warnings;

use Carp;
use Connection;
use Exporter qw(import);
use Extension;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Time::HiRes qw(sleep time);

our @EXPORT = qw(new_preloaded_server new_database fill_with_expired keys_left
  last_run request_round cleaned_again launcher_pid cleaner_pid
  is_within slow_run health_of);

# As new_server, with the library preloaded. There is one round at the start,
# and none after it unless the test asks for it.
sub new_preloaded_server
{
	my ($name, %option) = @_;

	$option{conf} = "shared_preload_libraries = 'idempotency'\n" . ($option{conf} // '');
	return new_server($name, %option);
}

# A database with the extension and so many expired keys.
sub new_database
{
	my ($node, $database, $keys) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->safe_psql($database, 'CREATE EXTENSION idempotency');
	fill_with_expired($node, $database, $keys) if $keys;
	return;
}

sub fill_with_expired
{
	my ($node, $database, $keys, $scope) = @_;

	$scope //= 'expired';
	$node->safe_psql($database, qq{
		INSERT INTO idempotency.idempotency_keys
			(created_at, expires_at, completed_at, attempt, scope, operation, key, status)
		SELECT now() - interval '2 days', now() - interval '1 day', now() - interval '2 days',
			1, '$scope', 'op', g, 'completed'
		FROM generate_series(1, $keys) AS g});
	return;
}

sub keys_left
{
	my ($node, $database) = @_;

	return $node->safe_psql($database, 'SELECT count(*) FROM idempotency.idempotency_keys');
}

# Number of the last clean-up of a database.
sub last_run
{
	my ($node, $database) = @_;

	return $node->safe_psql($database, 'SELECT COALESCE(max(id), 0) FROM idempotency.cleanup_runs');
}

# Asks for a round, as soon as there is somebody to ask.
sub request_round
{
	my ($node, $database) = @_;

	return wait_until(sub {
		$node->safe_psql($database // 'postgres', 'SELECT idempotency.request_cleanup()') eq 't' });
}

# Asks for a round, and waits until it has come to these databases. One that was
# under way already may have seen less than there is now, and does not count.
sub cleaned_again
{
	my ($node, @databases) = @_;
	my $asked_at = $node->safe_psql('postgres', 'SELECT clock_timestamp()');

	request_round($node, $databases[0]) or return 0;
	foreach my $database (@databases)
	{
		wait_until(sub {
			$node->safe_psql($database, "SELECT COALESCE(max(started_at) > '$asked_at', false) FROM idempotency.cleanup_runs") eq 't'
		}) or return 0;
	}
	return 1;
}

# Of the launcher, as soon as there is one.
sub launcher_pid
{
	my ($node) = @_;
	my $pid;

	wait_until(sub {
		$pid = $node->safe_psql('postgres', "SELECT pid FROM pg_stat_activity WHERE backend_type = 'idempotency launcher'") });
	return $pid;
}

sub cleaner_pid
{
	my ($node, $database) = @_;

	return $node->safe_psql('postgres',
		"SELECT pid FROM pg_stat_activity WHERE backend_type = 'idempotency cleanup' AND datname = '$database'");
}

# Begins a run in a database that lasts, and returns the process, which has
# already deleted something. For servers with tiny batches. A run that was refused a
# process, or made way, is over before it has begun: so the round is asked for again
# as long as there is no process, and the end of the log tells if there never is.
sub slow_run
{
	my ($node, $database) = @_;
	my $pid;

	my $before = keys_left($node, $database);

	wait_until(sub {
		$pid = cleaner_pid($node, $database);
		request_round($node) unless $pid;
		return $pid && keys_left($node, $database) < $before;
	}) and return $pid;
	croak "no clean-up of $database; the log ends with\n", substr(server_log($node), -4000);
}

# The seconds that something took, at most so many: a bound that a busy machine
# keeps, and that what should not happen would exceed by far.
sub is_within
{
	my ($seconds, $action, $what) = @_;
	my $start = time;
	my $result = $action->();
	my $took = time - $start;

	Test::More::ok($result, $what);
	Test::More::note(sprintf '%s: %.2f s', $what, $took);
	Test::More::cmp_ok($took, '<', $seconds, "$what: in time");
	return;
}

# The row of one check of health(), by column names.
sub health_of
{
	my ($node, $check, $database) = @_;

	return Connection->connect($node, database => $database // 'postgres')
	  ->execute('SELECT * FROM idempotency.health() WHERE check_name = $1', $check)->row;
}

1;
